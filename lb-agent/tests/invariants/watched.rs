//! Maps in memory that look at every op.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use bytemuck::Zeroable as _;
use lb_common::{
    ATTEMPTS, Addr, Flow, Prior, ReadMaps, Refusal, Selection, Verdict,
    abi::{
        self, Action, Address, AffinityKey, Backend, Bond, ClientKey, PortOptions, ServiceKey,
        SourceAddress, SourceRangeKey,
    },
    select,
};
use lb_core::{
    memory::Memory,
    model::{Cidr, PortRef},
    onlooker::Onlooker,
    op::{AddressUse, Op},
    store::{Snapshot, Store, StoreError},
};

use super::truth::{Set, Sets, Truth};

/// An entry that stood in the map, with its records as they were then.
#[derive(Clone, Debug)]
struct Past {
    key: ServiceKey,
    value: abi::Service,
    records: Vec<Backend>,
    /// It stands there still, or did after the last grace period.
    readable: bool,
}

/// Maps in memory that look at every op.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) memory: Memory,
    pub(super) services: BTreeMap<ServiceKey, abi::Service>,
    pub(super) names: BTreeMap<u32, PortRef>,
    pub(super) source_ranges: BTreeSet<(u32, Cidr)>,
    pub(super) addresses: BTreeMap<Addr, AddressUse>,
    past: Vec<Past>,
    generations: BTreeSet<u32>,
    /// Whether both lists are whole.
    pub(super) open: bool,
    /// What the maps said when the sync began, and what they should say when it is over.
    pub(super) old: Sets,
    pub(super) new: Sets,
    /// What the agent was told.
    pub(super) told: Truth,
    /// The next ops that fail, lowest bit first.
    pub(super) faults: u64,
    pub(super) grace_fails: bool,
    /// Nothing is checked: what stands in the maps was not written by an agent.
    blind: bool,
}

/// How many values older than a grace period are remembered.
const OLD_VALUES: usize = 24;

impl Watched {
    pub(super) fn new(max_services: u32, max_backends: u32) -> Self {
        Self {
            memory: Memory::new(max_services, max_backends),
            services: BTreeMap::new(),
            names: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            addresses: BTreeMap::new(),
            past: Vec::new(),
            generations: BTreeSet::new(),
            open: false,
            old: Sets::new(),
            new: Sets::new(),
            told: Truth::default(),
            faults: 0,
            grace_fails: false,
            blind: false,
        }
    }

    /// Maps of any content; nothing is checked before [`Watched::watch`].
    pub(super) fn blind(memory: Memory) -> Self {
        Self { memory, blind: true, ..Self::new(0, 0) }
    }

    /// The maps that an agent makes after these were thrown away. Nobody reads them yet, but flows
    /// remember generations of these.
    pub(super) fn made_anew(&self) -> Self {
        let memory = self.memory.made_anew();
        let (generations, told) = (self.generations.clone(), self.told.clone());
        Self { memory, generations, told, ..Self::new(0, 0) }
    }

    /// From now on all is checked.
    pub(super) fn watch(&mut self) {
        let Snapshot { services, names, source_ranges, addresses, .. } = self.memory.snapshot();
        for (&key, &value) in &services {
            let records = self.records_of(&value);
            self.past.push(Past { key, value, records, readable: true });
        }
        (self.services, self.names) = (services, names);
        (self.source_ranges, self.addresses) = (source_ranges, addresses);
        (self.blind, self.open) = (false, true);
    }

    fn records_of(&self, value: &abi::Service) -> Vec<Backend> {
        self.memory.records(value.block, value.records())
    }

