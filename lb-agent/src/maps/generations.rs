//! The generations that may have been given: kept where they live as long as what sockets remember of
//! them, which no set of maps does.
//!
//! A flow that finds its generation again stays where it is without a further look. So none is given
//! twice while there may be such a flow, whatever becomes of the maps: they are resized, thrown away,
//! damaged and made anew. What is kept is a number that was not given yet, and before a generation is
//! used it is moved beyond it, by many at a time.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    path::Path,
};

use aya::maps::{Array, MapData, MapError};
use lb_common::abi::GENERATIONS;

use super::one::{OpenError, array};

/// How many are reserved at a time.
const BATCH: u32 = 1024;

/// The last generation that may have been given.
pub(super) struct Generations {
    map: Array<MapData, u32>,
    last: u32,
}

impl fmt::Debug for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generations").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Generations {
    /// Of the map in a directory. Where nobody knows the last one, a random one is as good as any: of
    /// 2^32 there are few that anybody remembers.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let map = array(dir, GENERATIONS)?;
        let path = || dir.join(GENERATIONS).display().to_string();
        let foreign =
            |error: MapError| OpenError::Foreign { path: path(), what: error.to_string() };
        let last = match map.get(&0, 0).map_err(foreign)? {
            0 => random(),
            last => last,
        };
        Ok(Self { map, last })
    }

    /// The last one that may have been given; never 0.
    pub(super) const fn last(&self) -> u32 {
        self.last
    }

    /// Has it kept that a generation is given.
    pub(super) fn reserve(&mut self, generation: u32) -> Result<(), MapError> {
        if let Some(last) = beyond(self.last, generation) {
            self.map.set(0, &last, 0)?;
            self.last = last;
        }
        Ok(())
    }
}

/// What is to be kept before the generation is used; none if that is kept already.
const fn beyond(last: u32, generation: u32) -> Option<u32> {
    if last.wrapping_sub(generation) < BATCH {
        return None;
    }
    match generation.wrapping_add(BATCH - 1) {
        // Not known; and no generation either.
        0 => Some(1),
        last => Some(last),
    }
}

fn random() -> u32 {
    let bits = RandomState::new().build_hasher().finish();
    u32::try_from(bits >> 32).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_never_behind_what_is_given() {
        for first in [1, 2, 77, u32::MAX - BATCH, u32::MAX - 3, u32::MAX] {
            let (mut last, mut writes) = (random(), 0);
            let mut generation = first;
            for _ in 0..3 * BATCH {
                if let Some(beyond) = beyond(last, generation) {
                    (last, writes) = (beyond, writes + 1);
                }
                assert!(
                    last != 0 && last.wrapping_sub(generation) < BATCH,
                    "{first}: {generation}"
                );
                // As the mirror counts.
                generation = generation.wrapping_add(1).max(1);
            }
            assert!(writes <= 4, "{writes}");
        }
    }

    #[test]
    fn beginnings_differ() {
        assert_ne!([random(), random()], [random(), random()]);
    }
}
