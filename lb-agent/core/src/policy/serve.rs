//! From a Service to all that is to be done for it: each of its ports, in each family, as sockets of
//! this node and packets from elsewhere are to find it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    Empty, HealthCheck, NoLocal, PerFamily, Served,
    endpoints::{Candidate, Categories, Here, Policies, categorize, union},
    outside::{FrontendKind, OutsidePort},
    sets::add_sets,
};
use crate::model::{
    Cidr, Cluster, Frontend, ObjectRef, PortRef, Protocol, Scope, Service, ServicePort,
};

/// All that is to be done for a Service; nothing if it is gone or asks for nothing.
pub fn serve(cluster: &Cluster, name: &ObjectRef) -> Served {
    let mut served = Served::default();
    let Some(service) = cluster.service(name) else { return served };
    for port in &service.ports {
        // Without a cluster IP of the family, none of the Service's addresses is served (A5).
        for ip in cluster_ips(cluster, service) {
            let view = PortView::new(cluster, name, service, port, ip);
            view.count(served.no_local.of(ip.is_ipv4()));
            add_sets(&view, &mut served.local);
            served.outside.push(OutsidePort::of(&view));
        }
    }
    if service.ports.is_empty() {
        return served;
    }
    served.cluster_ips = cluster_ips(cluster, service).collect();
    if let Some(port) = service.health_check_node_port {
        let mut local = PerFamily::default();
        for ip in cluster_ips(cluster, service) {
            *local.of(ip.is_ipv4()) = Some(local_ready(cluster, name, ip.is_ipv4()));
        }
        served.health_check = Some(HealthCheck { port: port.get(), local });
    }
    served
}

/// The cluster IPs of the families that are served.
fn cluster_ips(cluster: &Cluster, service: &Service) -> impl Iterator<Item = IpAddr> {
    let families = cluster.settings().families;
    service.cluster_ips.iter().copied().filter(move |ip| families.have(*ip))
}

/// How many addresses of this node have a ready endpoint of the Service, whatever its port (K3).
fn local_ready(cluster: &Cluster, name: &ObjectRef, ipv4: bool) -> usize {
    let ports: BTreeSet<(&str, Protocol)> = cluster
        .slices(name)
        .flat_map(|slice| slice.ports.iter().map(|port| (&*port.name, port.protocol)))
        .collect();
    let all = ports.into_iter().flat_map(|port| union(cluster, name, port, ipv4));
    let local = all.filter(|known| {
        known.ready() && known.node().is_some_and(|node| cluster.is_own_node(node))
    });
    local.map(|known| known.addr.ip()).collect::<BTreeSet<_>>().len()
}

/// One port of a Service in one family, and its endpoints as this node sees them.
pub(super) struct PortView<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) service: &'a Service,
    name: &'a ObjectRef,
    port: &'a ServicePort,
    cluster_ip: IpAddr,
    /// All of them, in whatever condition; sorted.
    pub(super) endpoints: Vec<Candidate<'a>>,
    categories: Categories,
    /// Its only ways in from outside would be external addresses, and these are not served.
    is_closed: bool,
}

impl<'a> PortView<'a> {
    fn new(
        cluster: &'a Cluster,
        name: &'a ObjectRef,
        service: &'a Service,
        port: &'a ServicePort,
        cluster_ip: IpAddr,
    ) -> Self {
        let ipv4 = cluster_ip.is_ipv4();
        let endpoints = union(cluster, name, (&port.name, port.protocol), ipv4);
        let external = |ips: &[IpAddr]| ips.iter().any(|ip| ip.is_ipv4() == ipv4);
        let has_external_ip = external(&service.external_ips);
        let policies = Policies {
            internal_local: service.internal_local,
            external_local: service.external_local,
            externally_accessible: port.node_port.is_some()
                || external(&service.load_balancer_ips)
                || (has_external_ip && cluster.settings().external_ips),
        };
        let is_closed = has_external_ip && !policies.externally_accessible;
        let here = Here { node: &cluster.settings().node_name, zone: cluster.zone() };
        let categories = categorize(&endpoints, policies, here);
        Self { cluster, service, name, port, cluster_ip, endpoints, categories, is_closed }
    }

    /// Counts the port if a Local policy leaves it without endpoints here while there are some (F2).
    fn count(&self, count: &mut NoLocal) {
        let none = self.categories.local.as_ref().is_none_or(Vec::is_empty);
        if self.categories.any && none {
            count.internal += usize::from(self.service.internal_local);
            count.external += usize::from(self.service.external_local && !self.is_closed);
        }
    }

    pub(super) fn port_ref(&self) -> PortRef {
        let Self { name, port, .. } = self;
        PortRef { service: (*name).clone(), port: port.name.clone(), protocol: port.protocol }
    }

