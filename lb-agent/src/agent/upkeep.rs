//! What has to be done now and then, and must not keep the loop waiting: stale sockets are ended, clients
//! of source ranges are followed, old bonds of session affinity are forgotten, and so is from whom UDP
//! sockets have heard; what is stored for sockets is counted.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::abi::Counter;
use lb_core::pipeline::{Pipeline, SyncReport};
use tokio::sync::mpsc;

use super::{clients::Clients, counting::Counting, task::Task, truth::InForce};
use crate::{
    admin::{Admin, Family},
    maps::{Bonds, Counters, Exchanges, Pinned},
    pins::Pins,
    sockets::{self, EndReason, Found, Gone, News, SocketKind, Storage, Sweeper},
};

/// How often bonds that are over, and what was heard long ago, are looked for.
const BONDS: Duration = Duration::from_secs(60);
/// For how long a client has not connected whose bonds are forgotten if its network namespace is gone.
const IDLE: Duration = Duration::from_secs(600);

pub(super) struct Upkeep {
    kinds: Vec<SocketKind>,
    sweeper: Option<(Sweeper, mpsc::Receiver<News>)>,
    /// Whether sockets may have dialled past the programs, and nobody has looked since.
    were_away: bool,
    clients: Clients,
    bonds: Task<Gone>,
    /// None while the bonds are looked through.
    gone: Option<Gone>,
    /// Where the programs are attached.
    cgroup: PathBuf,
    heard: Option<Exchanges>,
    counting: Counting<Storage>,
}

impl Upkeep {
    pub(super) fn new(kinds: Vec<SocketKind>) -> Self {
        let (clients, bonds) = (Clients::default(), Task::new());
        Self {
            kinds,
            sweeper: None,
            were_away: true,
            clients,
            bonds,
            gone: None,
            cgroup: PathBuf::new(),
            heard: None,
            counting: Counting::new(),
        }
    }

    /// The programs are at work.
    pub(super) fn attached(&mut self, pins: &Pins, cgroup: &Path) {
        let started =
            sockets::open(pins).and_then(|maps| Ok(Sweeper::start(maps, cgroup, &self.kinds)?));
        self.were_away = true;
        cgroup.clone_into(&mut self.cgroup);
        match started {
            Ok(started) => {
                self.sweeper = Some(started);
                let heard = Exchanges::open(pins);
                if let Err(error) = &heard {
                    tracing::warn!("sockets that answer may be ended: {error:#}");
                }
                self.heard = heard.ok();
            }
            Err(error) => {
                tracing::warn!("connected sockets stay with backends that are gone: {error:#}");
            }
        }
        // In what is pinned now.
        self.counting = Counting::new();
    }

    /// The programs may not have been at work for a while.
    pub(super) const fn were_away(&mut self) {
        self.were_away = true;
    }

    /// The maps were written.
    pub(super) fn synced(&mut self, pipeline: &Pipeline<Pinned>, report: &SyncReport) {
        let Some((sweeper, _)) = &self.sweeper else { return };
        if !pipeline.is_synced() {
            return;
        }
        let were_away = std::mem::take(&mut self.were_away);
        let flows = |kind: &SocketKind| report.sockets.protocols.contains(&kind.protocol());
        if were_away || self.kinds.iter().filter(|kind| **kind != SocketKind::Dialling).any(flows) {
            sweeper.look();
        }
        if were_away || report.sockets.appeared {
            sweeper.look_for_dialling();
        }
    }

    /// Begins what is due.
    pub(super) fn tick(&mut self, pins: &Pins, pipeline: &mut Pipeline<Pinned>, admin: &Admin) {
        let Ok(Some(maps)) = pins.maps() else { return };
        if let Ok(counters) = Counters::open(&maps) {
            for counter in Counter::ALL {
                if let Ok(count) = counters.get(counter) {
                    admin.metrics().datapath_events(counter, count);
                }
            }
            let unknown = counters.get(Counter::UnknownClient).unwrap_or_default();
            self.clients.tick(pipeline, unknown);
        }
        let to_open = pins.clone();
        self.counting.begin(
            self.counting.period(),
            move || Storage::open(&to_open),
            Storage::count,
        );
        if pipeline.is_synced() && self.bonds.is_due(BONDS) {
            let timeouts = pipeline.affinity_timeouts();
            let (pins, cgroup) = (pins.clone(), self.cgroup.clone());
            let mut gone = self.gone.take().unwrap_or_default();
            self.bonds.begin(move || {
                let swept = Exchanges::open(&pins).map_err(anyhow::Error::from);
                match swept.and_then(|mut heard| Ok(heard.sweep()?)) {
                    Ok((0, _)) => {}
                    Ok((before, left)) => tracing::debug!(before, left, "heard from"),
                    Err(error) => {
                        tracing::warn!("cannot forget from whom UDP sockets have heard: {error:#}");
                    }
                }
                let swept = Bonds::open(&maps).map_err(anyhow::Error::from);
                let among = |asked| gone.among(&cgroup, asked).unwrap_or_default();
                match swept.and_then(|mut bonds| Ok(bonds.sweep_with(&timeouts, IDLE, among)?)) {
                    Ok((0, _)) => {}
                    Ok((before, left)) => tracing::debug!(before, left, "session affinity"),
                    Err(error) => tracing::warn!("cannot forget old session affinity: {error:#}"),
                }
                gone
            });
        }
    }

    /// Goes on with what threads have found. To be dropped and called again at will.
    pub(super) async fn work(&mut self, pipeline: &mut Pipeline<Pinned>, admin: &Admin) {
        let news = async {
            match &mut self.sweeper {
                Some((_, news)) => news.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            news = news => match news {
                Some(news) => self.swept(news, pipeline, admin),
                // The thread has died, which it has said.
                None => self.sweeper = None,
            },
            () = self.clients.heard() => self.clients.know(pipeline),
            Some(gone) = self.bonds.result() => self.gone = Some(gone),
            Some(counted) = self.counting.result() => {
                for (map, bytes) in counted.bytes {
                    admin.metrics().socket_storage(map, bytes);
                }
            }
        }
    }

    /// Finds out who the clients are before a Service asks for the first time.
    pub(super) fn before_sync(&mut self, pipeline: &mut Pipeline<Pinned>) {
        self.clients.before_sync(pipeline);
    }

    fn swept(&self, news: News, pipeline: &Pipeline<Pinned>, admin: &Admin) {
        let Some((sweeper, _)) = &self.sweeper else { return };
        match news {
            News::Seen(found, took) => {
                admin.looked_for_stale_flows(took);
                let truth = InForce(pipeline, self.heard.as_ref());
                let judged = |found: Found| Some((found.clone(), sockets::judge(&found, &truth)?));
                sweeper.destroy(found.into_iter().filter_map(judged).collect());
            }
            News::Done(outcomes) => {
                for (reason, outcome) in outcomes {
                    let destroyed = outcome.destroyed as u64;
                    admin.metrics().sockets_destroyed(reason, destroyed);
                    let ipv6 = outcome.destroyed_ipv6 as u64;
                    // What kube-proxy counts there are UDP flows.
                    if matches!(
                        reason,
                        EndReason::Stale
                            | EndReason::BeforeService
                            | EndReason::BeforeServiceOnMachine
                    ) {
                        admin.metrics().stale_flows(Family::V6, ipv6);
                        admin.metrics().stale_flows(Family::V4, destroyed - ipv6);
                    }
                    if destroyed > 0 {
                        tracing::info!(
                            sockets = destroyed,
                            reason = reason.name(),
                            "sockets ended"
                        );
                    }
                }
            }
        }
    }
}
