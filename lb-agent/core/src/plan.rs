//! From backend sets to map operations.
//!
//! A plan is pure data: what to write, in an order in which after *every prefix* each service names
//! a complete set (make before break). It is what `--dry-run` prints and what the executor applies,
//! op by op. What is right already costs no op.
//!
//! Set by set: first what each set of a Service asks for ([`plan`]), each planned when the one before
//! is written, so that a set needs room for its own old and new records only; then what no set asks for
//! ([`endings`], [`remains`]). What does not fit is one set, not the Service.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{Action, Backend, PortOptions, Service, ServiceKey};

use crate::{
    backend_ids::BackendIds,
    map_mirror::MapMirror,
    model::{Cidr, Frontend, ObjectRef, PortRef},
    op::Op,
    policy::{self, BackendSet, Empty},
    store::Store,
};

/// Why a set cannot be written. What was there before stays.
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

/// The ops that make the maps say what one set says.
pub fn plan(
    mirror: &MapMirror,
    store: &impl Store,
    set: &BackendSet,
) -> Result<Vec<Op>, PlanError> {
    let keys: Vec<ServiceKey> = set.frontends.iter().map(ServiceKey::from).collect();
    let mut ops = Vec::new();
    let id = mirror.id(&set.port).unwrap_or_else(|| {
        // `unused_ids` has no end.
        let id = mirror.unused_ids().next().unwrap_or(u32::MAX);
        ops.push(Op::PutName { id, port: set.port.clone() });
        id
    });
    let new = set
        .source_ranges
        .iter()
        .filter(|range| !mirror.source_ranges_of(id).any(|known| known == **range));
    ops.extend(new.map(|range| Op::PutSourceRange { id, range: *range }));

    let current = |key: &ServiceKey| mirror.service(key).filter(|s| s.id == id).copied();
    let found: Vec<(Service, Vec<Backend>)> = keys
        .iter()
        .filter_map(current)
        .map(|service| (service, store.records(service.block, service.records())))
        .collect();

    if set.backends.is_empty() && policy::is_api_server(&set.port.service) {
        let serving: Vec<Service> =
            found.iter().filter(|found| serves(found)).map(|(service, _)| *service).collect();
        if let Some(last) = serving.first() {
            // A frontend that is new gets the last endpoints too.
            let others =
                keys.iter().filter(|key| !mirror.service(key).is_some_and(|s| serving.contains(s)));
            ops.extend(others.map(|key| Op::PutService { key: *key, service: *last }));
            return Ok(ops);
        }
    }

    // Before a record asks for it; what none asks for any more goes with what remains.
    let options = set.affinity.map(|seconds| PortOptions::with_affinity(seconds.get()));
    let news = options.filter(|options| mirror.port(id) != *options);
    ops.extend(news.map(|options| Op::PutPort { id, options }));

    let mut wanted = records(set);
    let fits = |(service, records): &&(Service, Vec<Backend>)| {
        let ids = mirror.backends().of(service.block);
        let is_whole = service.kept as usize == set.kept.len()
            && records.len() == wanted.len()
            && ids.len() == wanted.len();
        is_whole
            && records.iter().zip(&wanted).zip(ids).all(|((record, wanted), &backend)| {
                let is_named = (backend != 0) == (wanted.action() == Action::Forward);
                let wanted = Backend { backend, ..wanted.stamped(service.generation, id) };
                is_named && *record == wanted
            })
    };
    let service = if let Some((service, _)) = found.iter().find(fits) {
        *service
    } else {
        identify(&mut wanted, mirror.backends(), id);
        let (write, service) = write(mirror, id, wanted, set.kept.len())?;
        ops.push(write);
        service
    };
    let others = keys.into_iter().filter(|key| mirror.service(key) != Some(&service));
    ops.extend(others.map(|key| Op::PutService { key, service }));
    Ok(ops)
}

/// Gives each endpoint its id: the one that it has as an endpoint of the service port, or one that is nobody's.
fn identify(records: &mut [Backend], ids: &BackendIds, port: u32) {
    let mut unused = ids.unused();
    for record in records.iter_mut().filter(|record| record.action() == Action::Forward) {
        let known = ids.id(port, record.peer);
        record.backend = known.or_else(|| unused.next()).unwrap_or(0);
    }
}

