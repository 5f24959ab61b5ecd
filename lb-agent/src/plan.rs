//! From backend sets to map operations.
//!
//! A plan is pure data: what to write, in an order in which after *every prefix* each service names
//! a complete set (make before break). It is what `--dry-run` prints and what the executor applies,
//! op by op. What is right already costs no op.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use lb_common::abi::{Action, Backend, Service, ServiceKey};

use crate::{
    maps::{Op, Store},
    model::{ObjectRef, PortRef},
    policy::{self, BackendSet, Cidr, Empty},
    tables::Tables,
};

/// Why a Service cannot be written. What was there before stays.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// No room for its frontends.
    #[error(
        "the services map is full: {needed} more entries are needed, {free} of {limit} are free; \
         raise --max-services"
    )]
    ServicesFull {
        /// Entries to be added.
        needed: usize,
        /// Entries left.
        free: usize,
        /// Size of the map.
        limit: u32,
    },
    /// No block large enough.
    #[error(
        "the backends map is full: no {needed} records in a row are free, {used} of {limit} are in \
         use; raise --max-backends (a set that changes needs room for its old and its new records)"
    )]
    BackendsFull {
        /// Records needed.
        needed: usize,
        /// Records in use.
        used: u32,
        /// Size of the map.
        limit: u32,
    },
}

/// The ops that make the maps say what `sets` says of the Service `name`, and nothing else of it.
///
/// Entries in `promised` are left alone: another Service is to have them, and replaces them itself.
pub fn plan(
    tables: &Tables,
    store: &impl Store,
    name: &ObjectRef,
    sets: &[BackendSet],
    promised: &BTreeSet<ServiceKey>,
) -> Result<Vec<Op>, PlanError> {
    let mut draft = Draft::new(tables, name);
    for set in sets.iter().filter(|set| !set.frontends.is_empty()) {
        draft.set(store, set)?;
    }
    draft.finish(name, promised, endings(tables, name, sets, promised))
}

/// The ops that remove what the Service has and no set asks for: part of its plan, and the part that
/// can be carried out when the rest does not fit.
pub fn endings(
    tables: &Tables,
    name: &ObjectRef,
    sets: &[BackendSet],
    promised: &BTreeSet<ServiceKey>,
) -> Vec<Op> {
    let wanted: BTreeSet<ServiceKey> =
        sets.iter().flat_map(|set| &set.frontends).map(ServiceKey::from).collect();
    let keys: BTreeSet<ServiceKey> =
        tables.ids_of(name).flat_map(|id| tables.keys_of(id)).copied().collect();
    keys.into_iter()
        .filter(|key| !wanted.contains(key) && !promised.contains(key))
        .map(|key| Op::DeleteService { key })
        .collect()
}

/// A plan in the making.
struct Draft<'a> {
    tables: &'a Tables,
    ops: Vec<Op>,
    new_ids: BTreeMap<PortRef, u32>,
    generation: u32,
    taken: Vec<(u32, u32)>,
    /// Ids that the Service has and no set has asked for so far.
    stale_ids: BTreeSet<u32>,
    /// Ranges of clients that the sets ask for.
    sources: BTreeSet<(u32, Cidr)>,
    added: BTreeSet<ServiceKey>,
}

impl<'a> Draft<'a> {
    fn new(tables: &'a Tables, name: &ObjectRef) -> Self {
        Self {
            tables,
            ops: Vec::new(),
            new_ids: BTreeMap::new(),
            generation: tables.next_generation(),
            taken: Vec::new(),
            stale_ids: tables.ids_of(name).collect(),
            sources: BTreeSet::new(),
            added: BTreeSet::new(),
        }
    }

