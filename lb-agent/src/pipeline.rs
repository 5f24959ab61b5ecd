//! From changes to written maps: model → policy → claims → plan → store, for the Services that a
//! change touched.
//!
//! What fails stays marked and is tried again; what worked stays. Nothing is written before all
//! lists are whole.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_common::abi::{self, Addr, Address, LOOPBACK_NET, ServiceKey};

use crate::{
    addresses::Addresses,
    claims::{Claims, Lost},
    maps::{Known, Op, Snapshot, Store, StoreError},
    model::{Change, Cluster, Frontend, NodeAddr, ObjectRef, PortRef, Protocol, Settings, Trigger},
    plan::{PlanError, endings, plan, present, remains, room},
    policy::{self, BackendSet, HealthCheck, NoLocal, PerFamily, Served, Unmatched},
    tables::Tables,
};

/// Why a Service is not in the maps as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// It does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The maps did not take an op.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of the writes to one map.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Writes {
    /// How many the kernel took.
    pub taken: usize,
    /// What it said when it took one not, last. That the map is full is not meant.
    pub refused: Option<String>,
}

/// What a sync did.
#[derive(Debug, Default)]
pub struct Report {
    /// Services looked at.
    pub looked_at: BTreeSet<ObjectRef>,
    /// Ops carried out.
    pub ops: usize,
    /// What became of them, by the map.
    pub writes: BTreeMap<&'static str, Writes>,
    /// Services that failed; they are tried again with the next sync.
    pub failed: BTreeMap<ObjectRef, SyncError>,
    /// The protocols of the frontends that changed.
    pub protocols: BTreeSet<Protocol>,
    /// Whether there is a frontend of TCP that was not there before.
    pub appeared: bool,
    /// Why what addresses stand for is not in the maps as it should be.
    pub addresses: Option<StoreError>,
    /// Frontends that went to another Service, by the Service that did not get them.
    pub lost: BTreeMap<ObjectRef, Vec<Lost>>,
    /// Ports of slices that no port of their Service matches.
    pub unmatched: BTreeMap<ObjectRef, Unmatched>,
    /// What made the slices change that were taken in since the last sync.
    pub triggers: Vec<Trigger>,
}

/// The control plane's state, and the maps it writes.
#[derive(Debug)]
pub struct Pipeline<S> {
    cluster: Cluster,
    claims: Claims,
    tables: Tables,
    store: S,
    dirty: BTreeSet<ObjectRef>,
    repairs: Vec<Op>,
    addresses: Addresses,
    /// Of [`Cluster::node_addresses`], as `addresses` knows them.
    nodes_revision: Option<u64>,
    unknown_ports: UnknownPorts,
    host_netns: u64,
    health_checks: BTreeMap<ObjectRef, HealthCheck>,
    no_local: BTreeMap<ObjectRef, PerFamily<NoLocal>>,
    synced: bool,
}

/// How a node looks at the cluster.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What it is, and what it serves.
    pub settings: Settings,
    /// What happens at a port that a cluster IP lacks.
    pub unknown_ports: UnknownPorts,
    /// The cookie of the host's network namespace, where loopback addresses are the node's; 0: not
    /// known, then NodePorts are not served there.
    pub host_netns: u64,
    /// Addresses at which everything is refused: [`crate::canary::SENTINELS`], unless nobody asks.
    pub reserved: Vec<IpAddr>,
}

/// What happens at a port that a cluster IP lacks (E12).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum UnknownPorts {
    /// ECONNREFUSED at once.
    #[default]
    Refuse,
    /// The packets leave as they are, perhaps to somebody who knows the port.
    Pass,
}

impl<S: Store> Pipeline<S> {
    /// A pipeline that goes on from what the maps say, of a node without a name.
    pub fn new(store: S, snapshot: &Snapshot) -> Self {
        Self::with_view(View::default(), store, snapshot)
    }

    /// A pipeline that goes on from what the maps say.
    pub fn with_view(view: View, store: S, snapshot: &Snapshot) -> Self {
        let (tables, repairs) = Tables::adopt(snapshot);
        let mut addresses = Addresses::default();
        addresses.found(tables.addresses().keys().copied());
        addresses.reserve(&view.reserved);
        Self {
            cluster: Cluster::new(view.settings),
            claims: Claims::default(),
            tables,
            store,
            dirty: BTreeSet::new(),
            repairs,
            addresses,
            nodes_revision: None,
            unknown_ports: view.unknown_ports,
            host_netns: view.host_netns,
            health_checks: BTreeMap::new(),
            no_local: BTreeMap::new(),
            synced: false,
        }
    }

