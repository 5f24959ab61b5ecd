//! Maps in memory: for `--dry-run`, and for tests of what is written without a kernel.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable as _;
use lb_common::{
    ReadMaps,
    abi::{
        Addr, Address, AffinityKey, Backend, Bond, ClientKey, NAMES, Name, PORTS, PortOptions,
        SERVICES, Service, ServiceKey, SourceAddress, SourceRangeKey,
    },
};

use crate::model::{Cidr, PortRef};
use crate::{
    op::{AddressUse, Op},
    store::{Snapshot, Store, StoreError, last_generation, max_names},
};

/// Maps in memory. They know the limits of real ones, and no others.
#[derive(Clone, Debug)]
pub struct Memory {
    max_services: u32,
    /// The generation given last; 0: the last one that the records show.
    last_generation: u32,
    services: BTreeMap<ServiceKey, Service>,
    names: BTreeMap<u32, PortRef>,
    ports: BTreeMap<u32, PortOptions>,
    backends: Vec<Backend>,
    source_ranges: BTreeSet<(u32, Cidr)>,
    addresses: BTreeMap<Addr, AddressUse>,
    clients: BTreeMap<ClientKey, SourceAddress>,
}

impl Memory {
    /// Empty maps of these sizes.
    pub fn new(max_services: u32, max_backends: u32) -> Self {
        let backends = vec![Backend::zeroed(); max_backends.try_into().unwrap_or(usize::MAX)];
        Self {
            max_services,
            last_generation: 0,
            services: BTreeMap::new(),
            names: BTreeMap::new(),
            ports: BTreeMap::new(),
            backends,
            source_ranges: BTreeSet::new(),
            addresses: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }

    /// What the maps say.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            max_services: self.max_services,
            max_backends: self.backends.len().try_into().unwrap_or(u32::MAX),
            last_generation: match self.last_generation {
                0 => last_generation(self.backends.iter().map(|r| r.generation)),
                last => last,
            },
            last_backend: self.backends.iter().map(|record| record.backend).max().unwrap_or(0),
            written: self.backends.iter().any(|record| record.generation != 0),
            services: self.services.clone(),
            names: self.names.clone(),
            ports: self.ports.clone(),
            source_ranges: self.source_ranges.clone(),
            addresses: self.addresses.clone(),
            blocks: self
                .services
                .values()
                .map(|service| (service.block, self.records(service.block, service.records())))
                .collect(),
        }
    }

    /// The maps that an agent makes after these were thrown away: what is kept of generations stays.
    #[must_use]
    pub fn made_anew(&self) -> Self {
        let max_backends = self.backends.len().try_into().unwrap_or(u32::MAX);
        let last_generation = self.snapshot().last_generation;
        Self { last_generation, ..Self::new(self.max_services, max_backends) }
    }

    fn range(&self, block: u32, count: usize) -> Result<std::ops::Range<usize>, StoreError> {
        let start: usize = block.try_into().unwrap_or(usize::MAX);
        let end = start.saturating_add(count);
        if end > self.backends.len() {
            let capacity = self.backends.len().try_into().unwrap_or(u32::MAX);
            return Err(StoreError::OutOfBounds { block, count, capacity });
        }
        Ok(start..end)
    }
}

impl From<&Snapshot> for Memory {
    fn from(snapshot: &Snapshot) -> Self {
        let mut memory = Self::new(snapshot.max_services, snapshot.max_backends);
        memory.last_generation = snapshot.last_generation;
        memory.services.clone_from(&snapshot.services);
        memory.names.clone_from(&snapshot.names);
        memory.ports.clone_from(&snapshot.ports);
        memory.source_ranges.clone_from(&snapshot.source_ranges);
        memory.addresses.clone_from(&snapshot.addresses);
        for (block, records) in &snapshot.blocks {
            if let Ok(range) = memory.range(*block, records.len()) {
                memory.backends[range].copy_from_slice(records);
            }
        }
        memory
    }
}

impl Store for Memory {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::PutName { id, port } => {
                Name::try_from(port)?;
                let limit = max_names(self.max_services).try_into().unwrap_or(usize::MAX);
                if self.names.len() >= limit && !self.names.contains_key(id) {
                    return Err(StoreError::Full { map: NAMES, flag: "--max-services" });
                }
                self.names.insert(*id, port.clone());
            }
            Op::PutPort { id, options } => {
                if *id >= max_names(self.max_services) {
                    return Err(StoreError::Full { map: PORTS, flag: "--max-services" });
                }
                self.ports.insert(*id, *options);
                self.ports.retain(|_, options| *options != PortOptions::default());
            }
            Op::WriteBlock { block, records } => {
                let range = self.range(*block, records.len())?;
                self.backends[range].copy_from_slice(records);
            }
            Op::PutService { key, service } => {
                let full =
                    self.services.len() >= self.max_services.try_into().unwrap_or(usize::MAX);
                if full && !self.services.contains_key(key) {
                    return Err(StoreError::Full { map: SERVICES, flag: "--max-services" });
                }
                self.services.insert(*key, *service);
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
        Ok(())
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        self.last_generation = generation;
        Ok(())
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        Ok(self.snapshot())
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        let count = count.try_into().unwrap_or(usize::MAX);
        self.range(block, count).map_or_else(|_| Vec::new(), |range| self.backends[range].to_vec())
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl ReadMaps for Memory {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn port(&self, id: u32) -> Option<PortOptions> {
        let is_there = id < max_names(self.max_services);
        is_there.then(|| self.ports.get(&id).copied().unwrap_or_default())
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.backends.get(usize::try_from(index).ok()?).copied()
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        let AddressUse { flags, netns } = *self.addresses.get(addr)?;
        Some(Address::new(*addr, flags, netns))
    }

    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        self.clients.get(key).copied()
    }

    fn allows(&self, client: &SourceRangeKey) -> bool {
        let (id, addr) = (client.service(), client.addr().ip());
        self.source_ranges.iter().any(|(of, range)| *of == id && range.contains(addr))
    }

    fn bond(&self, _: &AffinityKey) -> Bond {
        Bond::NONE
    }
}
