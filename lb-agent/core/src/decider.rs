//! From changes to what is wanted: model → policy → claims, for the Services that a change touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    claims::{Claims, Lost},
    engine::{NodeAddresses, Wanted},
    model::{Change, Cluster, ObjectRef, Settings, Trigger},
    policy::{self, HealthCheck, NoLocal, PerFamily, UnmatchedPorts},
};

/// What is known of the cluster, and what follows from it. Decides once, for every engine.
#[derive(Debug)]
pub struct Decider {
    cluster: Cluster,
    claims: Claims,
    /// The Services to decide about.
    dirty: BTreeSet<ObjectRef>,
    /// [`Nodes::revision`](crate::model::Nodes::revision) as it was told last.
    told_addresses: Option<u64>,
    health_checks: BTreeMap<ObjectRef, HealthCheck>,
    /// What each Service adds to `all_no_local`, if anything.
    no_local: BTreeMap<ObjectRef, PerFamily<NoLocal>>,
    all_no_local: PerFamily<NoLocal>,
}

/// What was decided since the last time.
#[derive(Debug, Default)]
pub struct Decision {
    /// For the engines.
    pub wanted: Wanted,
    /// Frontends that went to another Service, by the Service that did not get them.
    pub lost: BTreeMap<ObjectRef, Vec<Lost>>,
    /// Ports of slices that no port of their Service matches.
    pub unmatched: BTreeMap<ObjectRef, UnmatchedPorts>,
    /// What made the slices change that were taken in.
    pub triggers: Vec<Trigger>,
    /// The health check node ports that are to say something else than before; none: nothing.
    pub health_checks: BTreeMap<ObjectRef, Option<HealthCheck>>,
    /// Where they listen, if that is different.
    pub health_addresses: Option<BTreeSet<IpAddr>>,
}

impl Decider {
    /// A decider that knows nothing yet, of the node that the settings describe.
    pub fn new(settings: Settings) -> Self {
        Self {
            cluster: Cluster::new(settings),
            claims: Claims::default(),
            dirty: BTreeSet::new(),
            told_addresses: None,
            health_checks: BTreeMap::new(),
            no_local: BTreeMap::new(),
            all_no_local: PerFamily::default(),
        }
    }

    /// Takes a change in; [`Decider::decide`] acts on it.
    pub fn change(&mut self, change: Change) {
        self.dirty.append(&mut self.cluster.apply(change));
    }

    /// Goes on without Nodes, which nobody lets us see.
    pub fn go_on_without_nodes(&mut self) {
        self.cluster.go_on_without_nodes();
    }

    /// Whether all lists are whole: before, nothing is decided.
    pub const fn is_complete(&self) -> bool {
        self.cluster.complete()
    }

    /// Whether there is anything to decide.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.told_addresses != Some(self.cluster.nodes().revision())
    }

    /// What each Service that changed is to have, after all of them have claimed their frontends;
    /// also those that won or lost a frontend by that.
    pub fn decide(&mut self) -> Decision {
        let mut services = BTreeMap::new();
        let mut unmatched = BTreeMap::new();
        let mut health_checks = BTreeMap::new();
        while let Some(name) = self.dirty.pop_first() {
            let served = policy::serve(&self.cluster, &name);
            if replace(&mut self.health_checks, &name, served.health_check) != served.health_check {
                health_checks.insert(name.clone(), served.health_check);
            }
            let no_local = (served.no_local != PerFamily::default()).then_some(served.no_local);
            let before = replace(&mut self.no_local, &name, no_local).unwrap_or_default();
            exchange(&mut self.all_no_local, before, served.no_local);
            if let Some(ports) = policy::unmatched(&self.cluster, &name) {
                unmatched.insert(name.clone(), ports);
            }
            let service = self.cluster.service(&name);
            self.dirty.append(&mut self.claims.stake(&name, service, &served.local));
            services.insert(name, served);
        }
        let mut lost = BTreeMap::new();
        for (name, served) in &mut services {
            let others = self.claims.award(name, served);
            if !others.is_empty() {
                lost.insert(name.clone(), others);
            }
        }
        // Engines share them until they are written.
        let services =
            services.into_iter().map(|(name, served)| (name, Arc::new(served))).collect();
        let addresses = self.addresses();
        let health_addresses = addresses.as_ref().map(|_| self.cluster.nodes().health_addresses());
        let triggers = self.cluster.take_triggers();
        Decision {
            wanted: Wanted { services, is_whole: false, addresses },
            lost,
            unmatched,
            triggers,
            health_checks,
            health_addresses,
        }
    }

    /// All Services and all addresses, for an engine that lacks them: what [`Decider::decide`] has just
    /// `decided`, and the rest as it was decided before.
    pub fn whole(&self, decided: &Wanted) -> Wanted {
        let mut services = decided.services.clone();
        for name in self.cluster.service_names() {
            if !services.contains_key(name) {
                let mut served = policy::serve(&self.cluster, name);
                self.claims.award(name, &mut served);
                services.insert(name.clone(), Arc::new(served));
            }
        }
        let addresses = decided.addresses.clone().unwrap_or_else(|| self.node_addresses());
        Wanted { services, is_whole: true, addresses: Some(addresses) }
    }

    /// The nodes' addresses, if they are others than were told last.
    fn addresses(&mut self) -> Option<NodeAddresses> {
        let revision = self.cluster.nodes().revision();
        let is_new = self.told_addresses.replace(revision) != Some(revision);
        is_new.then(|| self.node_addresses())
    }

    fn node_addresses(&self) -> NodeAddresses {
        NodeAddresses {
            of: self.cluster.nodes().nodeport_addresses(),
            own: self.cluster.nodes().own_addresses(),
            loopback_net: self.cluster.nodes().serves_loopback_net(),
        }
    }

    /// What is known of the cluster.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Who has which frontend.
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What the health check node ports are to say.
    pub const fn health_checks(&self) -> &BTreeMap<ObjectRef, HealthCheck> {
        &self.health_checks
    }

    /// How many ports have endpoints, but by a Local policy none here.
    pub const fn no_local(&self) -> PerFamily<NoLocal> {
        self.all_no_local
    }
}

