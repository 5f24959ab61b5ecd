//! Whether this proxy does its work: pure state, and the bodies of `/healthz`, `/readyz` and `/livez`.
//!
//! Everybody who reaches the node may read them: they name no process of the node.
//!
//! Decisions compare monotonic times, so a wall clock that jumps changes nothing but what is
//! printed (kube-proxy K5 to K7).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use lb_core::printable::Printable;

use super::{
    Family, Moment,
    readiness::{Readiness, Reason},
};
use crate::sources::{Standstill, Wait};

/// A change must be in force after this time: two of kube-proxy's sync periods (K5).
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// What is said before the first sync.
const UNSYNCED: &str = "not in sync yet";
/// How Go writes a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What is known of the proxy's health.
#[derive(Debug)]
pub struct Health {
    timeout: Duration,
    /// The families that are served, in order.
    families: Vec<(Family, Progress)>,
    node_eligible: bool,
    /// When all this began.
    begun: Moment,
    /// What the first sync waits for.
    waits: BTreeMap<&'static str, Wait>,
    datapath: Option<Fault>,
    /// Why the source follows nothing.
    source: Option<Fault>,
    /// Whether that is because it hangs.
    source_hangs: bool,
    maps: Option<Fault>,
    /// When the tables for packets were repaired last.
    tables_repaired: Option<Moment>,
}

/// Something that is wrong.
#[derive(Debug)]
struct Fault {
    what: String,
    since: Moment,
}

impl Fault {
    /// The same trouble in other words has lasted since it began.
    fn set(fault: &mut Option<Self>, what: Option<String>, now: Moment) {
        let since = fault.as_ref().map_or(now, |fault| fault.since);
        *fault = what.map(|what| Self { what, since });
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Since when the oldest change waits.
    queued: Option<Moment>,
    updated: Option<Moment>,
}

impl Progress {
    fn is_late(&self, now: Instant, timeout: Duration) -> bool {
        // As kube-proxy: who has never been in sync is not late, the API server may be away.
        self.updated.is_some()
            && self
                .queued
                .is_some_and(|queued| now.saturating_duration_since(queued.monotonic) >= timeout)
    }
}

/// An answer to a probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProbeAnswer {
    /// 200 rather than 503.
    pub ok: bool,
    /// JSON; of `/readyz` plain text.
    pub body: String,
}

impl Health {
    /// Nothing queued, nothing synced, no node seen, and a datapath without fault.
    pub fn new(timeout: Duration, mut families: Vec<Family>) -> Self {
        families.sort_unstable();
        families.dedup();
        let families = families.into_iter().map(|family| (family, Progress::default())).collect();
        Self {
            timeout,
            families,
            node_eligible: false,
            begun: Moment::now(),
            waits: BTreeMap::new(),
            datapath: None,
            source: None,
            source_hangs: false,
            maps: None,
            tables_repaired: None,
        }
    }

    /// A change of this family waits to be written. Only the first after a sync counts.
    pub fn queued(&mut self, family: Family, now: Moment) {
        if let Some(progress) = self.progress(family) {
            progress.queued.get_or_insert(now);
        }
    }

    /// All that was known of this family is in force.
    pub fn updated(&mut self, family: Family, now: Moment) {
        if let Some(progress) = self.progress(family) {
            *progress = Progress { queued: None, updated: Some(now) };
        }
    }

    /// All that was known of this family was to be written, and the kernel did not take it. That is no
    /// success, and nobody who hangs: see [`Health::set_maps`].
    pub fn tried(&mut self, family: Family) {
        if let Some(progress) = self.progress(family) {
            progress.queued = None;
        }
    }

    /// Says whether load balancers may use the node (K6).
    pub fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// What the last look at the datapath said.
    pub fn set_datapath(&mut self, check: Result<(), String>, now: Moment) {
        let fault = check.err().map(|fault| Printable(fault).to_string());
        Fault::set(&mut self.datapath, fault, now);
    }

    /// Why the source follows nothing; none: it does.
    pub fn set_source(&mut self, standstill: Option<Standstill>, now: Moment) {
        self.source_hangs = standstill.as_ref().is_some_and(|standstill| standstill.hangs);
        let what = standstill.map(|standstill| Printable(standstill.what).to_string());
        Fault::set(&mut self.source, what, now);
    }

