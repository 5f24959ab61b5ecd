//! Which ids of backends are in use: dense, so that they can index an array, and not soon used again.
//!
//! An id is in use as long as a record has it that is neither free nor overwritten, hence also while a
//! reader may be in a block that was given up. After that it *rests*: whoever remembers it, such as what
//! is stored with a socket, is not to take another endpoint for its own. It is given again when
//! [`BackendIds::REST`] others rest behind it, so no more ids are in use or rest than there are records and
//! that many.
//!
//! The records are all that tells an agent that starts which ids were given, and so it knows no order: every
//! id rests that nobody has, up to the greatest one that a record shows, in use or not, in the order of the
//! numbers. Greater ones count as never given. An agent that reads its maps anew goes on from what it knew.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
};

use bytemuck::Zeroable as _;
use lb_common::abi::{Backend, Peer};

/// Who has an id: an endpoint, as that of the service port with this id.
type Endpoint = (u32, Peer);

/// What is known of an id.
#[derive(Clone, Copy, Debug)]
struct Owner {
    endpoint: Endpoint,
    /// How many records have it, in blocks that are in use or retired; 0: nobody has it.
    uses: u32,
}

/// The ids of a map of records.
#[derive(Clone, Debug, Default)]
pub struct BackendIds {
    /// By id. The first one is nobody's.
    owners: Vec<Owner>,
    /// The ids that endpoints have.
    known: HashMap<Endpoint, u32>,
    /// The ids of each block in use, in the order of its records; 0 where a record has none.
    blocks: BTreeMap<u32, Box<[u32]>>,
    retired: Vec<Box<[u32]>>,
    resting: VecDeque<u32>,
}

impl BackendIds {
    /// How many rest behind an id before it is given again.
    pub const REST: usize = 1 << 14;

    /// The greatest id that is ever given where there are so many records.
    pub fn greatest(records: u32) -> u32 {
        records.saturating_add(u32::try_from(Self::REST).unwrap_or(u32::MAX)).saturating_add(1)
    }

    /// Goes on where these were and ids up to `last` were given. Those that no block has rest: first those
    /// that did before, in their order.
    pub fn go_on_from(&mut self, before: &Self, last: u32) {
        self.grow(usize::try_from(last).unwrap_or(usize::MAX));
        self.grow(before.owners.len().saturating_sub(1));
        let mut rests: Vec<bool> = self.owners.iter().map(|owner| owner.uses == 0).collect();
        let all = (1..).take(rests.len().saturating_sub(1));
        let in_order = before.resting.iter().copied().chain(all);
        let rests = |id: &u32| {
            let rests = usize::try_from(*id).ok().and_then(|index| rests.get_mut(index));
            rests.is_some_and(mem::take)
        };
        self.resting = in_order.filter(rests).collect();
    }

    /// The ids of a block in use, in the order of its records.
    pub fn of(&self, block: u32) -> &[u32] {
        self.blocks.get(&block).map_or(&[], |ids| ids)
    }

    /// The id that an endpoint of a service port has in any block that is in use or retired.
    pub fn id(&self, port: u32, endpoint: Peer) -> Option<u32> {
        self.known.get(&(port, endpoint)).copied()
    }

    /// Ids that nobody has, in the order in which they are to be given.
    pub fn unused(&self) -> impl Iterator<Item = u32> {
        let rested = self.resting.len().saturating_sub(Self::REST);
        let new = u32::try_from(self.owners.len()).unwrap_or(u32::MAX).max(1);
        self.resting.iter().copied().take(rested).chain(new..)
    }

    /// A block was written, with these records.
    pub fn take(&mut self, block: u32, records: impl Iterator<Item = Backend>) {
        let ids = records.map(|record| {
            if record.backend != 0 {
                self.hold(record.backend, (record.service, record.peer));
            }
            record.backend
        });
        let ids = ids.collect();
        self.blocks.insert(block, ids);
    }

    fn hold(&mut self, id: u32, endpoint: Endpoint) {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        if !self.grow(index) && self.owners[index].uses == 0 {
            self.wake(id);
        }
        let owner = &mut self.owners[index];
        if owner.uses == 0 {
            owner.endpoint = endpoint;
            self.known.insert(endpoint, id);
        }
        owner.uses += 1;
    }

    /// Makes room for this id; false if it was there.
    fn grow(&mut self, index: usize) -> bool {
        let is_new = self.owners.len() <= index;
        if is_new {
            let nobody = Owner { endpoint: (0, Peer::zeroed()), uses: 0 };
            self.owners.resize(index.saturating_add(1), nobody);
        }
        is_new
    }

    /// It rests no more, if it did: nearly always it is the first one.
    fn wake(&mut self, id: u32) {
        if let Some(at) = self.resting.iter().position(|resting| *resting == id) {
            self.resting.remove(at);
        }
    }

    /// A block is given up; a reader may still be in it.
    pub fn retire(&mut self, block: u32) {
        self.retired.extend(self.blocks.remove(&block));
    }

    /// A block is given up that nobody has seen.
    pub fn discard(&mut self, block: u32) {
        if let Some(ids) = self.blocks.remove(&block) {
            self.release(&ids);
        }
    }