/// Keeps what is said of a Service, if anything is. Returns what was said before.
fn replace<T>(of: &mut BTreeMap<ObjectRef, T>, name: &ObjectRef, value: Option<T>) -> Option<T> {
    match value {
        Some(value) => of.insert(name.clone(), value),
        None => of.remove(name),
    }
}

/// Keeps a sum of which one part is another now.
const fn exchange(
    sum: &mut PerFamily<NoLocal>,
    before: PerFamily<NoLocal>,
    now: PerFamily<NoLocal>,
) {
    sum.ipv4.internal += now.ipv4.internal;
    sum.ipv4.internal -= before.ipv4.internal;
    sum.ipv4.external += now.ipv4.external;
    sum.ipv4.external -= before.ipv4.external;
    sum.ipv6.internal += now.ipv6.internal;
    sum.ipv6.internal -= before.ipv6.internal;
    sum.ipv6.external += now.ipv6.external;
    sum.ipv6.external -= before.ipv6.external;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Conditions, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort, Trigger,
    };

    fn name(of: u16) -> ObjectRef {
        ObjectRef::new("default", format!("s{of}"))
    }

    /// A Service of the local policies, whose health check node port is 32000 and its number.
    fn service(of: u16) -> Change {
        let [high, low] = of.to_be_bytes();
        let service = Service {
            cluster_ips: vec![[10, 96, high, low].into()],
            external_local: true,
            internal_local: true,
            ports: vec![ServicePort::new("a", Protocol::Tcp, 80)],
            health_check_node_port: (32_000 + of).try_into().ok(),
            ..Service::default()
        };
        Change::Service(name(of), Some(service))
    }

    fn slice(of: u16, node: &str) -> Change {
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        let slice = Slice {
            service: name(of),
            ports: vec![SlicePort { name: "a".into(), protocol: Protocol::Tcp, number: 8080 }],
            endpoints: vec![Endpoint {
                node: Some(node.into()),
                ..Endpoint::new([10, 0, 0, 1].into(), conditions)
            }],
            trigger: Trigger::default(),
        };
        Change::Slice(name(of), Some(slice))
    }

    /// What a change costs those who tell of it is a matter of that change, not of what there is.
    #[test]
    fn of_many_services_only_what_is_different_is_said() {
        const ALL: u16 = 1_000;
        let settings = Settings { node_name: "here".into(), ..Settings::default() };
        let mut decider = Decider::new(settings);
        for of in 0..ALL {
            decider.change(service(of));
            decider.change(slice(of, "there"));
        }
        let first = decider.decide();
        assert_eq!(first.health_checks.len(), usize::from(ALL));
        assert!(first.health_addresses.is_some());
        let no_local = |decider: &Decider| {
            let NoLocal { internal, external } = decider.no_local().ipv4;
            assert_eq!((internal, decider.no_local().ipv6), (external, NoLocal::default()));
            external
        };
        assert_eq!(no_local(&decider), usize::from(ALL));

        decider.change(slice(7, "here"));
        let next = decider.decide();
        let local = PerFamily { ipv4: Some(1), ipv6: None };
        let check = HealthCheck { port: 32_007, local };
        assert_eq!(next.health_checks, [(name(7), Some(check))].into());
        assert_eq!((next.health_addresses, next.wanted.services.len()), (None, 1));
        assert_eq!(no_local(&decider), usize::from(ALL) - 1);

        // Elsewhere something changes, which is nothing to those who ask for endpoints here.
        decider.change(slice(8, "elsewhere"));
        let next = decider.decide();
        assert!(next.health_checks.is_empty() && next.wanted.services.len() == 1);
        decider.change(Change::Service(name(7), None));
        assert_eq!(decider.decide().health_checks, [(name(7), None)].into());
        decider.change(Change::LocalAddresses([[192, 0, 2, 1].into()].into()));
        let next = decider.decide();
        assert!(next.health_checks.is_empty() && next.health_addresses.is_some());
        // Whoever lacks all is told all, and nothing is different for the others.
        let whole = decider.whole(&next.wanted);
        assert_eq!(whole.services.len(), usize::from(ALL) - 1);
        assert!(whole.is_whole && whole.addresses == next.wanted.addresses);
        assert_eq!(decider.whole(&Wanted::default()).addresses, whole.addresses);
        assert_eq!(no_local(&decider), usize::from(ALL) - 1);
        decider.change(Change::ListedServices([].into()));
        decider.decide();
        assert_eq!(no_local(&decider), 0);
    }
}
