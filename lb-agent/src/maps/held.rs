//! What was made in the name of each cgroup, put right now and then: the programs count up where they
//! make something, and nobody counts down.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::maps::{HashMap, MapData, MapError};
use bytemuck::must_cast;
use lb_common::abi::{HELD, Held};

use super::{
    OpenError,
    one::{BPF_F_LOCK, gone, hash},
};

const HELD_SIZE: usize = size_of::<Held>();

/// An element is read, and written as a whole: two threads must not put right two of its numbers at once.
static TURN: Mutex<()> = Mutex::new(());

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Of {
    /// [`Held::more_flows`].
    MoreFlows,
    /// [`Held::bonds`].
    Bonds,
}

impl Of {
    const fn number(self, held: &mut Held) -> &mut u32 {
        match self {
            Self::MoreFlows => &mut held.more_flows,
            Self::Bonds => &mut held.bonds,
        }
    }
}

/// The pinned numbers of each cgroup.
#[derive(Debug)]
pub struct Holders(HashMap<MapData, u64, [u8; HELD_SIZE]>);

impl Holders {
    /// Opens those that are pinned below `root`.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Ok(Self(hash(root, HELD)?.0))
    }

    /// The numbers that the programs go by.
    pub fn numbers(&self, of: Of) -> Result<BTreeMap<u64, u32>, MapError> {
        Ok(numbers(of, &self.all()?))
    }

    fn all(&self) -> Result<BTreeMap<u64, Held>, MapError> {
        self.0.iter().map(|entry| entry.map(|(id, held)| (id, must_cast(held)))).collect()
    }

    /// Writes what was counted. What was made since `before` may have been counted or not, and counts.
    pub fn correct(
        &mut self,
        of: Of,
        before: &BTreeMap<u64, u32>,
        counted: &BTreeMap<u64, u32>,
    ) -> Result<(), MapError> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.all()?;
        let unused = all.iter().filter(|(_, held)| is_nothing(**held)).map(|(id, _)| (*id, 0));
        let corrected = corrected(before, &numbers(of, &all), counted);
        for (id, right) in unused.chain(corrected) {
            // Anew: other numbers of the cgroup may have changed.
            let mut held = match self.0.get(&id, BPF_F_LOCK) {
                Ok(held) => must_cast(held),
                Err(MapError::KeyNotFound) => Held::NOTHING,
                Err(error) => return Err(error),
            };
            *of.number(&mut held) = right;
            if is_nothing(held) {
                gone(self.0.remove(&id))?;
            } else {
                self.0.insert(&id, &must_cast::<_, [u8; HELD_SIZE]>(held), BPF_F_LOCK)?;
            }
        }
        Ok(())
    }
}

fn numbers(of: Of, all: &BTreeMap<u64, Held>) -> BTreeMap<u64, u32> {
    all.iter().map(|(id, held)| (*id, *of.number(&mut { *held }))).collect()
}

/// Whoever has looked at an element may have seen its lock.
fn is_nothing(held: Held) -> bool {
    Held { lock: Held::NOTHING.lock, ..held } == Held::NOTHING
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
    all.filter(|(id, right)| number(now, id) != *right).collect()
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
}
