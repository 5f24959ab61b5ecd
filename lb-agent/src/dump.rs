//! What the maps say, for people and for programs: one text, one JSON, shared by `lbctl` and the
//! golden tests.
//!
//! Everything here is a pure function of a [`Snapshot`], and its order depends on nothing else.
//! The JSON is an interface: fields are added, never renamed; another [`API_VERSION`] would be
//! another schema.

#[cfg(test)]
pub(crate) mod sample;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use lb_common::abi::{Action, Backend, Peer, Service, ServiceKey};
use serde::Serialize;

use crate::{
    maps::KeyText,
    maps::Snapshot,
    model::{PortRef, Protocol},
};

/// Names the schema of all JSON that `lbctl` prints.
pub const API_VERSION: &str = "socklb/v1";

/// One frontend, with all that the maps say of it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The service port it belongs to; none if the maps are damaged.
    pub port: Option<&'a PortRef>,
    /// The frontend.
    pub key: &'a ServiceKey,
    /// Where its records are.
    pub service: &'a Service,
    /// Its records; fewer than `service.count` only if the maps are damaged.
    pub records: &'a [Backend],
}

impl<'a> Entry<'a> {
    /// Namespace, name and port; empty if they are not known.
    pub fn names(&self) -> [&'a str; 3] {
        names(self.port)
    }

    /// The addresses that a connection may get, sorted; none if it is refused.
    pub fn backends(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.forwarding().map(|(_, record)| record.peer).collect();
        peers.sort_unstable();
        peers
    }

    /// The records that lead somewhere, each with its index in the backends map.
    pub fn forwarding(&self) -> impl Iterator<Item = (u32, &Backend)> {
        (self.service.block..)
            .zip(self.records)
            .filter(|(_, record)| record.action() == Action::Forward)
    }

    /// Whether the records are not the set that the frontend names. An agent never leaves that.
    pub fn is_damaged(&self) -> bool {
        self.service.count == 0
            || u32::try_from(self.records.len()) != Ok(self.service.records())
            || self.records.iter().any(|record| record.generation != self.service.generation)
    }
}

/// Namespace, name and port; empty if they are not known.
pub fn names(port: Option<&PortRef>) -> [&str; 3] {
    port.map_or([""; 3], |port| [&port.service.namespace, &port.service.name, &port.port])
}

/// The frontends, sorted by namespace, name, port and address.
pub fn entries(snapshot: &Snapshot) -> Vec<Entry<'_>> {
    let mut entries: Vec<_> = snapshot
        .services
        .iter()
        .map(|(key, service)| Entry {
            port: snapshot.names.get(&service.id),
            key,
            service,
            records: snapshot.blocks.get(&service.block).map_or(&[], |records| {
                let count = usize::try_from(service.records()).unwrap_or(usize::MAX);
                &records[..count.min(records.len())]
            }),
        })
        .collect();
    entries.sort_by_key(|entry| (entry.port, entry.key));
    entries
}

/// The maps without what is of no meaning (blocks, generations), one frontend to a line:
/// `default/web:http 10.96.0.10:80/tcp id=0 -> 10.0.0.1:8080 10.0.0.2:8080`, or `-> refuse`.
pub fn text(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for entry in entries(snapshot) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{entry}");
    }
    text
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => port.fmt(f)?,
            None => f.write_str("<unknown>")?,
        }
        write!(f, " {} id={} ->", KeyText(self.key), self.service.id)?;
        if self.is_damaged() {
            return f.write_str(" damaged");
        }
        let backends = self.backends();
        if backends.is_empty() {
            f.write_str(" refuse")?;
        }
        for backend in backends {
            write!(f, " {backend}")?;
        }
        Ok(())
    }
}

/// A list as `kubectl` has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// `ServiceList` or `BackendList`.
    pub kind: &'static str,
    /// What is in it.
    pub items: Vec<T>,
}

/// One frontend.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceItem<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Name of the Service.
    pub name: &'a str,
    /// Name of its port; may be empty.
    pub port: &'a str,
    /// `TCP` or `UDP`.
    pub protocol: Cow<'static, str>,
    /// Address and port that clients dial.
    pub frontend: String,
    /// Id of the service port.
    pub id: u32,
    /// Index of the first record.
    pub block: u32,
    /// Number of records: those of the backends, or 1 that refuses.
    pub count: u32,
    /// Generation of the block.
    pub generation: u32,
    /// Address and port of each backend, sorted by address; empty if connections are refused.
    pub backends: Vec<String>,
}

impl<'a> From<&Entry<'a>> for ServiceItem<'a> {
    fn from(entry: &Entry<'a>) -> Self {
        let [namespace, name, port] = entry.names();
        let Service { block, count, kept: _, generation, id } = *entry.service;
        Self {
            namespace,
            name,
            port,
            protocol: protocol(entry.key.protocol),
            frontend: entry.key.peer.to_string(),
            id,
            block,
            count,
            generation,
            backends: entry.backends().iter().map(ToString::to_string).collect(),
        }
    }
}