    /// Where an entry leads; panics if what it names is no set.
    fn set(&self, key: &ServiceKey, value: &abi::Service) -> Set {
        let records = self.records_of(value);
        assert!(value.count > 0 && value.generation > 0, "{key:?} names no set: {value:?}");
        assert_eq!(records.len(), value.records() as usize, "{key:?} names what is not there");
        let Backend { flags, .. } = records[0];
        for record in &records {
            assert_ne!(*record, Backend::zeroed(), "{key:?} names a record never written");
            let stamp = (record.generation, record.service);
            assert_eq!(stamp, (value.generation, value.id), "{key:?} names parts of two sets");
            assert_eq!(record.flags, flags, "{key:?}: not one set");
            let is_named = record.backend != 0;
            assert_eq!(is_named, record.action() == Action::Forward, "{key:?}: {record:?}");
        }
        let options = self.memory.port(value.id).filter(|_| flags & Backend::OPTIONS != 0);
        let affinity = options.map_or(0, |options| options.affinity);
        let (chosen, kept) = records.split_at(value.count as usize);
        let fails = chosen.iter().map(Backend::action).find(|action| *action != Action::Forward);
        assert!(fails.is_none() || chosen.len() == 1, "{key:?} fails now and then: {records:?}");
        assert!(kept.iter().all(|record| record.action() == Action::Forward), "{records:?}");
        let peers = |records: &[Backend]| records.iter().map(|record| record.peer.into()).collect();
        let is_of = |(id, range): &&(u32, Cidr)| {
            *id == value.id && range.addr.is_ipv4() == key.peer.addr.is_v4()
        };
        let asks = flags & Backend::SOURCE_RANGES != 0;
        let source_ranges: BTreeSet<Cidr> = if asks {
            self.source_ranges.iter().filter(is_of).map(|(_, range)| *range).collect()
        } else {
            BTreeSet::new()
        };
        assert_eq!(asks, !source_ranges.is_empty(), "{key:?}: nobody");
        let port = self.names.get(&value.id);
        Set {
            port: port.unwrap_or_else(|| panic!("{key:?} has id {}: nobody's", value.id)).clone(),
            backends: if fails.is_some() { Vec::new() } else { peers(chosen) },
            kept: peers(kept),
            empty: fails,
            affinity,
            source_ranges,
        }
    }

    pub(super) fn sets(&self) -> Sets {
        self.services.iter().map(|(key, value)| (*key, self.set(key, value))).collect()
    }

    /// What must be true of an op before it is carried out.
    fn before(&self, op: &Op) {
        assert!(self.open, "written before both lists are whole");
        match op {
            Op::PutName { id, port } => {
                assert_eq!(self.names.get(id), None, "id {id} stands for something already");
                assert!(!self.names.values().any(|other| other == port), "{port} has an id");
            }
            Op::PutPort { id, options } => {
                assert!(self.names.contains_key(id), "id {id} stands for nothing");
                assert_ne!(self.memory.port(*id), Some(*options), "it says so already");
            }
            Op::WriteBlock { block, records } => self.before_write(*block, records),
            Op::PutService { key, service } => {
                assert_ne!(self.services.get(key), Some(service), "it is there already");
                let old = self.old.get(key);
                // Two blocks that say the same, of frontends that are in one set now, become one.
                let joins = self.services.values().any(|other| other == service);
                assert!(joins || old.is_none() || old != self.new.get(key), "it is right already");
            }
            Op::DeleteService { key } => {
                assert!(self.services.contains_key(key), "it is gone already");
            }
            Op::DeleteName { id } => {
                assert!(self.names.contains_key(id), "id {id} is gone already");
                assert!(!self.services.values().any(|s| s.id == *id), "id {id} is in use");
                assert!(!self.source_ranges.iter().any(|(of, _)| of == id), "id {id} has ranges");
            }
            Op::PutSourceRange { id, range } => {
                assert!(!self.source_ranges.contains(&(*id, *range)), "it is there already");
                assert!(self.names.contains_key(id), "id {id} stands for nothing");
            }
            Op::DeleteSourceRange { id, range } => {
                assert!(self.source_ranges.contains(&(*id, *range)), "it is gone already");
            }
            Op::PutAddress { addr, known } => {
                assert_ne!(self.addresses.get(addr), Some(known), "it is there already");
                let wanted = self.told.addresses(&self.services);
                assert_eq!(wanted.get(addr), Some(known), "{addr}: with what is there by now");
            }
            Op::DeleteAddress { addr } => {
                assert!(self.addresses.contains_key(addr), "it is gone already");
            }
        }
    }

    fn before_write(&self, block: u32, records: &[Backend]) {
        let Backend { generation, service, .. } = records[0];
        assert!(generation > 0 && !self.generations.contains(&generation), "an old generation");
        assert!(self.names.contains_key(&service), "id {service} stands for nothing");
        self.before_ids(records);
        let end = block + u32::try_from(records.len()).unwrap();
        for past in self.past.iter().filter(|past| past.readable) {
            let (start, len) = (past.value.block, past.value.records());
            assert!(end <= start || start + len <= block, "a reader may hold {past:?}");
        }
    }

    /// An endpoint has the id that it has in any set of its service port, and no reader may take it for
    /// another one.
    fn before_ids(&self, records: &[Backend]) {
        let endpoint = |record: &Backend| (record.service, record.peer);
        let is_one = |record: &&Backend| record.action() == Action::Forward;
        let there: Vec<Backend> = self.services.values().flat_map(|s| self.records_of(s)).collect();
        for record in records.iter().filter(is_one) {
            let same = there.iter().filter(is_one).find(|it| endpoint(it) == endpoint(record));
            assert!(same.is_none_or(|it| it.backend == record.backend), "{record:?}, {same:?}");
            let past = self.past.iter().filter(|past| past.readable).flat_map(|past| &past.records);
            for other in past.chain(&there).chain(records).filter(is_one) {
                let is_other = endpoint(other) != endpoint(record);
                assert!(!is_other || other.backend != record.backend, "{record:?}, {other:?}");
            }
        }
    }

