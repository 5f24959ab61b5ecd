//! Ports at which endpoints serve nobody, for their slices call a port otherwise than the Service.

use std::{collections::BTreeSet, fmt};

use crate::model::{Cluster, ObjectRef, Protocol};

/// Ports of slices with endpoints, and no port of their Service has the name and the protocol (B5). Ports
/// are written `http (TCP)`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnmatchedPorts {
    /// The names of the slices.
    pub slices: BTreeSet<String>,
    /// Their ports.
    pub ports: BTreeSet<String>,
    /// What the Service has.
    pub service: BTreeSet<String>,
}

impl fmt::Display for UnmatchedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<String>| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let Self { slices, ports, service } = self;
        write!(
            f,
            "EndpointSlices have ports that the Service does not have: {} (in {}); the Service has {}",
            list(ports),
            few(slices),
            list(service)
        )
    }
}

impl UnmatchedPorts {
    /// Whether the ports are the same, in whatever slices.
    pub fn is_as(&self, other: &Self) -> bool {
        self.ports == other.ports && self.service == other.service
    }
}

/// Some of the names, and how many more there are.
fn few(names: &BTreeSet<String>) -> String {
    const SOME: usize = 5;
    let some: Vec<_> = names.iter().take(SOME).map(String::as_str).collect();
    let more = names.len().saturating_sub(SOME);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", some.join(", "))
}

/// Those of a Service, if it has any and somebody lacks endpoints for it: a slice of which no port
/// matches, or a port of the Service that no slice has. What a slice has besides is nobody's fault.
pub fn unmatched(cluster: &Cluster, name: &ObjectRef) -> Option<UnmatchedPorts> {
    let service = cluster.service(name)?;
    let has = |name: &str, protocol: Protocol| {
        service.ports.iter().any(|port| *port.name == *name && port.protocol == protocol)
    };
    let (mut slices, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let mut unserved: BTreeSet<(&str, Protocol)> =
        service.ports.iter().map(|port| (&*port.name, port.protocol)).collect();
    let mut is_lost = false;
    for (slice_name, slice) in cluster.named_slices(name) {
        if slice.endpoints.is_empty() || slice.ports.is_empty() {
            continue;
        }
        let mut matches = false;
        for port in &slice.ports {
            if has(&port.name, port.protocol) {
                matches = true;
                unserved.remove(&(&*port.name, port.protocol));
            } else {
                slices.insert(slice_name.to_owned());
                ports.insert(called(&port.name, port.protocol));
            }
        }
        is_lost |= !matches;
    }
    if !is_lost && unserved.is_empty() {
        return None;
    }
    let service = || service.ports.iter().map(|port| called(&port.name, port.protocol)).collect();
    (!ports.is_empty()).then(|| UnmatchedPorts { slices, ports, service: service() })
}

fn called(name: &str, protocol: Protocol) -> String {
    let name = if name.is_empty() { "\"\"" } else { name };
    format!("{name} ({protocol})")
}
