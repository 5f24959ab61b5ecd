//! What connection tracking remembers of UDP flows to endpoints that left is forgotten (L2), beside the
//! loop. What could not be done is tried again, with what was said meanwhile.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_core::packets::ServedFlows;

use super::{pace::Pace, task::Task};
use crate::{
    admin::{Admin, Family},
    packets::{self, ConntrackError, Forgotten},
};

/// After a look the next one waits for so long, or for so many times as long as it took.
const REST: Duration = Duration::from_secs(1);
const SHARE: u32 = 10;

/// How flows are forgotten: see [`packets::forget`].
type Forget = fn(&ServedFlows) -> (Forgotten, Option<ConntrackError>);

/// The flows that are to be looked at, and the look.
pub(super) struct StaleFlows {
    forget: Forget,
    /// What nobody has looked at yet.
    due: ServedFlows,
    look: Task<Look>,
    /// What the look that is under way looks at.
    looking: Option<Arc<ServedFlows>>,
    pace: Pace,
    /// No look begins before, however much changes: each reads all of connection tracking.
    not_before: Option<Instant>,
    /// Whether anything came since the last look began.
    has_news: bool,
    /// What was told as wrong.
    told: Option<String>,
}

/// What came of a look.
pub(super) struct Look {
    forgotten: Forgotten,
    error: Option<ConntrackError>,
    began: Instant,
    ended: Instant,
}

impl StaleFlows {
    /// Those of connection tracking in this network namespace.
    pub(super) fn new() -> Self {
        Self::with(packets::forget)
    }

    fn with(forget: Forget) -> Self {
        let due = ServedFlows::default();
        Self {
            forget,
            due,
            look: Task::new(),
            looking: None,
            pace: Pace::new(),
            not_before: None,
            has_news: false,
            told: None,
        }
    }

    /// These are to be looked at, soon.
    pub(super) fn take(&mut self, flows: ServedFlows, now: Instant) {
        self.has_news |= !flows.is_empty();
        self.due.update(flows);
        self.begin(now);
    }

    /// Looks at what is due, if it is time.
    pub(super) fn begin(&mut self, now: Instant) {
        let is_early = self.not_before.is_some_and(|time| now < time);
        if self.due.is_empty() || self.look.is_running() || is_early {
            return;
        }
        if !self.pace.writes(self.has_news, now) {
            return;
        }
        self.has_news = false;
        let (forget, flows) = (self.forget, Arc::new(mem::take(&mut self.due)));
        self.looking = Some(Arc::clone(&flows));
        self.look.begin(move || {
            let began = Instant::now();
            let (forgotten, error) = forget(&flows);
            Look { forgotten, error, began, ended: Instant::now() }
        });
    }

    /// What came of the look that is under way; none if it has died, which is told. To be dropped and
    /// called again at will.
    pub(super) async fn looked(&mut self) -> Option<Look> {
        let look = self.look.result().await;
        if look.is_none() {
            let now = Instant::now();
            self.has_looked(true, now, now);
        }
        look
    }

    /// What has failed is due again, with what came meanwhile.
    fn has_looked(&mut self, failed: bool, began: Instant, ended: Instant) {
        self.pace.has_written(failed, began, ended);
        self.not_before = Some(ended + REST.max(ended.saturating_duration_since(began) * SHARE));
        let looked = self.looking.take().filter(|_| failed);
        if let Some(looked) = looked {
            let later = mem::replace(&mut self.due, Arc::unwrap_or_clone(looked));
            self.due.update(later);
        }
    }

    /// Takes in what came of it, and goes on with what is due since.
    pub(super) fn judge(&mut self, look: Look) -> (Forgotten, Duration) {
        let Look { forgotten, error, began, ended } = look;
        self.has_looked(error.is_some(), began, ended);
        if let Some(error) = error {
            if error.lacks_the_means() {
                self.due.keep_served();
            }
            let error = error.to_string();
            if self.told.as_ref() != Some(&error) {
                tracing::error!("UDP flows to endpoints that left go on, trying again: {error}");
                self.told = Some(error);
            }
        } else if self.told.take().is_some() {
            tracing::info!("UDP flows to endpoints that left are ended again");
        }
        (forgotten, ended.saturating_duration_since(began))
    }
}

