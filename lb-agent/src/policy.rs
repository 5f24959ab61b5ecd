//! Which frontends a Service has, and which endpoints serve each of them.
//!
//! A pure function of the Service and its slices. The rules are kube-proxy's; the numbers in the
//! comments are those of `docs/kube-proxy.md`.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use crate::model::{Cluster, Conditions, Frontend, ObjectRef, PortRef, ServicePort};

/// One set of endpoints, and the frontends that lead to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendSet {
    /// The port whose set it is.
    pub port: PortRef,
    /// The addresses that clients dial; sorted.
    pub frontends: Vec<Frontend>,
    /// The addresses they get; sorted, without duplicates, of the frontends' family.
    pub backends: Vec<SocketAddr>,
    /// Other endpoints, to which UDP flows that are there already may stay: they serve (L2). Sorted.
    pub kept: Vec<SocketAddr>,
    /// What happens while there are no `backends`.
    pub empty: Empty,
    /// How long a client stays with its backend, in seconds (H2).
    pub affinity: Option<NonZeroU32>,
    /// The clients that may connect; empty: any (G).
    pub sources: Vec<Cidr>,
}

/// What a connection to a set without backends gets.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Empty {
    /// ECONNREFUSED: there are none anywhere (F1).
    #[default]
    Refuse,
    /// EHOSTUNREACH: there are some, but the traffic policy allows none of them here (F2).
    Unreachable,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cidr {
    /// Its first address.
    pub addr: IpAddr,
    /// How many bits of it count: up to 32, or 128.
    pub prefix: u8,
}

impl Cidr {
    /// Whether the address is in the range.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let bits = |addr: IpAddr, of: u8| match addr {
            IpAddr::V4(v4) => u128::from(v4.to_bits()).checked_shr(u32::from(32 - of.min(32))),
            IpAddr::V6(v6) => v6.to_bits().checked_shr(u32::from(128 - of.min(128))),
        };
        self.addr.is_ipv4() == addr.is_ipv4()
            && bits(self.addr, self.prefix) == bits(addr, self.prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl BackendSet {
    /// A set that any client may use, without affinity; refuses if there are no backends.
    pub const fn new(port: PortRef, frontends: Vec<Frontend>, backends: Vec<SocketAddr>) -> Self {
        Self {
            port,
            frontends,
            backends,
            kept: Vec::new(),
            empty: Empty::Refuse,
            affinity: None,
            sources: Vec::new(),
        }
    }
}

/// The backend sets of a Service; none if it is gone or asks for none.
pub fn backend_sets(cluster: &Cluster, name: &ObjectRef) -> Vec<BackendSet> {
    let Some(service) = cluster.service(name) else { return Vec::new() };
    let mut sets = Vec::new();
    for port in &service.ports {
        for ip in &service.cluster_ips {
            let frontend = Frontend::new(SocketAddr::new(*ip, port.number), port.protocol);
            let port_ref =
                PortRef { service: name.clone(), port: port.name.clone(), protocol: port.protocol };
            let backends = usable(&endpoints(cluster, name, port, ip.is_ipv4()));
            sets.push(BackendSet::new(port_ref, vec![frontend], backends));
        }
    }
    sets
}

/// The endpoints of a Service's port in one family: the union over its slices (B8), matched by name
/// and protocol (B5). Where slices disagree, a terminating endpoint never hides one that is not:
/// the address was given to a new pod while the old one was on its way out.
fn endpoints(
    cluster: &Cluster,
    service: &ObjectRef,
    port: &ServicePort,
    ipv4: bool,
) -> BTreeMap<SocketAddr, Conditions> {
    let mut union = BTreeMap::new();
    for slice in cluster.slices(service) {
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.protocol == port.protocol && p.name == port.name)
            .map(|p| p.number);
        for number in numbers {
            for endpoint in slice.endpoints.iter().filter(|e| e.addr.is_ipv4() == ipv4) {
                let conditions = endpoint.conditions;
                union
                    .entry(SocketAddr::new(endpoint.addr, number))
                    .and_modify(|known: &mut Conditions| {
                        if !conditions.terminating {
                            *known = conditions;
                        }
                    })
                    .or_insert(conditions);
            }
        }
    }
    union
}

/// The ready ones; if there are none, those that still serve while they terminate (D4, D10).
fn usable(endpoints: &BTreeMap<SocketAddr, Conditions>) -> Vec<SocketAddr> {
    let chosen = |wanted: fn(&Conditions) -> bool| -> Vec<SocketAddr> {
        endpoints.iter().filter(|(_, c)| wanted(c)).map(|(addr, _)| *addr).collect()
    };
    let ready = chosen(|c| c.ready);
    if ready.is_empty() { chosen(|c| c.serving && c.terminating) } else { ready }
}

