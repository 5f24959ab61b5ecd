//! Nodes in our words.

use k8s_openapi::api::core::v1::Node as KubeNode;
use lb_core::model::{Node, parse_ip};

use super::{Problem, Translated, label, names::Sort, object_ref};

/// The zone that the node is in (D11).
const ZONE: &str = "topology.kubernetes.io/zone";
/// The autoscaler is about to remove the node (K6).
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node. One without addresses counts too.
pub fn node(object: &KubeNode) -> Translated<Node> {
    let name = object_ref(&object.metadata).name;
    if let Err(problem) = Sort::Subdomain.check("metadata.name", &name, "the object is ignored") {
        return (None, vec![problem]);
    }
    let mut problems = Vec::new();
    let mut addresses = Vec::new();
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_deref());
    // Host names are for resolvers.
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, address) in listed.unwrap_or_default().iter().enumerate() {
            if address.type_ != kind {
                continue;
            }
            match parse_ip(address.address.trim()).map(|ip| ip.to_canonical()) {
                Some(ip) if !addresses.contains(&ip) => addresses.push(ip),
                Some(_) => {}
                None => problems.push(Problem::new(
                    format!("status.addresses[{i}].address"),
                    format!("{:?} is no IP address", address.address),
                    "it is ignored: correct it",
                )),
            }
        }
    }
    let zone = label(&object.metadata, ZONE).filter(|zone| !zone.is_empty()).filter(|zone| {
        let field = format!("metadata.labels[{ZONE}]");
        let checked = Sort::Value.check(&field, zone, "the node is in no zone");
        checked.map_err(|problem| problems.push(problem)).is_ok()
    });
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let leaving = object.metadata.deletion_timestamp.is_some()
        || taints.iter().any(|taint| taint.key == LEAVING);
    (Some(Node { zone: zone.map(Into::into), addresses, leaving }), problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_about_to_go_is_leaving() {
        let leaving = |meta: &str, spec: &str| {
            let text = format!(r#"{{"metadata": {{"name": "a"{meta}}}, "spec": {{{spec}}}}}"#);
            node(&serde_json::from_str(&text).unwrap()).0.unwrap().leaving
        };
        let taint =
            |key: &str| format!(r#""taints": [{{"key": "{key}", "effect": "NoSchedule"}}]"#);
        assert!(!leaving("", ""));
        assert!(!leaving("", &taint("other")));
        assert!(leaving("", &taint("ToBeDeletedByClusterAutoscaler")));
        assert!(leaving(r#", "deletionTimestamp": "2026-01-01T00:00:00Z""#, ""));
    }
}
