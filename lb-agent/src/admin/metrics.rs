//! What is counted. kube-proxy's metrics keep their names, labels, buckets and help, so that
//! dashboards and alerts go on working; what kube-proxy does not have begins with `socklb_`.

mod kube_proxy;
pub(super) mod make;
mod own;
mod process;

use std::time::{Duration, SystemTime};

use lb_common::abi::Counter;
use prometheus::{Registry, TextEncoder};

use self::{kube_proxy::KubeProxy, make::Make, own::Own, process::Process};
use super::Family;
use crate::sockets::EndReason;

/// How much a sync looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SyncKind {
    /// Everything: the first sync, and after errors.
    Full,
    /// What has changed.
    Partial,
}

/// A question about health.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// Traffic that has a policy of its own, which can be `Local`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Traffic {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

impl Traffic {
    const fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }
}

/// A map with a fixed number of places.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Map {
    /// Frontends.
    Services,
    /// Records of backends.
    Backends,
}

impl Map {
    const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Backends => "backends",
        }
    }
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    process: Process,
    proxy: KubeProxy,
    own: Own,
}

impl Metrics {
    /// Everything at its start. Fails only if two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let make = Make(&registry);
        Ok(Self {
            process: Process::new(&make)?,
            proxy: KubeProxy::new(&make)?,
            own: Own::new(&make)?,
            registry,
        })
    }

    /// A change waits to be written.
    pub fn queued(&self, now: SystemTime, families: &[Family]) {
        for family in families {
            self.proxy.last_queued.with_label_values(&[family.name()]).set(seconds(now));
        }
    }

    /// A sync ended that wrote all there was to write.
    pub fn sync_finished(
        &self,
        kind: SyncKind,
        took: Duration,
        now: SystemTime,
        families: &[Family],
    ) {
        self.sync_took(kind, took, families);
        for family in families {
            self.proxy.last_sync.with_label_values(&[family.name()]).set(seconds(now));
        }
    }

    /// A sync ended, and something was not written.
    pub fn sync_failed(&self, kind: SyncKind, took: Duration, families: &[Family]) {
        self.sync_took(kind, took, families);
        self.own.sync_failures.inc();
    }

    fn sync_took(&self, kind: SyncKind, took: Duration, families: &[Family]) {
        let by_kind = match kind {
            SyncKind::Full => &self.proxy.sync_full,
            SyncKind::Partial => &self.proxy.sync_partial,
        };
        for family in families {
            self.proxy.sync.with_label_values(&[family.name()]).observe(took.as_secs_f64());
            by_kind.with_label_values(&[family.name()]).observe(took.as_secs_f64());
        }
    }

    /// From the change of a pod or Service to its effect here, for each changed slice.
    pub fn network_programming(&self, family: Family, took: Duration) {
        self.proxy.programming.with_label_values(&[family.name()]).observe(took.as_secs_f64());
    }

    /// So many EndpointSlices have unwritten changes, after `seen` more events.
    pub fn endpoint_changes(&self, pending: usize, seen: u64) {
        self.proxy.endpoints_pending.set(whole(pending));
        self.proxy.endpoints_total.inc_by(seen);
    }

    /// So many Services have unwritten changes, after `seen` more events.
    pub fn service_changes(&self, pending: usize, seen: u64) {
        self.proxy.services_pending.set(whole(pending));
        self.proxy.services_total.inc_by(seen);
    }

    /// So many ports of Services have a `Local` policy, endpoints elsewhere, and none here.
    pub fn no_local(&self, traffic: Traffic, family: Family, ports: usize) {
        self.proxy.no_local.with_label_values(&[traffic.name(), family.name()]).set(whole(ports));
    }

    /// A sync of a family's table for packets ended with so many elements there; `failed`: something was
    /// not written.
    pub fn nftables_synced(&self, family: Family, elements: usize, failed: bool) {
        self.own.nftables_elements.with_label_values(&[family.name()]).set(whole(elements));
        let failures = self.proxy.nftables_failures.with_label_values(&[family.name()]);
        failures.inc_by(failed.into());
    }

    /// A family's table for packets says again what it is to say, after somebody else had changed it.
    pub fn nftables_repaired(&self, family: Family) {
        self.own.nftables_repairs.with_label_values(&[family.name()]).inc();
    }

    /// A probe got its answer.
    pub fn probe_answered(&self, probe: Probe, code: u16) {
        let counter = match probe {
            Probe::Healthz => &self.proxy.healthz,
            Probe::Livez => &self.proxy.livez,
        };
        counter.with_label_values(&[&code.to_string()]).inc();
    }

    /// A search for stale sockets ended, of all families at once: what cleaning conntrack is to
    /// kube-proxy.
    pub fn looked_for_stale_flows(&self, took: Duration, families: &[Family]) {
        for family in families {
            self.proxy.reconcile.with_label_values(&[family.name()]).observe(took.as_secs_f64());
            self.stale_flows(*family, 0);
        }
    }

    /// Sockets that it found were woken.
    pub fn stale_flows(&self, family: Family, destroyed: u64) {
        self.proxy.reconcile_deleted.with_label_values(&[family.name()]).inc_by(destroyed);
    }

    /// Sockets were woken with an error.
    pub fn sockets_destroyed(&self, reason: EndReason, count: u64) {
        self.own.sockets_destroyed.with_label_values(&[reason.name()]).inc_by(count);
    }

    /// How full a map is.
    pub fn map_use(&self, map: Map, entries: usize, capacity: usize) {
        self.own.map_entries.with_label_values(&[map.name()]).set(whole(entries));
        self.own.map_capacity.with_label_values(&[map.name()]).set(whole(capacity));
    }

    /// A Service was not written: the map had no place left.
    pub fn map_full(&self, map: Map) {
        self.own.map_full.with_label_values(&[map.name()]).inc();
    }

    /// So many bytes of kernel memory are what one of the maps of sockets has stored.
    pub fn socket_storage(&self, map: &str, bytes: usize) {
        self.own.socket_storage.with_label_values(&[map]).set(whole(bytes));
    }

    /// What the last check of the datapath said.
    pub fn datapath(&self, healthy: bool) {
        self.own.datapath_healthy.set(healthy.into());
    }

    /// So many processes of the node are not in the cgroup that the programs are attached to.
    pub fn processes_outside(&self, count: usize) {
        self.own.processes_outside.set(whole(count));
    }

    /// How often the programs have counted something, all in all.
    pub fn datapath_events(&self, event: Counter, count: u64) {
        let counter = self.own.datapath_events.with_label_values(&[event.name()]);
        counter.inc_by(count.saturating_sub(counter.get()));
    }

    /// Everything, in Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        self.process.refresh();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// As the text format wants it; a clock before 1970 is 0.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
