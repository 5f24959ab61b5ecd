//! What the programs count.

use std::path::Path;

use aya::maps::{Map, MapError, PerCpuArray};
use lb_common::abi::{COUNTERS, Counter};

use super::{OpenError, one::open};

/// The counters, summed over CPUs.
pub struct Counters(PerCpuArray<aya::maps::MapData, u64>);

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Opens those that are pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let (data, _) = open(dir, COUNTERS)?;
        let map = PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(|error| {
            let path = dir.join(COUNTERS).display().to_string();
            OpenError::Foreign { path, what: error.to_string() }
        })?;
        Ok(Self(map))
    }

    /// How often it happened since the maps were made.
    pub fn get(&self, counter: Counter) -> Result<u64, MapError> {
        Ok(self.0.get(&(counter as u32), 0)?.iter().sum())
    }
}
