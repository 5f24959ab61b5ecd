//! One port of a Service in one family: its frontends, and its endpoints by either traffic policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    Empty, NoLocal,
    endpoints::{Candidate, Categories, Here, Policies, categorize, union},
};
use crate::model::{
    Cidr, Cluster, Frontend, ObjectRef, PortRef, Protocol, Scope, Service, ServicePort,
};

/// Which field of a Service a frontend is from.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum FrontendKind {
    /// `clusterIPs`. Packets from outside reach it only where somebody routes the range of cluster IPs
    /// to a node.
    ClusterIp,
    /// `status.loadBalancer`: the only ones with source ranges (G1).
    LoadBalancer,
    /// `externalIPs`.
    ExternalIp,
    /// `nodePort`.
    NodePort,
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
    pub(super) fn new(
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
        let here = Here { node: &cluster.settings().node_name, zone: cluster.nodes().zone() };
        let categories = categorize(&endpoints, policies, here);
        Self { cluster, service, name, port, cluster_ip, endpoints, categories, is_closed }
    }

    /// Counts the port if a Local policy leaves it without endpoints here while there are some (F2).
    pub(super) fn count(&self, count: &mut NoLocal) {
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
    pub(super) fn source_ranges(&self) -> Vec<Cidr> {
        let ipv4 = self.is_ipv4();
        let ranges = self.service.source_ranges.iter().copied();
        let mut ranges: Vec<Cidr> = ranges.filter(|range| range.addr.is_ipv4() == ipv4).collect();
        if ranges.iter().any(|range| range.prefix == 0) {
            return Vec::new();
        }
        // Where these are addresses of the node, its connections to one come from any of them (G3).
        let primary = self.cluster.nodes().own_primary(ipv4);
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

    /// TCP only: the endpoints, ready or not, that get no new connections. `chosen` says which do.
    pub(super) fn others(&self, chosen: impl Fn(&SocketAddr) -> bool) -> Vec<SocketAddr> {
        if self.port.protocol != Protocol::Tcp {
            return Vec::new();
        }
        let all = self.endpoints.iter().map(|candidate| candidate.addr);
        all.filter(|addr| !chosen(addr)).collect()
    }
}