    /// Takes a change in; [`Pipeline::sync`] acts on it.
    pub fn change(&mut self, change: Change) {
        self.dirty.append(&mut self.cluster.apply(change));
    }

    /// Goes on from what the maps say now, whatever was believed of them: the next sync looks at
    /// everything (M6).
    pub fn readopt(&mut self, snapshot: &Snapshot) {
        (self.tables, self.repairs) = Tables::adopt(snapshot);
        self.addresses.found_anew(self.tables.addresses().keys().copied());
        self.synced = false;
    }

    /// Whether the maps refuse [`View::reserved`], by what is known of them.
    pub fn refuses_reserved(&self) -> bool {
        self.addresses.refuse_reserved(self.tables.addresses())
    }

    /// Whether all is known but the Nodes.
    pub fn lacks_only_nodes(&self) -> bool {
        self.cluster.lacks_only_nodes()
    }

    /// Goes on without Nodes, which nobody lets us see.
    pub fn go_on_without_nodes(&mut self) {
        self.cluster.go_on_without_nodes();
    }

    /// Whether a sync would do something.
    pub fn is_dirty(&self) -> bool {
        self.cluster.complete()
            && (!self.synced
                || !self.dirty.is_empty()
                || !self.repairs.is_empty()
                || self.addresses.is_dirty()
                || self.nodes_revision != Some(self.cluster.addresses_revision()))
    }

    /// Whether all that all lists said was looked at once.
    pub const fn is_synced(&self) -> bool {
        self.synced
    }

    /// Makes the maps say what is known of the Services that changed. Does nothing before all lists
    /// are whole.
    pub fn sync(&mut self) -> Report {
        self.sync_with(&mut |_| {})
    }

    /// [`Pipeline::sync`], showing each op before it is carried out.
    pub fn sync_with(&mut self, show: &mut dyn FnMut(&Op)) -> Report {
        let mut report = Report::default();
        if !self.cluster.complete() {
            return report;
        }
        if !self.synced {
            // Also what the maps have and nobody asks for any more.
            self.dirty.extend(self.tables.service_names());
            self.dirty.extend(self.cluster.service_names().cloned());
        }
        report.triggers = self.cluster.take_triggers();
        let mut wanted = self.wanted(&mut report);
        loop {
            let ops = report.ops;
            let waiting = self.write(&wanted, &mut report, show);
            // What others gave up may have made room; what was promised may have been taken.
            wanted.retain(|name, _| match report.failed.get(name) {
                Some(error) => matches!(error, SyncError::Plan(_)),
                None => waiting.contains(name),
            });
            if report.ops == ops {
                break;
            }
        }
        self.dirty.extend(wanted.into_keys());
        self.dirty.extend(report.failed.keys().cloned());
        self.write_addresses(&mut report, show);
        self.repair(&mut report, show);
        self.synced = true;
        report
    }

    /// What each Service that changed is to have, after all of them have claimed their frontends;
    /// also those that won or lost a frontend by that.
    fn wanted(&mut self, report: &mut Report) -> BTreeMap<ObjectRef, Vec<BackendSet>> {
        let mut wanted = BTreeMap::new();
        while let Some(name) = self.dirty.pop_first() {
            let Served { sets, health_check, no_local } = policy::serve(&self.cluster, &name);
            replace(&mut self.health_checks, &name, health_check);
            let no_local = (no_local != PerFamily::default()).then_some(no_local);
            replace(&mut self.no_local, &name, no_local);
            if let Some(unmatched) = policy::unmatched(&self.cluster, &name) {
                report.unmatched.insert(name.clone(), unmatched);
            }
            let service = self.cluster.service(&name);
            self.dirty.append(&mut self.claims.stake(&name, service, &sets));
            wanted.insert(name, sets);
        }
        for (name, sets) in &mut wanted {
            let lost = self.claims.award(name, sets);
            if !lost.is_empty() {
                report.lost.insert(name.clone(), lost);
            }
        }
        report.looked_at = wanted.keys().cloned().collect();
        wanted
    }

