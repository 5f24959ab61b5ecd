//! From a Service to its backend sets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    BackendSet, Empty, HealthCheck, NoLocal, PerFamily, Served,
    endpoints::{Categories, Known, Place, Policies, by_node, categorize, union},
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
            let view = View::new(cluster, name, service, port, ip);
            view.count(served.no_local.of(ip.is_ipv4()));
            if port.protocol.is_served() {
                view.sets(&mut served.sets);
            }
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

/// One port of a Service in one family.
struct View<'a> {
    cluster: &'a Cluster,
    name: &'a ObjectRef,
    service: &'a Service,
    port: &'a ServicePort,
    cluster_ip: IpAddr,
    endpoints: Vec<Known<'a>>,
    categories: Categories,
}

impl<'a> View<'a> {
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
        let policies = Policies {
            internal_local: service.internal_local,
            external_local: service.external_local,
            externally_accessible: port.node_port.is_some()
                || external(&service.load_balancer_ips)
                || external(&service.external_ips),
        };
        let here = Place { node: &cluster.settings().node_name, zone: cluster.zone() };
        let categories = categorize(&endpoints, policies, here);
        Self { cluster, name, service, port, cluster_ip, endpoints, categories }
    }

    /// Counts the port if a Local policy leaves it without endpoints here while there are some (F2).
    fn count(&self, count: &mut NoLocal) {
        let none = self.categories.local.as_ref().is_none_or(Vec::is_empty);
        if self.categories.any && none {
            count.internal += usize::from(self.service.internal_local);
            count.external += usize::from(self.service.external_local);
        }
    }

    fn sets(&self, sets: &mut Vec<BackendSet>) {
        let mut draft = Draft { view: self, first: sets.len(), sets };
        let Categories { cluster, local, .. } = &self.categories;
        let cluster = cluster.as_deref().unwrap_or_default();
        let internal = if self.service.internal_local {
            local.as_deref().unwrap_or_default()
        } else {
            cluster
        };
        draft.add(self.frontend(self.cluster_ip), internal, Vec::new());

        // To a socket of this node, `externalTrafficPolicy: Local` means Cluster (E3, E4).
        let Service { load_balancer_ips, external_ips, .. } = self.service;
        for ip in self.of_family(load_balancer_ips) {
            draft.add(self.frontend(ip), cluster, self.sources());
        }
        if self.cluster.settings().external_ips {
            for ip in self.of_family(external_ips) {
                draft.add(self.frontend(ip), cluster, Vec::new());
            }
        }
        if let Some(port) = self.port.node_port {
            draft.node_port(port.get(), cluster);
        }
    }

    fn frontend(&self, ip: IpAddr) -> Frontend {
        Frontend::new(SocketAddr::new(ip, self.port.number), self.port.protocol)
    }

    fn of_family(&self, ips: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'a> {
        let ipv4 = self.cluster_ip.is_ipv4();
        ips.iter().copied().filter(move |ip| ip.is_ipv4() == ipv4)
    }

    /// Who may connect to a load balancer's addresses (G1-G4); empty: anybody.
    fn sources(&self) -> Vec<Cidr> {
        let ipv4 = self.cluster_ip.is_ipv4();
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
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }

    /// UDP only: where flows that are there already may stay (L2).
    fn kept(&self, backends: &[SocketAddr]) -> Vec<SocketAddr> {
        if self.port.protocol != Protocol::Udp {
            return Vec::new();
        }
        let others = self.endpoints.iter().filter(|known| known.serves()).map(|known| known.addr);
        others.filter(|addr| backends.binary_search(addr).is_err()).collect()
    }
}

/// The sets of a [`View`]. What means the same is one set.
struct Draft<'a> {
    view: &'a View<'a>,
    sets: &'a mut Vec<BackendSet>,
    /// Where the view's own begin.
    first: usize,
}

impl Draft<'_> {
    /// The first to ask for a frontend has it: an address may be named in more than one field.
    fn add(&mut self, frontend: Frontend, backends: &[SocketAddr], sources: Vec<Cidr>) {
        let mine = &mut self.sets[self.first..];
        if mine.iter().any(|set| set.frontends.contains(&frontend)) {
            return;
        }
        match mine.iter_mut().find(|set| set.backends == backends && set.sources == sources) {
            Some(set) => {
                let place = set.frontends.partition_point(|other| *other < frontend);
                set.frontends.insert(place, frontend);
            }
            None => self.push(vec![frontend], backends.to_vec(), sources),
        }
    }

    fn push(&mut self, frontends: Vec<Frontend>, backends: Vec<SocketAddr>, sources: Vec<Cidr>) {
        let view = self.view;
        let port = PortRef {
            service: view.name.clone(),
            port: view.port.name.clone(),
            protocol: view.port.protocol,
        };
        let empty = if view.categories.any { Empty::Unreachable } else { Empty::Refuse };
        self.sets.push(BackendSet {
            kept: view.kept(&backends),
            empty: if backends.is_empty() { empty } else { Empty::default() },
            affinity: view.service.affinity,
            sources,
            ..BackendSet::new(port, frontends, backends)
        });
    }

    fn node_port(&mut self, port: u16, cluster: &[SocketAddr]) {
        let any = if self.view.cluster_ip.is_ipv4() {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let frontend = |ip, scope| {
            let addr = SocketAddr::new(ip, port);
            Frontend { addr, protocol: self.view.port.protocol, scope }
        };
        self.add(frontend(any, Scope::OwnNode), cluster, Vec::new());
        if !self.view.service.external_local {
            self.add(frontend(any, Scope::OtherNodes), cluster, Vec::new());
            return;
        }
        // Another node would serve us as one that comes from outside: by its own endpoints (E5).
        self.add(frontend(any, Scope::OtherNodes), &[], Vec::new());
        let Self { view, .. } = *self;
        let common = self.sets.len();
        let mut taken = BTreeSet::new();
        for (node, backends) in by_node(&view.endpoints) {
            if view.cluster.is_own_node(node) {
                continue;
            }
            let ipv4 = view.cluster_ip.is_ipv4();
            let addresses = view.cluster.nodeport_addresses_of(node);
            // Two nodes with one address: it is the first one's.
            let mut frontends: Vec<Frontend> = addresses
                .filter(|ip| ip.is_ipv4() == ipv4 && taken.insert(*ip))
                .map(|ip| frontend(ip, Scope::Node))
                .collect();
            if frontends.is_empty() {
                continue;
            }
            frontends.sort_unstable();
            let mut mine = self.sets[self.first..common].iter_mut();
            match mine.find(|set| set.backends == backends && set.sources.is_empty()) {
                Some(set) => {
                    set.frontends.append(&mut frontends);
                    set.frontends.sort_unstable();
                }
                None => self.push(frontends, backends, Vec::new()),
            }
        }
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
            assert_eq!(served.sets, []);
            let local = served.health_check.map(|check| (check.port, check.local.ipv4));
            assert_eq!(local, Some((32000, Some(here))), "{node}");
            let NoLocal { internal, external } = served.no_local.ipv4;
            assert_eq!((internal, external), (1 - here, 1 - here), "{node}");
        }
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
            let sets = serve(cluster, &name).sets.into_iter();
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
