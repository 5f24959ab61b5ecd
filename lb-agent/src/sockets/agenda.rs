//! When to look for sockets: at once when asked, and again; then, of some, now and then. Pure: the time
//! is given.

use std::time::{Duration, Instant};

/// From a look to the second one: longer than a connect() takes to get through the programs and into
/// the kernel's tables.
const GRACE: Duration = Duration::from_millis(500);
/// Between looks that nobody asked for.
const PERIOD: Duration = Duration::from_secs(30);
/// Looking takes at most about a tenth of one CPU: after each look a pause of so many times what it
/// took, within these bounds.
const REST: u32 = 10;
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));

/// When to look.
#[derive(Debug)]
pub(super) struct Agenda {
    period: Option<Duration>,
    /// Not before the first request.
    next: Option<Instant>,
    /// The second look after a request.
    second: Option<Instant>,
    /// No look before.
    rested: Option<Instant>,
}

impl Agenda {
    /// From the first request on also by itself.
    pub(super) const fn periodic() -> Self {
        Self { period: Some(PERIOD), next: None, second: None, rested: None }
    }

    /// When it is asked for, and at no other time.
    pub(super) const fn on_request() -> Self {
        Self { period: None, ..Self::periodic() }
    }

    pub(super) fn request(&mut self, now: Instant) {
        self.next = Some(now);
        self.second = Some(now + GRACE);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let due = [self.next, self.second].into_iter().flatten().min()?;
        Some(self.rested.map_or(due, |rested| rested.max(due)))
    }

    /// A look that began and ended then.
    pub(super) fn looked(&mut self, began: Instant, ended: Instant) {
        self.second = self.second.filter(|second| *second > began);
        self.next = self.period.map(|period| ended + period);
        self.rested = Some(ended + (REST * (ended - began)).clamp(PAUSE.0, PAUSE.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_two_looks_and_then_the_period() {
        let mut agenda = Agenda::periodic();
        assert_eq!(agenda.due(), None, "not before it is asked");
        let start = Instant::now();
        agenda.request(start);
        assert_eq!(agenda.due(), Some(start));
        let ended = start + Duration::from_millis(5);
        agenda.looked(start, ended);
        assert_eq!(agenda.due(), Some(start + GRACE));
        let (began, ended) = (start + GRACE, ended + GRACE);
        agenda.looked(began, ended);
        assert_eq!(agenda.due(), Some(ended + PERIOD));
    }

    #[test]
    fn some_are_looked_for_only_when_asked() {
        let mut agenda = Agenda::on_request();
        let start = Instant::now();
        for at in [start, start + PERIOD] {
            agenda.request(at);
            agenda.looked(at, at);
            assert_eq!(agenda.due(), Some(at + GRACE));
            agenda.looked(at + GRACE, at + GRACE);
            assert_eq!(agenda.due(), None);
        }
    }

    #[test]
    fn a_hundred_requests_are_two_looks() {
        let mut agenda = Agenda::periodic();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        (0..100).for_each(|ms| agenda.request(at(ms)));
        agenda.looked(at(100), at(101));
        let second = at(99) + GRACE;
        assert_eq!(agenda.due(), Some(second));
        agenda.looked(second, second);
        assert_eq!(agenda.due(), Some(second + PERIOD));
    }

    #[test]
    fn a_slow_look_is_followed_by_a_pause_and_loses_no_request() {
        let mut agenda = Agenda::periodic();
        let start = Instant::now();
        agenda.request(start);
        let took = Duration::from_millis(20);
        // Asked while it looked.
        agenda.looked(start, start + took);
        agenda.request(start + took);
        assert_eq!(agenda.due(), Some(start + took + REST * took));
        // However slow.
        let ended = start + Duration::from_secs(9);
        agenda.looked(start, ended);
        assert_eq!(agenda.due(), Some(ended + PAUSE.1), "the second look is still to come");
    }
}
