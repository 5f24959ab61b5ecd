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
    policy,
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
        let mut queue = std::mem::take(&mut self.dirty);
        while let Some(name) = queue.pop_first() {
            report.services += 1;
            match self.service(&name, &mut queue, &mut report, show) {
                Ok(()) => {
                    report.failed.remove(&name);
                }
                Err(error) => {
                    report.failed.insert(name, error);
                }
            }
        }
        self.dirty.extend(report.failed.keys().cloned());
        self.repair(&mut report, show);
        self.synced = true;
        report
    }

    fn service(
        &mut self,
        name: &ObjectRef,
        queue: &mut BTreeSet<ObjectRef>,
        report: &mut Report,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), SyncError> {
        let mut sets = policy::backend_sets(&self.cluster, name);
        let created = self.cluster.service(name).map_or(0, |service| service.created);
        let (lost, mut affected) = self.claims.settle(name, created, &mut sets);
        queue.append(&mut affected);
        if lost.is_empty() {
            report.lost.remove(name);
        } else {
            report.lost.insert(name.clone(), lost);
        }

        let ops = match plan(&self.tables, &self.store, name, &sets) {
            // The room may be there, only not yet safe to use.
            Err(PlanError::BackendsFull { .. }) if self.tables.blocks().retired() > 0 => {
                self.reclaim()?;
                plan(&self.tables, &self.store, name, &sets)?
            }
            planned => planned?,
        };
        self.execute(&ops, report, show)?;
        Ok(())
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
