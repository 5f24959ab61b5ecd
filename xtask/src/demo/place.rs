//! Where everything of the demo is, and how it is taken away.
//!
//! ```text
//! /run/socklb-demo/            removed last but the cgroups
//!   services/                  what the agent reads
//!   net/NAME                   a network namespace: the node's, and one for each pod
//!   bpf/                       a bpffs of its own: without it the pins are gone
//!   guard                      the process that will see to the end of it
//!   in                         runs a command in one of the pods
//!   log
//! <cgroup2>/socklb-demo/play   the demo itself and what it starts in passing
//! <cgroup2>/socklb-demo/node   the node: the programs are attached here
//! ```
//!
//! Every process of the demo is in one of the two cgroups before it makes a namespace or
//! a mount. So after
//! the cgroups are killed nothing can come back, and the rest may be removed in peace.

use std::{
    fs, io,
    os::unix::process::parent_id,
    path::{Path, PathBuf},
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context as _, Error, Result, anyhow};
use tools::{
    exec::answer,
    wait::{Not, until},
};

/// Everything that is no cgroup.
pub(super) const HOME: &str = "/run/socklb-demo";
/// The directory of cgroups below the root of cgroup2, and the lock.
pub(super) const NAME: &str = "socklb-demo";
const GUARD: &str = "guard";
/// Most time that processes get to die, once killed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn home(name: &str) -> PathBuf {
    Path::new(HOME).join(name)
}

pub(super) fn busy() -> Error {
    anyhow!("a demo is running on this machine: Ctrl-C ends it, or wait for its end")
}

/// Makes the directory. Before anything else: it says whose the rest is.
pub(super) fn make_home() -> Result<()> {
    fs::create_dir(HOME).with_context(|| format!("cannot make {HOME}"))?;
    fs::write(home(GUARD), parent_id().to_string())?;
    Ok(())
}

/// Not somebody else's, who has begun after ours had ended.
pub(super) fn is_ours() -> bool {
    fs::read_to_string(home(GUARD)).map_or(true, |guard| guard == parent_id().to_string())
}

/// The cgroups.
pub(super) struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    fn find() -> Result<Option<Self>> {
        let mount = mounts()?.into_iter().find(|mount| mount.kind == "cgroup2");
        Ok(mount.map(|mount| Self { root: mount.path.join(NAME) }))
    }

    /// Makes them, and moves this process into `play`.
    pub(super) fn make() -> Result<Self> {
        let cgroups = Self::find()?.context(
            "cgroup2 is not mounted on this machine: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`",
        )?;
        for path in [&cgroups.root, &cgroups.node(), &cgroups.play()] {
            fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::write(cgroups.play().join("cgroup.procs"), process::id().to_string())
            .with_context(|| format!("cannot join {}", cgroups.play().display()))?;
        Ok(cgroups)
    }

    /// The node.
    pub(super) fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    fn play(&self) -> PathBuf {
        self.root.join("play")
    }

    /// Ends every process in them.
    fn kill(&self) -> Result<()> {
        fs::write(self.root.join("cgroup.kill"), "1").context("cgroup.kill")?;
        until("the end of all processes", PATIENCE, &[], || {
            let events = fs::read_to_string(self.root.join("cgroup.events"));
            if events.context("cgroup.events")?.contains("populated 0") {
                return Ok(());
            }
            Err(Not::Yet(format!("some in {} live", self.root.display())))
        })
    }

    fn remove(&self) -> Result<()> {
        for path in [self.play(), self.node(), self.root.clone()] {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => {
                    removed.with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        Ok(())
    }
}

/// Takes away all there is of a demo; false if there was nothing.
pub(super) fn sweep() -> Result<bool> {
    let cgroups = Cgroups::find()?.filter(|cgroups| cgroups.root.exists());
    let home = Path::new(HOME);
    if cgroups.is_none() && !home.exists() {
        return Ok(false);
    }
    if let Some(cgroups) = &cgroups {
        cgroups.kill()?;
    }
    // Lazily: a shell that stands in one of them does not keep it.
    for mount in mounts()?.iter().rev().filter(|mount| mount.path.starts_with(home)) {
        answer(Command::new("umount").arg("--lazy").arg(&mount.path))?;
    }
    match fs::remove_dir_all(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.with_context(|| format!("cannot remove {HOME}"))?,
    }
    if let Some(cgroups) = &cgroups {
        cgroups.remove()?;
    }
    Ok(true)
}

struct Mount {
    path: PathBuf,
    kind: String,
}

fn mounts() -> Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(table.lines().filter_map(mount).collect())
}

/// A line of the table. What it escapes (spaces) is in no path that is looked for here.
fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(1);
    Some(Mount { path: fields.next()?.into(), kind: fields.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_cgroup2_beside_the_others() {
        let mount = mount("cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0").unwrap();
        assert_eq!(mount.kind, "cgroup2");
        assert_eq!(mount.path, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn only_what_is_below_home_is_ever_unmounted() {
        for path in ["/", "/run", "/run/socklb-demo-of-mine/bpf"] {
            assert!(!Path::new(path).starts_with(HOME), "{path}");
        }
        assert!(home("bpf").starts_with(HOME));
    }
}