    fn mirror(&mut self, op: &Op) {
        match op {
            Op::PutName { id, port } => {
                self.names.insert(*id, port.clone());
            }
            Op::PutPort { .. } => {}
            Op::WriteBlock { records, .. } => {
                self.generations.extend(records.iter().map(|record| record.generation));
            }
            Op::PutService { key, service } => {
                self.services.insert(*key, *service);
                let records = self.records_of(service);
                self.past.push(Past { key: *key, value: *service, records, readable: true });
            }
            Op::DeleteService { key } => {
                self.services.remove(key);
            }
            Op::DeleteName { id } => {
                self.names.remove(id);
            }
            Op::PutSourceRange { id, range } => {
                self.source_ranges.insert((*id, *range));
            }
            Op::DeleteSourceRange { id, range } => {
                self.source_ranges.remove(&(*id, *range));
            }
            Op::PutAddress { addr, known } => {
                self.addresses.insert(*addr, *known);
            }
            Op::DeleteAddress { addr } => {
                self.addresses.remove(addr);
            }
        }
    }

    fn check_sets(&self) {
        let sets = self.sets();
        for (key, set) in &sets {
            let (old, new) = (self.old.get(key), self.new.get(key));
            // Whom both let in is let in all the time.
            let is = |wanted: Option<&Set>| {
                wanted.is_some_and(|wanted| {
                    set.has_records_of(wanted)
                        && set.source_ranges.is_superset(&wanted.source_ranges)
                })
            };
            assert!(is(old) || is(new), "{key:?}: {set:?}, {old:?} or {new:?}");
        }
        for key in self.old.keys().filter(|key| self.new.contains_key(key)) {
            assert!(sets.contains_key(key), "{key:?} disappeared");
        }
    }

    fn check_readers(&self) {
        for past in &self.past {
            let current = self.services.get(&past.key).map(|value| self.records_of(value));
            for index in [0, past.value.count / 2, u32::MAX] {
                let (verdict, seen) = self.read(past.key, past.value, 1, index, &Prior::NONE);
                if past.readable {
                    let record = past.records[index.min(past.value.count - 1) as usize];
                    assert_eq!(seen, Some(record), "a reader of {past:?}");
                    // A flow that is there already, and began with another set.
                    for record in &past.records[past.value.count as usize..] {
                        let prior = Prior { backend: record.peer, generation: u32::MAX };
                        let (verdict, _) = self.read(past.key, past.value, 1, index, &prior);
                        // Ranges hold for flows that are there, and nobody knows who an onlooker is.
                        if record.flags & Backend::SOURCE_RANGES != 0 {
                            assert_eq!(verdict, Verdict::Fail(Refusal::UnknownClient), "{past:?}");
                            continue;
                        }
                        let Verdict::Forward(stays) = verdict else { panic!("{verdict:?}") };
                        assert_eq!(stays.to.backend, record.peer, "a flow of {past:?}");
                    }
                } else {
                    assert_ne!(
                        verdict,
                        Verdict::Fail(Refusal::Unstable),
                        "a late reader of {past:?}"
                    );
                    let known = |record: &Backend| {
                        past.records.contains(record)
                            || current.as_ref().is_some_and(|records| records.contains(record))
                    };
                    assert!(
                        seen.as_ref().map_or(current.is_none(), known),
                        "a late reader of {past:?} got {verdict:?}"
                    );
                }
            }
        }
        let readable: Vec<&Past> = self.past.iter().filter(|past| past.readable).collect();
        for mine in &readable {
            for other in &readable {
                self.check_torn(mine, other);
            }
        }
    }

