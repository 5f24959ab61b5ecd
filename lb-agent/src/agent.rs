//! The agent's life: take over what is there, follow the source, write the maps, leave them working.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::sleep,
};

use crate::{
    config::{Config, Source},
    datapath::{self, Datapath, Sizes},
    host,
    maps::{Access, Memory, Pinned, Snapshot},
    model::{Change, ObjectRef},
    pins::{self, Pins},
    pipeline::{Pipeline, Report},
    sources::{self, BACKLOG, Changes},
};

/// After a failure: the first retry, and the longest pause between two.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Retired blocks are reclaimed when nothing has changed for this long.
const IDLE: Duration = Duration::from_secs(1);
/// How long `--dry-run` waits for the lists.
const DRY_RUN: Duration = Duration::from_secs(30);

/// Does what the flags say.
pub async fn run(config: &Config) -> Result<()> {
    if config.cleanup {
        cleanup(config)
    } else if config.dry_run {
        dry_run(config).await
    } else {
        serve(config).await
    }
}

fn cleanup(config: &Config) -> Result<()> {
    host::check_capabilities()?;
    let removed = datapath::cleanup(&Pins::new(&host::bpffs(config)?))?;
    let mut out = std::io::stdout().lock();
    for path in &removed {
        writeln!(out, "removed {}", path.display())?;
    }
    if removed.is_empty() {
        writeln!(out, "nothing to remove")?;
    }
    Ok(())
}

/// Prints the plan against what is pinned now, or against empty maps.
async fn dry_run(config: &Config) -> Result<()> {
    let bpffs = match &config.bpffs {
        Some(_) => Some(host::bpffs_to_read(config)?),
        None => pins::default_bpffs()?,
    };
    let pinned = bpffs.and_then(|bpffs| Pins::new(&bpffs).maps().transpose()).transpose()?;
    let mut snapshot = match pinned {
        Some(maps) => Pinned::open(&maps, Access::Read)?.snapshot()?,
        None => Snapshot::default(),
    };
    // The maps would be resized.
    snapshot.max_services = config.max_services;
    snapshot.max_backends = config.max_backends;
    let mut pipeline = Pipeline::new(Memory::from(&snapshot), &snapshot);
    let (_source, mut changes) = start_source(config, !snapshot.services.is_empty()).await?;
    let lists = async {
        while !pipeline.is_dirty() {
            match changes.recv().await {
                Some(change) => pipeline.change(change),
                None => bail!("the source ended"),
            }
        }
        Ok(())
    };
    tokio::time::timeout(DRY_RUN, lists)
        .await
        .with_context(|| format!("no complete lists after {} s", DRY_RUN.as_secs()))??;

    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    let report = pipeline.sync_with(&mut |op| {
        if written.is_ok() {
            written = writeln!(out, "{op}");
        }
    });
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        other => other?,
    }
    writeln!(out, "{} services, {} ops", report.services, report.ops)?;
    Troubles::default().tell(&report);
    if !report.failed.is_empty() {
        bail!("{} Services cannot be written", report.failed.len());
    }
    Ok(())
}

async fn serve(config: &Config) -> Result<()> {
    host::check_capabilities()?;
    let bpffs = host::bpffs(config)?;
    let cgroup = host::cgroup(config)?;
    let node = host::node_name(config)?;
    let pins = Pins::new(&bpffs);
    pins.create().with_context(|| format!("cannot make {}", pins.root().display()))?;
    let _lock = match pins.lock() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!(
            "another lb-agent is running on {}: stop it, or give this one another --bpffs and --cgroup",
            pins.home().display()
        ),
        lock => lock.with_context(|| format!("cannot lock {}", pins.home().display()))?,
    };
    let sizes = Sizes {
        services: config.max_services,
        backends: config.max_backends,
        affinity: config.max_affinity,
    };
    #[cfg_attr(not(feature = "bpf-log"), expect(unused_mut, reason = "only logging changes it"))]
    let (mut datapath, maps) = Datapath::load(&pins, sizes)?;
    #[cfg(feature = "bpf-log")]
    datapath.follow_log().context("cannot follow the log of the programs")?;
    let snapshot = maps.snapshot().context("cannot read the pinned maps")?;
    tracing::info!(
        node,
        pins = %pins.root().display(),
        frontends = snapshot.services.len(),
        "{}",
        if datapath.is_adopted() { "going on from the pinned maps" } else { "starting with empty maps" }
    );

    let others_at_work = datapath.others_at_work();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut agent = Agent {
        pipeline: Pipeline::new(maps, &snapshot),
        attach: Some((datapath, cgroup)),
        troubles: Troubles::default(),
        pause: RETRY.0,
    };
    if agent.attach.as_ref().is_some_and(|(datapath, _)| datapath.is_adopted()) {
        agent.attach()?;
    }
    let in_force = others_at_work || !snapshot.services.is_empty();
    let follow = async {
        let (source, changes) = start_source(config, in_force).await?;
        agent.follow(changes).await?;
        // The source only ends when it cannot go on.
        source.await.context("the source failed")??;
        bail!("the source ended");
    };
    let stopped = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        result = follow => return result,
    };
    tracing::info!(signal = stopped, "leaving; Services stay translated, as they are now");
    Ok(())
}

