//! The lists that `lbctl get -o json` prints: the interface for programs.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use lb_common::abi::{Peer, Service};
use serde::Serialize;

use super::{API_VERSION, Entry, Fate, frontend, protocol, scope};

/// A list as `kubectl` has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// `ServiceList`, `BackendList` and so on.
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
    /// Address and port that clients dial; of a NodePort `own-node-ipv4:30080` (any address of this node),
    /// `other-nodes-ipv4:30080`, or the address of one other node.
    pub frontend: String,
    /// Id of the service port.
    pub id: u32,
    /// Index of the first record.
    pub block: u32,
    /// Number of the backends; 0 if connections fail.
    pub count: usize,
    /// Generation of the block.
    pub generation: u32,
    /// Address and port of each backend, sorted by address; empty if connections fail.
    pub backends: Vec<String>,
    /// What a connection gets.
    pub fate: Fate,
    /// What the frontend's address stands for: `any` (itself), `ownNode`, `otherNodes`, `node`.
    pub scope: &'static str,
    /// Backends with which flows of UDP that are there already may stay.
    pub kept: Vec<String>,
    /// For how many seconds a client stays with its backend; 0: not at all.
    pub affinity_seconds: u32,
    /// The clients that may connect; null: any.
    pub source_ranges: Option<Vec<String>>,
}

fn texts<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

impl<'a> From<&Entry<'a>> for ServiceItem<'a> {
    fn from(entry: &Entry<'a>) -> Self {
        let [namespace, name, port] = entry.names();
        let Service { block, generation, id, .. } = *entry.service;
        let backends = texts(entry.backends());
        Self {
            fate: entry.fate(),
            scope: scope(entry.key),
            kept: texts(entry.kept()),
            affinity_seconds: entry.affinity(),
            source_ranges: entry.source_ranges.as_ref().map(texts),
            namespace,
            name,
            port,
            protocol: protocol(entry.key.protocol),
            frontend: frontend(entry.key),
            id,
            block,
            count: backends.len(),
            generation,
            backends,
        }
    }
}

/// One backend of a service port, whatever the number of its frontends.
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
    /// Id of the endpoint as this service port's: the same in all its sets; 0: none, the maps are damaged.
    pub backend_id: u32,
    /// Index of its first record in the backends map.
    pub index: u32,
    /// Indexes of all its records: one in each set that has it.
    pub indexes: Vec<u32>,
    /// The frontends that lead to it, in the order of the entries.
    pub frontends: Vec<String>,
    /// Whether it gets no new flows at any of them, and those of UDP that are there already may stay.
    pub kept: bool,
    /// Those of the frontends at which that is so.
    pub kept_frontends: Vec<String>,
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
        for (index, record, kept) in entry.forwarding().filter(|(_, r, _)| wanted(entry, r.peer)) {
            let order = (entry.port, entry.service.id, entry.key.protocol, record.peer);
            let [namespace, name, port] = entry.names();
            let item = items.entry(order).or_insert_with(|| BackendItem {
                namespace,
                name,
                port,
                protocol: protocol(entry.key.protocol),
                address: record.peer.to_string(),
                id: entry.service.id,
                backend_id: record.backend,
                index,
                indexes: Vec::new(),
                frontends: Vec::new(),
                kept: true,
                kept_frontends: Vec::new(),
            });
            // Frontends that lead to one set share its records.
            if !item.indexes.contains(&index) {
                item.indexes.push(index);
            }
            item.frontends.push(frontend(entry.key));
            item.kept &= kept;
            if kept {
                item.kept_frontends.push(frontend(entry.key));
            }
        }
    }
    let mut items: Vec<BackendItem<'_>> = items.into_values().collect();
    for item in &mut items {
        item.indexes.sort_unstable();
        item.index = item.indexes.first().copied().unwrap_or(item.index);
    }
    List { api_version: API_VERSION, kind: "BackendList", items }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{
            entries,
            sample::{self, memory},
        },
        *,
    };

    #[test]
    fn all_that_a_frontend_and_a_backend_can_be() {
        let snapshot = sample::rich().snapshot();
        let list = serde_json::to_value(services(&entries(&snapshot))).unwrap();
        let item = |n: usize, field: &str| list["items"][n][field].clone();
        assert_eq!(item(0, "kept"), json!(["10.0.0.2:53", "10.0.0.3:53"]));
        assert_eq!(item(0, "backends"), json!(["10.0.0.1:53"]));
        assert_eq!(item(0, "affinitySeconds"), 30);
        assert_eq!((item(1, "scope"), item(2, "scope")), (json!("ownNode"), json!("otherNodes")));
        assert_eq!(item(2, "fate"), "unreachable");
        assert_eq!(item(2, "frontend"), "other-nodes-ipv4:30080");
        assert_eq!(item(3, "sourceRanges"), json!(["10.0.0.0/8", "2001:db8::/32"]));
        assert_eq!(item(4, "scope"), "node");
        let list = serde_json::to_value(backends(&entries(&snapshot), |_, _| true)).unwrap();
        assert_eq!(list["items"][1]["kept"], true);
        assert_eq!(list["items"][1]["address"], "10.0.0.2:53");
        // One item for an endpoint, however many sets it stands in.
        assert_eq!(list["items"].as_array().unwrap().len(), 4);
        let frontends = ["own-node-ipv4:30080", "10.96.0.21:80", "192.0.2.9:30080"];
        assert_eq!(list["items"][3]["frontends"], json!(frontends));
        assert_eq!(list["items"][3]["indexes"], json!([3, 4, 6]));
        assert_eq!(
            (&list["items"][3]["index"], &list["items"][3]["kept"]),
            (&json!(3), &json!(false))
        );
        assert_eq!(list["items"][1]["keptFrontends"], json!(["10.96.0.20:53"]));
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
                "fate": "forward", "scope": "any", "kept": [],
                "affinitySeconds": 0, "sourceRanges": null,
            })
        );
        assert_eq!(list["items"][4]["protocol"], "UDP");
        assert_eq!(list["items"][4]["backends"], json!([]));
        assert_eq!(list["items"][4]["count"], 0, "a record that refuses is no backend");
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
                "address": "10.0.0.9:8080", "id": 0, "backendId": 4, "index": 3, "indexes": [3],
                "frontends": ["10.96.0.10:80", "192.0.2.7:80"], "kept": false, "keptFrontends": [],
            })
        );
    }
}
