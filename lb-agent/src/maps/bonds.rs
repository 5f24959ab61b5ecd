//! Forgetting where clients went, once it no longer matters.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    time::Duration,
};

use aya::maps::MapError;
use lb_common::abi::AffinityKey;
use nix::time::{ClockId, clock_gettime};

use super::{Holders, Of, OpenError, clients::ClientMaps};

/// The pinned bonds, for a thread of its own: with many clients this takes a while.
#[derive(Debug)]
pub struct Bonds {
    clients: ClientMaps,
    held: Holders,
}

/// A bond that was seen.
struct SeenBond {
    key: AffinityKey,
    used: u64,
    cgroup: u64,
}

impl SeenBond {
    /// For how long the client had not connected at this time.
    fn away(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.used))
    }
}

impl Bonds {
    /// Opens those that are pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        // What cgroups hold outlives sets of maps, and is beside them.
        let held = Holders::open(dir.parent().unwrap_or(dir))?;
        Ok(Self { clients: ClientMaps::open(dir)?, held })
    }

    /// Forgets those that are over, given how long a client of each service port stays with its
    /// backend. Returns how many there were, and how many are left.
    pub fn sweep(&mut self, timeouts: &HashMap<u32, Duration>) -> Result<(usize, usize), MapError> {
        self.sweep_with(timeouts, Duration::MAX, |_| HashSet::new())
    }

    /// Forgets also those of network namespaces that are gone, of clients that have not connected for
    /// as long as `idle`: `gone` is told the namespaces of such clients, by their cookies, and says which
    /// of them are gone. Then counts what is left for each cgroup.
    ///
    /// Each is looked at once more just before, since a client may have come back since.
    pub fn sweep_with(
        &mut self,
        timeouts: &HashMap<u32, Duration>,
        idle: Duration,
        gone: impl FnOnce(HashSet<u64>) -> HashSet<u64>,
    ) -> Result<(usize, usize), MapError> {
        let before = self.held.numbers(Of::Bonds)?;
        let now = now();
        let seen = |entry: Result<_, _>| {
            entry.map(|(key, bond, cgroup): (_, lb_common::abi::Bond, _)| SeenBond {
                key,
                used: bond.used,
                cgroup,
            })
        };
        let all: Vec<SeenBond> = self.clients.bonds().map(seen).collect::<Result<_, _>>()?;
        let is_over = |bond: &SeenBond| {
            timeouts.get(&bond.key.service).is_none_or(|timeout| bond.away(now) >= *timeout)
        };
        let is_idle = |bond: &SeenBond| bond.away(now) >= idle;
        let idle = all.iter().filter(|bond| !is_over(bond) && is_idle(bond));
        let gone = gone(idle.map(|bond| bond.key.netns).collect());
        let mut left = BTreeMap::new();
        for bond in &all {
            let ends = is_over(bond) || (is_idle(bond) && gone.contains(&bond.key.netns));
            if ends && self.clients.bond(&bond.key).used == bond.used {
                self.clients.unbind(&bond.key)?;
            } else {
                *left.entry(bond.cgroup).or_default() += 1;
            }
        }
        self.held.correct(Of::Bonds, &before, &left)?;
        Ok((all.len(), left.values().map(|number| *number as usize).sum()))
    }
}

/// Nanoseconds of the clock that the programs use: it does not jump.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
