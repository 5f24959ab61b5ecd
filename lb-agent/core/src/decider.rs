//! From changes to what is wanted: model → policy → claims, for the Services that a change touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    claims::{Claims, Lost},
    engine::{NodeAddresses, Wanted},
    model::{Change, Cluster, ObjectRef, Settings, Trigger},
    policy::{self, HealthCheck, NoLocal, PerFamily, Unmatched},
};

/// What is known of the cluster, and what follows from it. Decides once, for every engine.
#[derive(Debug)]
pub struct Decider {
    cluster: Cluster,
    claims: Claims,
    /// The Services to decide about.
    dirty: BTreeSet<ObjectRef>,
    /// [`Cluster::addresses_revision`] as it was told last.
    told_addresses: Option<u64>,
    health_checks: BTreeMap<ObjectRef, HealthCheck>,
    no_local: BTreeMap<ObjectRef, PerFamily<NoLocal>>,
}

/// What was decided since the last time.
#[derive(Debug, Default)]
pub struct Decision {
    /// For the engines.
    pub wanted: Wanted,
    /// Frontends that went to another Service, by the Service that did not get them.
    pub lost: BTreeMap<ObjectRef, Vec<Lost>>,
    /// Ports of slices that no port of their Service matches.
    pub unmatched: BTreeMap<ObjectRef, Unmatched>,
    /// What made the slices change that were taken in.
    pub triggers: Vec<Trigger>,
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
        !self.dirty.is_empty() || self.told_addresses != Some(self.cluster.addresses_revision())
    }

    /// What each Service that changed is to have, after all of them have claimed their frontends;
    /// also those that won or lost a frontend by that. `whole`: all Services, and all addresses.
    pub fn decide(&mut self, whole: bool) -> Decision {
        if whole {
            self.dirty.extend(self.cluster.service_names().cloned());
            self.told_addresses = None;
        }
        let mut services = BTreeMap::new();
        let mut unmatched = BTreeMap::new();
        while let Some(name) = self.dirty.pop_first() {
            let served = policy::serve(&self.cluster, &name);
            replace(&mut self.health_checks, &name, served.health_check);
            let no_local = (served.no_local != PerFamily::default()).then_some(served.no_local);
            replace(&mut self.no_local, &name, no_local);
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
        let triggers = self.cluster.take_triggers();
        Decision {
            wanted: Wanted { services, is_whole: whole, addresses },
            lost,
            unmatched,
            triggers,
        }
    }

    /// The nodes' addresses, if they are others than were told last.
    fn addresses(&mut self) -> Option<NodeAddresses> {
        let revision = self.cluster.addresses_revision();
        if self.told_addresses.replace(revision) == Some(revision) {
            return None;
        }
        let loopback_net = self.cluster.serves_loopback_net();
        Some(NodeAddresses { of: self.cluster.node_addresses(), loopback_net })
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

    /// The Services that have endpoints, but by a Local policy none here.
    pub const fn no_local(&self) -> &BTreeMap<ObjectRef, PerFamily<NoLocal>> {
        &self.no_local
    }
}

/// Keeps what is said of a Service, if anything is.
fn replace<T>(of: &mut BTreeMap<ObjectRef, T>, name: &ObjectRef, value: Option<T>) {
    match value {
        Some(value) => of.insert(name.clone(), value),
        None => of.remove(name),
    };
}