    /// No reader is in the retired blocks any more.
    pub fn reclaim(&mut self) {
        for ids in mem::take(&mut self.retired) {
            self.release(&ids);
        }
    }

    fn release(&mut self, ids: &[u32]) {
        for &id in ids {
            let owner = usize::try_from(id).ok().and_then(|index| self.owners.get_mut(index));
            let Some(owner) = owner.filter(|owner| owner.uses > 0) else { continue };
            owner.uses -= 1;
            if owner.uses == 0 {
                self.known.remove(&owner.endpoint);
                self.resting.push_back(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{Ipv4Addr, SocketAddr},
    };

    use proptest::prelude::*;

    use super::*;

    /// The record of an endpoint with this id; each has its own address.
    fn record(id: u32) -> Backend {
        let peer = SocketAddr::from((Ipv4Addr::from(id), 80));
        Backend { backend: id, ..Backend::forward(peer.into()) }
    }

    fn take(ids: &mut BackendIds, block: u32, all: &[u32]) {
        ids.take(block, all.iter().map(|id| record(*id)));
    }

    fn given(ids: &BackendIds) -> u32 {
        ids.unused().next().unwrap()
    }

    #[test]
    fn an_id_rests_before_it_is_given_again() {
        let mut ids = BackendIds::default();
        assert_eq!(ids.unused().take(3).collect::<Vec<_>>(), [1, 2, 3]);
        let mut last_use = BTreeMap::new();
        let mut greatest = 0;
        for round in 0..3 * BackendIds::REST {
            let id = given(&ids);
            greatest = greatest.max(id);
            if let Some(before) = last_use.insert(id, round) {
                assert!(round - before >= BackendIds::REST, "{id} after {}", round - before);
            }
            take(&mut ids, 0, &[id]);
            ids.retire(0);
            assert_ne!(given(&ids), id, "a reader may be in the block");
            ids.reclaim();
        }
        assert!(greatest <= BackendIds::greatest(1), "{greatest}: they are dense");
    }

    #[test]
    fn an_agent_that_starts_goes_on_behind_the_greatest_id_that_a_record_shows() {
        let mut ids = BackendIds::default();
        take(&mut ids, 0, &[7, 0, 3]);
        ids.go_on_from(&BackendIds::default(), 9);
        assert_eq!(given(&ids), 10);
        assert_eq!(ids.resting, [1, 2, 4, 5, 6, 8, 9]);
        assert_eq!(ids.of(0), [7, 0, 3]);
        ids.discard(0);
        assert_eq!(ids.resting.iter().rev().take(2).collect::<Vec<_>>(), [&3, &7]);
    }

    #[test]
    fn an_agent_that_reads_its_maps_anew_goes_on_from_what_it_knew() {
        let mut before = BackendIds::default();
        for (block, id) in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)] {
            take(&mut before, block, &[id]);
        }
        before.discard(2);
        before.discard(0);
        before.retire(1);
        // The greatest one is nobody's any more, and no record shows it; somebody else gave one that rested.
        let mut ids = BackendIds::default();
        take(&mut ids, 3, &[4, 1]);
        ids.go_on_from(&before, 4);
        assert_eq!(given(&ids), 6);
        assert_eq!(ids.resting, [3, 2, 5]);
    }

    proptest! {
        /// Whatever is given is nobody's, and what one block gives up another one may still have.
        #[test]
        fn no_id_is_two_endpoints(steps in prop::collection::vec((0..8u32, 0..4u8, 1..5usize), 1..200)) {
            let mut ids = BackendIds::default();
            let mut blocks: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            let mut retired: Vec<Vec<u32>> = vec![];
            for (block, what, new) in steps {
                match (what, blocks.contains_key(&block)) {
                    (0, true) => {
                        ids.retire(block);
                        retired.extend(blocks.remove(&block));
                    }
                    (1, true) => {
                        ids.discard(block);
                        blocks.remove(&block);
                    }
                    (2, _) => {
                        ids.reclaim();
                        retired.clear();
                    }
                    (_, false) => {
                        // Some endpoints of another block, and some new ones.
                        let mut all: Vec<u32> = blocks.values().flatten().copied().take(2).collect();
                        let fresh: Vec<u32> = ids.unused().take(new).collect();
                        let seen: BTreeSet<u32> = blocks.values().chain(&retired).flatten().copied().collect();
                        prop_assert!(fresh.iter().all(|id| *id != 0 && !seen.contains(id)));
                        all.extend(fresh);
                        take(&mut ids, block, &all);
                        blocks.insert(block, all);
                    }
                    _ => {}
                }
                for (block, all) in &blocks {
                    prop_assert_eq!(ids.of(*block), &all[..]);
                }
                let held: BTreeSet<u32> = blocks.values().chain(&retired).flatten().copied().collect();
                prop_assert_eq!(ids.known.len(), held.len());
                for id in held {
                    prop_assert_eq!(ids.id(0, record(id).peer), Some(id));
                    prop_assert_eq!(ids.id(1, record(id).peer), None);
                }
            }
        }
    }
}