    /// What the first sync waits for.
    pub fn set_waits(&mut self, waits: BTreeMap<&'static str, Wait>) {
        self.waits = waits;
    }

    /// Whether the kernel takes what is written to the maps.
    pub fn set_maps(&mut self, result: Result<(), String>, now: Moment) {
        Fault::set(&mut self.maps, result.err(), now);
    }

    /// The tables for packets were repaired.
    pub fn set_tables_repaired(&mut self, now: Moment) {
        self.tables_repaired = Some(now);
    }

    /// Why it does not, if so.
    pub fn maps_fault(&self) -> Option<&str> {
        self.maps.as_ref().map(|fault| &*fault.what)
    }

    /// The fault of the datapath, if it has one.
    pub fn datapath_fault(&self) -> Option<&str> {
        self.datapath.as_ref().map(|fault| &*fault.what)
    }

    /// What `healthCheckNodePort` servers call a healthy proxy (K2): nothing is late, the kernel takes
    /// what is written, and the datapath does its work.
    pub fn is_serving(&self, now: Instant) -> bool {
        self.is_prompt(now) && self.datapath.is_none() && self.maps.is_none()
    }

    /// The answer of `/healthz`: may load balancers send connections to this node?
    ///
    /// Reasons of our own say no: before the first sync, when the datapath has a fault, when the source
    /// follows nothing, and when the kernel takes nothing for a map. The
    /// body then has a last field `reason`, which kube-proxy's has not.
    pub fn healthz(&self, now: Moment) -> ProbeAnswer {
        let reasons = self.reasons();
        let healthy = self.is_prompt(now.monotonic) && reasons.is_empty();
        let ok = healthy && self.node_eligible;
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        ProbeAnswer { ok, body: self.body(now, ok, healthy, Some(self.node_eligible), reason) }
    }

    /// The answer of `/readyz`: does the agent serve what it is to serve? All that [`Self::healthz`]
    /// asks but for the node. `ok`, as Kubernetes' own programs say it, or else why not.
    pub fn readyz(&self, now: Instant) -> ProbeAnswer {
        let late = self.late();
        let mut reasons = self.reasons();
        if !self.is_prompt(now) {
            reasons.push(&late);
        }
        let ok = reasons.is_empty();
        ProbeAnswer { ok, body: if ok { "ok".to_owned() } else { reasons.join("; ") + "\n" } }
    }

    /// The answer of `/livez`: would a restart help? Neither the node nor the reasons of our own
    /// count (K7), save a source that hangs. Of maps that take nothing they do not: who starts anew
    /// makes more of the calls that fail.
    pub fn livez(&self, now: Moment) -> ProbeAnswer {
        let hangs = self.source.as_ref().filter(|_| self.source_hangs);
        let ok = self.is_prompt(now.monotonic) && hangs.is_none();
        let reason = hangs.map(|fault| fault.what.clone());
        ProbeAnswer { ok, body: self.body(now, ok, ok, None, reason) }
    }

    /// What [`Self::readyz`] says, with all that is known of it: for those who look after the node.
    pub fn readiness(&self, now: Instant) -> Readiness {
        let reason = |what: &str, since: Moment, remedy: &str| Reason {
            what: what.to_owned(),
            since: text(whole(since.wall)),
            remedy: remedy.to_owned(),
        };
        let mut reasons = Vec::new();
        if !self.is_synced() {
            let (what, remedy) = self.waiting();
            reasons.push(reason(&what, self.begun, &remedy));
        }
        let source_helps = if self.source_hangs {
            "repair the mount, or remove the file and restart lb-agent"
        } else {
            "lb-agent goes on as soon as it can be read"
        };
        let faults = [
            (&self.datapath, "lb-agent repairs what it can; its log says more"),
            (&self.source, source_helps),
            (&self.maps, "give it what it lacks (memory, CAP_BPF); lb-agent goes on trying"),
        ];
        for (fault, remedy) in faults {
            reasons.extend(fault.iter().map(|fault| reason(&fault.what, fault.since, remedy)));
        }
        if !self.is_prompt(now) {
            let queued = self.families.iter().filter_map(|(_, progress)| progress.queued);
            let since = queued.min_by_key(|queued| queued.monotonic).unwrap_or(self.begun);
            let remedy = "see lb-agent's log, and restart it if that lasts";
            reasons.push(reason(&self.late(), since, remedy));
        }
        Readiness {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: reasons.is_empty(),
            reasons,
            tables_repaired: self.tables_repaired.map(|moment| text(whole(moment.wall))),
        }
    }

