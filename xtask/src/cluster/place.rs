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
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::DirBuilderExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Everything that is no cgroup. What tests write as root belongs here, too.
pub(crate) const HOME: &str = "/var/lib/socklb-cluster";
/// The directory in every cgroup hierarchy, and the locks.
pub(super) const NAME: &str = "socklb-cluster";

pub(super) fn home(name: &str) -> PathBuf {
    Path::new(HOME).join(name)
}

/// The directory that a box sees as /var.
pub(super) fn var(machine: &str) -> PathBuf {
    home(machine).join("var")
}

pub(super) fn kubeconfig() -> PathBuf {
    home("kubeconfig")
}

pub(super) fn make() -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(HOME).with_context(|| format!("cannot make {HOME}"))
}

/// The right to make a cluster or to take it away: one at a time on a machine. The kernel takes it
/// back from whoever dies.
pub(super) struct Turn(#[expect(dead_code, reason = "held, not used")] UnixListener);

impl Turn {
    /// For a moment somebody who was killed may still have it.
    pub(super) fn wait() -> Result<Self> {
        Self::wait_for(Duration::from_secs(2))
    }

    pub(super) fn wait_for(patience: Duration) -> Result<Self> {
        let turn = lock(NAME, patience)?;
        let busy = "another `cluster up` or `down` is at work on this machine: wait for it";
        turn.map(Self).context(busy)
    }
}

/// The right to make clusters for tests, in the same way.
pub(crate) struct TestsTurn(#[expect(dead_code, reason = "held, not used")] UnixListener);

impl TestsTurn {
    pub(crate) fn take() -> Result<Self> {
        let turn = lock(&format!("{NAME}-tests"), Duration::from_secs(2))?;
        let busy = "another `cluster test --all` is at work on this machine: wait for it";
        turn.map(Self).context(busy)
    }
}

/// None: somebody else has it all the time.
fn lock(name: &str, patience: Duration) -> Result<Option<UnixListener>> {
    let address = SocketAddr::from_abstract_name(name)?;
    let deadline = Instant::now() + patience;
    loop {
        match UnixListener::bind_addr(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if Instant::now() > deadline {
                    return Ok(None);
                }
                sleep(Duration::from_millis(20));
            }
            listener => return listener.map(Some).context("cannot lock"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::id;

    use super::*;

    #[test]
    fn a_lock_is_one_holders_until_he_is_gone() {
        let name = format!("{NAME}-test-{}", id());
        let take = || lock(&name, Duration::ZERO).unwrap();
        let first = take();
        assert!(first.is_some() && take().is_none());
        drop(first);
        assert!(take().is_some());
    }
}