/// The source at work, and what it says. `in_force`: the maps have entries already.
async fn start_source(
    config: &Config,
    in_force: bool,
) -> Result<(JoinHandle<Result<()>>, mpsc::Receiver<Change>)> {
    let (sender, receiver): (Changes, _) = mpsc::channel(BACKLOG);
    let task = match &config.source {
        Source::Dir(path) => {
            let (path, proxy_name) = (path.clone(), config.service_proxy_name.clone());
            tokio::spawn(sources::dir::run(path, in_force, proxy_name, sender))
        }
        Source::Kubernetes => {
            let access = sources::kubernetes::Access {
                kubeconfig: config.kubeconfig.clone(),
                context: config.context.clone(),
            };
            // A credential plugin keeps its thread waiting.
            let runtime = tokio::runtime::Handle::current();
            let client = tokio::task::spawn_blocking(move || runtime.block_on(access.client()))
                .await
                .context("the API access failed")??;
            let proxy_name = config.service_proxy_name.clone();
            tokio::spawn(async move {
                Box::pin(sources::kubernetes::run(client, proxy_name.as_deref(), sender)).await;
                Ok(())
            })
        }
    };
    Ok((task, receiver))
}

struct Agent {
    pipeline: Pipeline<Pinned>,
    /// The programs, until they are attached, and where to.
    attach: Option<(Datapath, PathBuf)>,
    troubles: Troubles,
    pause: Duration,
}

impl Agent {
    /// Until the source ends.
    async fn follow(&mut self, mut changes: mpsc::Receiver<Change>) -> Result<()> {
        let mut failing = false;
        loop {
            let retry = pin!(sleep(self.pause));
            let idle = pin!(sleep(IDLE));
            tokio::select! {
                biased;
                change = changes.recv() => {
                    let Some(change) = change else { return Ok(()) };
                    self.pipeline.change(change);
                    // What came together is written together.
                    while let Ok(change) = changes.try_recv() {
                        self.pipeline.change(change);
                    }
                }
                () = retry, if failing => {}
                () = idle, if self.pipeline.retired() > 0 => {
                    self.pipeline.reclaim()?;
                    continue;
                }
            }
            if self.pipeline.is_dirty() {
                failing = self.sync()?;
            }
        }
    }

    /// Writes what has changed. True if something is to be tried again.
    fn sync(&mut self) -> Result<bool> {
        let first = !self.pipeline.is_synced();
        let started = Instant::now();
        let report = self.pipeline.sync();
        let took = started.elapsed();
        // In place of programs at work, not before all that they may do is in the maps.
        let wait = |datapath: &Datapath| datapath.others_at_work() && !report.failed.is_empty();
        if !self.attach.as_ref().is_some_and(|(datapath, _)| wait(datapath)) {
            self.attach()?;
        } else if first {
            tracing::error!("the programs at work stay, until all Services are in the new maps");
        }
        if first {
            let frontends = self.pipeline.tables().services().len();
            tracing::info!(frontends, ops = report.ops, ?took, "in sync");
        } else {
            tracing::debug!(services = report.services, ops = report.ops, ?took, "sync");
        }
        self.troubles.tell(&report);
        // Services that failed, or damage that could not be removed.
        let failing = self.pipeline.is_dirty();
        self.pause = if failing { (self.pause * 2).min(RETRY.1) } else { RETRY.0 };
        Ok(failing)
    }

    fn attach(&mut self) -> Result<()> {
        if let Some((mut datapath, cgroup)) = self.attach.take() {
            datapath.attach(&cgroup)?;
            tracing::info!(cgroup = %cgroup.display(), "attached");
        }
        Ok(())
    }
}

/// How many Services are named one by one when many have the same trouble.
const NAMED: usize = 5;

/// The troubles told so far: each is logged when it appears and when it is over, not at each retry.
#[derive(Default)]
struct Troubles {
    failed: BTreeMap<ObjectRef, String>,
    lost: BTreeMap<ObjectRef, String>,
}

impl Troubles {
    fn tell(&mut self, report: &Report) {
        let failed: BTreeMap<_, _> =
            report.failed.iter().map(|(name, error)| (name.clone(), error.to_string())).collect();
        let new: Vec<_> =
            failed.iter().filter(|(name, _)| !self.failed.contains_key(name)).collect();
        for (service, error) in new.iter().take(NAMED) {
            tracing::error!(%service, "not written, what was there stays: {error}");
        }
        if let Some(more) = new.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::error!("{more} more Services not written; {} in all", failed.len());
        }
        let over = self.failed.keys().filter(|name| !failed.contains_key(name)).count();
        if over > 0 {
            tracing::info!(services = over, remaining = failed.len(), "written after all");
        }
        self.failed = failed;

        for (service, lost) in &report.lost {
            let owners: Vec<_> =
                lost.iter().map(|lost| format!("{} ({})", lost.frontend, lost.owner)).collect();
            let text = owners.join(", ");
            if self.lost.get(service) != Some(&text) {
                let remedy = "give one of them another address";
                tracing::warn!(%service, remedy, "belongs to an older Service: {text}");
                self.lost.insert(service.clone(), text);
            }
        }
    }
}
