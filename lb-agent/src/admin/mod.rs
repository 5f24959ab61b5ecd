//! What the agent says of itself: health, metrics and Events.
//!
//! | file | what it is |
//! |---|---|
//! | [`health`] | whether the proxy does its work; pure state |
//! | [`metrics`] | what is counted, in Prometheus' text format |
//! | [`server`] | the two HTTP servers, on a thread of their own |
//! | [`readiness`] | what `lbctl status` is told |
//! | [`node_ports`] | a server for each `healthCheckNodePort` |
//! | `http` | listeners and connections, and what one client may cost |
//! | [`events`] | Kubernetes Events |
//!
//! The servers have a thread of their own: a sync that takes long, or hangs, must not keep a probe
//! waiting, and it is the probe that says that it hangs. Nothing here ever makes the loop wait.

pub mod events;
pub mod health;
mod http;
pub mod metrics;
pub mod node_ports;
pub mod readiness;
pub mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use lb_core::{model::ObjectRef, policy::HealthCheck};

pub use self::{events::Events, health::Health, metrics::Metrics, node_ports::NodePorts};
use self::{
    metrics::SyncKind,
    readiness::Desk,
    server::{ServerSettings, Servers, StartError, Which},
};

/// An IP family, by the names that Kubernetes gives them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As Kubernetes writes it: `IPv4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A point in time on both clocks: the monotonic one decides, the wall clock is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// For comparing.
    pub monotonic: Instant,
    /// For printing.
    pub wall: SystemTime,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// The health, shared by the loop that makes it and the servers that tell it.
#[derive(Clone, Debug)]
pub struct SharedHealth(Arc<Mutex<Health>>);

impl SharedHealth {
    /// Shares it.
    pub fn new(health: Health) -> Self {
        Self(Arc::new(Mutex::new(health)))
    }

    /// The health, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Health> {
        // Each change is one assignment: there is no half-made state to fear.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a sync ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SyncOutcome {
    /// All is in force.
    Complete,
    /// All but single Services, whose trouble a restart would not end: a failure to count, but the
    /// proxy is healthy.
    Partial,
    /// The kernel takes nothing for some map. The loop goes on trying: a restart, which makes maps and
    /// loads programs, would need more of what is lacking.
    Refused,
    /// Nothing can be said to be in force.
    Failed,
}

/// All of it, for the loop.
#[derive(Debug)]
pub struct Admin {
    families: Vec<Family>,
    health: SharedHealth,
    metrics: Arc<Metrics>,
    events: Events,
    node_ports: NodePorts,
    /// The ports that could not be opened at the last sync: each is told once.
    failing: BTreeMap<(ObjectRef, u16), String>,
    /// Whether there was no address to open them on.
    deaf: bool,
    /// Where `lbctl` is answered.
    desk: Option<Desk>,
    // Last: the servers end after what runs on their thread.
    servers: Servers,
}

impl Admin {
    /// Starts the servers. `families` are those that are served.
    pub fn start(
        settings: &ServerSettings,
        families: &[Family],
        events: Events,
    ) -> anyhow::Result<Self> {
        let health = SharedHealth::new(Health::new(health::TIMEOUT, families.to_vec()));
        let metrics = Arc::new(Metrics::new().context("cannot make the metrics")?);
        let servers =
            Servers::start(settings, &health, &metrics).inspect_err(|error| match error {
                StartError::Bind { which: Which::Health, .. } => events.health_server_failed(error),
                StartError::Bind { which: Which::Metrics, .. } => {
                    events.metrics_server_failed(error);
                }
                StartError::Thread(_) => {}
            })?;
        let node_ports = NodePorts::new(servers.runtime().clone(), health.clone());
        let (families, failing) = (families.to_vec(), BTreeMap::new());
        Ok(Self {
            families,
            health,
            metrics,
            events,
            node_ports,
            failing,
            deaf: false,
            desk: None,
            servers,
        })
    }

    /// The health, for those who have more to say of it.
    pub fn health(&self) -> SharedHealth {
        self.health.clone()
    }