/// The cluster IPs of a Service with ports: all of their other ports are refused (E12).
pub fn cluster_ips(cluster: &Cluster, name: &ObjectRef) -> Vec<IpAddr> {
    let service = cluster.service(name).filter(|service| !service.ports.is_empty());
    service.map(|service| service.cluster_ips.clone()).unwrap_or_default()
}

/// Whether the Service is the cluster's own API server, whose last endpoints are kept when it has
/// none: the agent may reach the API through the very Service it would cut off.
pub fn is_api_server(name: &ObjectRef) -> bool {
    &*name.namespace == "default" && &*name.name == "kubernetes"
}

/// Whether a connection can be made to the address at all.
pub fn is_connectable(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Endpoint, Protocol, Service, Slice, SlicePort};

    const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
    const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
    const DRAINING: Conditions = Conditions { ready: false, serving: true, terminating: true };
    const DEAD: Conditions = Conditions { ready: false, serving: false, terminating: true };

    fn name() -> ObjectRef {
        ObjectRef::new("default", "web")
    }

    fn port(name: &str, number: u16) -> ServicePort {
        ServicePort { name: name.into(), protocol: Protocol::Tcp, number }
    }

    fn slice(port: &str, number: u16, endpoints: &[(&str, Conditions)]) -> Slice {
        let endpoints = endpoints
            .iter()
            .map(|(addr, conditions)| Endpoint {
                addr: addr.parse().unwrap(),
                conditions: *conditions,
            })
            .collect();
        let ports = vec![SlicePort { name: port.into(), protocol: Protocol::Tcp, number }];
        Slice { service: name(), ports, endpoints }
    }

    fn cluster(ips: &[&str], ports: Vec<ServicePort>, slices: Vec<Slice>) -> Cluster {
        let mut cluster = Cluster::default();
        let cluster_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let service = Service { created: 0, cluster_ips, ports };
        cluster.apply(Change::Service(name(), Some(service)));
        for (i, slice) in slices.into_iter().enumerate() {
            let slice_name = ObjectRef::new("default", format!("web-{i}"));
            cluster.apply(Change::Slice(slice_name, Some(slice)));
        }
        cluster
    }

    fn backends(cluster: &Cluster) -> Vec<Vec<String>> {
        backend_sets(cluster, &name())
            .into_iter()
            .map(|set| set.backends.iter().map(ToString::to_string).collect())
            .collect()
    }

    #[test]
    fn ready_ones_else_draining_ones() {
        let of = |conditions: &[Conditions]| {
            let endpoints: Vec<_> =
                ["10.1.0.1", "10.1.0.2"].into_iter().zip(conditions.iter().copied()).collect();
            backends(&cluster(
                &["10.96.0.1"],
                vec![port("", 80)],
                vec![slice("", 8080, &endpoints)],
            ))
            .remove(0)
        };
        assert_eq!(of(&[READY, DRAINING]), ["10.1.0.1:8080"]);
        assert_eq!(of(&[UNREADY, DRAINING]), ["10.1.0.2:8080"]);
        assert_eq!(of(&[UNREADY, DEAD]), [""; 0]);
    }

    #[test]
    fn ports_match_by_name_and_may_differ_between_slices() {
        let cluster = cluster(
            &["10.96.0.1"],
            vec![port("http", 80), port("admin", 81)],
            vec![
                slice("http", 8080, &[("10.1.0.2", READY)]),
                slice("http", 9090, &[("10.1.0.1", READY)]),
                slice("other", 81, &[("10.1.0.3", READY)]),
            ],
        );
        let none: Vec<String> = vec![];
        assert_eq!(
            backends(&cluster),
            [vec!["10.1.0.1:9090".into(), "10.1.0.2:8080".into()], none]
        );
    }

    #[test]
    fn an_address_counts_once_and_a_ghost_does_not_hide_its_heir() {
        for order in [[DRAINING, READY], [READY, DRAINING]] {
            let slices = order.map(|c| slice("", 8080, &[("10.1.0.1", c)])).to_vec();
            let cluster = cluster(&["10.96.0.1"], vec![port("", 80)], slices);
            assert_eq!(backends(&cluster), [["10.1.0.1:8080"]]);
        }
    }

    #[test]
    fn families_do_not_mix() {
        let cluster = cluster(
            &["10.96.0.1", "fd00::1"],
            vec![port("", 80)],
            vec![
                slice("", 8080, &[("10.1.0.1", READY)]),
                slice("", 8080, &[("fd00:1::1", READY), ("fd00:1::2", UNREADY)]),
            ],
        );
        assert_eq!(backends(&cluster), [["10.1.0.1:8080"], ["[fd00:1::1]:8080"]]);
    }
}
