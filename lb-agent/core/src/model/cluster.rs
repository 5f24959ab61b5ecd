//! The index of all that the sources have said: which Services does a change touch?
//!
//! A change touches its own Service only, and nothing at all if it says what was known already. What
//! this node is (its zone, its addresses) touches all of them; what another node is, those that lead
//! to each node's own endpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    sync::Arc,
};

use super::{
    Change, Families, Hints, Node, NodeAddr, ObjectRef, Service, Settings, Slice,
    shared::Shared,
    trigger::{Trigger, Triggers},
};

/// All Services, EndpointSlices and Nodes, by name and by Service.
#[derive(Debug, Default)]
pub struct Cluster {
    settings: Settings,
    services: BTreeMap<ObjectRef, Service>,
    /// By Service, then by name of the slice: the order in which endpoints are united. One map, not
    /// one for each Service, which would have room for eleven slices where there is one.
    slices: BTreeMap<(ObjectRef, Arc<str>), Slice>,
    /// The Service under which each slice stands in `slices`: its label may change.
    filed: HashMap<ObjectRef, ObjectRef>,
    nodes: BTreeMap<Arc<str>, Node>,
    /// Of this node. Outlives its Node object (D11).
    zone: Option<Arc<str>>,
    /// Of this node, as its status said last; outlive it too (J2).
    own: Vec<IpAddr>,
    local: BTreeSet<IpAddr>,
    /// The Services whose frontends depend on the other nodes' addresses.
    by_node: BTreeSet<ObjectRef>,
    /// The Services that are not for all clients.
    with_ranges: BTreeSet<ObjectRef>,
    guarded_revision: u64,
    /// The Services whose clients stay with their backends.
    with_affinity: BTreeSet<ObjectRef>,
    addresses_revision: u64,
    triggers: Triggers,
    /// The nodes that endpoints name.
    node_names: Shared<str>,
    hints: Shared<Hints>,
    listed: Listed,
    without_nodes: bool,
}

/// The Services that depend on what changed about a node.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Affected {
    None,
    /// Those that lead to each node's own endpoints.
    ByNode,
    All,
}

/// Which lists are known whole.
#[derive(Debug, Default)]
struct Listed {
    services: bool,
    slices: bool,
    nodes: bool,
}

impl Cluster {
    /// An empty cluster, seen from the node that the settings name.
    pub fn new(settings: Settings) -> Self {
        let triggers = Triggers::after(settings.started);
        Self { settings, triggers, ..Self::default() }
    }

    /// Takes a change in; returns the Services for which something is different now.
    pub fn apply(&mut self, change: Change) -> BTreeSet<ObjectRef> {
        let mut touched = BTreeSet::new();
        match change {
            Change::Service(name, service) => self.put_service(name, service, &mut touched),
            Change::Slice(name, slice) => self.put_slice(name, slice, &mut touched),
            Change::Node(name, node) => {
                let affected = self.put_node(name, node);
                self.touch(affected, &mut touched);
            }
            Change::ListedServices(mut listed) => {
                for name in gone(self.services.keys(), &listed) {
                    self.put_service(name, None, &mut touched);
                }
                while let Some((name, service)) = listed.pop_first() {
                    self.put_service(name, Some(service), &mut touched);
                }
                self.listed.services = true;
            }
            Change::ListedSlices(mut listed) => {
                for name in gone(self.filed.keys(), &listed) {
                    self.put_slice(name, None, &mut touched);
                }
                while let Some((name, slice)) = listed.pop_first() {
                    self.put_slice(name, Some(slice), &mut touched);
                }
                self.listed.slices = true;
            }
            Change::ListedNodes(mut listed) => {
                let mut affected = Affected::None;
                for name in gone(self.nodes.keys(), &listed) {
                    affected = affected.max(self.put_node(name, None));
                }
                while let Some((name, node)) = listed.pop_first() {
                    affected = affected.max(self.put_node(name, Some(node)));
                }
                self.touch(affected, &mut touched);
                self.listed.nodes = true;
            }
            Change::LocalAddresses(addresses) => self.put_local(addresses, &mut touched),
        }
        touched
    }