/// Says how many flows were ended.
pub(super) fn tell((forgotten, took): (Forgotten, Duration), admin: &Admin) {
    let Forgotten { ipv4, ipv6 } = forgotten;
    admin.looked_for_stale_flows(took);
    for (family, count) in [(Family::V4, ipv4), (Family::V6, ipv6)] {
        if count > 0 {
            admin.metrics().stale_flows(family, count);
            tracing::info!(
                flows = count,
                family = family.name(),
                "UDP flows to endpoints that left ended"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::BTreeSet,
        io,
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use lb_core::{
        engine::EngineReport,
        model::{Frontend, Protocol},
    };

    use super::{super::task::tests::logged, *};

    fn flows(port: u16) -> ServedFlows {
        of_endpoints(port, [SocketAddr::from(([10, 0, 0, 1], 53))].into())
    }

    fn of_endpoints(port: u16, serving: BTreeSet<SocketAddr>) -> ServedFlows {
        let frontend = Frontend::new(SocketAddr::from(([192, 0, 2, 1], port)), Protocol::Udp);
        let flows = [(frontend, serving)].into();
        ServedFlows::of(&mut EngineReport { flows, ..EngineReport::default() })
    }

    static LOOKS: AtomicUsize = AtomicUsize::new(0);

    /// Fails twice; then it wants all that was said.
    fn forget(served: &ServedFlows) -> (Forgotten, Option<ConntrackError>) {
        if LOOKS.fetch_add(1, Ordering::Relaxed) < 2 {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            return (Forgotten { ipv4: 0, ipv6: 1 }, Some(error.into()));
        }
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        assert!([1, 2].iter().all(|port| served.is_over(at(*port), at(9))));
        (Forgotten { ipv4: 3, ipv6: 0 }, None)
    }

    #[test]
    fn what_fails_is_told_once_and_tried_again_with_what_came_meanwhile() {
        logged(async |log| {
            let start = Instant::now();
            let mut stale = StaleFlows::with(forget);
            let ended = Cell::new(start);
            let judge = async |stale: &mut StaleFlows| {
                let look = stale.looked().await.unwrap();
                ended.set(look.ended);
                stale.judge(look).0
            };
            // What was ended counts, whatever was not.
            let some = Forgotten { ipv4: 0, ipv6: 1 };
            stale.begin(start);
            assert!(!stale.look.is_running(), "nothing is due");
            stale.take(flows(1), start);
            assert_eq!(judge(&mut stale).await, some);
            stale.begin(ended.get());
            assert!(!stale.look.is_running(), "not at once");
            stale.take(flows(2), ended.get());
            assert!(!stale.look.is_running(), "looks have a pause between them");
            stale.begin(ended.get() + REST);
            assert_eq!(judge(&mut stale).await, some, "what is new waits no longer");
            stale.begin(ended.get() + Duration::from_secs(60));
            assert_eq!(judge(&mut stale).await, Forgotten { ipv4: 3, ipv6: 0 });
            stale.begin(ended.get() + Duration::from_secs(60));
            assert!(!stale.look.is_running(), "nothing is left");
            let text = log.text();
            assert_eq!(text.matches("nf_conntrack_netlink").count(), 1, "{text}");
            assert!(text.contains("ended again"), "{text}");
        });
    }

    #[test]
    fn a_look_that_dies_loses_nothing() {
        logged(async |log| {
            let mut stale = StaleFlows::with(|_| panic!("a mistake"));
            stale.take(flows(1), Instant::now());
            assert!(stale.looked().await.is_none());
            stale.take(flows(2), Instant::now());
            assert!(log.text().contains("has died"));
            let mut both = flows(1);
            both.update(flows(2));
            assert_eq!(stale.due, both);
        });
    }

    #[test]
    fn nothing_grows_where_the_kernel_cannot() {
        logged(async |_| {
            let mut stale = StaleFlows::with(|_| {
                let error = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
                (Forgotten::default(), Some(error.into()))
            });
            let mut now = Instant::now();
            for port in 1..5 {
                stale.take(of_endpoints(port, BTreeSet::new()), now);
                let look = stale.looked().await.unwrap();
                now = look.ended + Duration::from_secs(60);
                stale.judge(look);
                assert!(stale.due.is_empty());
            }
            stale.take(flows(9), now);
            let look = stale.looked().await.unwrap();
            stale.judge(look);
            assert_eq!(stale.due, flows(9));
        });
    }
}