    /// What the first sync waits for, and the remedy. What has one cause is told once.
    fn waiting(&self) -> (String, String) {
        let mut causes: Vec<(&Wait, Vec<&str>)> = Vec::new();
        for (lacking, wait) in &self.waits {
            match causes.iter_mut().find(|(known, _)| *known == wait) {
                Some((_, all)) => all.push(lacking),
                None => causes.push((wait, vec![lacking])),
            }
        }
        let mut what = UNSYNCED.to_owned();
        let mut remedies: Vec<&str> = Vec::new();
        for (i, (wait, lacking)) in causes.iter().enumerate() {
            what.push_str(if i == 0 { ", without " } else { "; without " });
            what.push_str(&lacking.join(", "));
            what.push_str(": ");
            what.push_str(&Printable(&wait.why).to_string());
            if !remedies.contains(&&*wait.remedy) {
                remedies.push(&wait.remedy);
            }
        }
        if remedies.is_empty() {
            remedies.push("lb-agent's log says what it waits for");
        }
        (what, remedies.join("; "))
    }

    /// Our own reasons to say no.
    fn reasons(&self) -> Vec<&str> {
        let unsynced = (!self.is_synced()).then_some(UNSYNCED);
        unsynced
            .into_iter()
            .chain(self.datapath_fault())
            .chain(self.source.as_ref().map(|fault| &*fault.what))
            .chain(self.maps_fault())
            .collect()
    }

    fn is_synced(&self) -> bool {
        self.families.iter().all(|(_, progress)| progress.updated.is_some())
    }

    fn late(&self) -> String {
        format!("a change has been waiting for {} s or more", self.timeout.as_secs())
    }

    fn progress(&mut self, family: Family) -> Option<&mut Progress> {
        self.families.iter_mut().find(|(known, _)| *known == family).map(|(_, progress)| progress)
    }

    fn is_prompt(&self, now: Instant) -> bool {
        !self.families.iter().any(|(_, progress)| progress.is_late(now, self.timeout))
    }

    /// As Go's `encoding/json` writes it: this order, no spaces, `status` left out if empty.
    fn body(
        &self,
        now: Moment,
        ok: bool,
        healthy: bool,
        eligible: Option<bool>,
        reason: Option<String>,
    ) -> String {
        let synced = self
            .families
            .iter()
            .filter_map(|(family, progress)| Some((*family, *progress, progress.updated?)));
        let newest = synced.clone().map(|(_, _, updated)| updated).max_by_key(|at| at.monotonic);
        // On success the time of the question, as kube-proxy has always answered.
        let last = if ok { Some(now) } else { newest };
        let last = last.map_or_else(|| NEVER.to_owned(), |at| text(at.wall));
        let mut body = format!(r#"{{"lastUpdated":"{last}","currentTime":"{}""#, text(now.wall));
        let mut add = |part: std::fmt::Arguments<'_>| {
            // A String takes everything.
            let _ = body.write_fmt(part);
        };
        if let Some(eligible) = eligible {
            add(format_args!(r#","nodeEligible":{eligible}"#));
        }
        add(format_args!(r#","healthy":{healthy}"#));
        let mut separator = r#","status":{"#;
        for (family, progress, updated) in synced {
            let healthy = !progress.is_late(now.monotonic, self.timeout);
            let updated = text(updated.wall);
            let name = family.name();
            add(format_args!(
                r#"{separator}"{name}":{{"lastUpdated":"{updated}","healthy":{healthy}}}"#
            ));
            separator = ",";
        }
        if separator == "," {
            add(format_args!("}}"));
        }
        if let Some(reason) = reason {
            add(format_args!(r#","reason":{}"#, serde_json::Value::from(reason)));
        }
        body.push('}');
        body
    }
}

/// Without a fraction of a second.
fn whole(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// RFC 3339 in UTC, as many digits as the fraction needs.
fn text(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests;
