//! The index of all that the sources have said: which Services does a change touch?
//!
//! A change touches its own Service only, and nothing at all if it says what was known already. What
//! this node is (its zone, its addresses) touches all of them; what another node is, those that lead
//! to each node's own endpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
};

use super::{
    Change, Families, Hints, ObjectRef, Service, Settings, Slice,
    nodes::{Affected, Nodes},
    shared::Shared,
    trigger::{Trigger, Triggers},
};

/// All Services, EndpointSlices and Nodes, by name and by Service.
#[derive(Debug, Default)]
pub struct Cluster {
    services: BTreeMap<ObjectRef, Service>,
    /// By Service, then by name of the slice: the order in which endpoints are united. One map, not
    /// one for each Service, which would have room for eleven slices where there is one.
    slices: BTreeMap<(ObjectRef, Arc<str>), Slice>,
    /// The Service under which each slice stands in `slices`: its label may change.
    filed: HashMap<ObjectRef, ObjectRef>,
    nodes: Nodes,
    /// The Services whose frontends depend on the other nodes' addresses.
    by_node: BTreeSet<ObjectRef>,
    /// The Services that are not for all clients.
    with_ranges: BTreeSet<ObjectRef>,
    guarded_revision: u64,
    /// The Services whose clients stay with their backends.
    with_affinity: BTreeSet<ObjectRef>,
    triggers: Triggers,
    /// The nodes that endpoints name.
    node_names: Shared<str>,
    hints: Shared<Hints>,
    listed: Listed,
    without_nodes: bool,
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
        Self { nodes: Nodes::new(settings), triggers, ..Self::default() }
    }

    /// Takes a change in; returns the Services for which something is different now.
    pub fn apply(&mut self, change: Change) -> BTreeSet<ObjectRef> {
        let mut touched = BTreeSet::new();
        match change {
            Change::Service(name, service) => self.put_service(name, service, &mut touched),
            Change::Slice(name, slice) => self.put_slice(name, slice, &mut touched),
            Change::Node(name, node) => {
                let affected = self.nodes.put(name, node);
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
                for name in gone(self.nodes.names(), &listed) {
                    affected = affected.max(self.nodes.put(name, None));
                }
                while let Some((name, node)) = listed.pop_first() {
                    affected = affected.max(self.nodes.put(name, Some(node)));
                }
                self.touch(affected, &mut touched);
                self.listed.nodes = true;
            }
            Change::LocalAddresses(addresses) => {
                let affected = self.nodes.put_local(addresses);
                self.touch(affected, &mut touched);
            }
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

    fn touch(&self, affected: Affected, touched: &mut BTreeSet<ObjectRef>) {
        match affected {
            Affected::None => {}
            Affected::ByNode => touched.extend(self.by_node.iter().cloned()),
            Affected::All => touched.extend(self.services.keys().cloned()),
        }
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
        self.nodes.settings()
    }

    /// What is known of nodes.
    pub const fn nodes(&self) -> &Nodes {
        &self.nodes
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
        self.nodes.settings().families
    }
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
    use crate::model::{Conditions, Endpoint, Node, Protocol, ServicePort};

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
            (touched, cluster.nodes().zone().map(ToOwned::to_owned))
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
        assert_eq!(cluster.apply(Change::ListedNodes([].into())), [].into(), "a list without it");
        assert_eq!(cluster.nodes().own_addresses().len(), 1, "they outlive it as well (J2)");
    }

    #[test]
    fn another_node_touches_what_leads_to_its_own_endpoints() {
        let mut cluster = at("a");
        let put = |ips: &[&str]| Change::Node("b".into(), Some(node("z", ips)));
        assert_eq!(cluster.apply(put(&["192.0.2.2"])), [name("local")].into());
        let revision = cluster.nodes().revision();
        assert_eq!(cluster.apply(put(&["192.0.2.2"])), [].into());
        assert_eq!(cluster.nodes().revision(), revision);
        assert_eq!(cluster.apply(put(&["192.0.2.3"])), [name("local")].into());
        assert_ne!(cluster.nodes().revision(), revision);
        let local = |ips: &[&str]| {
            Change::LocalAddresses(ips.iter().map(|ip| ip.parse().unwrap()).collect())
        };
        assert_eq!(cluster.apply(local(&["192.0.2.1"])), [].into());
        assert_eq!(cluster.apply(local(&["192.0.2.3"])), [name("local")].into());
        assert_eq!(cluster.nodes().nodeport_addresses_of("b").count(), 0, "it is ours");
        assert_eq!(cluster.apply(Change::Node("b".into(), None)), [name("local")].into());
        let gone = cluster.apply(Change::ListedNodes([("c".into(), node("", &["::9"]))].into()));
        assert_eq!(gone, [name("local")].into());
        cluster.apply(Change::Service(name("local"), None));
        assert!(cluster.by_node.is_empty(), "nothing is kept of it");
        assert_eq!(cluster.apply(Change::Node("c".into(), None)), [].into());
    }
}