    pub(super) const fn is_ipv4(&self) -> bool {
        self.cluster_ip.is_ipv4()
    }

    /// The endpoints that the policy Cluster chooses; none if nothing uses it.
    pub(super) fn cluster_endpoints(&self) -> &[SocketAddr] {
        self.categories.cluster.as_deref().unwrap_or_default()
    }

    /// The endpoints that the policy Local chooses; none if nothing uses it.
    pub(super) fn local_endpoints(&self) -> &[SocketAddr] {
        self.categories.local.as_deref().unwrap_or_default()
    }

    /// What a set of endpoints is to do while it has none (F1, F2).
    pub(super) const fn empty(&self) -> Empty {
        if self.categories.any { Empty::Unreachable } else { Empty::Refuse }
    }

    /// What leads to the port on this node. The first to ask for a frontend has it: an address may be
    /// named in more than one field.
    pub(super) fn frontends(&self) -> Vec<(Frontend, FrontendKind)> {
        let Service { load_balancer_ips, external_ips, .. } = self.service;
        let protocol = self.port.protocol;
        let at = |ip| Frontend::new(SocketAddr::new(ip, self.port.number), protocol);
        let external_ips =
            if self.cluster.settings().external_ips { &external_ips[..] } else { &[] };
        let mut all = vec![(at(self.cluster_ip), FrontendKind::ClusterIp)];
        let mut add = |frontend: Frontend, kind| {
            if !all.iter().any(|(other, _)| *other == frontend) {
                all.push((frontend, kind));
            }
        };
        for ip in self.of_family(load_balancer_ips) {
            add(at(ip), FrontendKind::LoadBalancer);
        }
        for ip in self.of_family(external_ips) {
            add(at(ip), FrontendKind::ExternalIp);
        }
        if let Some(frontend) = self.node_port(self.unspecified(), Scope::OwnNode) {
            add(frontend, FrontendKind::NodePort);
        }
        all
    }

    /// The port's node port at an address, if it has one.
    pub(super) fn node_port(&self, ip: IpAddr, scope: Scope) -> Option<Frontend> {
        let addr = SocketAddr::new(ip, self.port.node_port?.get());
        Some(Frontend { addr, protocol: self.port.protocol, scope })
    }

