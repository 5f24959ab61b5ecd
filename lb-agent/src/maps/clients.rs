//! Who may connect, and where they went before: source ranges, the addresses of network namespaces,
//! session affinity.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use bytemuck::must_cast;
use lb_common::abi::{
    AFFINITY, Affinity, AffinityKey, Bond, CLIENTS, ClientEntry, ClientKey, SOURCE_RANGES,
    SourceAddress, SourceRangeKey,
};
use lb_core::{
    model::Cidr,
    store::{source_range, source_range_key},
};

use super::{
    OpenError,
    one::{BPF_F_LOCK, Bytes, gone, hash, is_full, open},
};

const SOURCE: usize = size_of::<SourceRangeKey>();
const FROM: usize = size_of::<ClientKey>();
const CLIENT: usize = size_of::<ClientEntry>();
const BOUND: usize = size_of::<AffinityKey>();
const BONDS: usize = size_of::<Affinity>();

/// The maps of source ranges, of the source addresses of clients, and of session affinity.
#[derive(Debug)]
pub(super) struct ClientMaps {
    source_ranges: LpmTrie<MapData, [u8; SOURCE], u32>,
    addresses: Bytes<[u8; FROM], [u8; CLIENT]>,
    affinity: Bytes<[u8; BOUND], [u8; BONDS]>,
}

impl ClientMaps {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let (data, _) = open(dir, SOURCE_RANGES)?;
        let source_ranges =
            LpmTrie::try_from(Map::LpmTrie(data)).map_err(|error| OpenError::Foreign {
                path: dir.join(SOURCE_RANGES).display().to_string(),
                what: error.to_string(),
            })?;
        Ok(Self {
            source_ranges,
            addresses: hash(dir, CLIENTS)?.0,
            affinity: hash(dir, AFFINITY)?.0,
        })
    }

    /// All source ranges, by the id of the service port.
    pub(super) fn source_ranges(&self) -> Result<BTreeSet<(u32, Cidr)>, MapError> {
        let keys = self.source_ranges.keys();
        keys.map(|key| key.map(|key| source_range(key.prefix_len(), &must_cast(key.data()))))
            .collect()
    }

    pub(super) fn put_source_range(&mut self, id: u32, range: Cidr) -> Result<(), MapError> {
        self.source_ranges.insert(&lpm(id, range), &1, 0)
    }

    pub(super) fn delete_source_range(&mut self, id: u32, range: Cidr) -> Result<(), MapError> {
        gone(self.source_ranges.remove(&lpm(id, range)))
    }

    pub(super) fn allows(&self, client: &SourceRangeKey) -> bool {
        self.source_ranges.get(&Key::new(SourceRangeKey::BITS, must_cast(*client)), 0).is_ok()
    }

    pub(super) fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        let entry: ClientEntry = must_cast(self.addresses.get(&must_cast(*key), BPF_F_LOCK).ok()?);
        (entry.seal == ClientEntry::seal(key)).then_some(entry.source)
    }

    /// From where the sockets of all network namespaces connect.
    pub(super) fn clients(&self) -> Result<BTreeMap<ClientKey, SourceAddress>, MapError> {
        let client = |entry| must_cast::<[u8; CLIENT], ClientEntry>(entry).source;
        let all = self.addresses.iter();
        all.map(|entry| entry.map(|(key, to)| (must_cast(key), client(to)))).collect()
    }

    /// Makes the map say what `wanted` says, and of no other network namespace. Each key in it that is
    /// there says something all the time. If not all fits, what there was stays, and what holds for
    /// all addresses goes before what holds for one: false.
    pub(super) fn set_clients(
        &mut self,
        wanted: &BTreeMap<ClientKey, SourceAddress>,
    ) -> Result<bool, MapError> {
        let known = self.clients()?;
        for key in known.keys().filter(|key| !wanted.contains_key(key)) {
            // What holds for one address is asked for as long as the general entry says so.
            let general = ClientKey::general(key.netns, key.to);
            if *key == general || !wanted.contains_key(&general) {
                gone(self.addresses.remove(&must_cast(*key)))?;
            }
        }
        // First those that are there or are the only ones of their namespace; then single addresses,
        // before the general entry leads to them.
        let is_first = |key: &ClientKey, client: &SourceAddress| {
            *key == ClientKey::general(key.netns, key.to)
                && (client.flags & SourceAddress::OTHERS == 0 || !known.contains_key(key))
        };
        let (first, rest): (Vec<_>, Vec<_>) =
            wanted.iter().partition(|(key, client)| is_first(key, client));
        let (general, single): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|(key, _)| **key == ClientKey::general(key.netns, key.to));
        let mut all_fit = true;
        for (key, client) in first.into_iter().chain(single).chain(general) {
            if known.get(key) == Some(client) {
                continue;
            }
            match self.put_client(key, *client) {
                Err(error) if is_full(&error) => all_fit = false,
                result => result?,
            }
        }
        for key in known.keys().filter(|key| !wanted.contains_key(key)) {
            gone(self.addresses.remove(&must_cast(*key)))?;
        }
        Ok(all_fit)
    }

    /// Whoever reads finds what was there before, or this.
    pub(super) fn put_client(
        &mut self,
        key: &ClientKey,
        client: SourceAddress,
    ) -> Result<(), MapError> {
        let entry = ClientEntry::new(key, client);
        self.addresses.insert(&must_cast(*key), &must_cast(entry), BPF_F_LOCK)
    }

    pub(super) fn bond(&self, key: &AffinityKey) -> Bond {
        let found = self.affinity.get(&must_cast(*key), 0);
        found.map_or(Bond::NONE, |affinity| must_cast::<_, Affinity>(affinity).bond)
    }

    /// All bonds, and in the name of which cgroup each was made.
    pub(super) fn bonds(&self) -> impl Iterator<Item = Result<(AffinityKey, Bond, u64), MapError>> {
        bonds(&self.affinity)
    }

    /// Puts in a bond of another map, unless there is one that is as new.
    fn put_bond(&mut self, key: &AffinityKey, bond: Bond, cgroup: u64) -> Result<(), MapError> {
        let known = self.bond(key);
        if known.used >= bond.used {
            return Ok(());
        }
        let entry = Affinity::new(*key, bond, cgroup);
        self.affinity.insert(&must_cast(*key), &must_cast(entry), BPF_F_LOCK)
    }

    /// Forgets a bond.
    pub(super) fn unbind(&mut self, key: &AffinityKey) -> Result<(), MapError> {
        gone(self.affinity.remove(&must_cast(*key)))
    }
}

