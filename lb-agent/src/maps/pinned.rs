//! The real maps, through their pins.

use std::{collections::BTreeMap, os::fd::AsFd as _, path::Path};

use aya::maps::MapError;
use bytemuck::must_cast;
use lb_common::{
    ATTEMPTS, ReadMaps,
    abi::{
        ADDRESSES, Addr, Address, AffinityKey, BACKENDS, Backend, Bond, CLIENTS, ClientKey, FILTER,
        GENERATIONS, NAMES, Name, PORTS, PortOptions, SCOPE_ANY, SERVICES, SOURCE_RANGES, Service,
        ServiceEntry, ServiceKey, SourceAddress, SourceRangeKey, bpf_spin_lock,
    },
};
use lb_core::{
    model::PortRef,
    op::Op,
    store::{Snapshot, Store, StoreError},
};

use super::{
    addresses::AddressMaps,
    clients::ClientMaps,
    generations::Generations,
    grace,
    mapping::Mapping,
    one::{Access, BPF_F_LOCK, Bytes, OpenError, explained, gone, hash, is_full, open},
    ports::Ports,
};

const KEY: usize = size_of::<ServiceKey>();
const SERVICE: usize = size_of::<ServiceEntry>();
const NAME: usize = size_of::<Name>();

/// The pinned maps. Keys and values cross aya's interface as plain bytes: `bytemuck` checks the cast.
#[derive(Debug)]
pub struct Pinned {
    services: Bytes<[u8; KEY], [u8; SERVICE]>,
    names: Bytes<u32, [u8; NAME]>,
    ports: Ports,
    backends: Mapping,
    addresses: AddressMaps,
    clients: ClientMaps,
    /// Not of those who only look.
    generations: Option<Generations>,
    max_services: u32,
}

impl Pinned {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path, access: Access) -> Result<Self, OpenError> {
        let (services, max_services) = hash(dir, SERVICES)?;
        let (names, _) = hash(dir, NAMES)?;
        let ports = Ports::open(dir)?;
        let path = dir.join(BACKENDS).display().to_string();
        let (data, max_backends) = open(dir, BACKENDS)?;
        let info = data.info().map_err(|error| OpenError::Open { path: path.clone(), error })?;
        if info.value_size() as usize != size_of::<Backend>() {
            let what = format!("its values have {} bytes", info.value_size());
            return Err(OpenError::Foreign { path, what });
        }
        let backends = Mapping::new(data.fd().as_fd(), max_backends, access)
            .map_err(|error| OpenError::Memory { path, error })?;
        let mut addresses = AddressMaps::open(dir)?;
        if access == Access::Write {
            let path = dir.join(FILTER).display().to_string();
            addresses
                .restore(frontends(&services))
                .map_err(|error| OpenError::Open { path, error })?;
        }
        let clients = ClientMaps::open(dir)?;
        let generations = match access {
            Access::Read => None,
            // It outlives sets of maps, and is beside them.
            Access::Write => Some(Generations::open(dir.parent().unwrap_or(dir))?),
        };
        Ok(Self { services, names, ports, backends, addresses, clients, generations, max_services })
    }

    /// All that the maps say. Another process may change them meanwhile: an entry is then either
    /// the old one or the new one, each with the records that belong to it.
    pub fn snapshot(&self) -> Result<Snapshot, MapError> {
        let names = ports(&self.names)?;
        let mut services = BTreeMap::new();
        let mut blocks = BTreeMap::new();
        for entry in &self.services {
            let (key, value): (_, [u8; SERVICE]) = entry?;
            let key: ServiceKey = must_cast(key);
            let mut service = must_cast::<_, ServiceEntry>(value).service.sealed(&key);
            for _ in 0..ATTEMPTS {
                let records = self.records(service.block, service.records());
                if records.iter().all(|record| record.generation == service.generation) {
                    services.insert(key, service);
                    blocks.insert(service.block, records);
                    break;
                }
                let Some(again) = ReadMaps::service(self, &key) else { break };
                if again == service {
                    // Not a change under way but damage: show it as it is.
                    services.insert(key, service);
                    blocks.insert(service.block, records);
                    break;
                }
                service = again;
            }
        }
        Ok(Snapshot {
            max_services: self.max_services,
            max_backends: self.backends.len(),
            last_generation: match &self.generations {
                Some(generations) => generations.last(),
                None => self.backends.last_generation(),
            },
            last_backend: self.backends.last_backend(),
            written: self.backends.is_written(),
            services,
            ports: self.ports.all(names.keys().copied())?,
            names,
            source_ranges: self.clients.source_ranges()?,
            addresses: self.addresses.all()?,
            blocks,
        })
    }
}

/// The service ports behind the ids, in the maps pinned in `dir`, of whatever layout.
pub fn names(dir: &Path) -> Result<BTreeMap<u32, PortRef>, OpenError> {
    let path = dir.join(NAMES).display().to_string();
    ports(&hash(dir, NAMES)?.0).map_err(|error| OpenError::Open { path, error })
}

fn ports(names: &Bytes<u32, [u8; NAME]>) -> Result<BTreeMap<u32, PortRef>, MapError> {
    let port = |name| PortRef::from(&must_cast::<_, Name>(name));
    names.iter().map(|entry| entry.map(|(id, name)| (id, port(name)))).collect()
}

/// The address that clients dial, if the key says it: a NodePort is at whatever a node's address is.
fn dialled(key: &ServiceKey) -> Option<Addr> {
    (key.scope == SCOPE_ANY).then_some(key.peer.addr)
}

