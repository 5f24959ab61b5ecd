//! A case: how a node is set up, and what its watches say, step by step.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_agent::sources::translate;
use lb_core::{model::Cidr, policy::Sender};
use serde::{Deserialize, Serialize};

use super::{outcome::Packet, program::Place};

/// What the oracle is asked, and what a failure prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Case {
    pub(crate) config: Config,
    /// Both sides are looked at after each.
    pub(crate) steps: Vec<Vec<Op>>,
}

/// The node that the clients are on. See `Config` in `xtask/oracle/main.go`; what stands here besides is a
/// flag of socklb's only.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Config {
    pub(crate) node: String,
    /// At first, see [`Op::Interfaces`].
    pub(crate) interfaces: Vec<String>,
    pub(crate) families: Vec<String>,
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) detect_local: String,
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Vec<String>,
    #[serde(rename = "clusterCIDRs")]
    pub(crate) cluster_cidrs: Vec<String>,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_nodeports: bool,
    pub(crate) external_ips: bool,
    /// Whether a port that a cluster IP lacks is refused.
    pub(crate) refuse_unknown_ports: bool,
    pub(crate) proxy_name: Option<String>,
    /// The seconds between two steps, after each of which a client comes back.
    pub(crate) pause: u64,
}

impl Config {
    /// Whether the machine has the address's family.
    pub(crate) fn has_family_of(&self, ip: IpAddr) -> bool {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        self.families.iter().any(|of| of == family)
    }

    /// Whether kube-proxy tells pods from strangers in the address's family at all.
    pub(crate) fn tells_pods(&self, ip: IpAddr) -> bool {
        self.detect_local != CLUSTER_CIDR || self.cluster_cidr(ip).is_some()
    }

    /// Whom kube-proxy takes the sender of a packet for. With `ClusterCIDR` the pods of all nodes are its
    /// own, as it says (E14).
    pub(crate) fn sender(&self, packet: &Packet) -> Sender {
        let is_pod = match packet.place {
            Place::Host => return Sender::Node,
            Place::Pod | Place::Outside if self.detect_local == CLUSTER_CIDR => {
                self.cluster_cidr(packet.source).is_some_and(|range| range.contains(packet.source))
            }
            place => place == Place::Pod,
        };
        if is_pod { Sender::Pod } else { Sender::Stranger }
    }

    fn cluster_cidr(&self, ip: IpAddr) -> Option<Cidr> {
        let mut ranges = self.cluster_cidrs.iter().map(|text| text.parse().expect("a range"));
        ranges.find(|range: &Cidr| range.addr.is_ipv4() == ip.is_ipv4())
    }
}

/// Of `--detect-local-mode`, the one that goes by `--cluster-cidr`.
pub(crate) const CLUSTER_CIDR: &str = "ClusterCIDR";

/// See `Op` in `xtask/oracle/cluster.go`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Op {
    Apply {
        object: Object,
    },
    Delete {
        object: Object,
    },
    /// The watch of a kind was lost: what it missed is in this list, or not in it.
    List {
        kind: Kind,
        objects: Vec<Object>,
    },
    /// Both sides start, or start anew, with these objects.
    Start {
        objects: Vec<Object>,
    },
    /// The interfaces of the node that the clients are on have these addresses now.
    Interfaces {
        addresses: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Kind {
    Service,
    EndpointSlice,
    Node,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<Node>),
}

/// Kind, namespace and name.
pub(crate) type Key = (Kind, String, String);

impl Object {
    pub(crate) fn key(&self) -> Key {
        let (kind, meta) = match self {
            Self::Service(service) => (Kind::Service, &service.metadata),
            Self::Slice(slice) => (Kind::EndpointSlice, &slice.metadata),
            Self::Node(node) => (Kind::Node, &node.metadata),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        (kind, text(&meta.namespace), text(&meta.name))
    }
}

impl Op {
    /// The objects that it shows.
    pub(crate) fn objects_mut(&mut self) -> &mut [Object] {
        match self {
            Self::Apply { object } | Self::Delete { object } => std::slice::from_mut(object),
            Self::List { objects, .. } | Self::Start { objects } => objects,
            Self::Interfaces { .. } => &mut [],
        }
    }

    pub(crate) fn objects(&self) -> &[Object] {
        match self {
            Self::Apply { object } | Self::Delete { object } => std::slice::from_ref(object),
            Self::List { objects, .. } | Self::Start { objects } => objects,
            Self::Interfaces { .. } => &[],
        }
    }
}

/// What slices say of an address.
pub(crate) fn endpoints_at(
    live: &BTreeMap<Key, Object>,
    ip: IpAddr,
) -> impl Iterator<Item = &Endpoint> {
    endpoints(live).filter(move |endpoint| {
        endpoint.addresses.first().is_some_and(|at| translate::address(at) == Ok(ip))
    })
}

/// The endpoints of all slices.
pub(crate) fn endpoints(live: &BTreeMap<Key, Object>) -> impl Iterator<Item = &Endpoint> {
    let slices = live.values().filter_map(|object| match object {
        Object::Slice(slice) => Some(slice),
        Object::Service(_) | Object::Node(_) => None,
    });
    slices.flat_map(|slice| slice.endpoints.iter().flatten())
}

pub(crate) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

impl Case {
    /// As a person reads it, and `--replay` too.
    pub(crate) fn yaml(&self) -> String {
        // By way of a value: an object without a field says nothing of it.
        let value = serde_json::to_value(self).expect("objects are JSON");
        serde_saphyr::to_string(&value).expect("JSON is YAML")
    }

    pub(crate) fn from_yaml(text: &str) -> Self {
        let value: serde_json::Value = serde_saphyr::from_str(text).expect("YAML");
        serde_json::from_value(value).expect("a case")
    }
}
