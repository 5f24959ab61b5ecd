//! What connection tracking remembers of UDP flows to endpoints that left is forgotten (L2), beside the
//! loop. What could not be done is tried again, with what was said meanwhile.

use std::{
    mem,
    time::{Duration, Instant},
};

use lb_core::packets::ServedFlows;

use super::{pace::Pace, task::Task};
use crate::{
    admin::{Admin, Family},
    packets::{self, ConntrackError, Forgotten},
};

/// How flows are forgotten: see [`packets::forget`].
type Forget = fn(&ServedFlows) -> (Forgotten, Option<ConntrackError>);

/// The flows that are to be looked at, and the look.
pub(super) struct StaleFlows {
    forget: Forget,
    /// What nobody has looked at yet.
    due: ServedFlows,
    look: Task<Look>,
    pace: Pace,
    /// What was told as wrong.
    told: Option<String>,
}

/// What came of a look.
pub(super) struct Look {
    flows: ServedFlows,
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
        Self { forget, due, look: Task::new(), pace: Pace::new(), told: None }
    }

    /// These are to be looked at, at once.
    pub(super) fn take(&mut self, flows: ServedFlows, now: Instant) {
        let is_news = !flows.is_empty();
        self.due.update(flows);
        self.begin(is_news, now);
    }

    /// Looks at what is due, if it is time.
    pub(super) fn begin(&mut self, is_news: bool, now: Instant) {
        if self.due.is_empty() || self.look.is_running() || !self.pace.writes(is_news, now) {
            return;
        }
        let (forget, flows) = (self.forget, mem::take(&mut self.due));
        self.look.begin(move || {
            let began = Instant::now();
            let (forgotten, error) = forget(&flows);
            Look { flows, forgotten, error, began, ended: Instant::now() }
        });
    }

    /// What came of the look that is under way. To be dropped and called again at will.
    pub(super) async fn looked(&mut self) -> Option<Look> {
        self.look.result().await
    }

    /// Takes in what came of it, and goes on with what is due since.
    pub(super) fn judge(&mut self, look: Look) -> (Forgotten, Duration) {
        let Look { flows, forgotten, error, began, ended } = look;
        self.pace.has_written(error.is_some(), began, ended);
        if let Some(error) = error {
            let later = mem::replace(&mut self.due, flows);
            self.due.update(later);
            let error = error.to_string();
            if self.told.as_ref() != Some(&error) {
                tracing::error!("UDP flows to endpoints that left go on, trying again: {error}");
                self.told = Some(error);
            }
        } else if self.told.take().is_some() {
            tracing::info!("UDP flows to endpoints that left are ended again");
        }
        self.begin(false, ended);
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
        let frontend = Frontend::new(SocketAddr::from(([192, 0, 2, 1], port)), Protocol::Udp);
        let flows = [(frontend, BTreeSet::new())].into();
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
            stale.begin(true, start);
            assert!(!stale.look.is_running(), "nothing is due");
            stale.take(flows(1), start);
            assert_eq!(judge(&mut stale).await, some);
            stale.begin(false, ended.get());
            assert!(!stale.look.is_running(), "not at once");
            stale.take(flows(2), ended.get());
            assert_eq!(judge(&mut stale).await, some, "what is new does not wait");
            stale.begin(false, ended.get() + Duration::from_secs(60));
            assert_eq!(judge(&mut stale).await, Forgotten { ipv4: 3, ipv6: 0 });
            stale.begin(true, ended.get());
            assert!(!stale.look.is_running(), "nothing is left");
            let text = log.text();
            assert_eq!(text.matches("nf_conntrack_netlink").count(), 1, "{text}");
            assert!(text.contains("ended again"), "{text}");
        });
    }
}
