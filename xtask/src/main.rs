//! The project's tasks: `cargo xtask --help`. Each brings what it needs.
//!
//! What builds and runs socklb is here. What tests it is the testbed, the crate `lab`, which is
//! compiled when one of its tasks is called, and not before.

mod baseline;
mod bench;
mod build;
mod demo;
mod run;
mod upgrade;

use std::{
    env,
    ffi::{OsStr, OsString},
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::Parser as _;
use tools::{cargo::workspace, exec::become_it, setup};

/// The project's tasks. Each brings what it needs, and says what it installs.
#[derive(clap::Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    max_term_width = 80
)]
enum Task {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Upgrade(upgrade::Args),
    #[command(flatten)]
    Lab(Lab),
}

/// The tasks of the testbed; their words are its own.
#[derive(clap::Subcommand)]
enum Lab {
    /// Make a container image, and print where its archive is.
    Image(Words),
    /// A real Kubernetes on this machine: boxes of namespaces with no way out.
    Cluster(Words),
    /// Run Kubernetes' own tests of its network in the cluster that is up.
    E2e(Words),
    /// Boot other kernels, load the programs there and run kernel tests, by software emulation.
    Kernels(Words),
    /// A cluster in Docker, with socklb in place of kube-proxy.
    Kind(Words),
    /// Build Kubernetes' own programs for the tests, and print where they are.
    Kube(Words),
    /// Show the main job in a cluster in which socklb runs.
    KubeDemo(Words),
    /// Write deploy/socklb.yaml anew from the Helm chart.
    Manifest(Words),
    /// Compare socklb's decisions with those of kube-proxy's own code.
    Oracle(Words),
    /// Run the test suite, or some layers of it.
    Test(Words),
}

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _words: Vec<OsString>,
}

fn main() -> ExitCode {
    perform(&Task::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Setup(args) => setup::run(args),
        Task::Build(args) => build::run(args),
        Task::Run(args) => run::run(args),
        Task::Demo(args) => demo::run(args),
        Task::Bench(args) => bench::run(args),
        Task::Upgrade(args) => upgrade::run(args),
        Task::Lab(_) => become_it(&mut lab(env::args_os().skip(1))),
    }
}

/// The testbed with these words.
fn lab<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Command {
    // The cargo that runs this, which any stable is.
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let manifest = workspace().join("Cargo.toml");
    cargo.args(["run", "--quiet", "--package", "lab", "--manifest-path"]).arg(manifest).arg("--");
    cargo.args(words);
    cargo
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Task::command().debug_assert();
        Task::try_parse_from(["xtask", "run", "--release", "--", "--dry-run"]).unwrap();
        let packets = ["xtask", "bench", "packets", "--services=1000", "--proxy=socklb", "--again"];
        Task::try_parse_from(packets).unwrap();
        Task::try_parse_from(["xtask", "no-such-task"]).map(drop).unwrap_err();
    }

    #[test]
    fn words_of_the_testbed_are_not_looked_at() {
        for words in [&["test", "--help"][..], &["test", "unit", "--", "a"], &["kube", "--", "-x"]]
        {
            let parsed = Task::try_parse_from(["xtask"].iter().chain(words)).unwrap();
            assert!(matches!(parsed, Task::Lab(_)), "{words:?}");
        }
    }

    #[test]
    fn no_line_of_help_is_wider_than_a_terminal() {
        assert_eq!(tools::help::wide_lines(&mut Task::command()), [] as [&str; 0]);
    }
}
