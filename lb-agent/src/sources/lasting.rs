//! A trouble that lasts: told when it begins, and now and then until it ends.

use std::time::{Duration, Instant};

/// From the first time that it is told to the second. Each pause is twice the one before.
const FIRST: Duration = Duration::from_secs(60);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(600);

/// What was told, if it goes on.
#[derive(Debug, Default)]
pub(super) struct Lasting(Option<Told>);

#[derive(Debug)]
struct Told {
    what: String,
    at: Instant,
    pause: Duration,
}

impl Lasting {
    /// Whether this, which is so `now`, is to be told: it is new, or was told long ago.
    pub(super) fn is_due(&mut self, what: &str, now: Instant) -> bool {
        match &mut self.0 {
            Some(told) if told.what == what => {
                let is_due = now.saturating_duration_since(told.at) >= told.pause;
                if is_due {
                    told.at = now;
                    told.pause = LONGEST.min(told.pause * 2);
                }
                is_due
            }
            _ => {
                self.0 = Some(Told { what: what.to_owned(), at: now, pause: FIRST });
                true
            }
        }
    }

    /// It has ended. True if there was anything.
    pub(super) fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_at_once_and_ever_more_rarely_until_it_ends() {
        let start = Instant::now();
        let mut lasting = Lasting::default();
        let told: Vec<_> =
            (0..3600).filter(|s| lasting.is_due("a", start + Duration::from_secs(*s))).collect();
        assert_eq!(told, [0, 60, 180, 420, 900, 1500, 2100, 2700, 3300]);
        let now = start + Duration::from_secs(3600);
        assert!(lasting.is_due("b", now), "another cause");
        assert!(!lasting.is_due("b", now + FIRST / 2));
        assert!(lasting.end() && !lasting.end());
        assert!(lasting.is_due("b", now + FIRST / 2), "it begins again");
    }
}
