//! The agent of another commit, built from what git has of it.
//!
//! Built programs are kept in the user's cache by commit; so are their dependencies, which most commits
//! share. Only one is built at a time.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tools::{
    cache::{Scratch, cache},
    cargo::{cargo, executables, workspace},
    exec::answer,
    turn::Turn,
};

/// How long somebody else may take to build theirs.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// A commit and its agent.
pub(crate) struct Baseline {
    /// Abbreviated.
    pub(crate) commit: String,
    pub(crate) agent: PathBuf,
}

impl Baseline {
    /// Of any revision that git understands.
    pub(crate) fn build(revision: &str) -> Result<Self> {
        let mut parse = git();
        parse.args(["rev-parse", "--verify", "--short=12", "--end-of-options"]);
        let commit = answer(parse.arg(format!("{revision}^{{commit}}")))?.trim().to_owned();
        let agents = cache()?.join("agents");
        let name = format!("lb-agent-{commit}");
        let agent = agents.join(&name);
        fs::create_dir_all(&agents)
            .with_context(|| format!("cannot make the directory {}", agents.display()))?;
        let turn = Turn::wait_long("baseline", PATIENCE, "the build of another commit")?;
        ensure!(turn.is_some(), "another commit is built all the time");
        if agent.exists() {
            return Ok(Self { commit, agent });
        }
        // Always the same path: cargo takes packages that moved for other ones.
        let source = agents.join("source");
        if source.exists() {
            fs::remove_dir_all(&source)?;
        }
        fs::create_dir(&source)?;
        unpack(&commit, &source)?;
        let mut build = cargo();
        // Its programs are optimised anyhow. The agent only fills the maps.
        build
            .args(["build", "--locked", "--package", "lb-agent", "--bin", "lb-agent"])
            .current_dir(&source)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_TARGET_DIR", agents.join("target"))
            // What is embedded is its own.
            .env_remove("SOCKLB_BPF_OBJECT");
        let programs = executables(&mut build)?;
        let program = programs.iter().find(|program| program.name == "lb-agent");
        let program = &program.context("cargo built no lb-agent")?.path;
        let scratch = Scratch::new(&agents)?;
        fs::copy(program, scratch.0.join(&name))?;
        scratch.deliver(&name, &agents)?;
        fs::remove_dir_all(&source)?;
        Ok(Self { commit, agent })
    }
}

/// The files of a commit. They are as old as this, not as the commit: by age cargo sees what has changed.
fn unpack(commit: &str, to: &std::path::Path) -> Result<()> {
    let mut archive = git().args(["archive", commit]).stdout(Stdio::piped()).spawn()?;
    let files = archive.stdout.take().context("stdout is piped")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--touch", "--file", "-", "--directory"]).arg(to).stdin(files);
    let unpacked = tar.status().context("cannot start `tar`")?;
    let archived = archive.wait()?;
    ensure!(archived.success() && unpacked.success(), "cannot unpack {commit}");
    Ok(())
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(workspace());
    git
}
