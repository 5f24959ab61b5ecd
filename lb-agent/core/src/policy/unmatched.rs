//! Endpoints that serve nobody, for their slices call a port otherwise than the Service.

use std::{collections::BTreeSet, fmt};

use crate::model::{Cluster, ObjectRef, Protocol};

/// Ports of slices with endpoints, and no port of their Service has the name and the protocol (B5). Ports
/// are written `http (TCP)`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unmatched {
    /// The names of the slices.
    pub slices: BTreeSet<String>,
    /// Their ports.
    pub ports: BTreeSet<String>,
    /// What the Service has.
    pub service: BTreeSet<String>,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<String>| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let Self { slices, ports, service } = self;
        write!(
            f,
            "ports of EndpointSlices that the Service has not: {} (in {}); the Service has {}",
            list(ports),
            list(slices),
            list(service)
        )
    }
}

/// Those of a Service, if it has any.
pub fn unmatched(cluster: &Cluster, name: &ObjectRef) -> Option<Unmatched> {
    let service = cluster.service(name)?;
    let has = |name: &str, protocol: Protocol| {
        service.ports.iter().any(|port| *port.name == *name && port.protocol == protocol)
    };
    let (mut slices, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for (slice_name, slice) in cluster.named_slices(name) {
        for port in slice.ports.iter().filter(|port| !has(&port.name, port.protocol)) {
            if !slice.endpoints.is_empty() {
                slices.insert(slice_name.to_owned());
                ports.insert(called(&port.name, port.protocol));
            }
        }
    }
    let service = || service.ports.iter().map(|port| called(&port.name, port.protocol)).collect();
    (!ports.is_empty()).then(|| Unmatched { slices, ports, service: service() })
}

fn called(name: &str, protocol: Protocol) -> String {
    let name = if name.is_empty() { "\"\"" } else { name };
    format!("{name} ({protocol})")
}
