//! `run`: the agent, just built, as root.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use tools::{
    exec::announce,
    root::{as_root, require_root},
};

use crate::build;

/// Build, then run lb-agent as root.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    build: build::Args,
    /// What lb-agent gets: `-- --source dir:services`.
    #[arg(last = true, value_name = "ARGS")]
    agent: Vec<OsString>,
}

/// Returns only when the agent cannot be started: it takes this process's place, so signals and
/// the exit code are its own.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let programs = build::programs(args.build.release)?;
    require_root()?;
    let mut agent = Command::new(programs.agent);
    agent.args(&args.agent);
    let mut agent = as_root(agent);
    let line = announce(&agent);
    Err(agent.exec()).with_context(|| format!("cannot start `{line}`"))
}
