//! Which frontends a Service has, and which endpoints serve each of them.
//!
//! A pure function of the Service, its slices and the nodes. The rules are kube-proxy's; the numbers
//! in the comments are those of `docs/kube-proxy.md`.

mod endpoints;
mod outside;
mod port_view;
mod serve;
mod sets;
mod unmatched;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

pub use self::{
    outside::{OutsideFrontend, OutsidePort, PacketVerdict, Route, Sender, TrafficPolicy},
    port_view::FrontendKind,
    serve::serve,
    unmatched::{UnmatchedPorts, unmatched},
};
use crate::model::{Cidr, Cluster, Frontend, ObjectRef, PortRef};

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
    pub source_ranges: Vec<Cidr>,
}

/// What a connection, or a packet, to a set without endpoints gets.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Empty {
    /// ECONNREFUSED: there are none anywhere (F1). A packet is rejected.
    #[default]
    Refuse,
    /// EHOSTUNREACH: there are some, but the traffic policy allows none of them here (F2). A packet is
    /// dropped.
    Unreachable,
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
            source_ranges: Vec::new(),
        }
    }
}

/// What is to be done for a Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Served {
    /// What the sockets of this node get. No two sets of a port and family mean the same, and no
    /// frontend is in two. Of every protocol: who serves sockets leaves out those that it cannot.
    pub local: Vec<BackendSet>,
    /// What packets get that no socket's translation has changed: those from elsewhere. One for each
    /// port and family, by the same choice of endpoints.
    pub outside: Vec<OutsidePort>,
    /// Its cluster IPs, if it has a port: at any other port of theirs, nobody is there (E12).
    pub cluster_ips: Vec<IpAddr>,
    /// What its health check node port is to say.
    pub health_check: Option<HealthCheck>,
    /// Its ports that have endpoints, but by a Local policy none for this node (F2).
    pub no_local: PerFamily<NoLocal>,
}

/// What a health check node port says (K1-K3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// The port to listen on.
    pub port: u16,
    /// How many ready endpoints this node has; none in a family in which the Service is not served.
    pub local: PerFamily<Option<usize>>,
}

/// Ports without an endpoint that their traffic policy allows here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NoLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`, for clients from outside.
    pub external: usize,
}

/// One thing for IPv4 and one for IPv6.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PerFamily<T> {
    /// For IPv4.
    pub ipv4: T,
    /// For IPv6.
    pub ipv6: T,
}

impl<T> PerFamily<T> {
    /// The one of a family.
    pub const fn get(&self, ipv4: bool) -> &T {
        if ipv4 { &self.ipv4 } else { &self.ipv6 }
    }

    const fn of(&mut self, ipv4: bool) -> &mut T {
        if ipv4 { &mut self.ipv4 } else { &mut self.ipv6 }
    }
}

/// Whether a flow to this endpoint of the port may go on: the port is still there, and the endpoint
/// serves, be it on its way out (L2).
pub fn serves(cluster: &Cluster, port: &PortRef, addr: SocketAddr) -> bool {
    let is_there = cluster.settings().families.have(addr.ip())
        && cluster.service(&port.service).is_some_and(|service| {
            let ports = &mut service.ports.iter();
            ports.any(|p| p.name == port.port && p.protocol == port.protocol)
                && service.cluster_ips.iter().any(|ip| ip.is_ipv4() == addr.is_ipv4())
        });
    is_there && endpoints::find(cluster, port, addr).is_some_and(|candidate| candidate.serves())
}

/// Whether a slice names this endpoint of the port, in whatever condition.
pub fn knows(cluster: &Cluster, port: &PortRef, addr: SocketAddr) -> bool {
    endpoints::find(cluster, port, addr).is_some()
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
    use crate::model::{
        Change, Conditions, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort, Trigger,
    };

    const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
    const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
    const DRAINING: Conditions = Conditions { ready: false, serving: true, terminating: true };
    const DEAD: Conditions = Conditions { ready: false, serving: false, terminating: true };

    fn name() -> ObjectRef {
        ObjectRef::new("default", "web")
    }

    fn port(name: &str, number: u16) -> ServicePort {
        ServicePort::new(name, Protocol::Tcp, number)
    }

    fn slice(port: &str, number: u16, endpoints: &[(&str, Conditions)]) -> Slice {
        let endpoints = endpoints
            .iter()
            .map(|(addr, conditions)| Endpoint::new(addr.parse().unwrap(), *conditions))
            .collect();
        let ports = vec![SlicePort { name: port.into(), protocol: Protocol::Tcp, number }];
        Slice { service: name(), ports, endpoints, trigger: Trigger::default() }
    }

    fn cluster(ips: &[&str], ports: Vec<ServicePort>, slices: Vec<Slice>) -> Cluster {
        let mut cluster = Cluster::default();
        let cluster_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let service = Service { cluster_ips, ports, ..Service::default() };
        cluster.apply(Change::Service(name(), Some(service)));
        for (i, slice) in slices.into_iter().enumerate() {
            let slice_name = ObjectRef::new("default", format!("web-{i}"));
            cluster.apply(Change::Slice(slice_name, Some(slice)));
        }
        cluster
    }

    fn backends(cluster: &Cluster) -> Vec<Vec<String>> {
        serve(cluster, &name())
            .local
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
