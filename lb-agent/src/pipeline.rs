//! From changes to written maps: model → policy → claims → plan → store, for the Services that a
//! change touched.
//!
//! What fails stays marked and is tried again; what worked stays. Nothing is written before both
//! lists are whole.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::ServiceKey;

use crate::{
    addresses::Addresses,
    claims::{Claims, Lost},
    maps::{Op, Snapshot, Store, StoreError},
    model::{Change, Cluster, Frontend, ObjectRef},
    plan::{PlanError, endings, plan},
    policy::{self, BackendSet},
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

/// What a sync did.
#[derive(Debug, Default)]
pub struct Report {
    /// Services looked at.
    pub services: usize,
    /// Ops carried out.
    pub ops: usize,
    /// Services that failed; they are tried again with the next sync.
    pub failed: BTreeMap<ObjectRef, SyncError>,
    /// Why what addresses stand for is not in the maps as it should be.
    pub addresses: Option<StoreError>,
    /// Frontends that went to another Service, by the Service that did not get them.
    pub lost: BTreeMap<ObjectRef, Vec<Lost>>,
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
    /// What happens at a port that a cluster IP lacks.
    refuse_unknown_ports: bool,
    synced: bool,
}

impl<S: Store> Pipeline<S> {
    /// A pipeline that goes on from what the maps say.
    pub fn new(store: S, snapshot: &Snapshot) -> Self {
        let (tables, repairs) = Tables::adopt(snapshot);
        let mut addresses = Addresses::default();
        addresses.found(tables.addresses().keys().copied());
        Self {
            cluster: Cluster::default(),
            claims: Claims::default(),
            tables,
            store,
            dirty: BTreeSet::new(),
            repairs,
            addresses,
            refuse_unknown_ports: true,
            synced: false,
        }
    }

    /// Takes a change in; [`Pipeline::sync`] acts on it.
    pub fn change(&mut self, change: Change) {
        self.dirty.append(&mut self.cluster.apply(change));
    }

    /// Leaves ports that a cluster IP lacks alone, instead of refusing them.
    pub fn pass_unknown_ports(&mut self) {
        self.refuse_unknown_ports = false;
    }

    /// Whether a sync would do something.
    pub fn is_dirty(&self) -> bool {
        self.cluster.complete()
            && (!self.synced
                || !self.dirty.is_empty()
                || !self.repairs.is_empty()
                || self.addresses.is_dirty())
    }

    /// Whether all that both lists said was looked at once.
    pub const fn is_synced(&self) -> bool {
        self.synced
    }

    /// Makes the maps say what is known of the Services that changed. Does nothing before both lists
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
            let sets = policy::backend_sets(&self.cluster, &name);
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
        report.services = wanted.len();
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
                    // Only now: a port that did not fit is not to be refused.
                    let ips = policy::cluster_ips(&self.cluster, name);
                    let ips = if self.refuse_unknown_ports { ips } else { Vec::new() };
                    self.addresses.set_cluster_ips(name, &ips);
                }
                Err(error) => {
                    report.failed.insert(name.clone(), error);
                }
            }
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

    fn write_one(
        &mut self,
        name: &ObjectRef,
        sets: &[BackendSet],
        promised: &BTreeSet<ServiceKey>,
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), SyncError> {
        let mut planned = plan(&self.tables, &self.store, name, sets, promised);
        if let Err(error) = &planned {
            let blocks = matches!(error, PlanError::BackendsFull { .. });
            // What the Service gives up is in its own way.
            self.execute(&endings(&self.tables, name, sets, promised), report, show)?;
            if blocks && self.retired() > 0 {
                // The room may be there, only not yet safe to use.
                self.reclaim()?;
            }
            planned = plan(&self.tables, &self.store, name, sets, promised);
        }
        Ok(self.execute(&planned?, report, show)?)
    }

    fn execute(
        &mut self,
        ops: &[Op],
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), StoreError> {
        let mut result = Ok(());
        for op in ops {
            show(op);
            result = self.store.apply(op);
            if result.is_err() {
                break;
            }
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

    /// Says what addresses stand for, after their ports are there.
    fn write_addresses(&mut self, report: &mut Report, show: &mut dyn FnMut(&Op)) {
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
