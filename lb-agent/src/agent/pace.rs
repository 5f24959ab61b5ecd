//! When the loop reads the maps and writes them: at once, but what has failed waits for its time. Pure:
//! the time is given.

use std::time::{Duration, Instant};

/// After a failure: the first retry, and the longest pause between two.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// When to do what.
pub(super) struct Pace {
    /// Before the next retry but one.
    pause: Duration,
    /// When what failed is tried again.
    retry: Option<Instant>,
    /// The maps may say something else than what is believed of them: they are to be read before
    /// anything else is written.
    doubtful: bool,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { pause: RETRY.0, retry: None, doubtful: false }
    }

    /// When what failed is tried again, if anything has.
    pub(super) const fn retry(&self) -> Option<Instant> {
        self.retry
    }

    /// Somebody else may have written to the maps, or they did not take something.
    pub(super) const fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// What failed may have another chance.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.retry = self.retry.map(|_| now);
    }

    /// Whether the maps are to be read: with the pauses of retries, not at each change.
    pub(super) fn reads(&self, now: Instant) -> bool {
        self.doubtful && self.is_time(now)
    }

    pub(super) const fn has_read(&mut self) {
        self.doubtful = false;
    }

    /// Whether what is due is to be written. What failed waits for its time; what is new does not.
    pub(super) fn writes(&self, news: bool, now: Instant) -> bool {
        news || self.is_time(now)
    }

    /// It was written from then on until now. What is new among what fails does not put off what
    /// failed before.
    pub(super) fn has_written(&mut self, failing: bool, began: Instant, ended: Instant) {
        if !failing {
            (self.pause, self.retry) = (RETRY.0, None);
        } else if self.is_time(began) {
            self.retry = Some(ended + self.pause);
            self.pause = (self.pause * 2).min(RETRY.1);
        }
    }

    fn is_time(&self, now: Instant) -> bool {
        self.retry.is_none_or(|retry| retry <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Something fails from `start` on, and was tried again until the pause is the longest.
    fn failing(start: Instant) -> (Pace, Instant) {
        let mut pace = Pace::new();
        assert!(pace.writes(false, start));
        pace.has_written(true, start, start);
        let mut now = start;
        for _ in 0..20 {
            now = pace.retry().unwrap();
            pace.has_written(true, now, now);
        }
        (pace, now)
    }

    #[test]
    fn pauses_grow_up_to_a_limit_and_begin_anew() {
        let start = Instant::now();
        let mut pace = Pace::new();
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..11 {
            pace.has_written(true, now, now);
            let next = pace.retry().unwrap();
            pauses.push((next - now).as_millis());
            assert!(!pace.writes(false, now) && pace.writes(false, next));
            now = next;
        }
        let doubled = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600];
        assert_eq!(pauses, [&doubled[..], &[30_000, 30_000]].concat());
        pace.has_written(false, now, now);
        assert_eq!(pace.retry(), None);
        pace.has_written(true, now, now);
        assert_eq!(pace.retry(), Some(now + RETRY.0));
    }

    /// A Service that never fits, and a cluster that never rests.
    #[test]
    fn news_are_written_at_once_and_put_off_no_retry() {
        let (mut pace, now) = failing(Instant::now());
        let retry = pace.retry().unwrap();
        assert!(retry > now + 20 * SECOND);
        let mut last = now;
        for second in 1..=20 {
            last = now + second * SECOND;
            assert!(pace.writes(true, last) && !pace.writes(false, last));
            pace.has_written(true, last, last);
            assert_eq!(pace.retry(), Some(retry));
        }
        // Nor does it become rarer by them.
        assert!(pace.writes(false, retry));
        pace.has_written(true, retry, retry);
        assert_eq!(pace.retry(), Some(retry + RETRY.1));
        assert!(last < retry);
    }

    /// The time came while something new was written: the retry is still to come.
    #[test]
    fn a_retry_that_became_due_meanwhile_is_not_lost() {
        let (mut pace, now) = failing(Instant::now());
        let retry = pace.retry().unwrap();
        pace.doubt();
        assert!(!pace.reads(now + SECOND));
        pace.has_written(true, now + SECOND, retry + SECOND);
        assert!(pace.reads(retry + SECOND) && pace.writes(false, retry + SECOND));
    }

    #[test]
    fn the_maps_are_read_once_in_a_pause() {
        let start = Instant::now();
        let mut pace = Pace::new();
        assert!(!pace.reads(start), "nothing happened");
        pace.doubt();
        assert!(pace.reads(start), "nothing has failed");
        pace.has_read();
        assert!(!pace.reads(start));
        // They refuse something; each time it is tried.
        let (mut pace, now) = failing(start);
        pace.doubt();
        assert!(!pace.reads(now + SECOND));
        assert!(pace.reads(pace.retry().unwrap()));
    }

    /// After a repair, what else somebody did is found out at once, whatever fails.
    #[test]
    fn a_repair_is_no_matter_of_pauses() {
        let (mut pace, now) = failing(Instant::now());
        let now = now + SECOND;
        pace.doubt();
        pace.hurry(now);
        assert!(pace.reads(now));
        pace.has_read();
        assert!(pace.writes(false, now));
        let mut idle = Pace::new();
        idle.hurry(now);
        assert_eq!(idle.retry(), None, "there is nothing to try");
    }
}
