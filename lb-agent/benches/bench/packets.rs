//! What packets from outside get, and what that costs: socklb's agent with `--packets external` beside
//! kube-proxy in its two modes.
//!
//! All three run in the same network, are told the same objects by the same API server, and are judged by
//! what a client outside sees: from the time when a change is told to the first connection, or the last,
//! that shows it. Cells that are done are kept.

mod api;
mod cell;
mod changes;
mod client;
mod group;
mod kept;
mod network;
mod objects;
mod pods;
mod proxy;
mod report;
mod stop;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

pub(crate) use self::proxy::Name;
use self::{
    cell::{Cell, Objects, Settings},
    kept::{Keep, Kept, Origin},
    objects::NODE_NAME,
    report::Row,
};
use crate::{agent::OURS, lab::Lab};

/// No cell waits longer for anything.
const LIMIT: Duration = Duration::from_mins(15);
const SIZES: [u32; 3] = [1_000, 10_000, 30_000];

/// What is to be measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// With `packets`: how many Services, instead of all sizes.
    #[arg(long, value_name = "N")]
    services: Vec<u32>,
    /// With `packets`: only these.
    #[arg(long, value_name = "WHO")]
    proxy: Vec<Name>,
    /// With `packets`: how long the changes of a cell may take.
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// With `packets`: where finished cells are kept.
    #[arg(long, value_name = "DIR")]
    kept: Option<PathBuf>,
    /// With `packets`: measure what is kept once more.
    #[arg(long)]
    again: bool,
    /// With `packets`: which commit this is.
    #[arg(long, value_name = "REV", default_value = "unknown")]
    commit: String,
    /// With `packets`: the directory of kube-proxy.
    #[arg(long, value_name = "DIR")]
    kubernetes: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let kubernetes = args.kubernetes.as_deref().context("--kubernetes: where is kube-proxy?")?;
    let keep = Keep::new(args.kept.as_deref().context("--kept: where are cells to be kept?")?)?;
    let all = |chosen: &[Name]| match chosen {
        [] => Name::value_variants().to_vec(),
        some => some.to_vec(),
    };
    let names = all(&args.proxy);
    let mut sizes = args.services.clone();
    if sizes.is_empty() {
        sizes = SIZES.to_vec();
    }
    let versions = Versions::new(kubernetes, &args.commit)?;
    let settings = Settings { kubernetes, time_for_changes: Duration::from_mins(args.minutes) };
    stop::listen()?;
    let lab = Lab::enter()?;
    let mut rows = Vec::new();
    for services in sizes {
        let mut cells = Vec::new();
        let mut objects = None;
        for &name in Name::value_variants() {
            let origin = versions.origin(name);
            let kept = keep.find(name, services, &origin);
            let is_asked = names.contains(&name) && (args.again || kept.is_none());
            if !is_asked {
                cells.push((name, kept));
                continue;
            }
            eprintln!("{services} Services, {}", name.title());
            if objects.is_none() {
                objects = Some(Objects::new(services)?);
            }
            let objects = objects.as_ref().context("they were made")?;
            let cell = Cell::measure(&lab, name, objects, &settings)?;
            let kept = Kept { origin, cell };
            keep.put(name, services, &kept)?;
            cells.push((name, Some(kept)));
        }
        rows.push(Row { services, cells });
    }
    report::print(&rows, &versions);
    Ok(())
}

/// What is measured, and where.
struct Versions {
    date: String,
    machine: String,
    commit: String,
    kube_proxy: String,
    nft: String,
    iptables: String,
    /// Digests of socklb's and of kube-proxy's program.
    programs: [String; 2],
}

impl Versions {
    fn new(kubernetes: &Path, commit: &str) -> Result<Self> {
        let ask = |program: &Path, argument: &str| -> Result<String> {
            let output = Command::new(program).arg(argument).output();
            let output = output.with_context(|| format!("cannot start {}", program.display()))?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        // Another boot may be another machine.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            date: ask("date".as_ref(), "-uIminutes")?,
            machine: format!(
                "{}, {}, {}",
                model.map_or("?", |it| it.1),
                kernel.trim(),
                boot.trim()
            ),
            commit: commit.to_owned(),
            kube_proxy: ask(&kubernetes.join("kube-proxy"), "--version")?,
            nft: ask("nft".as_ref(), "--version")?,
            iptables: ask("iptables".as_ref(), "--version")?,
            programs: [digest(OURS.as_ref())?, digest(&kubernetes.join("kube-proxy"))?],
        })
    }

    fn origin(&self, name: Name) -> Origin {
        let Self { commit, kube_proxy, nft, iptables, .. } = self;
        let version = match name {
            Name::Socklb | Name::Again => format!("socklb {commit}"),
            Name::Nftables => format!("{kube_proxy}, {nft}"),
            Name::Iptables => format!("{kube_proxy}, {iptables}"),
        };
        let [ours, theirs] = &self.programs;
        let program = match name {
            Name::Socklb | Name::Again => ours.clone(),
            Name::Nftables => format!("{theirs}, {nft}"),
            Name::Iptables => format!("{theirs}, {iptables}"),
        };
        Origin { date: self.date.clone(), machine: self.machine.clone(), version, program }
    }
}

fn digest(program: &Path) -> Result<String> {
    let bytes = fs::read(program).with_context(|| format!("no {}", program.display()))?;
    Ok(format!("{:?}", ring::digest::digest(&ring::digest::SHA256, &bytes)))
}