/// Whether an entry, with its records, leads to an endpoint.
fn serves((service, records): &(Service, Vec<Backend>)) -> bool {
    records.iter().all(|record| record.generation == service.generation)
        && records
            .iter()
            .take(service.count as usize)
            .any(|record| record.action() == Action::Forward)
}

/// Writes a block of its own for the records, the last `kept` of which are not to choose from; and
/// what its frontends are to say.
fn write(
    mirror: &MapMirror,
    id: u32,
    wanted: Vec<Backend>,
    kept: usize,
) -> Result<(Op, Service), PlanError> {
    let blocks = mirror.blocks();
    let full = || PlanError::BackendsFull {
        needed: wanted.len(),
        used: blocks.used(),
        limit: blocks.capacity(),
    };
    let total = u32::try_from(wanted.len()).map_err(|_| full())?;
    let kept = u32::try_from(kept).map_err(|_| full())?;
    let block = blocks.find(total).ok_or_else(full)?;
    let generation = mirror.next_generation();
    let records = wanted.into_iter().map(|r| r.stamped(generation, id)).collect();
    let service = Service { block, count: total - kept, kept, generation, id };
    Ok((Op::WriteBlock { block, records }, service))
}

/// Whether there is room for the frontends that the sets add.
pub fn room(mirror: &MapMirror, sets: &[BackendSet]) -> Result<(), PlanError> {
    let all: usize = sets.iter().map(|set| set.frontends.len()).sum();
    let free = mirror.free_services();
    // Nearly always there is room for all of them, and nothing is looked up.
    if all > free {
        let added = |set: &BackendSet| set.frontends.len() - present(mirror, set).count();
        let needed = sets.iter().map(added).sum();
        if needed > free {
            return Err(PlanError::ServicesFull { needed, free, limit: mirror.max_services() });
        }
    }
    Ok(())
}

/// The frontends of a set that have entries, whoever's they are.
pub fn present(mirror: &MapMirror, set: &BackendSet) -> impl Iterator<Item = Frontend> {
    let frontends = set.frontends.iter().copied();
    frontends.filter(|frontend| mirror.service(&frontend.into()).is_some())
}

/// The ops that remove what the Service has and no set asks for. What is in `promised` another
/// Service is to have, and replaces it itself.
pub fn endings(
    mirror: &MapMirror,
    name: &ObjectRef,
    sets: &[BackendSet],
    promised: &BTreeSet<ServiceKey>,
) -> Vec<Op> {
    let wanted: BTreeSet<ServiceKey> =
        sets.iter().flat_map(|set| &set.frontends).map(ServiceKey::from).collect();
    let keys: BTreeSet<ServiceKey> =
        mirror.ids_of(name).flat_map(|id| mirror.keys_of(id)).copied().collect();
    keys.into_iter()
        .filter(|key| !wanted.contains(key) && !promised.contains(key))
        .map(|key| Op::DeleteService { key })
        .collect()
}

/// The ops that remove, after the last entry, what belonged to entries that are gone: ranges of
/// clients, options that no record asks for, and ids. What an entry leads to that is still there, since a
/// set in `unwritten` did not fit or another Service is to have it, stays with all that belongs to it.
pub fn remains(
    mirror: &MapMirror,
    store: &impl Store,
    name: &ObjectRef,
    sets: &[BackendSet],
    unwritten: &BTreeSet<PortRef>,
    promised: &BTreeSet<ServiceKey>,
) -> Vec<Op> {
    let mut asked: BTreeMap<&PortRef, BTreeSet<Cidr>> = BTreeMap::new();
    for set in sets.iter().filter(|set| !set.frontends.is_empty()) {
        asked.entry(&set.port).or_default().extend(&set.source_ranges);
    }
    let mut ops = Vec::new();
    let mut names = Vec::new();
    for id in mirror.ids_of(name) {
        let Some(port) = mirror.name(id) else { continue };
        let (asked, mut keys) = (asked.get(port), mirror.keys_of(id));
        let stays = match asked {
            Some(_) => unwritten.contains(port) || keys.any(|key| promised.contains(key)),
            None => keys.next().is_some(),
        };
        if stays {
            continue;
        }
        let unwanted = mirror
            .source_ranges_of(id)
            .filter(|range| !asked.is_some_and(|all| all.contains(range)));
        ops.extend(unwanted.map(|range| Op::DeleteSourceRange { id, range }));
        let options = PortOptions::default();
        if mirror.port(id) != options && !asks_for_options(mirror, store, id) {
            ops.push(Op::PutPort { id, options });
        }
        if asked.is_none() {
            names.push(Op::DeleteName { id });
        }
    }
    ops.extend(names);
    ops
}

