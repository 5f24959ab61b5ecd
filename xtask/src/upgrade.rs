//! `upgrade`: from the agent of another commit to this one, and back, under load: `tests/kernel/layouts.rs`.

use std::{fs, process::Command, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use tools::{
    cargo::{cargo, executables, workspace},
    exec::answer,
    root::require_root,
    setup::{self, Scope},
};

use crate::{
    baseline::Baseline,
    bench::{circumstances, report},
};

const TEST: &str = "kernel::layouts::nothing_that_sockets_and_clients_have_is_lost";
/// What the test takes the other agent from.
const OTHER: &str = "SOCKLB_OTHER_AGENT";
const REPORT: &str = "docs/upgrade.txt";
/// Where the maps are described.
const ABI: &str = "lb-common/src/abi.rs";
/// What stands there before the number of the layout.
const LAYOUT: &str = "pub const LAYOUT: u32 = ";

/// From the agent of another commit to this one and back, several times, while sockets connect. The report
/// is kept in docs/upgrade.txt.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The other commit [default: the last one with another layout of the maps].
    #[arg(long, value_name = "REV")]
    from: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[Scope::Agent, Scope::Programs, Scope::Network])?;
    let from = args.from.clone().map_or_else(another_layout, Ok)?;
    let (ours, theirs) = (layout(&abi_here()?)?, layout(&abi_of(&from)?)?);
    ensure!(
        ours != theirs,
        "{from} has layout {theirs}, as this tree: choose another commit by --from"
    );
    let Baseline { commit, agent } = Baseline::build(&from)?;
    let mut build = cargo();
    build.args(["test", "--package", "lb-agent", "--test", "kernel", "--no-run"]);
    let programs = executables(&mut build)?;
    let program = programs.iter().find(|program| program.is_test && program.name == "kernel");
    let program = program.context("cargo built no kernel tests")?;
    require_root()?;
    let mut test = Command::new(&program.path);
    test.args(["--exact", TEST, "--nocapture"])
        .current_dir(&program.package)
        .env("CARGO_MANIFEST_DIR", &program.package)
        .env(OTHER, agent);
    let said = report(test)?;
    ensure!(said.contains("1 passed"), "no test {TEST}");
    let layouts = format!("layout    {ours}\nother     {commit}, layout {theirs}\n");
    let kept = format!("{}{layouts}\n{said}", circumstances());
    fs::write(workspace().join(REPORT), kept).with_context(|| format!("cannot write {REPORT}"))?;
    eprintln!("kept in {REPORT}");
    Ok(ExitCode::SUCCESS)
}

/// The commit before the one that made the layout what it is.
fn another_layout() -> Result<String> {
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%H", &format!("-G{LAYOUT}"), "--"]);
    let commit = answer(log.arg(ABI).current_dir(workspace()))?;
    ensure!(!commit.trim().is_empty(), "no commit has another layout: `git fetch --unshallow`?");
    Ok(format!("{}^", commit.trim()))
}

/// The description of the maps in this tree.
fn abi_here() -> Result<String> {
    fs::read_to_string(workspace().join(ABI)).with_context(|| format!("cannot read {ABI}"))
}

/// The same in another commit.
fn abi_of(revision: &str) -> Result<String> {
    answer(
        Command::new("git").args(["show", &format!("{revision}:{ABI}")]).current_dir(workspace()),
    )
}

/// Which layout it describes.
fn layout(abi: &str) -> Result<u32> {
    let number = abi.lines().find_map(|line| line.strip_prefix(LAYOUT)?.strip_suffix(';'));
    let number = number.with_context(|| format!("{ABI} has no `{LAYOUT}`"))?;
    number.parse().with_context(|| format!("{ABI}: the layout is {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_found() {
        assert_eq!(layout("/// Version.\npub const LAYOUT: u32 = 4;\n").unwrap(), 4);
        assert!(layout(&abi_here().unwrap()).unwrap() > 4);
        for wrong in ["", "pub const LAYOUT: u32 = FOUR;"] {
            assert!(layout(wrong).is_err(), "{wrong}");
        }
    }
}
