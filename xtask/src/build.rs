//! `build`: the BPF object, and the user-space programs that embed it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use tools::{
    cargo::{Executable, cargo, executables},
    setup::{self, Scope},
};

/// Build the BPF object, lb-agent and lbctl.
#[derive(clap::Args)]
// `run` has these arguments too, and a group `Args` of its own.
#[group(skip)]
pub(crate) struct Args {
    /// With optimisation.
    #[arg(long)]
    pub(crate) release: bool,
}

/// The programs of `lb-agent`.
pub(crate) struct Programs {
    pub(crate) agent: PathBuf,
    pub(crate) lbctl: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Programs { agent, lbctl } = programs(args.release)?;
    println!("{}\n{}", agent.display(), lbctl.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs, installing what that needs, and says where they are.
pub(crate) fn programs(release: bool) -> Result<Programs> {
    setup::ensure(&[Scope::Agent, Scope::Programs])?;
    let mut build = cargo();
    build.args(["build", "--package", "lb-agent"]);
    if release {
        build.arg("--release");
    }
    let programs = executables(&mut build)?;
    Ok(Programs { agent: named(&programs, "lb-agent")?, lbctl: named(&programs, "lbctl")? })
}

fn named(programs: &[Executable], name: &str) -> Result<PathBuf> {
    let program = programs.iter().find(|program| !program.is_test && program.name == name);
    program.map(|program| program.path.clone()).with_context(|| format!("cargo built no {name}"))
}