/// Copies where clients went, as far as there is room, from maps that are pinned in one directory, of
/// whatever layout, to those in another one; both may be in use. What is said of a client counts if it is
/// newer.
pub fn copy_bonds(from: &Path, to: &Path) -> Result<(), OpenError> {
    let theirs = hash(from, AFFINITY)?.0;
    let mut ours = ClientMaps::open(to)?;
    for entry in bonds(&theirs) {
        let (key, bond, cgroup) = entry.map_err(|error| OpenError::Open {
            path: from.join(AFFINITY).display().to_string(),
            error,
        })?;
        if let Err(error) = ours.put_bond(&key, bond, cgroup) {
            tracing::warn!(%error, "not all clients stay with their backends");
            break;
        }
    }
    Ok(())
}

fn bonds(
    affinity: &Bytes<[u8; BOUND], [u8; BONDS]>,
) -> impl Iterator<Item = Result<(AffinityKey, Bond, u64), MapError>> {
    affinity.iter().map(|entry| {
        let (key, affinity) = entry?;
        let Affinity { bond, cgroup, .. } = must_cast(affinity);
        Ok((must_cast(key), bond, cgroup))
    })
}

fn lpm(id: u32, range: Cidr) -> Key<[u8; SOURCE]> {
    let (prefix, key) = source_range_key(id, range);
    Key::new(prefix, must_cast(key))
}
