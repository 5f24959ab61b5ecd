//! What the random objects have in common: few names and few addresses, so that they meet.
//!
//! All that the API lets through occurs, with what older API servers let through and what files may
//! say; not what would stop kube-proxy itself, such as an endpoint whose address is none.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Node, NodeAddress, NodeStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proptest::{collection::vec, option::weighted, prelude::*, sample::select};

pub(crate) const OWN: &str = "self";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
/// Addresses of the own node's interfaces that are nobody else's.
pub(crate) const OWN_INTERFACES: [&str; 2] = ["10.0.0.100", "fd00::100"];
const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) fn text(of: &[&'static str]) -> impl Strategy<Value = String> + use<> {
    select(of.to_vec()).prop_map(str::to_owned)
}

pub(super) fn meta(namespace: &str, name: &str, labels: &[(&str, Option<String>)]) -> ObjectMeta {
    let labels: BTreeMap<_, _> = labels
        .iter()
        .filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?)))
        .collect();
    ObjectMeta {
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        name: Some(name.to_owned()),
        labels: (!labels.is_empty()).then_some(labels),
        ..ObjectMeta::default()
    }
}

/// Name and protocol of a port; few, so that Services and slices often mean the same one.
pub(super) fn port() -> impl Strategy<Value = (Option<String>, Option<String>)> {
    let ports = prop_oneof![
        20 => Just((Some("http"), Some("TCP"))),
        2 => Just((Some("http"), None)),
        14 => Just((Some("dns"), Some("UDP"))),
        2 => Just((Some("dns"), Some("TCP"))),
        1 => Just((None, None)),
        1 => Just((Some(""), Some("TCP"))),
        1 => Just((None, Some("UDP"))),
        3 => Just((Some("http"), Some("SCTP"))),
    ];
    let owned = |text: Option<&str>| text.map(str::to_owned);
    ports.prop_map(move |(name, protocol)| (owned(name), owned(protocol)))
}

prop_compose! {
    pub(crate) fn node()(
        (name, number) in prop_oneof![
            6 => Just((OWN, 1)),
            2 => Just(("b", 2)),
            1 => Just(("c", 3)),
        ],
        zone in weighted(0.8, text(&["z1", "z2", ""])),
        addresses in weighted(0.9, vec(0..5u8, 0..4)),
    ) -> Node {
        let address = |which| {
            let (type_, address) = match which {
                0 => ("InternalIP", format!("10.0.0.{number}")),
                1 => ("InternalIP", format!("fd00::{number}")),
                2 => ("ExternalIP", format!("203.0.113.{number}")),
                3 => ("Hostname", name.to_owned()),
                _ => ("InternalDNS", format!("{name}.example")),
            };
            NodeAddress { type_: type_.to_owned(), address }
        };
        let addresses = addresses.map(|which| {
            which.into_iter().collect::<BTreeSet<_>>().into_iter().map(address).collect()
        });
        Node {
            metadata: meta("", name, &[(ZONE, zone)]),
            status: Some(NodeStatus { addresses, ..NodeStatus::default() }),
            ..Node::default()
        }
    }
}