    fn put_service(
        &mut self,
        name: ObjectRef,
        service: Option<Service>,
        touched: &mut BTreeSet<ObjectRef>,
    ) {
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        file(&mut self.by_node, &name, service.as_ref().is_some_and(depends_on_nodes));
        let guards = |service: &Service| !service.source_ranges.is_empty();
        if file(&mut self.with_ranges, &name, service.as_ref().is_some_and(guards)) {
            self.guarded_revision += 1;
        }
        let binds = |service: &Service| service.affinity.is_some();
        file(&mut self.with_affinity, &name, service.as_ref().is_some_and(binds));
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        touched.insert(name);
    }

    fn put_slice(
        &mut self,
        name: ObjectRef,
        slice: Option<Slice>,
        touched: &mut BTreeSet<ObjectRef>,
    ) {
        let before = self.filed.get(&name).map(|service| (service.clone(), name.name.clone()));
        let known = before.as_ref().and_then(|place| self.slices.get(place));
        if known == slice.as_ref() {
            return;
        }
        if let Some(place) = before {
            let known = self.slices.remove(&place);
            if let Some(known) = known.filter(|_| slice.is_none()) {
                self.triggers.gone(&place.0, known.trigger.ipv6);
            }
            self.filed.remove(&name);
            touched.insert(place.0);
        }
        if let Some(mut slice) = slice {
            for endpoint in &mut slice.endpoints {
                if let Some(node) = &mut endpoint.node {
                    self.node_names.share(node);
                }
                if let Some(hints) = &mut endpoint.hints {
                    self.hints.share(hints);
                }
            }
            let service = slice.service.clone();
            self.triggers.changed(&service, slice.trigger);
            self.filed.insert(name.clone(), service.clone());
            self.slices.insert((service.clone(), name.name), slice);
            touched.insert(service);
        }
    }

    fn put_node(&mut self, name: Arc<str>, node: Option<Node>) -> Affected {
        let before = self.nodes.get(&name);
        if before == node.as_ref() {
            return Affected::None;
        }
        let addresses = |node: Option<&Node>| node.map(|n| n.addresses.clone()).unwrap_or_default();
        let is_own = self.is_own_node(&name);
        let moved = if is_own {
            let own = kept(&self.own, &addresses(node.as_ref()));
            own != std::mem::replace(&mut self.own, own.clone())
        } else {
            addresses(before) != addresses(node.as_ref())
        };
        if moved {
            self.addresses_revision += 1;
        }
        let affected = if is_own {
            // A Node that is deleted takes its zone along only when a new one says so (D11).
            let zone = node.as_ref().map_or_else(|| self.zone.clone(), |node| node.zone.clone());
            let all = moved || zone != self.zone;
            self.zone = zone;
            if all { Affected::All } else { Affected::None }
        } else if moved {
            Affected::ByNode
        } else {
            Affected::None
        };
        match node {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
        affected
    }

    fn touch(&self, affected: Affected, touched: &mut BTreeSet<ObjectRef>) {
        match affected {
            Affected::None => {}
            Affected::ByNode => touched.extend(self.by_node.iter().cloned()),
            Affected::All => touched.extend(self.services.keys().cloned()),
        }
    }

    fn put_local(&mut self, addresses: BTreeSet<IpAddr>, touched: &mut BTreeSet<ObjectRef>) {
        let changed: BTreeSet<_> = self.local.symmetric_difference(&addresses).collect();
        if changed.is_empty() {
            return;
        }
        self.addresses_revision += 1;
        // An address that another node has too is no longer that node's, or is again.
        let mut others = self.nodes.values().flat_map(|node| &node.addresses);
        if others.any(|ip| changed.contains(ip)) {
            self.touch(Affected::ByNode, touched);
        }
        self.local = addresses;
    }

    /// What made the slices change that were taken in since the last time, as far as it happened
    /// after the start and is known.
    pub fn take_triggers(&mut self) -> Vec<Trigger> {
        self.triggers.take()
    }

    /// Whether all lists are known whole. Before that, nothing may be written (kube-proxy M1, and the
    /// Nodes besides).
    pub const fn complete(&self) -> bool {
        let Listed { services, slices, nodes } = self.listed;
        services && slices && (nodes || self.without_nodes)
    }

    /// The kinds whose lists are missing.
    pub fn lacking(&self) -> Vec<&'static str> {
        let Listed { services, slices, nodes } = self.listed;
        let all = [("Services", services), ("EndpointSlices", slices), ("Nodes", nodes)];
        all.into_iter().filter(|(_, listed)| !listed).map(|(kind, _)| kind).collect()
    }

