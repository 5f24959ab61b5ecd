//! What stands in the maps, as the agent knows it: the mirror that plans are made against.
//!
//! There is no other state. At the start the mirror is read from the pinned maps
//! ([`MapMirror::adopt`]); after that it changes with each [`Op`] that the maps have taken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use bytemuck::Zeroable as _;
use lb_common::abi::{Action, Addr, Backend, PortOptions, Service, ServiceKey};

use crate::{
    backend_ids::BackendIds,
    blocks::Blocks,
    model::{Cidr, ObjectRef, PortRef, Protocol},
    op::{AddressUse, Op},
    store::{Snapshot, max_names},
};

/// The mirror of the maps.
#[derive(Clone, Debug)]
pub struct MapMirror {
    max_services: u32,
    services: BTreeMap<ServiceKey, Service>,
    names: BTreeMap<u32, PortRef>,
    ids: BTreeMap<PortRef, u32>,
    /// The frontends of each id.
    keys: BTreeSet<(u32, ServiceKey)>,
    /// Ids that are not in use, as ranges, by start. The smallest is taken first: ids stay dense,
    /// so that they can index an array.
    free_ids: BTreeMap<u32, u32>,
    next_generation: u32,
    blocks: Blocks,
    backends: BackendIds,
    ports: BTreeMap<u32, PortOptions>,
    source_ranges: BTreeSet<(u32, Cidr)>,
    addresses: BTreeMap<Addr, AddressUse>,
}

impl MapMirror {
    /// Empty maps of these sizes.
    pub fn new(max_services: u32, max_backends: u32) -> Self {
        Self {
            max_services,
            services: BTreeMap::new(),
            names: BTreeMap::new(),
            ids: BTreeMap::new(),
            keys: BTreeSet::new(),
            free_ids: [(0, u32::MAX)].into(),
            next_generation: 1,
            blocks: Blocks::new(max_backends),
            backends: BackendIds::default(),
            ports: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// The mirror of what is in the maps, by whoever wrote it, and the ops that remove what makes no sense:
    /// frontends of no known service port, or in no block, second ids of one service port, and ids that
    /// have no place in the maps. Only damage from outside makes them, and maps that are smaller now.
    /// `given` are the ids of backends that are known to be given.
    pub fn adopt(snapshot: &Snapshot, given: &BackendIds) -> (Self, Vec<Op>) {
        let mut mirror = Self::new(snapshot.max_services, snapshot.max_backends);
        mirror.next_generation = snapshot.last_generation.wrapping_add(1).max(1);
        let mut repairs = Vec::new();
        for (&id, port) in &snapshot.names {
            if mirror.ids.contains_key(port) || id >= max_names(snapshot.max_services) {
                repairs.push(Op::DeleteName { id });
            } else {
                mirror.put_name(id, port.clone());
            }
        }
        for (&key, &service) in &snapshot.services {
            let known = mirror.names.contains_key(&service.id);
            let placed = mirror.blocks.len(service.block) == Some(service.records())
                || mirror.blocks.take(service.block, service.records());
            if placed {
                mirror.put_service(key, service);
            }
            if !known || !placed {
                repairs.push(Op::DeleteService { key });
            }
        }
        mirror.adopt_backends(snapshot, given);
        mirror.ports.clone_from(&snapshot.ports);
        mirror.source_ranges.clone_from(&snapshot.source_ranges);
        let ownerless = |(id, _): &&(u32, Cidr)| !mirror.names.contains_key(id);
        let stray = snapshot.source_ranges.iter().filter(ownerless);
        repairs.extend(stray.map(|(id, range)| Op::DeleteSourceRange { id: *id, range: *range }));
        mirror.addresses.clone_from(&snapshot.addresses);
        if snapshot.written {
            // A reader of a block that the agent before us gave up may still be in it.
            mirror.blocks.retire_free();
        }
        (mirror, repairs)
    }

    /// The ids of backends, by the records in use. One that two endpoints have, or the second one of an
    /// endpoint, is none, and so the endpoint gets another one: only damage from outside makes them.
    fn adopt_backends(&mut self, snapshot: &Snapshot, given: &BackendIds) {
        let greatest = BackendIds::greatest(snapshot.max_backends);
        let (mut owners, mut ids) = (HashMap::new(), HashMap::new());
        for (block, records) in &snapshot.blocks {
            if self.blocks.len(*block).is_none() {
                continue;
            }
            let known = |record: &Backend| {
                let (id, endpoint) = (record.backend, (record.service, record.peer));
                let is_one = record.action() == Action::Forward
                    && (1..=greatest).contains(&id)
                    && *owners.entry(id).or_insert(endpoint) == endpoint
                    && *ids.entry(endpoint).or_insert(id) == id;
                Backend { backend: if is_one { id } else { 0 }, ..*record }
            };
            self.backends.take(*block, records.iter().map(known));
        }
        self.backends.go_on_from(given, snapshot.last_backend.min(greatest));
    }

    /// Takes in what an op did to the maps.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::PutName { id, port } => self.put_name(*id, port.clone()),
            Op::WriteBlock { block, records } => {
                let len = u32::try_from(records.len()).unwrap_or(u32::MAX);
                let taken = self.blocks.take(*block, len);
                debug_assert!(taken, "block {block} is not free");
                self.backends.take(*block, records.iter().copied());
                if let Some(record) = records.first() {
                    self.next_generation = record.generation.wrapping_add(1).max(1);
                }
            }
            Op::PutPort { id, options } if *options == PortOptions::default() => {
                self.ports.remove(id);
            }
            Op::PutPort { id, options } => {
                self.ports.insert(*id, *options);
            }
            Op::PutService { key, service } => self.put_service(*key, *service),
            Op::DeleteService { key } => self.remove_service(key),
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
            Op::DeleteName { id } => {
                if let Some(port) = self.names.remove(id) {
                    self.ids.remove(&port);
                    self.free_ids.extend(id.checked_add(1).map(|end| (*id, end)));
                }
            }
        }
    }

