//! When our programs take the place of those of an agent before us, which have maps of their own: not
//! before all that they may do is in ours, but some day. Pure: the time is given.

use std::time::{Duration, Instant};

/// How long they stay because not all Services fit into our maps.
pub(super) const OTHERS: Duration = Duration::from_secs(30);

pub(super) struct Takeover {
    /// Programs of an agent before us are at work.
    others: bool,
    /// When all was written for the first time, as far as it fits.
    since: Option<Instant>,
}

impl Takeover {
    pub(super) const fn from(others: bool) -> Self {
        Self { others, since: None }
    }

    /// Whether it is time, after a sync that began then and did all there is to do, or not.
    pub(super) fn is_time(&mut self, complete: bool, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        complete || !self.others || now - since > OTHERS
    }

    /// Whether it is time, however little fits.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now - since > OTHERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_where_nobody_is_or_all_is_there() {
        let now = Instant::now();
        assert!(Takeover::from(false).is_time(false, now));
        assert!(Takeover::from(true).is_time(true, now));
    }

    #[test]
    fn others_stay_until_all_fits_or_it_takes_too_long() {
        let start = Instant::now();
        let mut takeover = Takeover::from(true);
        let (late, later) = (start + OTHERS * 100, start + OTHERS * 101);
        assert!(!takeover.is_overdue(late), "nothing is known yet");
        assert!(!takeover.is_time(false, late));
        assert!(!takeover.is_time(false, late + OTHERS) && !takeover.is_overdue(late + OTHERS));
        assert!(takeover.is_time(true, late + OTHERS));
        assert!(takeover.is_overdue(later + Duration::from_millis(1)));
        assert!(takeover.is_time(false, later + Duration::from_millis(1)));
    }
}
