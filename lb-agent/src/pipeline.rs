//! From changes to written maps: model → policy → claims → plan → store, for the Services that a
//! change touched.
//!
//! What fails stays marked and is tried again; what worked stays. Nothing is written before both
//! lists are whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    claims::{Claims, Lost},
    maps::{Snapshot, Store, StoreError},
    model::{Change, Cluster, ObjectRef},
    plan::{Op, PlanError, plan},
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
    synced: bool,
}

impl<S: Store> Pipeline<S> {
    /// A pipeline that goes on from what the maps say.
    pub fn new(store: S, snapshot: &Snapshot) -> Self {
        let (tables, repairs) = Tables::adopt(snapshot);
        Self {
            cluster: Cluster::default(),
            claims: Claims::default(),
            tables,
            store,
            dirty: BTreeSet::new(),
            repairs,
            synced: false,
        }
    }

    /// Takes a change in; [`Pipeline::sync`] acts on it.
    pub fn change(&mut self, change: Change) {
        self.dirty.append(&mut self.cluster.apply(change));
    }

    /// Whether a sync would do something.
    pub fn is_dirty(&self) -> bool {
        self.cluster.complete()
            && (!self.synced || !self.dirty.is_empty() || !self.repairs.is_empty())
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
        let wanted = self.wanted(&mut report);
        let mut endings = Vec::new();
        self.write(&wanted, &mut endings, &mut report, show);
        // Only now: a frontend that passes from one Service to another has its new entry already.
        self.end(endings, &mut report, show);
        if report.failed.values().any(|error| matches!(error, SyncError::Plan(_))) {
            // What has ended may have made room.
            let failed = std::mem::take(&mut report.failed);
            let again = wanted.into_iter().filter(|(name, _)| failed.contains_key(name)).collect();
            let mut endings = Vec::new();
            self.write(&again, &mut endings, &mut report, show);
            self.end(endings, &mut report, show);
        }
        self.dirty.extend(report.failed.keys().cloned());
        self.repair(&mut report, show);
        self.synced = true;
        report
    }

    /// What each Service that changed is to have, after all of them have claimed their frontends;
    /// also those that won or lost a frontend by that.
    fn wanted(&mut self, report: &mut Report) -> BTreeMap<ObjectRef, Vec<BackendSet>> {
        let mut wanted = BTreeMap::new();
        while let Some(name) = self.dirty.pop_first() {
            let mut sets = policy::backend_sets(&self.cluster, &name);
            let created = self.cluster.service(&name).map_or(0, |service| service.created);
            let (lost, mut affected) = self.claims.settle(&name, created, &mut sets);
            self.dirty.append(&mut affected);
            if lost.is_empty() {
                report.lost.remove(&name);
            } else {
                report.lost.insert(name.clone(), lost);
            }
            wanted.insert(name, sets);
        }
        report.services = wanted.len();
        wanted
    }

    /// Everything but removals, which go to `endings`.
    fn write(
        &mut self,
        wanted: &BTreeMap<ObjectRef, Vec<BackendSet>>,
        endings: &mut Vec<(ObjectRef, Op)>,
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) {
        for (name, sets) in wanted {
            let written = self.plan(name, sets).and_then(|ops| {
                let (ends, ops): (Vec<_>, Vec<_>) = ops.into_iter().partition(Op::is_removal);
                self.execute(&ops, report, show)?;
                endings.extend(ends.into_iter().map(|op| (name.clone(), op)));
                Ok(())
            });
            if let Err(error) = written {
                report.failed.insert(name.clone(), error);
            }
        }
    }

    fn plan(&mut self, name: &ObjectRef, sets: &[BackendSet]) -> Result<Vec<Op>, SyncError> {
        match plan(&self.tables, &self.store, name, sets) {
            // The room may be there, only not yet safe to use.
            Err(PlanError::BackendsFull { .. }) if self.tables.blocks().retired() > 0 => {
                self.reclaim()?;
                Ok(plan(&self.tables, &self.store, name, sets)?)
            }
            planned => Ok(planned?),
        }
    }

    fn end(
        &mut self,
        endings: Vec<(ObjectRef, Op)>,
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) {
        for (name, op) in endings {
            // A name is needed for as long as a frontend has it.
            if report.failed.contains_key(&name) {
                continue;
            }
            let taken_over = match &op {
                Op::DeleteService { key } => {
                    let owner = self.tables.service(key).and_then(|s| self.tables.name(s.id));
                    owner.is_none_or(|owner| owner.service != name)
                }
                _ => false,
            };
            if !taken_over && let Err(error) = self.execute(&[op], report, show) {
                report.failed.insert(name, error.into());
            }
        }
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

    /// Removes what [`Tables::adopt`] could make no sense of, unless a Service has claimed it since.
    fn repair(&mut self, report: &mut Report, show: &mut dyn FnMut(&Op)) {
        for op in std::mem::take(&mut self.repairs) {
            if let Op::DeleteService { key } = &op
                && self.tables.service(key).is_some()
            {
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
