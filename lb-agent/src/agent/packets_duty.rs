//! When the tables for packets are read, and what is wrong with them. They have a pace of their own: what
//! fails there puts nothing off for sockets.

use std::time::Instant;

use lb_core::engine::EngineReport;

use super::pace::Pace;
use crate::packets::Watch;

/// What came of a sync of the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TablesWritten {
    /// Something was not written.
    pub(super) failed: bool,
    /// Something was, after somebody else had changed the tables.
    pub(super) repaired: bool,
}

/// What is to be done for packets beside the pipeline's syncs.
pub(super) struct PacketsDuty {
    /// None: the kernel does not let us speak with it.
    watch: Option<Watch>,
    pace: Pace,
    /// Somebody else changed the tables, and nothing was written since.
    is_damaged: bool,
    /// Why packets are not served as they should be.
    fault: Option<String>,
}

impl PacketsDuty {
    /// Tables that were not read yet.
    pub(super) fn new(watch: Watch) -> Self {
        Self::with(Some(watch), None)
    }

    /// There will be no tables, for this reason.
    pub(super) fn impossible(fault: String) -> Self {
        Self::with(None, Some(fault))
    }

    fn with(watch: Option<Watch>, fault: Option<String>) -> Self {
        let mut pace = Pace::new();
        pace.doubt();
        Self { watch, pace, is_damaged: false, fault }
    }

    /// Why packets are not served as they should be.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Looks whether somebody changed the tables.
    pub(super) fn look(&mut self, now: Instant) {
        if self.watch.as_mut().is_some_and(Watch::is_damaged) {
            tracing::warn!("somebody changed the tables for packets: repairing them");
            self.is_damaged = true;
            self.pace.doubt();
            self.pace.hurry(now);
        }
    }

    /// The tables may say something else than what is believed of them.
    pub(super) const fn doubt(&mut self) {
        self.pace.doubt();
    }

    /// Whether the tables are to be read.
    pub(super) fn reads(&self, now: Instant) -> bool {
        self.watch.is_some() && self.pace.reads(now)
    }

    /// They were, or why not.
    pub(super) fn has_read(&mut self, unread: Option<String>, began: Instant, ended: Instant) {
        if unread.is_some() {
            self.pace.has_written(true, began, ended);
            self.fault = unread;
        } else {
            self.pace.has_read();
        }
    }

    /// After a sync. What a single Service lacks is no fault of the agent's.
    pub(super) fn wrote(
        &mut self,
        report: &EngineReport,
        began: Instant,
        ended: Instant,
    ) -> TablesWritten {
        let failed = !report.failed.is_empty() || !report.beside.is_empty();
        self.fault = report.beside.first().cloned();
        if failed {
            self.pace.doubt();
        }
        self.pace.has_written(failed, began, ended);
        let repaired = !failed && report.ops > 0 && std::mem::take(&mut self.is_damaged);
        if repaired {
            tracing::info!(ops = report.ops, "the tables for packets are repaired");
        }
        TablesWritten { failed, repaired }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A duty whose tables can be read, without a kernel.
    fn readable(duty: &PacketsDuty, now: Instant) -> bool {
        duty.pace.reads(now)
    }

    #[test]
    fn what_fails_is_read_again_with_pauses_that_grow_and_is_a_fault_until_it_works() {
        let start = Instant::now();
        let mut duty = PacketsDuty::with(None, None);
        assert!(readable(&duty, start) && !duty.reads(start), "there is nothing to read");
        duty.has_read(Some("no memory".to_owned()), start, start);
        assert_eq!(duty.fault(), Some("no memory"));
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..3 {
            let pause = (1..).map(|ms| Duration::from_millis(100 * ms));
            let pause = pause.take(1000).find(|pause| readable(&duty, now + *pause)).unwrap();
            pauses.push(pause.as_millis());
            now += pause;
            duty.has_read(Some("no memory".to_owned()), now, now);
        }
        assert_eq!(pauses, [100, 200, 400]);
        now += Duration::from_secs(60);
        duty.has_read(None, now, now);
        assert!(!readable(&duty, now) && duty.fault().is_some(), "nothing was written yet");
        duty.wrote(&EngineReport::default(), now, now);
        assert_eq!(duty.fault(), None);
    }

    #[test]
    fn a_repair_is_one_when_something_was_written_and_nothing_failed() {
        let now = Instant::now();
        let mut duty = PacketsDuty::with(None, None);
        let wrote = |duty: &mut PacketsDuty, ops, beside: &[&str]| {
            let beside = beside.iter().copied().map(str::to_owned).collect();
            duty.wrote(&EngineReport { ops, beside, ..EngineReport::default() }, now, now).repaired
        };
        assert!(!wrote(&mut duty, 1, &[]), "nobody has changed anything");
        duty.is_damaged = true;
        assert!(!wrote(&mut duty, 1, &["no memory"]));
        assert!(wrote(&mut duty, 1, &[]));
        assert!(!wrote(&mut duty, 1, &[]), "it is told once");
        duty.is_damaged = true;
        assert!(!wrote(&mut duty, 0, &[]), "they were as they should be");
    }

    #[test]
    fn a_service_that_fails_is_no_fault_but_has_the_tables_read_again() {
        let now = Instant::now();
        let mut duty = PacketsDuty::with(None, None);
        duty.has_read(None, now, now);
        let web = lb_core::model::ObjectRef::new("default", "web");
        let failed = [(web, "a set is full".to_owned())].into();
        duty.wrote(&EngineReport { failed, ..EngineReport::default() }, now, now);
        assert_eq!(duty.fault(), None);
        assert!(!readable(&duty, now) && readable(&duty, now + Duration::from_secs(1)));
    }
}