    fn put_name(&mut self, id: u32, port: PortRef) {
        if let Some((&start, &end)) = self.free_ids.range(..=id).next_back()
            && id < end
        {
            self.free_ids.remove(&start);
            let rest = [(start, id), (id + 1, end)];
            self.free_ids.extend(rest.into_iter().filter(|(start, end)| start < end));
        }
        self.ids.insert(port.clone(), id);
        self.names.insert(id, port);
    }

    fn put_service(&mut self, key: ServiceKey, service: Service) {
        self.blocks.name(service.block);
        self.remove_service(&key);
        self.services.insert(key, service);
        self.keys.insert((service.id, key));
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        let Some(before) = self.services.remove(key) else { return };
        if self.blocks.unname(before.block) {
            self.backends.retire(before.block);
        }
        self.keys.remove(&(before.id, *key));
    }

    /// The entry of a frontend.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// All entries, sorted.
    pub fn services(&self) -> impl ExactSizeIterator<Item = (&ServiceKey, &Service)> {
        self.services.iter()
    }

    /// Most entries that fit.
    pub const fn max_services(&self) -> u32 {
        self.max_services
    }

    /// How many more entries fit.
    pub fn free_services(&self) -> usize {
        usize::try_from(self.max_services).unwrap_or(usize::MAX).saturating_sub(self.services.len())
    }

    /// The service port behind an id.
    pub fn name(&self, id: u32) -> Option<&PortRef> {
        self.names.get(&id)
    }

    /// The id of a service port.
    pub fn id(&self, port: &PortRef) -> Option<u32> {
        self.ids.get(port).copied()
    }

    /// Ids that are not in use, smallest first.
    pub fn unused_ids(&self) -> impl Iterator<Item = u32> {
        let free = self.free_ids.iter().flat_map(|(start, end)| *start..*end);
        // An entry or a range may have an id that stands for nothing, see `adopt`.
        free.filter(|id| {
            self.keys_of(*id).next().is_none() && self.source_ranges_of(*id).next().is_none()
        })
    }

    /// All service ports, and their ids.
    pub fn ids(&self) -> impl Iterator<Item = (&PortRef, u32)> {
        self.ids.iter().map(|(port, id)| (port, *id))
    }

    /// The ids of a Service's ports.
    pub fn ids_of(&self, service: &ObjectRef) -> impl Iterator<Item = u32> {
        let first = PortRef { service: service.clone(), port: "".into(), protocol: Protocol::Tcp };
        self.ids
            .range(first..)
            .take_while(move |(port, _)| port.service == *service)
            .map(|(_, id)| *id)
    }

    /// The frontends of a service port.
    pub fn keys_of(&self, id: u32) -> impl Iterator<Item = &ServiceKey> {
        let all = (id, ServiceKey::zeroed())..;
        self.keys.range(all).take_while(move |(of, _)| *of == id).map(|(_, key)| key)
    }

    /// What is true of a service port.
    pub fn port(&self, id: u32) -> PortOptions {
        self.ports.get(&id).copied().unwrap_or_default()
    }

    /// The ranges of clients that may use a service port.
    pub fn source_ranges_of(&self, id: u32) -> impl Iterator<Item = Cidr> {
        let first = Cidr { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
        let all = self.source_ranges.range((id, first)..);
        all.take_while(move |(of, _)| *of == id).map(|(_, range)| *range)
    }

    /// Whether any service port is not for all clients.
    pub fn has_source_ranges(&self) -> bool {
        !self.source_ranges.is_empty()
    }

    /// What addresses stand for.
    pub const fn addresses(&self) -> &BTreeMap<Addr, AddressUse> {
        &self.addresses
    }

    /// The Services that have entries.
    pub fn service_names(&self) -> BTreeSet<ObjectRef> {
        self.ids.keys().map(|port| port.service.clone()).collect()
    }

    /// Generation for the next block.
    pub const fn next_generation(&self) -> u32 {
        self.next_generation
    }

    /// The blocks of the backends array.
    pub const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The ids of backends.
    pub const fn backends(&self) -> &BackendIds {
        &self.backends
    }

    /// Frees a block that a plan wrote and then, since an op failed, never named.
    pub fn discard(&mut self, block: u32) {
        if self.blocks.discard(block) {
            self.backends.discard(block);
        }
    }

    /// Frees the retired blocks, see `Blocks::reclaim`.
    pub fn reclaim(&mut self) {
        self.blocks.reclaim();
        self.backends.reclaim();
    }
}
