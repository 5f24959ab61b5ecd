//! `--dry-run`: the plan against what is pinned now, or against empty maps.

use std::{
    io,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, bail};
use lb_core::{memory::Memory, pipeline::Pipeline, printable::Output, store::Snapshot};

use super::{ended, families, source, source::Feed, troubles::Troubles, view};
use crate::{
    config::Config,
    host, log,
    maps::{Access, Pinned},
    pins::{self, Pins, shown},
    sources::Standstill,
};

/// How long the lists are waited for.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(config: &Config) -> Result<()> {
    let mut snapshot = pinned(config).map_err(forbidden)?;
    // The maps would be resized.
    snapshot.max_services = config.max_services;
    snapshot.max_backends = config.max_backends;
    // Tables for packets are not shown.
    let view = view(config, &host::node_name(config)?, families(), false);
    let mut pipeline = Pipeline::with_config(view, Memory::from(&snapshot), &snapshot);
    let Feed { task: mut source, mut changes, trouble, .. } =
        source::follow(config, !snapshot.services.is_empty(), true).await?;
    let lists = async {
        while !pipeline.is_dirty() {
            match changes.recv().await {
                Some(change) => pipeline.change(change),
                None => bail!("the source ended"),
            }
        }
        Ok(())
    };
    let in_time = tokio::select! {
        end = &mut source => return ended(end),
        lists = tokio::time::timeout(PATIENCE, lists) => lists,
    };
    let Ok(lists) = in_time else {
        let lacking = pipeline.cluster().lacking().join(", ");
        let seconds = PATIENCE.as_secs();
        match &*trouble.borrow() {
            Some(Standstill { what, .. }) => bail!("{what}: no lists after {seconds} s"),
            None => {
                bail!("no complete list of {lacking} after {seconds} s: see what is logged above")
            }
        }
    };
    lists?;

    let mut out = Output::text(io::stdout().lock());
    let mut written = Ok(());
    let report = pipeline.sync_with(&mut |op| {
        if written.is_ok() {
            written = writeln!(out, "{op}");
        }
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        other => other?,
    }
    writeln!(out, "{} services, {} ops", report.sockets.looked_at.len(), report.sockets.ops)?;
    let (mut troubles, now) = (Troubles::default(), Instant::now());
    troubles.tell(&report, now);
    troubles.tell_all(now);
    if !report.sockets.failed.is_empty() {
        bail!("{} Services cannot be written", report.sockets.failed.len());
    }
    Ok(())
}

/// What the maps say, or nothing if there are none.
fn pinned(config: &Config) -> Result<Snapshot> {
    let bpffs = match &config.bpffs {
        Some(_) => Some(host::bpffs_to_read(config)?),
        None => pins::default_bpffs()?,
    };
    let Some(bpffs) = bpffs else { return Ok(Snapshot::default()) };
    let Some(pins) = Pins::look(&bpffs)? else { return Ok(Snapshot::default()) };
    let cannot_read = || format!("cannot read {}", shown(pins.root()).display());
    match pins.maps().with_context(cannot_read)? {
        Some(maps) => Pinned::open(&maps, Access::Read)?.snapshot().with_context(cannot_read),
        None => Ok(Snapshot::default()),
    }
}

/// Says what is to be done if that is why.
fn forbidden(error: Error) -> Error {
    let is_forbidden = |cause: &io::Error| cause.kind() == io::ErrorKind::PermissionDenied;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(is_forbidden) {
        anyhow::anyhow!(
            "{}; --dry-run says what would change of what is pinned, and only root may read that: run it \
             as root (sudo lb-agent --dry-run ...)",
            log::whole(error.as_ref())
        )
    } else {
        error
    }
}