    /// A reader of `mine.key` that got words of two values, or those of another key: the kernel has
    /// given the element to it.
    fn check_torn(&self, mine: &Past, other: &Past) {
        let key = mine.key;
        let current = self.services.get(&key).map(|value| self.records_of(value));
        let (a, b) = (mine.value, other.value.sealed(&other.key).sealed(&key));
        for bits in 0..8 {
            let word = |bit, a, b| if bits & bit == 0 { a } else { b };
            let torn = abi::Service {
                block: word(1, a.block, b.block),
                count: word(2, a.count, b.count),
                generation: word(4, a.generation, b.generation),
                kept: 0,
                id: a.id,
            };
            for (readings, index) in [(1, u32::MAX), (ATTEMPTS, torn.count / 3)] {
                let (verdict, seen) = self.read(key, torn, readings, index, &Prior::NONE);
                let fine = match seen {
                    Some(record) => {
                        let of_other = (other.key == key).then_some(&other.records);
                        let sets = [&mine.records].into_iter().chain(of_other).chain(&current);
                        sets.into_iter().any(|records| records.contains(&record))
                    }
                    None if readings == 1 => verdict == Verdict::Miss && current.is_none(),
                    None => verdict == Verdict::Fail(Refusal::Unstable),
                };
                assert!(fine, "{torn:?} of {mine:?} and {other:?} led to {verdict:?}");
            }
        }
    }

    /// The datapath's own lookup, by a reader whose first `readings` of the entry give `value`; and the
    /// record that the verdict comes from.
    fn read(
        &self,
        key: ServiceKey,
        value: abi::Service,
        readings: u32,
        index: u32,
        prior: &Prior,
    ) -> (Verdict<Selection>, Option<Backend>) {
        let last = Cell::new(None);
        let readings = Cell::new(readings);
        let reader = Reader { maps: &self.memory, key, value, readings, last };
        let flow = Flow { peer: key.peer, protocol: key.protocol };
        let asking = Onlooker { index, ..Onlooker::default() };
        let verdict = select(&reader, &asking, &flow, prior);
        (verdict, record_of(verdict, reader.last.get()))
    }
}

/// The record that a verdict comes from; `last` is the one that was read last.
fn record_of(verdict: Verdict<Selection>, last: Option<Backend>) -> Option<Backend> {
    let last = |asks: fn(&Backend) -> bool| last.filter(asks);
    match verdict {
        Verdict::Forward(Selection { to, .. }) => {
            let is_it = |it: &Backend| it.peer == to.backend && it.generation == to.generation;
            last(|it| it.action() == Action::Forward).filter(is_it)
        }
        Verdict::Fail(Refusal::NoEndpoints) => last(|it| it.action() == Action::Refuse),
        Verdict::Fail(Refusal::Unreachable) => last(|it| it.action() == Action::Unreachable),
        // Nobody knows who an onlooker is.
        Verdict::Fail(Refusal::UnknownClient) => last(|it| it.flags & Backend::SOURCE_RANGES != 0),
        _ => None,
    }
}

struct Reader<'a> {
    maps: &'a Memory,
    /// Of the entry, whatever leads there.
    key: ServiceKey,
    value: abi::Service,
    readings: Cell<u32>,
    /// The record that was read last.
    last: Cell<Option<Backend>>,
}

impl ReadMaps for Reader<'_> {
    fn service(&self, _: &ServiceKey) -> Option<abi::Service> {
        let left = self.readings.get();
        self.readings.set(left.saturating_sub(1));
        if left > 0 { Some(self.value) } else { self.maps.service(&self.key) }
    }

    fn port(&self, id: u32) -> Option<PortOptions> {
        self.maps.port(id)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.last.set(self.maps.backend(index));
        self.last.get()
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        self.maps.address(addr)
    }

    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        self.maps.client(key)
    }

    fn allows(&self, client: &SourceRangeKey) -> bool {
        self.maps.allows(client)
    }

    fn bond(&self, key: &AffinityKey) -> Bond {
        self.maps.bond(key)
    }
}

fn injected() -> StoreError {
    StoreError::Kernel { call: "write", map: "any", error: "injected".into() }
}

impl Store for Watched {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        if self.blind {
            return self.memory.apply(op);
        }
        self.before(op);
        let fails = self.faults & 1 == 1;
        self.faults >>= 1;
        if fails {
            return Err(injected());
        }
        self.memory.apply(op)?;
        self.mirror(op);
        self.check_sets();
        self.check_readers();
        Ok(())
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        self.memory.reserve(generation)
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        self.memory.read()
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        self.memory.records(block, count)
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        if self.grace_fails {
            return Err(injected());
        }
        let services = &self.services;
        let mut superseded = BTreeSet::new();
        for past in self.past.iter_mut().rev() {
            // Of several stays of one value the last one counts.
            past.readable = services.get(&past.key) == Some(&past.value)
                && superseded.insert((past.key, past.value.generation));
        }
        let late = self.past.iter().filter(|past| !past.readable).count();
        let mut surplus = late.saturating_sub(OLD_VALUES);
        self.past.retain(|past| {
            let forgotten = !past.readable && surplus > 0;
            surplus -= usize::from(forgotten);
            !forgotten
        });
        Ok(())
    }
}
