//! `cluster test`: stories that are played in the cluster that is up, each with its promise.
//!
//! A story plays in a namespace of its own, on a [`Stage`]. Whatever it did, and however it ended,
//! the cluster works when the next one begins.

mod demo;
mod stage;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;

pub(crate) use self::stage::Stage;
use crate::{cluster::Cluster, exec::say, test::Tally};

pub(crate) struct Story {
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) purpose: &'static str,
    pub(crate) work: fn(&Stage<'_>) -> Result<()>,
}

pub(crate) const STORIES: &[Story] = &[Story {
    name: "demo",
    purpose: "`kube-demo`, which people play in clusters of their own, shows what it promises",
    work: demo::play,
}];

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
    /// The archive of the image of the load.
    #[arg(long, hide = true)]
    load: Option<PathBuf>,
}

/// As root, in the cluster that is up. The last line is the sum.
pub(crate) fn play(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster::open()?;
    let faults = cluster.faults();
    if !faults.is_empty() {
        bail!("the cluster does not work: {}: `cargo xtask cluster status`", faults.join(", "));
    }
    let chosen = |story: &&Story| {
        args.stories.is_empty() || args.stories.iter().any(|name| name == story.name)
    };
    let mut total = Tally::default();
    for story in STORIES.iter().filter(chosen) {
        say!("\n== {}: {}", story.name, story.purpose);
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
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A failure of the story comes first, and hides one of the cleanup.
fn play_one(cluster: &Cluster, args: &Args, story: &Story) -> Result<()> {
    let stage = Stage::new(cluster, args, story.name)?;
    stage.sweep().context("what an earlier run has left cannot be removed")?;
    stage.open()?;
    let played = (story.work)(&stage);
    if played.is_err() {
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
