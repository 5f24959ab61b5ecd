//! When this process did not get the CPU. Who was not there cannot tell whether an answer was late, or
//! only he was.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::request::Failure;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(50);
/// A look may be so late.
const LATE: Duration = Duration::from_millis(200);
/// So many stalls are remembered: those of one request are never more, at one in [`LATE`].
const REMEMBERED: usize = 1024;

/// Who stood still for so long in the time of a request cannot say that the answer was late.
const STALLED: Duration = Duration::from_secs(1);
/// So often one request is made again at most.
const AGAIN: u64 = 5;

/// The stalls until the last look.
pub(crate) struct Stalls(Mutex<Seen>);

struct Seen {
    last: Instant,
    /// From and to.
    stalls: VecDeque<(Instant, Instant)>,
}

impl Stalls {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Seen { last: Instant::now(), stalls: VecDeque::new() }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the clock until told to stop.
    pub(crate) fn watch(&self, goes_on: impl Fn() -> bool) {
        while goes_on() {
            sleep(TICK);
            self.look(Instant::now());
        }
    }

    fn look(&self, now: Instant) {
        let mut seen = self.seen();
        let due = seen.last + TICK;
        if now > due + LATE {
            seen.stalls.push_back((due, now));
            if seen.stalls.len() > REMEMBERED {
                seen.stalls.pop_front();
            }
        }
        seen.last = now;
    }

    /// For how long it did not in this time. A stall may be going on that nobody has seen yet: that much
    /// is waited for.
    pub(crate) fn within(&self, from: Instant, to: Instant) -> Duration {
        while self.seen().last < to {
            sleep(TICK);
        }
        let part = |(begun, ended): &(Instant, Instant)| {
            to.min(*ended).saturating_duration_since(from.max(*begun))
        };
        self.seen().stalls.iter().map(part).sum()
    }
}

/// Makes a request, and makes it again while nothing can be said of it; also how often again. `stalled`
/// says for how long this process stood still between two times.
pub(crate) fn decide(
    mut request: impl FnMut() -> Result<String, Failure>,
    stalled: impl Fn(Instant, Instant) -> Duration,
) -> (Result<String, Failure>, u64) {
    let mut again = 0;
    loop {
        let begun = Instant::now();
        let outcome = request();
        let is_late = outcome.as_ref().is_err_and(|failure| failure.reason.is_late);
        if !is_late || again == AGAIN || stalled(begun, Instant::now()) < STALLED {
            return (outcome, again);
        }
        again += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Phase, Reason};

    #[test]
    fn whoever_stood_still_asks_again() {
        let failure = |is_late| Failure {
            phase: Phase::Resolve,
            to: None,
            reason: Reason { errno: None, text: "no answer".to_owned(), is_late },
        };
        // So many requests fail. Was there an answer at last, and how often was it made again?
        let outcome = |fail: usize, is_late, stalled: Duration| {
            let mut made = 0;
            let request = || {
                made += 1;
                if made <= fail { Err(failure(is_late)) } else { Ok("web".to_owned()) }
            };
            let (outcome, again) = decide(request, |_, _| stalled);
            (outcome.is_ok(), again)
        };
        assert_eq!(outcome(0, true, STALLED), (true, 0));
        assert_eq!(outcome(2, true, STALLED), (true, 2));
        // Whoever was there saw it; and a refusal is one, however late it is read.
        assert_eq!(outcome(1, true, STALLED / 2), (false, 0));
        assert_eq!(outcome(1, false, STALLED), (false, 0));
        assert_eq!(outcome(usize::MAX, true, STALLED), (false, AGAIN));
    }

    #[test]
    fn a_look_that_is_late_is_a_stall_and_only_its_part_counts() {
        let stalls = Stalls::new();
        let start = stalls.seen().last;
        let at = |millis| start + Duration::from_millis(millis);
        for look in [50, 100, 290, 2_290, 2_340, 3_340] {
            stalls.look(at(look));
        }
        let within = |from, to| stalls.within(at(from), at(to)).as_millis();
        assert_eq!(within(0, 3_340), 1_950 + 950);
        assert_eq!(within(0, 340), 0, "as late as a look may be");
        assert_eq!(within(0, 1_340), 1_000);
        assert_eq!(within(1_340, 2_400), 950 + 10);
        assert_eq!(within(2_290, 2_340), 0);
    }

    #[test]
    fn what_nobody_has_seen_yet_is_waited_for() {
        let stalls = Stalls::new();
        let start = Instant::now();
        let stalled = std::thread::scope(|scope| {
            let asked = scope.spawn(|| stalls.within(start, start + Duration::from_millis(500)));
            sleep(Duration::from_millis(20));
            stalls.look(start + Duration::from_secs(1));
            asked.join().unwrap()
        });
        assert!(stalled > Duration::from_millis(400), "{stalled:?}");
    }
}