    /// The unspecified address of the family.
    pub(super) const fn unspecified(&self) -> IpAddr {
        if self.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        }
    }

    fn of_family(&self, ips: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'a> {
        let ipv4 = self.is_ipv4();
        ips.iter().copied().filter(move |ip| ip.is_ipv4() == ipv4)
    }

    /// Who may connect to a load balancer's addresses (G1-G4), as ranges of which none is part of
    /// another, sorted; empty: anybody.
    pub(super) fn sources(&self) -> Vec<Cidr> {
        let ipv4 = self.is_ipv4();
        let ranges = self.service.source_ranges.iter().copied();
        let mut ranges: Vec<Cidr> = ranges.filter(|range| range.addr.is_ipv4() == ipv4).collect();
        if ranges.iter().any(|range| range.prefix == 0) {
            return Vec::new();
        }
        // Where these are addresses of the node, its connections to one come from any of them (G3).
        let primary = self.cluster.own_primary(ipv4);
        if primary.is_some_and(|primary| ranges.iter().any(|range| range.contains(primary))) {
            ranges.extend(self.of_family(&self.service.load_balancer_ips).map(Cidr::host));
        }
        // The widest of those that begin at one address comes first.
        ranges.sort_unstable();
        ranges.dedup_by(|later, first| first.contains(later.addr));
        ranges
    }

    /// UDP only: the endpoints that serve, and to which flows that are there already may stay (L2).
    /// `chosen` says which get new ones.
    pub(super) fn kept(&self, chosen: impl Fn(&SocketAddr) -> bool) -> Vec<SocketAddr> {
        if self.port.protocol != Protocol::Udp {
            return Vec::new();
        }
        let serving = self.endpoints.iter().filter(|candidate| candidate.serves());
        serving.map(|candidate| candidate.addr).filter(|addr| !chosen(addr)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Change, Conditions, Endpoint, Node, Settings, Slice, SlicePort, Trigger};

    /// K1, K3, F2: an SCTP port is not served, and counts like any other.
    #[test]
    fn a_service_with_sctp_ports_only() {
        let name = ObjectRef::new("default", "web");
        let service = Service {
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            external_local: true,
            internal_local: true,
            ports: vec![ServicePort::new("s", Protocol::Sctp, 9000)],
            health_check_node_port: 32000.try_into().ok(),
            ..Service::default()
        };
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        let slice = |node: &str| Slice {
            service: name.clone(),
            ports: vec![SlicePort { name: "s".into(), protocol: Protocol::Sctp, number: 9000 }],
            endpoints: vec![Endpoint {
                node: Some(node.into()),
                ..Endpoint::new("10.0.0.1".parse().unwrap(), conditions)
            }],
            trigger: Trigger::default(),
        };
        let settings = Settings { node_name: "self".into(), ..Settings::default() };
        let mut cluster = Cluster::new(settings);
        cluster.apply(Change::Service(name.clone(), Some(service)));
        for (node, here) in [("self", 1), ("other", 0)] {
            cluster.apply(Change::Slice(name.clone(), Some(slice(node))));
            let served = serve(&cluster, &name);
            assert!(served.local.iter().all(|set| set.port.protocol == Protocol::Sctp));
            let local = served.health_check.map(|check| (check.port, check.local.ipv4));
            assert_eq!(local, Some((32000, Some(here))), "{node}");
            let NoLocal { internal, external } = served.no_local.ipv4;
            assert_eq!((internal, external), (1 - here, 1 - here), "{node}");
        }
    }

    /// E10: an address that is not served lacks no endpoint.
    #[test]
    fn external_addresses_that_are_not_served_count_for_nothing() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let name = ObjectRef::new("default", "web");
        let port = ServicePort::new("a", Protocol::Tcp, 80);
        let of = |external_ips: &[&str], node_port: u16, serves: bool| {
            let settings =
                Settings { node_name: "self".into(), external_ips: serves, ..Settings::default() };
            let mut cluster = Cluster::new(settings);
            let service = Service {
                cluster_ips: vec![ip("10.96.0.1")],
                external_ips: external_ips.iter().map(|text| ip(text)).collect(),
                external_local: true,
                ports: vec![ServicePort { node_port: node_port.try_into().ok(), ..port.clone() }],
                ..Service::default()
            };
            let conditions = Conditions { ready: true, serving: true, terminating: false };
            let slice = Slice {
                service: name.clone(),
                ports: vec![SlicePort { name: "a".into(), protocol: Protocol::Tcp, number: 80 }],
                endpoints: vec![Endpoint {
                    node: Some("other".into()),
                    ..Endpoint::new(ip("10.0.0.1"), conditions)
                }],
                trigger: Trigger::default(),
            };
            cluster.apply(Change::Service(name.clone(), Some(service)));
            cluster.apply(Change::Slice(name.clone(), Some(slice)));
            serve(&cluster, &name).no_local.ipv4.external
        };
        let external = &["192.0.2.1"][..];
        assert_eq!((of(external, 0, true), of(external, 0, false)), (1, 0));
        assert_eq!(of(external, 30080, false), 1, "its node port lacks one");
        assert_eq!(of(&["2001:db8::1"], 0, false), 1, "as without: kube-proxy counts it");
    }

    #[test]
    fn a_node_within_the_ranges_may_come_from_any_of_the_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let name = ObjectRef::new("default", "web");
        let service = Service {
            cluster_ips: vec![ip("10.96.0.1")],
            load_balancer_ips: vec![ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")],
            source_ranges: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ports: vec![ServicePort::new("", Protocol::Tcp, 80)],
            ..Service::default()
        };
        let settings = Settings { node_name: "self".into(), ..Settings::default() };
        let mut cluster = Cluster::new(settings);
        cluster.apply(Change::Service(name.clone(), Some(service)));
        let sources = |cluster: &Cluster| -> Vec<BTreeMap<String, Vec<String>>> {
            let sets = serve(cluster, &name).local.into_iter();
            sets.map(|set| {
                let sources: Vec<_> = set.sources.iter().map(ToString::to_string).collect();
                set.frontends.iter().map(|it| (it.to_string(), sources.clone())).collect()
            })
            .collect()
        };
        let wanted = |sources: &[&str]| {
            let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
            let vips = ["192.0.2.1:80/tcp", "192.0.2.2:80/tcp"];
            [
                [("10.96.0.1:80/tcp".to_owned(), vec![])].into(),
                vips.map(|vip| (vip.to_owned(), sources.clone())).into(),
            ]
        };
        assert_eq!(sources(&cluster), wanted(&["10.0.0.0/8"]));
        let node = Node { addresses: vec![ip("10.0.0.1")], ..Node::default() };
        cluster.apply(Change::Node("self".into(), Some(node)));
        assert_eq!(sources(&cluster), wanted(&["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"]));
        cluster.apply(Change::Node("self".into(), None));
        let kept = wanted(&["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"]);
        assert_eq!(sources(&cluster), kept, "the machine is where it was");
    }
}