    /// Writes what is wanted; returns the Services that have entries promised to others.
    fn write(
        &mut self,
        wanted: &BTreeMap<ObjectRef, Vec<BackendSet>>,
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) -> BTreeSet<ObjectRef> {
        let mut waiting = BTreeSet::new();
        for (name, sets) in wanted {
            let promised = self.promised(name);
            match self.write_one(name, sets, &promised, report, show) {
                Ok(()) => {
                    report.failed.remove(name);
                }
                Err(error) => {
                    report.failed.insert(name.clone(), error);
                }
            }
            // Also if it failed: what stands there from before may be all of it.
            let all = sets
                .iter()
                .flat_map(|set| &set.frontends)
                .all(|frontend| self.tables.service(&frontend.into()).is_some());
            let ips = policy::cluster_ips(&self.cluster, name);
            let refuse = self.unknown_ports == UnknownPorts::Refuse;
            self.addresses.set_cluster_ips(name, if refuse { &ips } else { &[] }, all);
            if !promised.is_empty() {
                waiting.insert(name.clone());
            }
        }
        waiting
    }

    /// The entries of a Service that another one is to have. They stay until that one replaces them:
    /// a frontend that changes hands never vanishes, even if its new owner does not fit.
    fn promised(&self, name: &ObjectRef) -> BTreeSet<ServiceKey> {
        let keys = self.tables.ids_of(name).flat_map(|id| self.tables.keys_of(id));
        let owner = |key| self.claims.owner(&Frontend::from_key(key)?);
        keys.filter(|key| owner(key).is_some_and(|owner| owner != name)).copied().collect()
    }

    /// Writes what is wanted of one Service, set by set. What does not fit stays as it was, and the
    /// rest goes on: a set without room for its records, and frontends without room for their entries.
    fn write_one(
        &mut self,
        name: &ObjectRef,
        sets: &[BackendSet],
        promised: &BTreeSet<ServiceKey>,
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), SyncError> {
        let mut lack = room(&self.tables, sets).err();
        if lack.is_some() {
            // What the Service gives up is in its own way.
            self.execute(&endings(&self.tables, name, sets, promised), report, show)?;
            lack = room(&self.tables, sets).err();
        }
        let mut unwritten = BTreeSet::new();
        let mut failed = None;
        for set in sets {
            let mut set = Cow::Borrowed(set);
            if lack.is_some() {
                let present = present(&self.tables, &set).collect();
                set.to_mut().frontends = present;
            }
            if set.frontends.is_empty() {
                continue;
            }
            let mut planned = plan(&self.tables, &self.store, &set);
            if let Err(PlanError::BackendsFull { needed, .. }) = planned {
                self.execute(&endings(&self.tables, name, sets, promised), report, show)?;
                if self.tables.blocks().would_fit(needed) {
                    // The room is there, only not yet safe to use.
                    self.reclaim()?;
                }
                planned = plan(&self.tables, &self.store, &set);
            }
            match planned {
                Ok(ops) => self.execute(&ops, report, show)?,
                Err(error) => {
                    failed.get_or_insert(error);
                    unwritten.insert(set.port.clone());
                }
            }
        }
        self.execute(&endings(&self.tables, name, sets, promised), report, show)?;
        let remains = remains(&self.tables, name, sets, &unwritten, promised);
        self.execute(&remains, report, show)?;
        lack.or(failed).map_or(Ok(()), |error| Err(error.into()))
    }

    fn execute(
        &mut self,
        ops: &[Op],
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), StoreError> {
        let mut result = Ok(());
        let mut waited = false;
        for op in ops {
            // A program under way may have read the set before, which still asks for the range.
            if !waited && self.narrows(op) {
                result = self.store.grace_period();
                if result.is_err() {
                    break;
                }
                waited = true;
            }
            show(op);
            report.protocols.extend(match op {
                Op::PutService { key, .. } | Op::DeleteService { key } => {
                    Protocol::from_number(key.protocol)
                }
                _ => None,
            });
            let given = match op {
                Op::WriteBlock { records, .. } => records.first(),
                _ => None,
            };
            let reserved = given.map_or(Ok(()), |record| self.store.reserve(record.generation));
            result = reserved.and_then(|()| self.store.apply(op));
            match &result {
                Ok(()) => {
                    let beside = match op {
                        Op::WriteBlock { .. } => Some(abi::GENERATIONS),
                        Op::PutService { .. } | Op::DeleteService { .. } => Some(abi::FILTER),
                        _ => None,
                    };
                    for map in op.map().into_iter().chain(beside) {
                        report.writes.entry(map).or_default().taken += 1;
                    }
                }
                Err(StoreError::Kernel { map, error, .. }) => {
                    report.writes.entry(map).or_default().refused = Some(error.clone());
                    break;
                }
                Err(_) => break,
            }
            report.appeared |= self.appears(op);
            self.tables.apply(op);
            report.ops += 1;
        }
        for op in ops {
            if let Op::WriteBlock { block, .. } = op {
                self.tables.discard(*block);
            }
        }
        result
    }

