//! The testbed: the test suite, container images, Kubernetes on this machine, other kernels.
//! `cargo xtask` calls it.

mod cluster;
mod cluster_command;
mod e2e;
mod image;
mod kernels;
mod kind;
mod kube;
mod kube_demo;
mod kubectl;
mod manifest;
mod oracle;
mod stories;
mod structure;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

/// The tasks of the testbed. Each brings what it needs, and says what it installs.
#[derive(clap::Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    max_term_width = 80
)]
enum Task {
    Image(image::Args),
    Cluster(cluster_command::Args),
    E2e(e2e::Args),
    Kernels(kernels::Args),
    Kind(kind::Args),
    Kube(kube::Args),
    KubeDemo(kube_demo::Args),
    Manifest(manifest::Args),
    Oracle(oracle::Args),
    #[command(hide = true)]
    Structure(structure::Args),
    Test(test::Args),
}

fn main() -> ExitCode {
    perform(&Task::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Image(args) => image::run(args),
        Task::Cluster(args) => cluster_command::run(args),
        Task::E2e(args) => e2e::run(args),
        Task::Kernels(args) => kernels::run(args),
        Task::Kind(args) => kind::run(args),
        Task::Kube(args) => kube::run(args),
        Task::KubeDemo(args) => kube_demo::run(args),
        Task::Manifest(args) => manifest::run(args),
        Task::Oracle(args) => oracle::run(args),
        Task::Structure(args) => structure::run(args),
        Task::Test(args) => Ok(test::run(args)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Task::command().debug_assert();
        Task::try_parse_from(["xtask", "test", "unit", "kernel", "--", "a_name"]).unwrap();
        Task::try_parse_from(["xtask", "test", "no-such-layer"]).map(drop).unwrap_err();
    }

    #[test]
    fn no_line_of_help_is_wider_than_a_terminal() {
        assert_eq!(tools::help::wide_lines(&mut Task::command()), [] as [&str; 0]);
    }
}
