//! How many different timeouts of session affinity there may be: the table has rules for each, which
//! packets pass one by one, and who writes Services chooses among 86,400.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

/// So many are as they are wanted.
pub(super) const EXACT: usize = 64;
/// The longest that Kubernetes takes, in seconds (H2).
const LONGEST: NonZeroU32 = NonZeroU32::new(86_400).expect("a day");

/// The timeouts that are wanted, and which of them are in force as they are. The others last longer.
#[derive(Debug, Default)]
pub(super) struct Timeouts {
    /// How many Services want each.
    wanted: BTreeMap<NonZeroU32, usize>,
    exact: BTreeSet<NonZeroU32>,
}

impl Timeouts {
    /// Counts a timeout that a Service wants, or wants no more.
    pub(super) fn count(&mut self, timeout: NonZeroU32, more: bool) {
        let count = self.wanted.entry(timeout).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.wanted.remove(&timeout);
            self.exact.remove(&timeout);
        }
    }

    /// Gives what room there is: first to these, if anybody wants them.
    pub(super) fn grant(&mut self, first: impl IntoIterator<Item = NonZeroU32>) {
        let first = first.into_iter().filter(|timeout| self.wanted.contains_key(timeout));
        for timeout in first.chain(self.wanted.keys().copied()) {
            if self.exact.len() >= EXACT {
                return;
            }
            self.exact.insert(timeout);
        }
    }

    /// How long senders stay where they are to stay for so long: that, or up to the next power of two
    /// seconds, at most a day.
    pub(super) fn in_force(&self, timeout: NonZeroU32) -> NonZeroU32 {
        if self.exact.contains(&timeout) {
            return timeout;
        }
        let rounded = timeout.checked_next_power_of_two().unwrap_or(timeout);
        rounded.min(LONGEST).max(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u32) -> NonZeroU32 {
        NonZeroU32::new(seconds).unwrap()
    }

    #[test]
    fn however_many_are_wanted_few_are_in_force() {
        let mut timeouts = Timeouts::default();
        for timeout in (1..=86_400).map(seconds) {
            timeouts.count(timeout, true);
        }
        let preferred = [10_800, 86_401].map(seconds);
        timeouts.grant(preferred);
        let in_force: BTreeSet<_> =
            (1..=86_400).map(|timeout| timeouts.in_force(seconds(timeout))).collect();
        assert!(in_force.len() <= EXACT + 18, "{}", in_force.len());
        let of = |timeout| timeouts.in_force(seconds(timeout)).get();
        assert_eq!([1, 63, 10_800].map(of), [1, 63, 10_800]);
        assert_eq!([100, 3_601, 70_000].map(of), [128, 4_096, 86_400]);
        // Room for another one.
        timeouts.count(seconds(1), false);
        timeouts.grant([seconds(100)]);
        assert_eq!(timeouts.in_force(seconds(100)), seconds(100));
    }
}
