//! `cluster test`: stories that are played in the cluster that is up, each with its promise.
//!
//! A story plays in a namespace of its own, on a [`Stage`]. Whatever it did, and however it ended,
//! the cluster works when the next one begins.

mod agents;
mod all;
mod away;
mod clock;
mod demo;
mod load;
mod outside;
mod proxy;
mod reboot;
mod rolling;
mod stage;
mod walkthrough;

use std::{
    env::{self, consts::ARCH},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;
use tools::{
    exec::{say, show},
    root::{as_root, require_root},
};

pub(crate) use self::stage::Stage;
use crate::{
    cluster::{Cluster, Proxy},
    image,
    test::Tally,
};

pub(crate) struct Story {
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) purpose: &'static str,
    /// Who must serve Services; else it is skipped.
    pub(crate) needs: Needs,
    pub(crate) work: fn(&Stage<'_>) -> Result<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Anybody,
    Socklb,
}

pub(crate) const STORIES: &[Story] = &[
    Story {
        name: "proxy",
        purpose: "a Service answers; the nodes have the rules of their proxy, of kubelet and the CNI",
        needs: Needs::Anybody,
        work: proxy::play,
    },
    Story {
        name: "outside",
        purpose: "what a machine outside gets at NodePorts and at load balancers' addresses",
        needs: Needs::Anybody,
        work: outside::play,
    },
    Story {
        name: "demo",
        purpose: "`kube-demo`, which people play in clusters of their own, shows what it promises",
        needs: Needs::Socklb,
        work: demo::play,
    },
    Story {
        name: "walkthrough",
        purpose: "what tutorials teach of Services, by kubectl and curl",
        needs: Needs::Anybody,
        work: walkthrough::play,
    },
    Story {
        name: "rolling",
        purpose: "ten rolling updates of 6 pods under 500 requests/s: none fails",
        needs: Needs::Anybody,
        work: rolling::play,
    },
    Story {
        name: "agent-update",
        purpose: "the same while agents are updated, and while they are deleted over and over",
        needs: Needs::Socklb,
        work: agents::play,
    },
    Story {
        name: "reboot",
        purpose: "a node that lost power serves its pods again",
        needs: Needs::Socklb,
        work: reboot::play,
    },
    Story {
        name: "api-away",
        purpose: "without an API server nothing changes, and a new agent serves what is pinned",
        needs: Needs::Socklb,
        work: away::play,
    },
];

/// Play stories in the cluster that is up; each counts as a test.
#[derive(clap::Args, Clone)]
#[command(after_help = help())]
pub(crate) struct Args {
    /// Which; all of them if none is named.
    #[arg(value_parser = PossibleValuesParser::new(STORIES.iter().map(|story| story.name)))]
    #[arg(hide_possible_values = true, value_name = "STORY")]
    stories: Vec<String>,
    /// For how long the API server is away.
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub(crate) api_away_seconds: u64,
    /// Write down the walk-through: the page that docs/ has of it.
    #[arg(long, value_name = "FILE")]
    pub(crate) page: Option<PathBuf>,
    /// From nothing to nothing: make clusters, with a kube-proxy and with socklb, play all stories,
    /// run Kubernetes' own tests that every cluster must pass. What an interrupted run has left goes first.
    #[arg(long, conflicts_with = "stories")]
    all: bool,
    /// The archive of the image of the load.
    #[arg(long, hide = true)]
    load: Option<PathBuf>,
}

/// As the user: what builds.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.all {
        let total = all::run(args.api_away_seconds)?;
        println!("\n{total}");
        return Ok(code(total));
    }
    let load = match &args.load {
        Some(load) => load.clone(),
        None => image::socklb::load(ARCH, None)?,
    };
    require_root()?;
    let mut play = Command::new(env::current_exe()?);
    play.args(["cluster", "play", &format!("--api-away-seconds={}", args.api_away_seconds)]);
    play.arg("--load").arg(load);
    if let Some(page) = &args.page {
        play.arg("--page").arg(page);
    }
    play.args(&args.stories);
    let mut play = as_root(play);
    let error = play.exec();
    Err(error).with_context(|| format!("cannot start `{}`", show(&play)))
}

/// As root, in the cluster that is up. The last line is the sum.
pub(crate) fn play(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster::open()?;
    cluster.belong()?;
    let faults = cluster.faults();
    if !faults.is_empty() {
        bail!("the cluster does not work: {}: `cargo xtask cluster status`", faults.join(", "));
    }
    if let Some(load) = &args.load {
        cluster.import_everywhere(load)?;
    }
    let chosen = |story: &&Story| {
        args.stories.is_empty() || args.stories.iter().any(|name| name == story.name)
    };
    let mut total = Tally::default();
    for story in STORIES.iter().filter(chosen) {
        say!("\n== {}: {}", story.name, story.purpose);
        if story.needs == Needs::Socklb && cluster.proxy() != Proxy::Socklb {
            say!("test {} ... skipped: {} serves here", story.name, cluster.proxy());
            total += Tally::SKIP;
            continue;
        }
        let start = Instant::now();
        let played = play_one(&cluster, args, story);
        let seconds = start.elapsed().as_secs();
        total += match played {
            Ok(()) => {
                say!("test {} ... ok ({seconds} s)", story.name);
                Tally::PASS
            }
            Err(error) => {
                say!("test {} ... FAILED ({seconds} s): {error:#}", story.name);
                Tally::FAIL
            }
        };
    }
    say!("\n{total}");
    Ok(code(total))
}

fn code(total: Tally) -> ExitCode {
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A failure of the story comes first, and hides one of the cleanup.
fn play_one(cluster: &Cluster, args: &Args, story: &Story) -> Result<()> {
    let stage = Stage::new(cluster, args, story.name)?;
    stage.sweep().context("what an earlier run has left cannot be removed")?;
    stage.open()?;
    let played = (story.work)(&stage);
    if let Err(error) = &played {
        // What follows may take a while.
        say!("   failed: {error:#}");
        stage.show_troubles();
    }
    let mended = cluster.mend().context("the cluster does not work after the story");
    let swept = stage.sweep().context("what the story has left cannot be removed");
    played.and(mended).and(swept)
}

fn help() -> String {
    let rows: Vec<_> =
        STORIES.iter().map(|story| format!("  {:14} {}", story.name, story.purpose)).collect();
    format!("Stories:\n{}", rows.join("\n"))
}
