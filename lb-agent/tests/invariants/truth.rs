//! What is wanted: a second opinion, whole and not incremental.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use lb_common::abi::{Action, Addr, Address, ServiceKey};
use lb_core::{
    model::{
        Change, Cidr, Endpoint, Frontend, Node, ObjectRef, PortRef, Protocol, Scope, Service,
        ServicePort, Slice,
    },
    op::AddressUse,
};

/// The node that looks at the cluster.
pub(super) const HERE: &str = "n1";

/// Where a frontend leads: whose it is, and to which addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Set {
    pub(super) port: PortRef,
    pub(super) backends: Vec<SocketAddr>,
    pub(super) kept: Vec<SocketAddr>,
    /// What happens without backends.
    pub(super) empty: Option<Action>,
    pub(super) affinity: u32,
    /// Who may connect; empty: anybody.
    pub(super) source_ranges: BTreeSet<Cidr>,
}

impl Set {
    /// Whether the records of both are the same: those say only whether there are ranges, and whether
    /// there is an affinity.
    pub(super) fn has_records_of(&self, other: &Self) -> bool {
        let Self { source_ranges, affinity, .. } = other.clone();
        self.source_ranges.is_empty() == source_ranges.is_empty()
            && (self.affinity == 0) == (affinity == 0)
            && Self { affinity, source_ranges, ..self.clone() } == *other
    }
}

pub(super) type Sets = BTreeMap<ServiceKey, Set>;

/// Services, EndpointSlices and Nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    pub(super) services: BTreeMap<ObjectRef, Service>,
    pub(super) slices: BTreeMap<ObjectRef, Slice>,
    pub(super) nodes: BTreeMap<Arc<str>, Node>,
    /// The addresses of [`HERE`] that an agent was told, and keeps when its Node says none.
    pub(super) own: Vec<IpAddr>,
}

/// Something appeared, changed or (`None`) went.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Service(ObjectRef, Option<Service>),
    Slice(ObjectRef, Option<Slice>),
    Node(Arc<str>, Option<Node>),
}

impl From<Edit> for Change {
    fn from(edit: Edit) -> Self {
        match edit {
            Edit::Service(name, service) => Self::Service(name, service),
            Edit::Slice(name, slice) => Self::Slice(name, slice),
            Edit::Node(name, node) => Self::Node(name, node),
        }
    }
}

/// Who asks for a frontend: by which right, since when, and what for.
type Claim = (bool, i64, PortRef, Kind);

/// What a frontend of a Service is.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    ClusterIp,
    LoadBalancer,
    /// An external address, or a node port that leads to all endpoints.
    External,
    /// A node port on other nodes, all or one of them.
    Others(Option<Arc<str>>),
}

impl Truth {
    pub(super) fn edit(&mut self, edit: &Edit) {
        fn put<K: Clone + Ord, T: Clone>(all: &mut BTreeMap<K, T>, name: &K, value: Option<&T>) {
            match value {
                Some(value) => all.insert(name.clone(), value.clone()),
                None => all.remove(name),
            };
        }
        match edit {
            Edit::Service(name, service) => put(&mut self.services, name, service.as_ref()),
            Edit::Slice(name, slice) => put(&mut self.slices, name, slice.as_ref()),
            Edit::Node(name, node) => put(&mut self.nodes, name, node.as_ref()),
        }
    }

    /// Of a family of which the Node says none: those that were said before.
    fn own_addresses(&self) -> Vec<IpAddr> {
        let mut own = self.nodes.get(HERE).map_or_else(Vec::new, |node| node.addresses.clone());
        let said = own.clone();
        let is_said = |ip: &&IpAddr| said.iter().any(|other| other.is_ipv4() == ip.is_ipv4());
        own.extend(self.own.iter().filter(|ip| !is_said(ip)));
        own
    }

    /// An agent was told all of this.
    pub(super) fn remember(&mut self) {
        self.own = self.own_addresses();
    }

    /// Another agent was not.
    pub(super) fn forget(&mut self) {
        self.own.clear();
    }

