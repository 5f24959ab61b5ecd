//! The loop: what the source says is written, and what was written is told and looked after.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use lb_core::{
    model::{Change, Families},
    packets::{PacketEngine, ServedFlows, engine_name},
    pipeline::{Pipeline, SyncReport},
    plan::PlanError,
    policy::NoLocal,
    socket_engine::SyncError,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    guard::{Guard, Repair},
    pace::Pace,
    packets_duty::PacketsDuty,
    refusals::Refusals,
    stale_flows::{self, StaleFlows},
    takeover::{OTHERS, Takeover},
    troubles::Troubles,
    upkeep::Upkeep,
};
use crate::{
    admin::{
        Admin, Family, SyncOutcome,
        metrics::{Map, SyncKind, Traffic},
    },
    config::TerminateTcp,
    datapath::Datapath,
    maps::Pinned,
    node_cgroup::Cgroup,
    packets,
    pins::Pins,
    sockets::SocketKind,
};

/// Retired blocks are reclaimed when nothing has changed for this long.
const IDLE: Duration = Duration::from_secs(1);
/// How often the agent looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How long the Nodes are waited for when all else is known (J1).
const NODES: Duration = Duration::from_secs(30);
/// How often the maps are read and compared, in case somebody else wrote to them (M2).
const COMPARE: Duration = Duration::from_secs(3600);

/// The pipeline, the maps and programs that it writes to, and what is done beside.
pub struct Agent {
    pipeline: Pipeline<Pinned>,
    datapath: Datapath,
    is_attached: bool,
    guard: Guard,
    upkeep: Upkeep,
    troubles: Troubles,
    pace: Pace,
    refusals: Refusals,
    /// Since when only the Nodes are missing.
    waiting_for_nodes: Option<Instant>,
    takeover: Takeover,
    /// Of each family, if packets from outside are to be served.
    packets: Vec<PacketsDuty>,
    stale_flows: StaleFlows,
    /// When something was written last.
    changed: Instant,
    /// When what the maps say was compared last.
    compared: Instant,
    taken: Taken,
}

/// Changes that were taken in and are not written yet.
#[derive(Default)]
struct Taken {
    services: u64,
    endpoints: u64,
}

impl Agent {
    /// An agent whose maps say what the pipeline believes of them.
    pub fn new(
        terminate_tcp: TerminateTcp,
        pipeline: Pipeline<Pinned>,
        (datapath, cgroup): (Datapath, Cgroup),
    ) -> Self {
        let tcp = match terminate_tcp {
            TerminateTcp::Never => SocketKind::Dialling,
            TerminateTcp::Deleted => SocketKind::Tcp,
        };
        let takeover = Takeover::from(datapath.others_at_work());
        Self {
            pipeline,
            datapath,
            is_attached: false,
            guard: Guard::new(cgroup),
            upkeep: Upkeep::new(vec![SocketKind::Udp, tcp]),
            troubles: Troubles::default(),
            pace: Pace::new(),
            refusals: Refusals::default(),
            waiting_for_nodes: None,
            takeover,
            packets: Vec::new(),
            stale_flows: StaleFlows::new(),
            changed: Instant::now(),
            compared: Instant::now(),
            taken: Taken::default(),
        }
    }

    /// Serves packets from outside, too, with so many `bonds` of session affinity in each family.
    /// `make_liberal`: see [`PacketEngine::liberal`].
    pub(super) fn serve_packets(
        &mut self,
        families: Families,
        bonds: u32,
        make_liberal: Option<fn() -> bool>,
    ) {
        let all = [(true, families.ipv4), (false, families.ipv6)];
        for (ipv4, _) in all.into_iter().filter(|(_, is_served)| *is_served) {
            let duty = match self.packet_engine(ipv4, bonds, make_liberal) {
                Ok(watch) => PacketsDuty::new(ipv4, watch),
                Err(error) => {
                    let engine = engine_name(ipv4);
                    let remedy = "load the module nfnetlink, then restart the agent";
                    tracing::error!(remedy, "{engine} are not served, sockets are: {error:#}");
                    PacketsDuty::impossible(ipv4, format!("{error:#}: {remedy}"))
                }
            };
            self.packets.push(duty);
        }
    }