/// Whether the records of any entry of the service port ask for its options.
fn asks_for_options(mirror: &MapMirror, store: &impl Store, id: u32) -> bool {
    let services = mirror.keys_of(id).filter_map(|key| mirror.service(key));
    let mut records = services.flat_map(|service| store.records(service.block, 1));
    records.any(|record| record.flags & Backend::OPTIONS != 0)
}

/// The records of a set, not stamped yet, and without ids of backends: its backends, or the one that says
/// what happens without any; then those that are kept.
fn records(set: &BackendSet) -> Vec<Backend> {
    let nobody = match set.empty {
        Empty::Refuse => Backend::refuse(),
        Empty::Unreachable => Backend::unreachable(),
    };
    let nobody = set.backends.is_empty().then_some(nobody);
    let backends = set.backends.iter().chain(&set.kept);
    let source_ranges = if set.source_ranges.is_empty() { 0 } else { Backend::SOURCE_RANGES };
    let options = if set.affinity.is_some() { Backend::OPTIONS } else { 0 };
    nobody
        .into_iter()
        .chain(backends.map(|addr| Backend::forward((*addr).into())))
        .map(|record| Backend { flags: source_ranges | options, ..record })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::SocketAddr};

    use lb_common::abi::Peer;

    use super::*;
    use crate::{
        memory::Memory,
        model::Protocol,
        store::{Snapshot, StoreError},
    };

    /// Maps in memory that count the records that are looked at.
    struct Counting {
        memory: Memory,
        looked_at: Cell<u32>,
    }

    impl Store for Counting {
        fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
            self.memory.apply(op)
        }

        fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
            self.memory.reserve(generation)
        }

        fn read(&mut self) -> Result<Snapshot, StoreError> {
            self.memory.read()
        }

        fn records(&self, block: u32, count: u32) -> Vec<Backend> {
            self.looked_at.update(|number| number + count);
            self.memory.records(block, count)
        }

        fn grace_period(&mut self) -> Result<(), StoreError> {
            self.memory.grace_period()
        }
    }

    struct World {
        mirror: MapMirror,
        store: Counting,
    }

    impl World {
        fn new() -> Self {
            let store = Counting { memory: Memory::new(64, 64), looked_at: Cell::default() };
            Self { mirror: MapMirror::new(64, 64), store }
        }

        fn write(&mut self, set: &BackendSet) {
            for op in plan(&self.mirror, &self.store, set).unwrap() {
                self.store.apply(&op).unwrap();
                self.mirror.apply(&op);
            }
        }

        /// The id of each endpoint of a set.
        fn ids(&self, set: &BackendSet) -> BTreeMap<Peer, u32> {
            let service = self.mirror.service(&ServiceKey::from(&set.frontends[0])).unwrap();
            let records = self.store.memory.records(service.block, service.records());
            records.iter().map(|record| (record.peer, record.backend)).collect()
        }
    }

    /// A set of the one service port, with one frontend, and one endpoint.
    fn set(frontend: u16, endpoint: u16) -> BackendSet {
        let service = ObjectRef::new("default", "web");
        let port = PortRef { service, port: "http".into(), protocol: Protocol::Tcp };
        let dialled = SocketAddr::from(([10, 96, 0, 10], frontend));
        let frontends = vec![Frontend::new(dialled, Protocol::Tcp)];
        BackendSet::new(port, frontends, vec![([10, 0, 0, 1], endpoint).into()])
    }

    #[test]
    fn endpoints_that_change_sets_keep_their_ids() {
        let mut world = World::new();
        let before = [set(1, 8001), set(2, 8002)];
        for set in &before {
            world.write(set);
        }
        let ids = before.map(|set| world.ids(&set));
        let swapped = [set(1, 8002), set(2, 8001)];
        for set in &swapped {
            world.write(set);
        }
        let [first, second] = swapped.map(|set| world.ids(&set));
        assert_eq!([second, first], ids);
    }

    #[test]
    fn a_set_is_written_without_a_look_at_the_others() {
        let mut world = World::new();
        (1..=8).for_each(|n| world.write(&set(n, 8000 + n)));
        world.store.looked_at.set(0);
        world.write(&set(1, 9000));
        assert_eq!(world.store.looked_at.get(), 1, "its own record");
    }
}