    /// What a Service asks for in one family, the same frontend perhaps twice.
    fn asked(&self, port: &PortRef, of: &ServicePort, ip: IpAddr) -> Vec<(Frontend, Kind)> {
        let service = &self.services[&port.service];
        let family = |other: &&IpAddr| other.is_ipv4() == ip.is_ipv4();
        let at = |ip: &IpAddr| Frontend::new(SocketAddr::new(*ip, of.number), of.protocol);
        let mut asked = vec![(at(&ip), Kind::ClusterIp)];
        let vips = service.load_balancer_ips.iter().filter(family);
        asked.extend(vips.map(|ip| (at(ip), Kind::LoadBalancer)));
        let external = service.external_ips.iter().filter(family);
        asked.extend(external.map(|ip| (at(ip), Kind::External)));
        let Some(node_port) = of.node_port else { return asked };
        let any = unspecified(ip);
        let on = |ip, scope| Frontend {
            addr: SocketAddr::new(ip, node_port.get()),
            protocol: of.protocol,
            scope,
        };
        asked.push((on(any, Scope::OwnNode), Kind::External));
        if !service.external_local {
            asked.push((on(any, Scope::OtherNodes), Kind::External));
            return asked;
        }
        asked.push((on(any, Scope::OtherNodes), Kind::Others(None)));
        for (name, node) in self.nodes.iter().filter(|(name, _)| ***name != *HERE) {
            let usable = |e: &Endpoint| {
                let c = e.conditions;
                e.node.as_ref() == Some(name) && (c.ready || c.serving && c.terminating)
            };
            if self.endpoints(port, ip.is_ipv4()).values().any(usable) {
                let others = node.addresses.iter().filter(family);
                for ip in others.filter(|ip| !self.own_addresses().contains(ip)) {
                    asked.push((on(*ip, Scope::Node), Kind::Others(Some(name.clone()))));
                }
            }
        }
        asked
    }

    /// Each frontend with all who ask for it, the one who is to have it first.
    fn claimants(&self) -> BTreeMap<Frontend, Vec<Claim>> {
        let mut claimants: BTreeMap<Frontend, Vec<Claim>> = BTreeMap::new();
        for (name, service) in &self.services {
            let mut asked = BTreeSet::new();
            for port in &service.ports {
                let of = PortRef {
                    service: name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                };
                for ip in &service.cluster_ips {
                    for (frontend, kind) in self.asked(&of, port, *ip) {
                        let foreign = frontend.scope == Scope::Any
                            && !service.cluster_ips.contains(&frontend.addr.ip());
                        if asked.insert(frontend) {
                            let claim = (foreign, service.created, of.clone(), kind);
                            claimants.entry(frontend).or_default().push(claim);
                        }
                    }
                }
            }
        }
        for queue in claimants.values_mut() {
            queue.sort();
        }
        claimants
    }

