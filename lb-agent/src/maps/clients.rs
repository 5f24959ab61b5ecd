//! Who may connect, and where they went before: source ranges, the addresses of network namespaces,
//! session affinity.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use bytemuck::{Zeroable as _, must_cast};
use lb_common::abi::{
    AFFINITY, Affinity, AffinityKey, Bond, CLIENTS, Client, ClientEntry, SOURCES, SourceKey,
};

use super::{
    OpenError,
    pinned::{BPF_F_LOCK, gone, hash, open},
    source_key, source_range,
};
use crate::policy::Cidr;

const SOURCE: usize = size_of::<SourceKey>();
const CLIENT: usize = size_of::<ClientEntry>();
const BOUND: usize = size_of::<AffinityKey>();
const BONDS: usize = size_of::<Affinity>();

/// The three maps.
#[derive(Debug)]
pub(super) struct Clients {
    sources: LpmTrie<MapData, [u8; SOURCE], u32>,
    addresses: HashMap<MapData, u64, [u8; CLIENT]>,
    affinity: HashMap<MapData, [u8; BOUND], [u8; BONDS]>,
}

impl Clients {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let (data, _) = open(dir, SOURCES)?;
        let sources =
            LpmTrie::try_from(Map::LpmTrie(data)).map_err(|error| OpenError::Foreign {
                path: dir.join(SOURCES).display().to_string(),
                what: error.to_string(),
            })?;
        Ok(Self { sources, addresses: hash(dir, CLIENTS)?.0, affinity: hash(dir, AFFINITY)?.0 })
    }

    /// All source ranges, by the id of the service port.
    pub(super) fn sources(&self) -> Result<BTreeSet<(u32, Cidr)>, MapError> {
        let keys = self.sources.keys();
        keys.map(|key| key.map(|key| source_range(key.prefix_len(), &must_cast(key.data()))))
            .collect()
    }

    pub(super) fn put_source(&mut self, id: u32, range: Cidr) -> Result<(), MapError> {
        self.sources.insert(&lpm(id, range), &1, 0)
    }

    pub(super) fn delete_source(&mut self, id: u32, range: Cidr) -> Result<(), MapError> {
        gone(self.sources.remove(&lpm(id, range)))
    }

    pub(super) fn allows(&self, client: &SourceKey) -> bool {
        self.sources.get(&Key::new(SourceKey::BITS, must_cast(*client)), 0).is_ok()
    }

    pub(super) fn client(&self, netns: u64) -> Option<Client> {
        let entry: ClientEntry = must_cast(self.addresses.get(&netns, 0).ok()?);
        entry.is_of(netns).then_some(entry.client)
    }

    /// The addresses of all network namespaces.
    pub(super) fn clients(&self) -> Result<BTreeMap<u64, Client>, MapError> {
        let client = |entry| must_cast::<[u8; CLIENT], ClientEntry>(entry).client;
        self.addresses.iter().map(|entry| entry.map(|(netns, to)| (netns, client(to)))).collect()
    }

    /// Makes the map say of each network namespace what `wanted` says, and of no other.
    pub(super) fn set_clients(&mut self, wanted: &BTreeMap<u64, Client>) -> Result<(), MapError> {
        let known: Result<BTreeMap<u64, [u8; CLIENT]>, MapError> = self.addresses.iter().collect();
        let known = known?;
        for netns in known.keys().filter(|netns| !wanted.contains_key(netns)) {
            gone(self.addresses.remove(netns))?;
        }
        for (netns, client) in wanted {
            let entry = must_cast(ClientEntry::new(*netns, *client));
            if known.get(netns) != Some(&entry) {
                self.addresses.insert(netns, &entry, 0)?;
            }
        }
        Ok(())
    }

    pub(super) fn bond(&self, key: &AffinityKey) -> Bond {
        let found = self.affinity.get(&must_cast(*key), 0);
        found.map_or(Bond::NONE, |affinity| must_cast::<_, Affinity>(affinity).bond)
    }

    /// All bonds.
    pub(super) fn bonds(&self) -> impl Iterator<Item = Result<(AffinityKey, Bond), MapError>> {
        self.affinity.iter().map(|entry| {
            let (key, affinity) = entry?;
            Ok((must_cast(key), must_cast::<_, Affinity>(affinity).bond))
        })
    }

    /// Puts in a bond of another map, unless there is one that is as new.
    pub(super) fn put_bond(&mut self, key: &AffinityKey, bond: Bond) -> Result<(), MapError> {
        let known = self.bond(key);
        if known.used >= bond.used {
            return Ok(());
        }
        let entry = Affinity { bond, key: *key, ..Affinity::zeroed() };
        self.affinity.insert(&must_cast(*key), &must_cast(entry), BPF_F_LOCK)
    }

    /// Forgets a bond.
    pub(super) fn unbind(&mut self, key: &AffinityKey) -> Result<(), MapError> {
        gone(self.affinity.remove(&must_cast(*key)))
    }
}

fn lpm(id: u32, range: Cidr) -> Key<[u8; SOURCE]> {
    let (prefix, key) = source_key(id, range);
    Key::new(prefix, must_cast(key))
}