/// One backend of a service port. A backend that stands in several sets of the port (one for each
/// group of frontends) is an item in each.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendItem<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Name of the Service.
    pub name: &'a str,
    /// Name of its port; may be empty.
    pub port: &'a str,
    /// `TCP` or `UDP`.
    pub protocol: Cow<'static, str>,
    /// Address and port of the backend.
    pub address: String,
    /// Id of the service port.
    pub id: u32,
    /// Index of its record in the backends map.
    pub index: u32,
    /// The frontends that lead to it, sorted.
    pub frontends: Vec<String>,
}

/// `kind: ServiceList`.
pub fn services<'a>(entries: &[Entry<'a>]) -> List<ServiceItem<'a>> {
    let items = entries.iter().map(ServiceItem::from).collect();
    List { api_version: API_VERSION, kind: "ServiceList", items }
}

/// `kind: BackendList`, of those backends that `wanted` says, given a frontend and a backend of it.
pub fn backends<'a>(
    entries: &[Entry<'a>],
    wanted: impl Fn(&Entry<'_>, Peer) -> bool,
) -> List<BackendItem<'a>> {
    let mut items = BTreeMap::new();
    for entry in entries {
        for (index, record) in entry.forwarding().filter(|(_, r)| wanted(entry, r.peer)) {
            let order = (entry.port, entry.key.protocol, record.peer, index);
            let [namespace, name, port] = entry.names();
            let item = items.entry(order).or_insert_with(|| BackendItem {
                namespace,
                name,
                port,
                protocol: protocol(entry.key.protocol),
                address: record.peer.to_string(),
                id: entry.service.id,
                index,
                frontends: Vec::new(),
            });
            item.frontends.push(entry.key.peer.to_string());
        }
    }
    List { api_version: API_VERSION, kind: "BackendList", items: items.into_values().collect() }
}

/// A protocol as Kubernetes writes it, or its number.
pub fn protocol(number: u8) -> Cow<'static, str> {
    Protocol::from_number(number)
        .map_or_else(|| number.to_string().into(), |known| known.name().into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        dump::sample::memory,
        maps::{Op, Store as _},
    };

    #[test]
    fn text_is_sorted_by_name_and_has_no_volatile_numbers() {
        assert_eq!(
            text(&memory().snapshot()),
            "default/db 10.96.0.9:5432/tcp id=1 -> 10.0.0.1:5432\n\
             default/web:http 10.96.0.10:80/tcp id=0 -> 10.0.0.9:8080 10.0.0.10:8080\n\
             default/web:http 192.0.2.7:80/tcp id=0 -> 10.0.0.9:8080 10.0.0.10:8080\n\
             default/web:http [fd00::a]:80/tcp id=0 -> [fd01::1]:8080\n\
             kube-system/kube-dns:dns 10.96.0.2:53/udp id=3 -> refuse\n"
        );
        assert_eq!(text(&Snapshot::default()), "");
    }

    #[test]
    fn damage_is_shown_not_hidden() {
        let mut memory = memory();
        memory.apply(&Op::DeleteName { id: 1 }).unwrap();
        let records = vec![Backend::refuse().stamped(1, 3)];
        memory.apply(&Op::WriteBlock { block: 9, records }).unwrap();
        let text = text(&memory.snapshot());
        assert!(text.starts_with("<unknown> 10.96.0.9:5432/tcp id=1 -> 10.0.0.1:5432\n"), "{text}");
        assert!(text.ends_with("kube-dns:dns 10.96.0.2:53/udp id=3 -> damaged\n"), "{text}");
    }

    #[test]
    fn the_schema_of_services() {
        let snapshot = memory().snapshot();
        let list = serde_json::to_value(services(&entries(&snapshot))).unwrap();
        assert_eq!(list["apiVersion"], "socklb/v1");
        assert_eq!(list["kind"], "ServiceList");
        assert_eq!(list["items"].as_array().unwrap().len(), 5);
        assert_eq!(
            list["items"][1],
            json!({
                "namespace": "default", "name": "web", "port": "http", "protocol": "TCP",
                "frontend": "10.96.0.10:80", "id": 0, "block": 2, "count": 2, "generation": 102,
                "backends": ["10.0.0.9:8080", "10.0.0.10:8080"],
            })
        );
        assert_eq!(list["items"][4]["protocol"], "UDP");
        assert_eq!(list["items"][4]["backends"], json!([]));
    }

    #[test]
    fn the_schema_of_backends() {
        let snapshot = memory().snapshot();
        let list = serde_json::to_value(backends(&entries(&snapshot), |_, _| true)).unwrap();
        assert_eq!(list["apiVersion"], "socklb/v1");
        assert_eq!(list["kind"], "BackendList");
        assert_eq!(list["items"].as_array().unwrap().len(), 4, "a set that refuses has none");
        assert_eq!(
            list["items"][1],
            json!({
                "namespace": "default", "name": "web", "port": "http", "protocol": "TCP",
                "address": "10.0.0.9:8080", "id": 0, "index": 3,
                "frontends": ["10.96.0.10:80", "192.0.2.7:80"],
            })
        );
    }
}