    fn set(&mut self, store: &impl Store, set: &BackendSet) -> Result<(), PlanError> {
        let keys: Vec<ServiceKey> = set.frontends.iter().map(ServiceKey::from).collect();
        let id = self.id(&set.port);
        let current = |key: &ServiceKey| self.tables.service(key).filter(|s| s.id == id).copied();
        let found: Vec<(Service, Vec<Backend>)> = keys
            .iter()
            .filter_map(current)
            .map(|service| (service, store.records(service.block, service.records())))
            .collect();

        if set.backends.is_empty() && policy::is_api_server(&set.port.service) {
            let serves = |(service, records): &(Service, Vec<Backend>)| {
                records.iter().all(|record| record.generation == service.generation)
                    && records
                        .iter()
                        .take(service.count as usize)
                        .any(|record| record.action() == Action::Forward)
            };
            if let Some((last, _)) = found.iter().find(|found| serves(found)) {
                let serving: Vec<&Service> = found
                    .iter()
                    .filter(|found| serves(found))
                    .map(|(service, _)| service)
                    .collect();
                for key in keys {
                    // A frontend that is new gets the last endpoints too.
                    if !self.tables.service(&key).is_some_and(|before| serving.contains(&before)) {
                        self.put(key, *last);
                    }
                }
                return Ok(());
            }
        }

        for range in &set.sources {
            let known = self.tables.sources_of(id).any(|known| known == *range);
            if self.sources.insert((id, *range)) && !known {
                self.ops.push(Op::PutSource { id, range: *range });
            }
        }

        let wanted = records(set);
        let fits = |(service, records): &&(Service, Vec<Backend>)| {
            service.kept as usize == set.kept.len()
                && records
                    .iter()
                    .copied()
                    .eq(wanted.iter().map(|r| r.stamped(service.generation, id)))
        };
        let service = match found.iter().find(fits) {
            Some((service, _)) => *service,
            None => self.write(id, wanted, set.kept.len())?,
        };
        for key in keys {
            if self.tables.service(&key) != Some(&service) {
                self.put(key, service);
            }
        }
        Ok(())
    }

    fn put(&mut self, key: ServiceKey, service: Service) {
        if self.tables.service(&key).is_none() {
            self.added.insert(key);
        }
        self.ops.push(Op::PutService { key, service });
    }

    fn id(&mut self, port: &PortRef) -> u32 {
        if let Some(id) = self.tables.id(port) {
            self.stale_ids.remove(&id);
            return id;
        }
        if let Some(id) = self.new_ids.get(port) {
            return *id;
        }
        // `unused_ids` has no end.
        let id = self.tables.unused_ids().nth(self.new_ids.len()).unwrap_or(u32::MAX);
        self.new_ids.insert(port.clone(), id);
        self.ops.push(Op::PutName { id, port: port.clone() });
        id
    }

    /// Writes a block of its own for the records, the last `kept` of which are not to choose from.
    fn write(&mut self, id: u32, wanted: Vec<Backend>, kept: usize) -> Result<Service, PlanError> {
        let blocks = self.tables.blocks();
        let full = || PlanError::BackendsFull {
            needed: wanted.len(),
            used: blocks.used(),
            limit: blocks.capacity(),
        };
        let total = u32::try_from(wanted.len()).map_err(|_| full())?;
        let kept = u32::try_from(kept).map_err(|_| full())?;
        let block = blocks.find(total, &self.taken).ok_or_else(full)?;
        let generation = self.generation;
        self.generation = generation.wrapping_add(1).max(1);
        self.taken.push((block, total));
        let records = wanted.into_iter().map(|r| r.stamped(generation, id)).collect();
        self.ops.push(Op::WriteBlock { block, records });
        Ok(Service { block, count: total - kept, kept, generation, id })
    }

    fn finish(
        mut self,
        name: &ObjectRef,
        promised: &BTreeSet<ServiceKey>,
        endings: Vec<Op>,
    ) -> Result<Vec<Op>, PlanError> {
        let tables = self.tables;
        let (needed, free) = (self.added.len(), tables.free_services());
        if needed > free {
            return Err(PlanError::ServicesFull { needed, free, limit: tables.max_services() });
        }
        self.ops.extend(endings);
        // What an entry that another Service is to have leads to stays with all that belongs to it.
        let unused = |id: &u32| tables.keys_of(*id).all(|key| !promised.contains(key));
        for id in tables.ids_of(name).filter(unused) {
            let unwanted =
                tables.sources_of(id).filter(|range| !self.sources.contains(&(id, *range)));
            self.ops.extend(unwanted.map(|range| Op::DeleteSource { id, range }));
        }
        self.ops.extend(self.stale_ids.into_iter().filter(unused).map(|id| Op::DeleteName { id }));
        Ok(self.ops)
    }
}

/// The records of a set, not stamped yet: its backends, or the one that says what happens without
/// any; then those that are kept.
fn records(set: &BackendSet) -> Vec<Backend> {
    let nobody = match set.empty {
        Empty::Refuse => Backend::refuse(),
        Empty::Unreachable => Backend::unreachable(),
    };
    let nobody = set.backends.is_empty().then_some(nobody);
    let backends = set.backends.iter().chain(&set.kept);
    let flags = if set.sources.is_empty() { 0 } else { Backend::SOURCES };
    let affinity = set.affinity.map_or(0, NonZeroU32::get);
    nobody
        .into_iter()
        .chain(backends.map(|addr| Backend::forward((*addr).into())))
        .map(|record| Backend { flags, affinity, ..record })
        .collect()
}
