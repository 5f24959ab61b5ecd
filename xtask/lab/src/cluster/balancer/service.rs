//! What matters of a Service, and what is to be changed in it.

use std::{fmt, net::IpAddr};

use serde_json::{Value, json};

/// What Kubernetes' own controller of load balancers puts there.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) version: u64,
    /// It is to have addresses. Those of a class are other load balancers'.
    pub(super) is_wanted: bool,
    /// Of each family that it has, in its order: is it IPv6?
    pub(super) families: Vec<bool>,
    /// The addresses in its status.
    pub(super) told: Vec<IpAddr>,
    /// A client is to stay with its endpoint.
    pub(super) is_sticky: bool,
    has_finalizer: bool,
    health_check_node_port: Option<u16>,
}

/// What is to be changed in a Service.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    AddFinalizer,
    Status(Vec<IpAddr>),
    RemoveFinalizer,
}

impl Service {
    pub(super) fn of(object: &Value) -> Option<(Name, Self)> {
        let (metadata, spec) = (&object["metadata"], &object["spec"]);
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        let name =
            Name { namespace: text(&metadata["namespace"])?, name: text(&metadata["name"])? };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
        let is_of_a_class = spec["loadBalancerClass"].is_string();
        let goes = metadata["deletionTimestamp"].is_string();
        let port = spec["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
        let service = Self {
            version: metadata["resourceVersion"].as_str()?.parse().ok()?,
            is_wanted: spec["type"] == "LoadBalancer" && !is_of_a_class && !goes,
            families: list(&spec["ipFamilies"]).iter().map(|family| family == "IPv6").collect(),
            told: ingress.iter().filter_map(|point| point["ip"].as_str()?.parse().ok()).collect(),
            is_sticky: spec["sessionAffinity"] == "ClientIP",
            has_finalizer: !is_of_a_class
                && list(&metadata["finalizers"]).iter().any(|finalizer| finalizer == FINALIZER),
            health_check_node_port: port.filter(|port| *port > 0),
        };
        Some((name, service))
    }

    /// Where a node says whether it may get packets for this Service.
    pub(super) fn health_port(&self) -> u16 {
        self.health_check_node_port.unwrap_or(super::PROXY_HEALTH)
    }

    /// So that it has these addresses, or none if it is not to have any.
    pub(super) fn edits(&self, addresses: Vec<IpAddr>) -> Vec<Edit> {
        match (self.is_wanted, self.has_finalizer) {
            (true, false) => vec![Edit::AddFinalizer, Edit::Status(addresses)],
            (true, true) if self.told != addresses => vec![Edit::Status(addresses)],
            (false, true) if self.told.is_empty() => vec![Edit::RemoveFinalizer],
            (false, true) => vec![Edit::Status(Vec::new()), Edit::RemoveFinalizer],
            (true, true) | (false, false) => Vec::new(),
        }
    }
}

impl Edit {
    pub(super) fn patch(&self) -> Value {
        match self {
            Self::AddFinalizer => json!({ "metadata": { "finalizers": [FINALIZER] } }),
            Self::RemoveFinalizer => {
                json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": [FINALIZER] } })
            }
            Self::Status(addresses) => {
                let point = |address: &IpAddr| json!({ "ip": address, "ipMode": "VIP" });
                let ingress: Vec<_> = addresses.iter().map(point).collect();
                json!({ "status": { "loadBalancer": { "ingress": ingress } } })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(change: impl FnOnce(&mut Value)) -> Service {
        let mut object = json!({
            "metadata": { "namespace": "a", "name": "b", "resourceVersion": "7" },
            "spec": { "type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"] },
        });
        change(&mut object);
        Service::of(&object).unwrap().1
    }

    #[test]
    fn it_has_addresses_before_it_is_said_and_none_before_it_goes() {
        let address: IpAddr = "172.29.0.1".parse().unwrap();
        let finalizer = |object: &mut Value| object["metadata"]["finalizers"] = json!([FINALIZER]);
        let told = |object: &mut Value| {
            finalizer(object);
            object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "172.29.0.1" }] } });
        };
        let given = Edit::Status(vec![address]);
        assert_eq!(service(|_| ()).edits(vec![address]), [Edit::AddFinalizer, given]);
        assert_eq!(service(finalizer).edits(vec![address]), [Edit::Status(vec![address])]);
        assert_eq!(service(told).edits(vec![address]), []);
        let gone = service(|object| {
            told(object);
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
        assert!(!gone.is_wanted);
        assert_eq!(gone.edits(vec![]), [Edit::Status(vec![]), Edit::RemoveFinalizer]);
        let other = service(|object| {
            finalizer(object);
            object["spec"]["type"] = json!("NodePort");
        });
        assert_eq!(other.edits(vec![]), [Edit::RemoveFinalizer]);
    }

    #[test]
    fn a_service_of_a_class_is_left_alone() {
        let other = service(|object| {
            object["spec"]["loadBalancerClass"] = json!("example.com/internal-vip");
            object["metadata"]["finalizers"] = json!([FINALIZER]);
        });
        assert!(!other.is_wanted);
        assert_eq!(other.edits(vec![]), []);
    }

    #[test]
    fn a_local_policy_is_asked_at_its_own_port() {
        assert_eq!(service(|_| ()).health_port(), 10256);
        let local = service(|object| object["spec"]["healthCheckNodePort"] = json!(30000));
        assert_eq!(local.health_port(), 30000);
        let cluster = service(|object| object["spec"]["healthCheckNodePort"] = json!(0));
        assert_eq!(cluster.health_port(), 10256);
    }
}