    /// Whether the op takes a range of clients from a service port that is still served.
    fn narrows(&self, op: &Op) -> bool {
        matches!(op, Op::DeleteSource { id, .. } if self.tables.keys_of(*id).next().is_some())
    }

    /// Whether the op makes an address a frontend of TCP that was none.
    fn appears(&self, op: &Op) -> bool {
        match op {
            Op::PutService { key, .. } => {
                key.protocol == abi::TCP && self.tables.service(key).is_none()
            }
            // Its node ports.
            Op::PutAddress { known, .. } => {
                known.flags & (Address::OWN_NODE | Address::OTHER_NODE) != 0
            }
            _ => false,
        }
    }

    /// Says what addresses stand for, after their ports are there.
    fn write_addresses(&mut self, report: &mut Report, show: &mut dyn FnMut(&Op)) {
        let revision = self.cluster.addresses_revision();
        if self.nodes_revision != Some(revision) {
            let nodes = self.cluster.node_addresses().into_iter();
            let net = self.cluster.serves_loopback_net();
            let net = net.then_some((LOOPBACK_NET, NodeAddr::OwnLoopback));
            let all = nodes.map(|(ip, node)| (Addr::from(ip), node)).chain(net);
            let known = |(addr, node)| Some((addr, known(node, self.host_netns)?));
            self.addresses.set_nodes(all.filter_map(known).collect());
            self.nodes_revision = Some(revision);
        }
        let ops = self.addresses.plan(self.tables.addresses());
        match self.execute(&ops, report, show) {
            Ok(()) => self.addresses.done(),
            Err(error) => report.addresses = Some(error),
        }
    }

    /// Removes what [`Tables::adopt`] could make no sense of, unless a Service has claimed it since.
    fn repair(&mut self, report: &mut Report, show: &mut dyn FnMut(&Op)) {
        for op in std::mem::take(&mut self.repairs) {
            let id = match &op {
                Op::DeleteService { key } => self.tables.service(key).map(|service| service.id),
                Op::DeleteName { id } => Some(*id),
                _ => None,
            };
            if id.is_some_and(|id| self.tables.name(id).is_some()) {
                continue;
            }
            if let Err(error) = self.execute(std::slice::from_ref(&op), report, show) {
                tracing::warn!(%op, %error, "cannot remove a damaged entry; trying again");
                self.repairs.push(op);
            }
        }
    }

    /// Number of records that [`Pipeline::reclaim`] would set free.
    pub fn retired(&self) -> u32 {
        self.tables.blocks().retired()
    }

    /// Makes retired blocks usable again. Waits for a grace period.
    pub fn reclaim(&mut self) -> Result<(), StoreError> {
        self.store.grace_period()?;
        self.tables.reclaim();
        Ok(())
    }

    /// What is known of the cluster.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// How long a client of each service port with session affinity stays with its backend.
    pub fn affinity_timeouts(&self) -> HashMap<u32, Duration> {
        let timeout = |port: &PortRef| self.cluster.service(&port.service)?.affinity;
        let of = |(port, id)| {
            let seconds = timeout(port)?;
            Some((id, Duration::from_secs(u64::from(seconds.get()))))
        };
        self.tables.ids().filter_map(of).collect()
    }

    /// What the health check node ports are to say.
    pub const fn health_checks(&self) -> &BTreeMap<ObjectRef, HealthCheck> {
        &self.health_checks
    }

    /// The Services that have endpoints, but by a Local policy none here.
    pub const fn no_local(&self) -> &BTreeMap<ObjectRef, PerFamily<NoLocal>> {
        &self.no_local
    }

    /// The mirror of the maps.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The maps.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The maps, to be tampered with.
    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }
}

/// Keeps what is said of a Service, if anything is.
fn replace<T>(of: &mut BTreeMap<ObjectRef, T>, name: &ObjectRef, value: Option<T>) {
    match value {
        Some(value) => of.insert(name.clone(), value),
        None => of.remove(name),
    };
}

/// What the maps say of a node's address.
const fn known(node: NodeAddr, host_netns: u64) -> Option<Known> {
    match node {
        NodeAddr::Own => Some(Known { flags: Address::OWN_NODE, netns: 0 }),
        NodeAddr::Other => Some(Known { flags: Address::OTHER_NODE, netns: 0 }),
        NodeAddr::OwnLoopback if host_netns == 0 => None,
        NodeAddr::OwnLoopback => Some(Known { flags: Address::OWN_NODE, netns: host_netns }),
    }
}