    /// Who has a frontend: a node port on one other node goes with that on all others.
    fn owner<'a>(
        claimants: &'a BTreeMap<Frontend, Vec<Claim>>,
        frontend: &Frontend,
    ) -> Vec<&'a ObjectRef> {
        let mut seats = vec![*frontend];
        if frontend.scope == Scope::Node {
            let addr = SocketAddr::new(unspecified(frontend.addr.ip()), frontend.addr.port());
            seats.push(Frontend { addr, scope: Scope::OtherNodes, ..*frontend });
        }
        seats.iter().map(|seat| &claimants[seat][0].2.service).collect()
    }

    /// The endpoints of a port in one family. Where slices disagree, one that is not on its way out
    /// counts.
    fn endpoints(&self, port: &PortRef, ipv4: bool) -> BTreeMap<SocketAddr, Endpoint> {
        let mut all: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
        for slice in self.slices.values().filter(|slice| slice.service == port.service) {
            let ports = slice.ports.iter();
            for p in ports.filter(|p| p.name == port.port && p.protocol == port.protocol) {
                for endpoint in slice.endpoints.iter().filter(|e| e.addr.is_ipv4() == ipv4) {
                    let addr = SocketAddr::new(endpoint.addr, p.number);
                    if !endpoint.conditions.terminating || !all.contains_key(&addr) {
                        all.insert(addr, endpoint.clone());
                    }
                }
            }
        }
        all
    }

    fn set(&self, port: PortRef, kind: &Kind, ipv4: bool) -> Set {
        let service = &self.services[&port.service];
        let all = self.endpoints(&port, ipv4);
        let usable = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
            let those = |state: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
                let all = all.iter().filter(|(_, e)| state(e) && wanted(e));
                all.map(|(addr, _)| *addr).collect()
            };
            let ready = those(&|e| e.conditions.ready);
            if ready.is_empty() {
                those(&|e| e.conditions.serving && e.conditions.terminating)
            } else {
                ready
            }
        };
        let on = |node: &str| usable(&|e| e.node.as_deref() == Some(node));
        let backends = match kind {
            Kind::ClusterIp if service.internal_local => on(HERE),
            Kind::ClusterIp | Kind::LoadBalancer | Kind::External => usable(&|_| true),
            Kind::Others(None) => Vec::new(),
            Kind::Others(Some(node)) => on(node),
        };
        let any = !usable(&|_| true).is_empty();
        let why = if any { Action::Unreachable } else { Action::Refuse };
        let serves = |e: &Endpoint| e.conditions.ready || e.conditions.serving;
        let mut kept: Vec<SocketAddr> =
            all.iter().filter(|(_, e)| serves(e)).map(|(addr, _)| *addr).collect();
        kept.retain(|addr| port.protocol == Protocol::Udp && !backends.contains(addr));
        Set {
            empty: backends.is_empty().then_some(why),
            kept,
            backends,
            affinity: service.affinity.map_or(0, NonZeroU32::get),
            source_ranges: if *kind == Kind::LoadBalancer {
                self.source_ranges(service, ipv4)
            } else {
                BTreeSet::new()
            },
            port,
        }
    }

    fn source_ranges(&self, service: &Service, ipv4: bool) -> BTreeSet<Cidr> {
        let ranges = service.source_ranges.iter().copied();
        let mut ranges: BTreeSet<Cidr> = ranges.filter(|r| r.addr.is_ipv4() == ipv4).collect();
        if ranges.iter().any(|range| range.prefix == 0) {
            return BTreeSet::new();
        }
        let primary = self.own_addresses().into_iter().find(|ip| ip.is_ipv4() == ipv4);
        if primary.is_some_and(|primary| ranges.iter().any(|range| range.contains(primary))) {
            let vips = service.load_balancer_ips.iter().filter(|ip| ip.is_ipv4() == ipv4);
            ranges.extend(vips.map(|ip| Cidr::host(*ip)));
        }
        // A range within another one says nothing.
        let all = ranges.clone();
        let is_within =
            |range: &Cidr, other: &Cidr| other.prefix < range.prefix && other.contains(range.addr);
        ranges.retain(|range| !all.iter().any(|other| is_within(range, other)));
        ranges
    }

    /// The frontends that a Service asks for and another one has.
    pub(super) fn lost(&self, name: &ObjectRef) -> BTreeSet<(Frontend, ObjectRef)> {
        let claimants = self.claimants();
        let asked =
            claimants.iter().filter(|(_, queue)| queue.iter().any(|c| c.2.service == *name));
        asked
            .filter_map(|(frontend, _)| {
                let mut owners = Self::owner(&claimants, frontend).into_iter();
                Some((*frontend, owners.find(|owner| *owner != name)?.clone()))
            })
            .collect()
    }

    /// What each address stands for, if the maps have these frontends.
    pub(super) fn addresses<T>(
        &self,
        there: &BTreeMap<ServiceKey, T>,
    ) -> BTreeMap<Addr, AddressUse> {
        let mut flags: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (name, node) in &self.nodes {
            for ip in node.addresses.iter().filter(|ip| !self.own_addresses().contains(ip)) {
                assert_ne!(**name, *HERE);
                flags.insert(*ip, Address::OTHER_NODE);
            }
        }
        flags.extend(self.own_addresses().iter().map(|ip| (*ip, Address::OWN_NODE)));
        let mut lacking = BTreeSet::new();
        for (key, set) in &wanted(self, &Sets::new()) {
            if !there.contains_key(key) {
                lacking.insert(set.port.service.clone());
            }
        }
        let ips = |whole: bool| {
            let services = self.services.iter().filter(|(_, service)| !service.ports.is_empty());
            services
                .filter(|(name, _)| !whole || lacking.contains(*name))
                .flat_map(|(_, service)| service.cluster_ips.clone())
                .collect::<BTreeSet<IpAddr>>()
        };
        for ip in ips(false).difference(&ips(true)) {
            let flags = flags.entry(*ip).or_default();
            // This node's own ports stay open; another node's are closed, its NodePorts among them.
            if *flags & Address::OWN_NODE == 0 {
                *flags = Address::CLUSTER_IP;
            }
        }
        flags.into_iter().map(|(ip, flags)| (ip.into(), AddressUse { flags, netns: 0 })).collect()
    }
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// What the maps should say, given what they say: the API server's last endpoints stay.
pub(super) fn wanted(truth: &Truth, now: &Sets) -> Sets {
    let mut sets = Sets::new();
    let claimants = truth.claimants();
    for (frontend, queue) in &claimants {
        let (_, _, port, kind) = queue[0].clone();
        if Truth::owner(&claimants, frontend).into_iter().any(|owner| *owner != port.service) {
            continue;
        }
        let key = ServiceKey::from(frontend);
        let mut set = truth.set(port, &kind, frontend.addr.is_ipv4());
        if set.backends.is_empty()
            && set.port.service == ObjectRef::new("default", "kubernetes")
            && let Some(known) = now.get(&key)
            && known.port == set.port
            && !known.backends.is_empty()
        {
            set = known.clone();
        }
        sets.insert(key, set);
    }
    sets
}
