//! When the table for packets of a family is read, and what is wrong with it. It has a pace of its own:
//! what fails there puts nothing off for sockets, nor for the other family.

use std::time::Instant;

use lb_core::{engine::EngineReport, packets::engine_name};

use super::pace::Pace;
use crate::packets::Watch;

/// What came of a sync of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TableWritten {
    /// Something was not written.
    pub(super) failed: bool,
    /// Something was, after somebody else had changed the table.
    pub(super) repaired: bool,
}

/// What is to be done for packets beside the pipeline's syncs.
pub(super) struct PacketsDuty {
    ipv4: bool,
    /// None: the kernel does not let us speak with it.
    watch: Option<Watch>,
    pace: Pace,
    /// Somebody else changed the table, and nothing was written since.
    is_damaged: bool,
    /// Why packets are not served as they should be.
    fault: Option<String>,
}

impl PacketsDuty {
    /// A table that was not read yet.
    pub(super) fn new(ipv4: bool, watch: Watch) -> Self {
        Self::with(ipv4, Some(watch), None)
    }

    /// There will be no table, for this reason.
    pub(super) fn impossible(ipv4: bool, fault: String) -> Self {
        Self::with(ipv4, None, Some(fault))
    }

    fn with(ipv4: bool, watch: Option<Watch>, fault: Option<String>) -> Self {
        let mut pace = Pace::new();
        pace.doubt();
        Self { ipv4, watch, pace, is_damaged: false, fault }
    }

    pub(super) const fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    /// The engine's name.
    pub(super) const fn engine(&self) -> &'static str {
        engine_name(self.ipv4)
    }

    /// Why packets are not served as they should be.
    pub(super) fn fault(&self) -> Option<String> {
        let fault = self.fault.as_ref()?;
        Some(format!("{} from outside are not served: {fault}", self.engine()))
    }

    /// Looks whether somebody changed the table.
    pub(super) fn look(&mut self, now: Instant) {
        if self.watch.as_mut().is_some_and(Watch::is_damaged) {
            let engine = self.engine();
            tracing::warn!(engine, "somebody changed the table in nftables: repairing it");
            self.is_damaged = true;
            self.pace.doubt();
            self.pace.hurry(now);
        }
    }

    /// The table may say something else than what is believed of it.
    pub(super) const fn doubt(&mut self) {
        self.pace.doubt();
    }

    /// Whether the table is to be read.
    pub(super) fn reads(&self, now: Instant) -> bool {
        self.watch.is_some() && self.pace.reads(now)
    }

    /// It was, or why not.
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
    ) -> TableWritten {
        let failed = !report.failed.is_empty() || !report.beside.is_empty();
        self.fault = report.beside.first().cloned();
        if failed {
            self.pace.doubt();
        }
        self.pace.has_written(failed, began, ended);
        let repaired = !failed && report.ops > 0 && std::mem::take(&mut self.is_damaged);
        if repaired {
            tracing::info!(
                engine = self.engine(),
                ops = report.ops,
                "the table in nftables is repaired"
            );
        }
        TableWritten { failed, repaired }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A duty whose table can be read, without a kernel.
    fn readable(duty: &PacketsDuty, now: Instant) -> bool {
        duty.pace.reads(now)
    }

    #[test]
    fn what_fails_is_read_again_with_pauses_that_grow_and_is_a_fault_until_it_works() {
        let start = Instant::now();
        let mut duty = PacketsDuty::with(true, None, None);
        assert!(readable(&duty, start) && !duty.reads(start), "there is nothing to read");
        duty.has_read(Some("no memory".to_owned()), start, start);
        let said = "packets of IPv4 from outside are not served: no memory";
        assert_eq!(duty.fault().as_deref(), Some(said));
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
        let mut duty = PacketsDuty::with(true, None, None);
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
        let mut duty = PacketsDuty::with(true, None, None);
        duty.has_read(None, now, now);
        let web = lb_core::model::ObjectRef::new("default", "web");
        let failed = [(web, "a set is full".to_owned())].into();
        duty.wrote(&EngineReport { failed, ..EngineReport::default() }, now, now);
        assert_eq!(duty.fault(), None);
        assert!(!readable(&duty, now) && readable(&duty, now + Duration::from_secs(1)));
    }
}