/// The addresses that clients dial, each as often as there is a frontend.
fn frontends(
    services: &Bytes<[u8; KEY], [u8; SERVICE]>,
) -> impl Iterator<Item = Result<Addr, MapError>> {
    services.keys().filter_map(|key| match key {
        Ok(key) => dialled(&must_cast(key)).map(Ok),
        Err(error) => Some(Err(error)),
    })
}

/// What is not planned, but follows the life of pods and of connections.
impl Pinned {
    /// Makes the maps say from where sockets of each network namespace connect. False if there was no
    /// room for all of it.
    pub fn set_clients(
        &mut self,
        clients: &BTreeMap<ClientKey, SourceAddress>,
    ) -> Result<bool, StoreError> {
        self.clients.set_clients(clients).map_err(|error| kernel("update", CLIENTS, &error))
    }

    /// Makes the maps say from where sockets of one network namespace connect.
    pub fn put_client(&mut self, key: &ClientKey, client: SourceAddress) -> Result<(), StoreError> {
        self.clients.put_client(key, client).map_err(|error| kernel("update", CLIENTS, &error))
    }

    /// From where sockets of each network namespace connect.
    pub fn clients(&self) -> Result<BTreeMap<ClientKey, SourceAddress>, MapError> {
        self.clients.clients()
    }

    /// Where clients went, by whose clients they are.
    pub fn bonds(&self) -> impl Iterator<Item = Result<(AffinityKey, Bond), MapError>> {
        self.clients.bonds().map(|entry| entry.map(|(key, bond, _)| (key, bond)))
    }
}

impl Store for Pinned {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::PutName { id, port } => {
                let name = Name::try_from(port)?;
                self.names
                    .insert(id, &must_cast(name), 0)
                    .map_err(|error| kernel("update", NAMES, &error))
            }
            Op::PutPort { id, options } => {
                let put = self.ports.put(*id, *options);
                put.map_err(|error| match error {
                    MapError::OutOfBounds { .. } => {
                        StoreError::Full { map: PORTS, flag: "--max-services" }
                    }
                    error => kernel("update", PORTS, &error),
                })
            }
            Op::WriteBlock { block, records } => self.backends.write(*block, records),
            Op::PutService { key, service } => {
                let lock = bpf_spin_lock::default();
                let entry = ServiceEntry { service: service.sealed(key), lock };
                let new = dialled(key).filter(|_| self.services.get(&must_cast(*key), 0).is_err());
                if let Some(addr) = new {
                    self.addresses.enter(addr).map_err(|e| kernel("update", FILTER, &e))?;
                }
                let written = self.services.insert(&must_cast(*key), &must_cast(entry), BPF_F_LOCK);
                if let (Err(_), Some(addr)) = (&written, new) {
                    self.addresses.leave(addr).map_err(|e| kernel("update", FILTER, &e))?;
                }
                written.map_err(|error| kernel("update", SERVICES, &error))
            }
            Op::DeleteService { key } => {
                let there = dialled(key).filter(|_| self.services.get(&must_cast(*key), 0).is_ok());
                gone(self.services.remove(&must_cast(*key)))
                    .map_err(|e| kernel("delete from", SERVICES, &e))?;
                let left = there.map_or(Ok(()), |addr| self.addresses.leave(addr));
                left.map_err(|e| kernel("update", FILTER, &e))
            }
            Op::DeleteName { id } => {
                gone(self.names.remove(id)).map_err(|e| kernel("delete from", NAMES, &e))
            }
            Op::PutSourceRange { id, range } => {
                let result = self.clients.put_source_range(*id, *range);
                result.map_err(|e| kernel("update", SOURCE_RANGES, &e))
            }
            Op::DeleteSourceRange { id, range } => {
                let result = self.clients.delete_source_range(*id, *range);
                result.map_err(|e| kernel("delete from", SOURCE_RANGES, &e))
            }
            Op::PutAddress { addr, known } => {
                let result = self.addresses.put(*addr, *known);
                result.map_err(|e| kernel("update", ADDRESSES, &e))
            }
            Op::DeleteAddress { addr } => {
                let result = self.addresses.delete(*addr);
                result.map_err(|e| kernel("delete from", ADDRESSES, &e))
            }
        }
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        let Some(generations) = &mut self.generations else { return Ok(()) };
        generations.reserve(generation).map_err(|e| kernel("update", GENERATIONS, &e))
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        if self.generations.is_some() {
            let restored = self.addresses.restore(frontends(&self.services));
            restored.map_err(|error| kernel("update", FILTER, &error))?;
        }
        self.snapshot().map_err(|error| StoreError::Unreadable(explained(&error)))
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        self.backends.read(block, count)
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        grace::wait();
        Ok(())
    }
}

fn kernel(call: &'static str, map: &'static str, error: &MapError) -> StoreError {
    // The size of the clients map is no flag's.
    if map != CLIENTS && is_full(error) {
        return StoreError::Full { map, flag: "--max-services" };
    }
    StoreError::Kernel { call, map, error: explained(error) }
}

impl ReadMaps for Pinned {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let value = self.services.get(&must_cast(*key), 0).ok()?;
        Some(must_cast::<_, ServiceEntry>(value).service.sealed(key))
    }

    fn port(&self, id: u32) -> Option<PortOptions> {
        self.ports.get(id)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.backends.read(index, 1).first().copied()
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        self.addresses.get(addr)
    }

    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        self.clients.client(key)
    }

    fn allows(&self, client: &SourceRangeKey) -> bool {
        self.clients.allows(client)
    }

    fn bond(&self, key: &AffinityKey) -> Bond {
        self.clients.bond(key)
    }
}