    /// Whether only the list of Nodes is missing.
    pub const fn lacks_only_nodes(&self) -> bool {
        self.listed.services && self.listed.slices && !self.complete()
    }

    /// The Nodes cannot be had, and the Services shall not wait for them any longer (J1). Until they
    /// are listed after all, no zone is known and no other node has an address.
    pub const fn go_on_without_nodes(&mut self) {
        self.without_nodes = true;
    }

    /// What was set.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectRef> {
        self.services.keys()
    }

    /// A Service.
    pub fn service(&self, name: &ObjectRef) -> Option<&Service> {
        self.services.get(name)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices<'a>(&'a self, service: &'a ObjectRef) -> impl Iterator<Item = &'a Slice> {
        self.named_slices(service).map(|(_, slice)| slice)
    }

    /// The same with their names.
    pub fn named_slices<'a>(
        &'a self,
        service: &'a ObjectRef,
    ) -> impl Iterator<Item = (&'a str, &'a Slice)> {
        let first = (service.clone(), Arc::default());
        let rest = self.slices.range(first..);
        let own = rest.take_while(move |((of, _), _)| of == service);
        own.map(|((_, name), slice)| (&**name, slice))
    }

    /// Whether that is this node's name (B7).
    pub fn is_own_node(&self, name: &str) -> bool {
        !name.is_empty() && *self.settings.node_name == *name
    }

    /// This node's Node, as long as there is one.
    pub fn own_node(&self) -> Option<&Node> {
        self.nodes.get(&self.settings.node_name).filter(|_| !self.settings.node_name.is_empty())
    }

    /// This node's address of a family (J2).
    pub fn own_primary(&self, ipv4: bool) -> Option<IpAddr> {
        self.own.iter().copied().find(|ip| ip.is_ipv4() == ipv4)
    }

    /// Whether any Service is not for all clients (G).
    pub fn has_source_ranges(&self) -> bool {
        !self.with_ranges.is_empty()
    }

    /// The addresses of load balancers that are not for all clients, as far as they have any.
    pub fn guarded(&self) -> BTreeSet<IpAddr> {
        let services = self.with_ranges.iter().filter_map(|name| self.service(name));
        services.flat_map(|service| &service.load_balancer_ips).copied().collect()
    }

    /// Another number whenever [`Cluster::guarded`] may be different.
    pub const fn guarded_revision(&self) -> u64 {
        self.guarded_revision
    }

    /// The Services whose clients stay with their backends, and for how many seconds (H2).
    pub fn with_affinity(&self) -> impl Iterator<Item = (&ObjectRef, NonZeroU32)> {
        let services = self.with_affinity.iter();
        services.filter_map(|name| Some((name, self.service(name)?.affinity?)))
    }

    /// The families that are served.
    pub const fn families(&self) -> Families {
        self.settings.families
    }

    /// Where health check node ports listen (K1): on all addresses of a family, or on those of this
    /// machine's that `--nodeport-addresses` names, be they loopback ones.
    pub fn health_addresses(&self) -> BTreeSet<IpAddr> {
        let Settings { nodeport_addresses: list, families, .. } = &self.settings;
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        // Nobody can listen on an address of all links without saying on which.
        let is_of_link = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let named = self.local.iter().copied().filter(|ip| {
            let is_named = list.include(*ip, self.own_primary(ip.is_ipv4()));
            is_named && !list.are_all(ip.is_ipv4()) && !is_of_link(*ip)
        });
        let all = any.into_iter().filter(|ip| list.are_all(ip.is_ipv4()));
        all.chain(named).filter(|ip| families.have(*ip)).collect()
    }

    /// This node's zone (D11).
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The node addresses at which NodePorts are served, and what each is to this node (I1-I4, E5).
    pub fn node_addresses(&self) -> BTreeMap<IpAddr, NodeAddr> {
        let Settings { nodeport_addresses, localhost_nodeports, families, .. } = &self.settings;
        let mut all = BTreeMap::new();
        for name in self.nodes.keys().filter(|name| !self.is_own_node(name)) {
            all.extend(self.nodeport_addresses_of(name).map(|ip| (ip, NodeAddr::Other)));
        }
        for ip in self.local.iter().chain(&self.own).copied() {
            let primary = self.own_primary(ip.is_ipv4());
            if self.serves_at(ip) && nodeport_addresses.include(ip, primary) {
                all.insert(ip, NodeAddr::Own);
            }
        }
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            // "Primary" says which of the addresses that others can see.
            if *localhost_nodeports && families.have(ip) && nodeport_addresses.include(ip, Some(ip))
            {
                all.insert(ip, NodeAddr::OwnLoopback);
            }
        }
        all
    }

    /// All addresses of this machine, by its interfaces and its status.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.local.iter().chain(&self.own).copied().collect()
    }

    /// Whether NodePorts are served at all of `127.0.0.0/8`, and not only at 127.0.0.1 (I4).
    pub fn serves_loopback_net(&self) -> bool {
        let Settings { nodeport_addresses, localhost_nodeports, families, .. } = &self.settings;
        *localhost_nodeports && families.ipv4 && nodeport_addresses.include_loopback_net()
    }

    /// Another number whenever [`Cluster::node_addresses`] or [`Cluster::own_addresses`] may be
    /// different.
    pub const fn addresses_revision(&self) -> u64 {
        self.addresses_revision
    }

    /// The addresses of another node at which NodePorts are served. What is this node's too is not
    /// among them.
    pub fn nodeport_addresses_of(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        let node = self.nodes.get(node);
        let addresses = node.map_or(&[][..], |node| &node.addresses).iter().copied();
        addresses.filter(move |ip| {
            let primary = node.and_then(|node| node.primary(ip.is_ipv4()));
            let own = self.local.contains(ip) || self.own.contains(ip);
            !own && self.serves_at(*ip) && self.settings.nodeport_addresses.include(*ip, primary)
        })
    }

    /// Whether a node's address can be dialled by others (I3).
    fn serves_at(&self, ip: IpAddr) -> bool {
        self.settings.families.have(ip)
            && !ip.is_loopback()
            && !ip.is_unspecified()
            && !ip.is_multicast()
    }
}

