//! What the programs have stored for sockets: how much, and in the name of which cgroup.
//!
//! All of it counts as memory of whoever made the maps, the agent, and not of whose sockets these are.
//! So the tasks of one cgroup may have further flows ([`MORE_FLOWS`]) for a number of sockets only. The
//! programs count up where they make them. Nobody counts down where a socket is closed, which then
//! costs nothing: the agent looks through all sockets now and then, and writes how many there are.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use bytemuck::must_cast;
use lb_common::{
    abi::{FLOWS, FORMER, HELD, Held, MORE_FLOWS, SOCKETS, Translation},
    flows::{BEFORE, Few, Flows, Many},
};

use super::{
    iterator::{Iterator, Program},
    stored::{FUNCTION, program},
};
use crate::{
    maps::{BPF_F_LOCK, gone},
    pins::{Pins, shown},
};

const HELD_SIZE: usize = size_of::<Held>();
/// How much is read of a value: of [`MORE_FLOWS`] up to the cgroup that it names.
const READ: usize = std::mem::offset_of!(Flows<0, 0>, cgroup) + 8;

/// How much the kernel allocates for a value.
const fn allocation(value: usize) -> usize {
    (value + BEFORE).next_power_of_two()
}

/// The maps of sockets, and how much memory an entry takes: the one that is bounded first.
const STORED: [(&str, usize); 4] = [
    (MORE_FLOWS, allocation(size_of::<Many>())),
    (FLOWS, allocation(size_of::<Few>())),
    (SOCKETS, allocation(size_of::<Translation>())),
    (FORMER, allocation(size_of::<Translation>())),
];

/// Counts what is stored.
#[derive(Debug)]
pub struct Storage {
    iterators: Vec<Iterator>,
    held: HashMap<MapData, u64, [u8; HELD_SIZE]>,
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
        let bytes = i32::try_from(READ)?;
        let program = Program::load("held", FUNCTION, &program(bytes))
            .context("cannot look through the sockets")?;
        let iterators = STORED
            .iter()
            .map(|(name, _)| Ok(program.over(Some(open(name)?.fd().as_fd()))?))
            .collect::<Result<_>>()?;
        Ok(Self { iterators, held: HashMap::try_from(Map::HashMap(open(HELD)?))? })
    }

    /// Counts, and writes how many sockets with further flows each cgroup has. Looks at the other maps
    /// too if `all` is said: with many sockets that takes a while.
    pub fn count(&mut self, all: bool) -> Result<Counted> {
        let before = self.held()?;
        let mut stored = Counted::default();
        let looked_at = if all { STORED.len() } else { 1 };
        for ((name, each), iterator) in STORED.iter().zip(&self.iterators).take(looked_at) {
            // One that is met twice counts once.
            let mut sockets = HashSet::new();
            iterator.read::<{ 8 + READ }>(|entry| {
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
        self.correct(&before, &stored.more_flows)?;
        Ok(stored)
    }

    /// The numbers that the programs go by.
    fn held(&self) -> Result<BTreeMap<u64, u32>, MapError> {
        let number = |value| must_cast::<[u8; HELD_SIZE], Held>(value).more_flows;
        self.held.iter().map(|entry| entry.map(|(id, value)| (id, number(value)))).collect()
    }

    /// What was made since `before` may have been counted or not, and counts.
    fn correct(
        &mut self,
        before: &BTreeMap<u64, u32>,
        counted: &BTreeMap<u64, u32>,
    ) -> Result<(), MapError> {
        let now = self.held()?;
        for (id, more_flows) in corrected(before, &now, counted) {
            if more_flows == 0 {
                gone(self.held.remove(&id))?;
            } else {
                let held = Held { more_flows, ..Held::NOTHING };
                self.held.insert(&id, &must_cast::<_, [u8; HELD_SIZE]>(held), BPF_F_LOCK)?;
            }
        }
        Ok(())
    }
}

/// The numbers that are to change.
fn corrected(
    before: &BTreeMap<u64, u32>,
    now: &BTreeMap<u64, u32>,
    counted: &BTreeMap<u64, u32>,
) -> BTreeMap<u64, u32> {
    let number = |of: &BTreeMap<u64, u32>, id: &u64| of.get(id).copied().unwrap_or(0);
    let right = |id: &u64| {
        let made = number(now, id).saturating_sub(number(before, id));
        (*id, number(counted, id).saturating_add(made))
    };
    let all = now.keys().chain(counted.keys()).map(right);
    all.filter(|(id, right)| now.get(id) != Some(right) && (*right > 0 || now.contains_key(id)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_no_longer_counts_and_what_is_made_meanwhile_does() {
        let before = BTreeMap::from([(1, 5), (2, 7), (3, 1)]);
        let now = BTreeMap::from([(1, 5), (2, 9), (3, 1), (4, 2)]);
        let counted = BTreeMap::from([(1, 5), (2, 3), (4, 1), (5, 6)]);
        let expected = BTreeMap::from([(2, 5), (3, 0), (4, 3), (5, 6)]);
        assert_eq!(corrected(&before, &now, &counted), expected);
        assert_eq!(corrected(&counted, &counted, &counted), BTreeMap::new());
    }

    #[test]
    fn no_more_than_the_least_that_there_is_for_it() {
        assert_eq!(STORED.map(|(_, bytes)| bytes), [8192, 512, 128, 128]);
    }
}
