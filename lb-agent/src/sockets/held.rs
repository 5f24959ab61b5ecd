//! What the programs have stored for sockets: how much, and in the name of which cgroup.
//!
//! All of it counts as memory of whoever made the maps, the agent, and not of whose sockets these are.
//! So the tasks of one cgroup may have further flows ([`MORE_FLOWS`]) for a number of sockets only. The
//! programs count up where they make them. Nobody counts down where a socket is closed, which then
//! costs nothing: the agent looks through all sockets now and then, and writes how many there are.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::{
    abi::{FLOWS, FORMER, MORE_FLOWS, SOCKETS, Translation},
    flows::{BEFORE, Few, Flows, Many},
};

use super::stored::{Having, Stored};
use crate::{
    maps::{Holders, Of},
    pins::{Pins, shown},
};

/// Where the cgroup stands in a value of [`MORE_FLOWS`]. All values are longer than that.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "it is near the start"
)]
const CGROUP: Range<i16> = {
    let start = std::mem::offset_of!(Flows<0, 0, 0>, cgroup) as i16;
    start..start + 8
};

/// How much the kernel allocates for a value.
const fn allocation(value: usize) -> usize {
    (value + BEFORE).next_power_of_two()
}

/// The maps of sockets, how much memory an entry takes, and who may have one: the one that is bounded first.
const STORED: [(&str, usize, Having); 4] = [
    (MORE_FLOWS, allocation(size_of::<Many>()), Having::Udp),
    (FLOWS, allocation(size_of::<Few>()), Having::Udp),
    (SOCKETS, allocation(size_of::<Translation>()), Having::Both),
    (FORMER, allocation(size_of::<Translation>()), Having::Both),
];

/// Counts what is stored.
#[derive(Debug)]
pub struct Storage {
    maps: Stored<{ STORED.len() }>,
    held: Holders,
}

/// What is stored at one time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counted {
    /// Bytes of kernel memory, by the name of the map; of those that were looked at.
    pub bytes: BTreeMap<&'static str, usize>,
    /// Sockets with further flows, by the id of the cgroup.
    pub more_flows: BTreeMap<u64, u32>,
}

impl Storage {
    /// Of the pinned maps. Takes some 100 ms.
    pub fn open(pins: &Pins) -> Result<Self> {
        let open = |name| {
            let path = pins.storage(name);
            MapData::from_pin(&path)
                .with_context(|| format!("cannot open the pinned map {}", shown(&path).display()))
        };
        let [more_flows, flows, sockets, former] = STORED.map(|(name, ..)| open(name));
        let maps = [more_flows?, flows?, sockets?, former?];
        let maps = std::array::from_fn(|i| (maps[i].fd().as_fd(), STORED[i].2));
        let maps = Stored::open(CGROUP, maps).context("cannot look through the sockets")?;
        Ok(Self { maps, held: Holders::open(pins.root())? })
    }

    /// Counts, and writes how many sockets with further flows each cgroup has. Looks at the other maps
    /// too if `all` is said: with many sockets that takes a while.
    pub fn count(&mut self, all: bool) -> Result<Counted> {
        let before = self.held.numbers(Of::MoreFlows)?;
        let mut stored = Counted::default();
        let looked_at = if all { STORED.len() } else { 1 };
        let doors = self.maps.doors()?;
        for (index, (name, each, _)) in STORED.iter().enumerate().take(looked_at) {
            // One that is met twice counts once.
            let mut sockets = HashSet::new();
            self.maps.read::<{ 8 + 8 }, _>(index, &doors, |entry| {
                if sockets.insert(entry.first_chunk::<8>().copied())
                    && *name == MORE_FLOWS
                    && let Some(cgroup) = entry.last_chunk()
                {
                    *stored.more_flows.entry(u64::from_ne_bytes(*cgroup)).or_default() += 1;
                }
            })?;
            stored.bytes.insert(name, sockets.len() * each);
        }
        // Of a socket that has got them just now.
        stored.more_flows.remove(&0);
        self.held.correct(Of::MoreFlows, &before, &stored.more_flows)?;
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_least_that_there_is_for_it() {
        assert_eq!(STORED.map(|(_, bytes, _)| bytes), [8192, 512, 128, 128]);
    }
}