    /// Answers `lbctl status` from now on, of the agent that has this directory of pins.
    pub fn answer_lbctl(&mut self, home: &Path) {
        match readiness::address(home) {
            Ok(address) if self.desk.as_ref().is_some_and(|desk| desk.is_at(&address)) => {}
            Ok(address) => {
                // First the old one ends: it may be the same place again.
                self.desk = None;
                self.desk = Some(Desk::open(self.servers.runtime(), address, self.health.clone()));
            }
            Err(error) => tracing::warn!("`lbctl status` cannot ask this agent: {error}"),
        }
    }

    /// The counters that are the loop's own to count.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The Events that are the loop's own to report.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// A change waits to be written.
    pub fn queued(&self) {
        let now = Moment::now();
        let mut health = self.health.lock();
        for family in &self.families {
            health.queued(*family, now);
        }
        self.metrics.queued(now.wall, &self.families);
    }

    /// A sync ended.
    pub fn synced(&self, kind: SyncKind, took: Duration, outcome: SyncOutcome) {
        let now = Moment::now();
        if outcome == SyncOutcome::Complete {
            self.metrics.sync_finished(kind, took, now.wall, &self.families);
        } else {
            self.metrics.sync_failed(kind, took, &self.families);
        }
        let mut health = self.health.lock();
        for family in &self.families {
            match outcome {
                SyncOutcome::Complete | SyncOutcome::Partial => health.updated(*family, now),
                SyncOutcome::Refused => health.tried(*family),
                SyncOutcome::Failed => {}
            }
        }
    }

    /// Whether the kernel takes what is written to the maps. Told in the log when it is news.
    pub fn maps_written(&self, result: Result<(), String>) {
        let mut health = self.health.lock();
        let before = health.maps_fault();
        if result.as_ref().err().map(String::as_str) == before {
            return;
        }
        if let Err(error) = &result {
            tracing::error!("not ready, what changes is not in force: {error}");
        } else {
            tracing::info!("the kernel takes what is written again");
        }
        health.set_maps(result, Moment::now());
    }

    /// A sync of a family's table for packets ended: see [`Metrics::nftables_synced`]. `repaired`: somebody
    /// else had changed it, which is undone.
    pub fn table_synced(&self, family: Family, elements: usize, failed: bool, repaired: bool) {
        self.metrics.nftables_synced(family, elements, failed);
        if repaired {
            self.metrics.nftables_repaired(family);
            self.health.lock().set_tables_repaired(Moment::now());
        }
    }

    /// A search for sockets with backends that are gone ended.
    pub fn looked_for_stale_flows(&self, took: Duration) {
        self.metrics.looked_for_stale_flows(took, &self.families);
    }

    /// Whether load balancers may use the node (K6); not before it was seen.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.health.lock().set_node_eligible(eligible);
    }

    /// The datapath was looked at.
    pub fn datapath_checked(&self, check: Result<(), String>) {
        self.metrics.datapath(check.is_ok());
        self.health.lock().set_datapath(check, Moment::now());
    }

    /// Serves health checks, after a sync, see [`NodePorts::sync`]. A port that cannot be opened is told
    /// in the log and by an Event.
    pub fn serve_health_checks(
        &mut self,
        changed: BTreeMap<ObjectRef, Option<HealthCheck>>,
        addresses: Option<BTreeSet<IpAddr>>,
    ) {
        let failures = self.node_ports.sync(changed, addresses);
        let deaf = self.node_ports.is_deaf();
        if deaf && !self.deaf {
            let remedy = "load balancers take the node for unhealthy: let --nodeport-addresses name \
                          an address of an interface";
            tracing::warn!(remedy, "no address of this node is one for health check node ports");
        }
        self.deaf = deaf;
        let failures: BTreeMap<_, _> = failures
            .into_iter()
            .map(|failure| {
                let text = format!("listen tcp {}: {}", failure.addr, failure.error);
                ((failure.service, failure.addr.port()), text)
            })
            .collect();
        for ((service, port), text) in &failures {
            if self.failing.get(&(service.clone(), *port)) != Some(text) {
                tracing::error!(%service, "no health check server, trying again: {text}");
                self.events.service_health_check_failed(service, *port, text);
            }
        }
        self.failing = failures;
    }
}

#[cfg(test)]
mod tests;
