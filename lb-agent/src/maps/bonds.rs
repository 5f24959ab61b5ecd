//! Forgetting where clients went, once it no longer matters.

use std::{collections::HashMap, path::Path, time::Duration};

use aya::maps::MapError;
use lb_common::abi::{AffinityKey, Bond};
use nix::time::{ClockId, clock_gettime};

use super::{OpenError, clients::Clients};

/// The pinned bonds, for a thread of its own: with many clients this takes a while.
#[derive(Debug)]
pub struct Bonds(Clients);

impl Bonds {
    /// Opens those that are pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Clients::open(dir).map(Self)
    }

    /// Forgets those that are over, given how long a client of each service port stays with its
    /// backend. Returns how many there were, and how many are left.
    ///
    /// Each is looked at once more just before, since a client may have come back since.
    pub fn sweep(&mut self, timeouts: &HashMap<u32, Duration>) -> Result<(usize, usize), MapError> {
        let now = now();
        let all: Vec<(AffinityKey, Bond)> = self.0.bonds().collect::<Result<_, _>>()?;
        let mut left = all.len();
        for (key, bond) in &all {
            let away = Duration::from_nanos(now.saturating_sub(bond.used));
            if timeouts.get(&key.service).is_none_or(|timeout| away >= *timeout)
                && self.0.bond(key).used == bond.used
            {
                self.0.unbind(key)?;
                left -= 1;
            }
        }
        Ok((all.len(), left))
    }
}

/// Nanoseconds of the clock that the programs use: it does not jump.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
