//! Where everything of the cluster is.
//!
//! ```text
//! /var/lib/socklb-cluster/            root's alone: there are keys in it
//!   spec                              what was asked for; written first
//!   complete                          written last: `up` came to its end
//!   kubeconfig                        of a user who may do everything
//!   user/, cache/                     what kubectl, helm and tests keep
//!   BOX/var/                          /var of the box; outlives a reboot of it
//!   BOX/run/                          where the box puts its /run together
//! <each cgroup mount>/socklb-cluster/BOX/
//! ```
//!
//! Namespaces and mounts of a box belong to its processes, and all of those are in its cgroup. So
//! after the cgroups are killed, what is left are directories.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tools::turn::{self, Turn};

/// Everything that is no cgroup. What tests write as root belongs here, too.
pub(crate) const HOME: &str = "/var/lib/socklb-cluster";
/// The directory in every cgroup hierarchy, and the locks.
pub(super) const NAME: &str = "socklb-cluster";

pub(super) fn home(name: &str) -> PathBuf {
    Path::new(HOME).join(name)
}

/// The directory that a box sees as /var.
pub(crate) fn var(machine: &str) -> PathBuf {
    home(machine).join("var")
}

pub(super) fn kubeconfig() -> PathBuf {
    home("kubeconfig")
}

pub(super) fn make() -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(HOME).with_context(|| format!("cannot make {HOME}"))
}

/// The right to make a cluster or to take it away: one at a time on a machine.
pub(crate) fn turn() -> Result<Turn> {
    turn_within(turn::MOMENT)
}

pub(crate) fn turn_within(patience: Duration) -> Result<Turn> {
    Turn::wait(NAME, patience)?
        .context("another `cluster up` or `down` is at work on this machine: wait for it")
}

/// The right to make clusters for tests, in the same way.
pub(crate) fn tests_turn() -> Result<Turn> {
    const ANOTHER: &str = "another `cluster test --all`";
    // Two suites may be run side by side.
    Turn::wait_long(&format!("{NAME}-tests"), Duration::from_secs(2 * 3600), ANOTHER)?
        .with_context(|| format!("{ANOTHER} is at work on this machine, and does not end"))
}