    fn packet_engine(
        &mut self,
        ipv4: bool,
        bonds: u32,
        make_liberal: Option<fn() -> bool>,
    ) -> Result<packets::Watch> {
        let nfnetlink = || "cannot speak with nfnetlink";
        let table = packets::open(ipv4, bonds).with_context(nfnetlink)?;
        let watch = packets::Watch::open(ipv4, bonds).with_context(nfnetlink)?;
        let engine = PacketEngine::new(table, ipv4);
        self.pipeline.add(Box::new(match make_liberal {
            Some(make) => engine.liberal(make),
            None => engine,
        }));
        Ok(watch)
    }

    pub(super) const fn pins(&self) -> &Pins {
        self.datapath.pins()
    }

    /// Attaches at once if the maps say what an agent before us wrote, and looks after that.
    pub(super) fn adopt(&mut self) -> Result<()> {
        if self.datapath.is_adopted() {
            self.attach()?;
            if self.pipeline.refuses_reserved() {
                self.guard.adopt();
            }
        }
        Ok(())
    }

    /// Until the source ends.
    pub(super) async fn follow(
        &mut self,
        mut changes: mpsc::Receiver<Change>,
        mut admin: Admin,
    ) -> Result<()> {
        self.guard.begin(&admin);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut news = false;
            // Deadlines, not pauses: the loop turns more often than these are due.
            let retry = self.pace.retry();
            let retried = sleep_until(retry.unwrap_or_else(Instant::now).into());
            // In no order: a cluster that never rests must not keep the others waiting.
            tokio::select! {
                change = changes.recv() => {
                    let Some(change) = change else { return Ok(()) };
                    news = true;
                    self.take(change);
                    // What came together is written together.
                    while let Ok(change) = changes.try_recv() {
                        self.take(change);
                    }
                }
                () = retried, if retry.is_some() => {}
                () = self.upkeep.work(&mut self.pipeline, &admin) => continue,
                Some(look) = self.stale_flows.looked() => {
                    stale_flows::tell(self.stale_flows.judge(look), &admin);
                    continue;
                }
                seen = self.guard.seen() => {
                    // Whoever meddles with programs may have meddled with maps.
                    let repair = self.guard.judge(seen, &mut self.datapath, &admin);
                    if repair == Repair::Moved {
                        self.upkeep.attached(self.datapath.pins(), self.guard.cgroup().path());
                    }
                    if repair != Repair::Nothing {
                        admin.answer_lbctl(self.pins().home());
                        self.upkeep.were_away();
                        self.pace.doubt();
                        self.pace.hurry(Instant::now());
                    }
                }
                _ = tick.tick() => self.tick(&admin)?,
            }
            self.turn(news, &mut admin)?;
        }
    }

    /// Sees what is due. Costs as much as what has changed since the last time.
    pub fn tick(&mut self, admin: &Admin) -> Result<()> {
        let now = Instant::now();
        self.wait_for_nodes();
        self.troubles.tell_lasting(now);
        if self.compared.elapsed() > COMPARE {
            self.pace.doubt();
            self.packets.iter_mut().for_each(PacketsDuty::doubt);
        }
        for packets in &mut self.packets {
            packets.look(now);
        }
        self.stale_flows.begin(now);
        if !self.is_attached && self.takeover.is_overdue(now) {
            self.pace.hurry(now);
        }
        self.upkeep.tick(self.datapath.pins(), &mut self.pipeline, admin);
        self.guard.tick(&self.datapath);
        if self.pipeline.retired() > 0 && self.changed.elapsed() > IDLE {
            self.pipeline.reclaim()?;
        }
        Ok(())
    }

    /// Reads the maps if they are to be read, and writes what is to be written. Costs as much as what has
    /// changed, and what failed.
    pub fn turn(&mut self, news: bool, admin: &mut Admin) -> Result<()> {
        // Neither waits for a sync: a taint writes nothing, and there may be none for long.
        if let Some(node) = self.pipeline.cluster().nodes().own() {
            admin.set_node_eligible(!node.leaving);
        }
        // If there is anything to write, that is what comes next.
        let Taken { services, endpoints } = std::mem::take(&mut self.taken);
        admin.metrics().service_changes(0, services);
        admin.metrics().endpoint_changes(0, endpoints);
        let now = Instant::now();
        if self.pace.reads(now) {
            self.read_maps(admin);
        }
        if self.packets.iter().any(|packets| packets.reads(now)) {
            self.read_tables(now, admin);
        }
        if self.pipeline.is_dirty() && self.pace.writes(news, now) {
            admin.queued();
            let failing = self.sync(admin)?;
            self.pace.has_written(failing, now, Instant::now());
        }
        Ok(())
    }

    /// Takes a change in; [`Agent::turn`] acts on it.
    pub fn take(&mut self, change: Change) {
        let Taken { services, endpoints } = &mut self.taken;
        match &change {
            Change::Service(..) => *services += 1,
            Change::Slice(..) => *endpoints += 1,
            Change::ListedServices(all) => *services += all.len() as u64,
            Change::ListedSlices(all) => *endpoints += all.len() as u64,
            Change::Node(..) | Change::ListedNodes(_) | Change::LocalAddresses(_) => {}
        }
        self.pipeline.change(change);
    }

    /// Goes on without Nodes if they do not come.
    fn wait_for_nodes(&mut self) {
        if !self.pipeline.lacks_only_nodes() {
            self.waiting_for_nodes = None;
        } else if self.waiting_for_nodes.get_or_insert_with(Instant::now).elapsed() > NODES {
            let remedy = "grant list and watch on nodes";
            tracing::error!(
                remedy,
                "no list of Nodes after {} s: going on without NodePorts of other nodes and without \
                 topology",
                NODES.as_secs()
            );
            self.pipeline.go_on_without_nodes();
        }
    }

    /// Goes on from what the maps really say.
    fn read_maps(&mut self, admin: &Admin) {
        let read = self.pipeline.adopt();
        if let Err(error) = &read {
            tracing::warn!("{error}");
        } else {
            self.pace.has_read();
            self.compared = Instant::now();
        }
        self.refusals.read(read);
        admin.maps_written(self.verdict());
    }

    /// Goes on from what the tables for packets really say that are to be read now.
    fn read_tables(&mut self, now: Instant, admin: &Admin) {
        for packets in self.packets.iter_mut().filter(|packets| packets.reads(now)) {
            let began = Instant::now();
            let unread = self.pipeline.adopt_other(packets.engine()).err();
            if let Some(error) = &unread {
                self.troubles.tell_unread(packets.engine(), error);
            }
            packets.has_read(unread, began, Instant::now());
        }
        admin.maps_written(self.verdict());
    }

    /// What is not in force of what the agent knows.
    fn verdict(&self) -> Result<(), String> {
        self.refusals.verdict()?;
        let faults = self.packets.iter().filter_map(PacketsDuty::fault);
        let faults: Vec<String> = faults.collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }

    /// Writes what has changed. True if something is to be tried again.
    fn sync(&mut self, admin: &mut Admin) -> Result<bool> {
        let full = !self.pipeline.is_synced();
        let is_first = full || !self.is_attached;
        let started = Instant::now();
        self.upkeep.before_sync(&mut self.pipeline);
        let mut report = self.pipeline.sync();
        let took = started.elapsed();
        if self.takeover.is_time(report.sockets.failed.is_empty(), started) || self.is_attached {
            self.attach()?;
        } else if full {
            tracing::error!(
                "the programs at work stay until all Services are in the new maps, or for {} s",
                OTHERS.as_secs()
            );
        }
        if is_first && self.is_attached && self.pipeline.is_synced() {
            self.guard.launch(&self.datapath, admin);
        }
        if full && self.is_attached {
            let frontends = self.pipeline.mirror().services().len();
            tracing::info!(frontends, ops = report.sockets.ops, ?took, "in sync");
        } else {
            tracing::debug!(
                services = report.sockets.looked_at.len(),
                ops = report.sockets.ops,
                ?took,
                "sync"
            );
        }
        self.troubles.tell(&report, Instant::now());
        self.troubles.tell_others(&report.others);
        let refused = |error: &SyncError| matches!(error, SyncError::Store(_));
        if report.sockets.addresses.is_some() || report.sockets.failed.values().any(refused) {
            self.pace.doubt();
        }
        for packets in &mut self.packets {
            let Some(of) = report.others.get_mut(packets.engine()) else { continue };
            let now = Instant::now();
            let written = packets.wrote(of, started, now);
            let family = if packets.is_ipv4() { Family::V4 } else { Family::V6 };
            admin.table_synced(family, of.entries, written.failed, written.repaired);
            self.stale_flows.take(ServedFlows::of(of), now);
        }
        // Services that failed, or damage that could not be removed.
        let failing = self.pipeline.is_dirty();
        if report.sockets.ops > 0 {
            self.changed = Instant::now();
        }
        self.tell(admin, &mut report, full, took);
        self.upkeep.synced(&self.pipeline, &report);
        Ok(failing)
    }

    /// In the order of kube-proxy (M4).
    fn tell(&mut self, admin: &mut Admin, report: &mut SyncReport, full: bool, took: Duration) {
        let kind = if full { SyncKind::Full } else { SyncKind::Partial };
        let complete = report.sockets.failed.is_empty() && report.sockets.addresses.is_none();
        self.refusals.wrote(&report.sockets.writes, complete && !self.pipeline.writes_maps());
        let outcome = match (self.is_attached, complete, self.refusals.verdict()) {
            (false, ..) => SyncOutcome::Failed,
            (true, _, Err(_)) => SyncOutcome::Refused,
            (true, true, _) => SyncOutcome::Complete,
            (true, false, _) => SyncOutcome::Partial,
        };
        admin.maps_written(self.verdict());
        if matches!(outcome, SyncOutcome::Complete | SyncOutcome::Partial) {
            let now = SystemTime::now();
            for trigger in &report.triggers {
                let family = if trigger.ipv6 { Family::V6 } else { Family::V4 };
                // A clock that jumped back makes it 0.
                if let Some(at) = trigger.at {
                    let took = now.duration_since(at).unwrap_or_default();
                    admin.metrics().network_programming(family, took);
                }
            }
        }
        admin.synced(kind, took, outcome);
        admin.serve_health_checks(
            std::mem::take(&mut report.health_checks),
            report.health_addresses.take(),
        );

        let metrics = admin.metrics();
        let mirror = self.pipeline.mirror();
        let (services, blocks) = (mirror.services().len(), mirror.blocks());
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        metrics.map_use(Map::Services, services, size(mirror.max_services()));
        metrics.map_use(Map::Backends, size(blocks.used()), size(blocks.capacity()));
        for error in report.sockets.failed.values() {
            match error {
                SyncError::Plan(PlanError::ServicesFull { .. }) => metrics.map_full(Map::Services),
                SyncError::Plan(PlanError::BackendsFull { .. }) => metrics.map_full(Map::Backends),
                SyncError::Store(_) => {}
            }
        }
        for (family, ipv4) in [(Family::V4, true), (Family::V6, false)] {
            let NoLocal { internal, external } = *self.pipeline.no_local().get(ipv4);
            metrics.no_local(Traffic::Internal, family, internal);
            metrics.no_local(Traffic::External, family, external);
        }
    }

    fn attach(&mut self) -> Result<()> {
        if !self.is_attached {
            let cgroup = self.guard.cgroup();
            self.datapath.attach(cgroup.path())?;
            self.is_attached = true;
            tracing::info!(%cgroup, "attached");
            self.upkeep.attached(self.datapath.pins(), cgroup.path());
        }
        Ok(())
    }
}