/// The addresses of this node: of a family of which its status says none, those from `before`. The
/// machine has its addresses, whatever becomes of its Node (J2).
fn kept(before: &[IpAddr], now: &[IpAddr]) -> Vec<IpAddr> {
    let family = |of: &[IpAddr], ipv4: bool| -> Vec<IpAddr> {
        of.iter().copied().filter(|ip| ip.is_ipv4() == ipv4).collect()
    };
    let known = |ipv4| Some(family(now, ipv4)).filter(|now| !now.is_empty());
    let either = |ipv4| known(ipv4).unwrap_or_else(|| family(before, ipv4));
    [either(true), either(false)].concat()
}

/// Whether a Service was or is among these: it is from now on, or not.
fn file(among: &mut BTreeSet<ObjectRef>, name: &ObjectRef, is: bool) -> bool {
    let was = among.remove(name);
    if is {
        among.insert(name.clone());
    }
    was || is
}

/// Those that the list lacks.
fn gone<'a, K: Clone + Ord + 'a, T>(
    known: impl Iterator<Item = &'a K>,
    listed: &BTreeMap<K, T>,
) -> Vec<K> {
    known.filter(|name| !listed.contains_key(name)).cloned().collect()
}

/// Whether each node leads to its own endpoints (E5).
fn depends_on_nodes(service: &Service) -> bool {
    service.external_local && service.ports.iter().any(|port| port.node_port.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Conditions, Endpoint, NodePortAddresses, Protocol, ServicePort};

    fn name(name: &str) -> ObjectRef {
        ObjectRef::new("default", name)
    }

    fn service(ip: &str) -> Service {
        Service { cluster_ips: vec![ip.parse().unwrap()], ..Service::default() }
    }

    fn slice(of: &str, addr: &str) -> Slice {
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        Slice {
            service: name(of),
            ports: vec![],
            endpoints: vec![Endpoint::new(addr.parse().unwrap(), conditions)],
            trigger: Trigger::default(),
        }
    }

    #[test]
    fn a_change_touches_its_own_service_and_only_if_it_says_something_new() {
        let mut cluster = Cluster::default();
        let put = |ip: &str| Change::Service(name("a"), Some(service(ip)));
        assert_eq!(cluster.apply(put("10.0.0.1")), [name("a")].into());
        assert_eq!(cluster.apply(put("10.0.0.1")), [].into());
        assert_eq!(cluster.apply(put("10.0.0.2")), [name("a")].into());
        assert_eq!(cluster.apply(Change::Service(name("b"), None)), [].into());
        assert_eq!(cluster.apply(Change::Slice(name("x"), None)), [].into());
    }

    #[test]
    fn a_slice_that_moves_touches_both_services() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::Slice(name("x"), Some(slice("a", "10.0.0.1"))));
        let touched = cluster.apply(Change::Slice(name("x"), Some(slice("b", "10.0.0.1"))));
        assert_eq!(touched, [name("a"), name("b")].into());
        assert_eq!(cluster.slices(&name("a")).count(), 0);
        assert_eq!(cluster.slices(&name("b")).count(), 1);
        assert_eq!(cluster.apply(Change::Slice(name("x"), None)), [name("b")].into());
        assert!(cluster.slices.is_empty() && cluster.filed.is_empty(), "nothing is kept of it");
    }

    #[test]
    fn a_list_takes_away_what_it_lacks() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::Service(name("a"), Some(service("10.0.0.1"))));
        cluster.apply(Change::Slice(name("x"), Some(slice("a", "10.1.0.1"))));
        assert!(!cluster.complete());
        let listed = [(name("b"), service("10.0.0.2"))].into();
        assert_eq!(cluster.apply(Change::ListedServices(listed)), [name("a"), name("b")].into());
        assert!(!cluster.complete());
        assert_eq!(cluster.apply(Change::ListedSlices([].into())), [name("a")].into());
        assert!(!cluster.complete() && cluster.lacks_only_nodes());
        assert_eq!(cluster.apply(Change::ListedNodes([].into())), [].into());
        assert!(cluster.complete());
    }

    #[test]
    fn nodes_that_cannot_be_had_are_waited_for_no_longer_than_the_agent_likes() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::ListedServices([].into()));
        cluster.apply(Change::ListedSlices([].into()));
        assert!(!cluster.complete());
        cluster.go_on_without_nodes();
        assert!(cluster.complete() && !cluster.lacks_only_nodes());
    }

    fn at(node_name: &str) -> Cluster {
        let mut cluster =
            Cluster::new(Settings { node_name: node_name.into(), ..Settings::default() });
        let port = ServicePort {
            node_port: 30080.try_into().ok(),
            ..ServicePort::new("", Protocol::Tcp, 80)
        };
        let local = Service { ports: vec![port], external_local: true, ..service("10.0.0.2") };
        cluster.apply(Change::Service(name("plain"), Some(service("10.0.0.1"))));
        cluster.apply(Change::Service(name("local"), Some(local)));
        cluster
    }

    fn node(zone: &str, addresses: &[&str]) -> Node {
        Node {
            zone: Some(zone.into()).filter(|zone: &Arc<str>| !zone.is_empty()),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            leaving: false,
        }
    }

    #[test]
    fn whoever_is_guarded_otherwise_has_another_revision() {
        let mut cluster = Cluster::default();
        let mut put = |of: &str, ip: &str, range: Option<&str>| {
            let before = (cluster.guarded_revision(), cluster.guarded());
            let lb = Service {
                load_balancer_ips: vec![ip.parse().unwrap()],
                source_ranges: range.iter().map(|range| range.parse().unwrap()).collect(),
                ..service("10.0.0.1")
            };
            cluster.apply(Change::Service(name(of), Some(lb)));
            (cluster.guarded() != before.1, cluster.guarded_revision() != before.0)
        };
        let all = Some("0.0.0.0/0");
        assert_eq!(put("a", "192.0.2.1", None), (false, false));
        assert_eq!(put("a", "192.0.2.1", all), (true, true));
        assert_eq!(put("a", "192.0.2.2", all), (true, true));
        assert_eq!(put("b", "192.0.2.3", None), (false, false));
        assert_eq!(put("a", "192.0.2.2", None), (true, true));
        assert_eq!(put("b", "192.0.2.3", all), (true, true));
        let before = cluster.guarded_revision();
        cluster.apply(Change::Service(name("b"), None));
        assert_ne!(cluster.guarded_revision(), before);
        assert!(cluster.guarded().is_empty());
    }

    /// D11; TestNewNodeTopologyConfig: added, same labels, other zone, no zone, another's.
    #[test]
    fn a_zone_touches_everything_and_a_heartbeat_nothing() {
        let mut cluster = at("a");
        let all: BTreeSet<_> = [name("plain"), name("local")].into();
        let mut put = |name: &str, node: Option<Node>| {
            let touched = cluster.apply(Change::Node(name.into(), node));
            (touched, cluster.zone().map(ToOwned::to_owned))
        };
        let zone = |zone: &str| Some(zone.to_owned());
        assert_eq!(put("a", Some(node("z1", &[]))), (all.clone(), zone("z1")));
        assert_eq!(put("a", Some(node("z1", &[]))), ([].into(), zone("z1")));
        let leaving = Node { leaving: true, ..node("z1", &[]) };
        assert_eq!(put("a", Some(leaving)), ([].into(), zone("z1")));
        assert_eq!(put("a", Some(node("z2", &[]))), (all.clone(), zone("z2")));
        assert_eq!(put("b", Some(node("z9", &[]))), ([].into(), zone("z2")));
        assert_eq!(put("a", None), ([].into(), zone("z2")), "it outlives its Node");
        assert_eq!(put("a", Some(node("z2", &[]))), ([].into(), zone("z2")));
        assert_eq!(put("a", Some(node("", &[]))), (all.clone(), None));
        assert_eq!(put("a", Some(node("", &["192.0.2.1"]))), (all, None), "G3");
    }

    /// J2, I1: kube-proxy asks for its node's addresses once.
    #[test]
    fn the_addresses_of_this_node_outlive_its_node() {
        let mut cluster = at("a");
        cluster.settings.nodeport_addresses = NodePortAddresses::Primary;
        let mut put = |node: Option<Node>| {
            let touched = cluster.apply(Change::Node("a".into(), node));
            let all: Vec<_> = cluster.node_addresses().keys().map(ToString::to_string).collect();
            (!touched.is_empty(), all.join(" "))
        };
        let both = "192.0.2.1 2001:db8::1";
        assert_eq!(put(None), (false, String::new()));
        assert_eq!(put(Some(node("", &["192.0.2.1", "2001:db8::1"]))), (true, both.into()));
        assert_eq!(put(None), (false, both.into()), "deleted");
        assert_eq!(
            put(Some(node("", &[]))),
            (false, both.into()),
            "made anew, and not filled in yet"
        );
        assert_eq!(put(Some(node("", &["192.0.2.1"]))), (false, both.into()), "one family of two");
        let moved = "192.0.2.7 2001:db8::1";
        assert_eq!(put(Some(node("", &["192.0.2.7"]))), (true, moved.into()), "another one");
        assert_eq!(cluster.own_primary(true), Some("192.0.2.7".parse().unwrap()));
        cluster.apply(Change::ListedNodes([].into()));
        assert_eq!(cluster.node_addresses().len(), 2, "a list without it");
    }

    #[test]
    fn another_node_touches_what_leads_to_its_own_endpoints() {
        let mut cluster = at("a");
        let put = |ips: &[&str]| Change::Node("b".into(), Some(node("z", ips)));
        assert_eq!(cluster.apply(put(&["192.0.2.2"])), [name("local")].into());
        let revision = cluster.addresses_revision();
        assert_eq!(cluster.apply(put(&["192.0.2.2"])), [].into());
        assert_eq!(cluster.addresses_revision(), revision);
        assert_eq!(cluster.apply(put(&["192.0.2.3"])), [name("local")].into());
        assert_ne!(cluster.addresses_revision(), revision);
        let local = |ips: &[&str]| {
            Change::LocalAddresses(ips.iter().map(|ip| ip.parse().unwrap()).collect())
        };
        assert_eq!(cluster.apply(local(&["192.0.2.1"])), [].into());
        assert_eq!(cluster.apply(local(&["192.0.2.3"])), [name("local")].into());
        assert_eq!(cluster.nodeport_addresses_of("b").count(), 0, "it is ours");
        assert_eq!(cluster.apply(Change::Node("b".into(), None)), [name("local")].into());
        let gone = cluster.apply(Change::ListedNodes([("c".into(), node("", &["::9"]))].into()));
        assert_eq!(gone, [name("local")].into());
        cluster.apply(Change::Service(name("local"), None));
        assert!(cluster.by_node.is_empty(), "nothing is kept of it");
        assert_eq!(cluster.apply(Change::Node("c".into(), None)), [].into());
    }
}
