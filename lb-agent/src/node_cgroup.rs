//! The cgroup that the programs are attached to: that of the node, unless the user names one.
//!
//! A container often sees its own cgroup as the root of all. Programs attached there look well, and
//! translate nothing. So the node's cgroup is asked of PID 1: a pod with `hostPID` sees in
//! `/proc/1/cgroup` where the node is, from where it is itself, and in the list of mounts which of
//! them leads there. If none does, cgroup2 is mounted for this process alone.
//!
//! | file | what it is |
//! |---|---|
//! | `location` | the kernel's paths, which count from a namespace's root |
//! | `choice` | what is seen → which cgroup, and how to get there |
//! | `private` | a mount of our own |
//! | `outside` | processes that give a wrong choice away |

mod choice;
mod location;
mod outside;
mod private;

use std::{
    fmt, fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

pub use self::outside::{Example, Outside};
pub(crate) use self::private::within_init;
use self::{
    choice::{CgroupMount, Hierarchy, NodeLocation},
    location::Location,
};
use crate::mounts;

/// The root of cgroup2 has this id on every kernel.
pub(crate) const ROOT: u64 = 1;
const PROC: &str = "/proc";
/// What to do where the node's cgroup is not found.
const REMEDY: &str = "in Kubernetes give the pod hostPID, and mount the node's /sys/fs/cgroup; or name \
                      the cgroup by --cgroup";

/// A cgroup, and how to get there.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Where it is, from our cgroup namespace; none if that cannot be told.
    location: Option<Location>,
    /// By whom it was named, if not by us.
    named: bool,
    /// Why it may be the wrong one.
    doubt: Option<&'static str>,
    /// The mount that the path leads through, if nobody else has it.
    mount: Option<Arc<OwnedFd>>,
}

/// The path; of a mount that nobody else has, where it leads.
impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.mount, &self.location) {
            (Some(_), Some(location)) => {
                write!(f, "{location} (seen from here, by a mount of our own)")
            }
            (_, Some(location)) if location.up > 0 => {
                write!(f, "{} ({location} seen from here)", self.path.display())
            }
            _ => self.path.display().fmt(f),
        }
    }
}

impl Cgroup {
    /// The one that the user names.
    pub fn named(path: &Path) -> Result<Self> {
        let system = statfs(path).with_context(|| format!("--cgroup {}", path.display()))?;
        if system.filesystem_type() != CGROUP2_SUPER_MAGIC || !path.is_dir() {
            bail!("{} is not a cgroup2 directory: name one by --cgroup", path.display());
        }
        let location = locate(path).unwrap_or_default();
        Ok(Self { path: path.to_owned(), location, named: true, doubt: None, mount: None })
    }

    /// The node's.
    pub fn of_node() -> Result<Self> {
        let seen = see().context("cannot see which cgroup is the node's")?;
        let Some(NodeLocation { node, doubt, ways }) = seen.choose() else {
            bail!("the cgroup of PID 1 was removed, so the node's is not known: {REMEDY}");
        };
        let mut failures = Vec::new();
        for way in &ways {
            match open(way, &node) {
                Ok((path, mount)) => {
                    let location = Some(node);
                    let found = Self { path, location, named: false, doubt, mount };
                    return found.confirmed(&seen);
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() {
            failures.push("no mount of cgroup2 leads there".to_owned());
        }
        bail!(
            "cannot get to the node's cgroup {node} (seen from here): {}; {REMEDY}",
            failures.join("; ")
        )
    }

    /// Nothing is known but the own cgroup, and nobody but lb-agent is in it.
    fn confirmed(mut self, seen: &Hierarchy) -> Result<Self> {
        let only_own = self.location.as_ref().is_some_and(|at| at.up == 0);
        if self.serves_everything() {
            self.doubt = None;
        } else if seen.pid == 1 && only_own {
            bail!(
                "this container sees no other cgroup than its own, {}: {REMEDY}",
                self.path.display()
            );
        }
        Ok(self)
    }

    /// Leads to its directory as long as this lives.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of its directory.
    pub fn id(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// Whether it is the root of all.
    pub fn serves_everything(&self) -> bool {
        self.id().is_ok_and(|id| id == ROOT)
    }

    /// Whether it was removed. A directory that is held open, or mounted somewhere, stays; it is empty.
    pub fn is_gone(&self) -> bool {
        is_gone(&self.path)
    }

    /// The same once more: the node's cgroup may be another one now.
    pub fn again(&self) -> Result<Self> {
        if self.named { Self::named(&self.path) } else { Self::of_node() }
    }

    /// The processes of the node that are not in it. Nobody, if the user wants it so.
    pub fn outside(&self) -> Option<Outside> {
        let location =
            self.location.as_ref().filter(|_| !self.named && !self.serves_everything())?;
        outside::find(Path::new(PROC), location)
    }

    /// Why this may not be the node's.
    pub const fn doubt(&self) -> Option<&'static str> {
        self.doubt
    }

    /// What the user should know of the choice, in one line.
    pub fn tell(&self) {
        if let Some(doubt) = self.doubt {
            tracing::warn!(cgroup = %self, "cannot know that this is the node's cgroup: {doubt}; {REMEDY}");
        }
        // That it cannot be seen is no news to somebody who says what is to be served.
        if self.named
            && let Ok(node) = Self::of_node()
            && node.doubt.is_none()
            && let (Ok(own), Ok(of_node)) = (self.id(), node.id())
            && own != of_node
            && own != ROOT
        {
            tracing::info!(cgroup = %self, node = %node, "only sockets of this cgroup are served, as --cgroup says: it is not the node's");
        }
    }
}

/// What is wrong if processes of the node are elsewhere, for everybody: it names none of them.
pub fn explain(cgroup: &Cgroup, outside: &Outside) -> String {
    let count = outside.count;
    let are = if count == 1 { "process of this node is" } else { "processes of this node are" };
    format!(
        "{count} {are} outside of {cgroup}, which is not the node's cgroup, and their connections are not translated; {REMEDY}"
    )
}

fn is_gone(path: &Path) -> bool {
    !path.join("cgroup.procs").exists()
}

/// Where a directory is.
fn locate(path: &Path) -> io::Result<Option<Location>> {
    let (mount, path) = (mounts::of(path)?, path.canonicalize()?);
    Ok(mount.and_then(|mount| {
        let below = path.strip_prefix(&mount.path).ok()?;
        Some(Location::parse(&mount.root)?.join(below))
    }))
}

fn see() -> io::Result<Hierarchy> {
    let of = |process: &str| fs::read_to_string(format!("{PROC}/{process}/cgroup"));
    let mut own = of("thread-self")?;
    if Location::of_process(&own).is_none() {
        // Until somebody mounts cgroup2, the kernel does not speak of it.
        private::own()?;
        own = of("thread-self")?;
    }
    let (pid, init) = (process::id(), of("1")?);
    Ok(Hierarchy {
        pid,
        own: Location::of_process(&own)
            .ok_or_else(|| io::Error::other("the cgroup of lb-agent was removed"))?,
        init: Location::of_process(&init),
        descends: outside::descends(Path::new(PROC), pid),
        apart: location::apart(&own, &init),
        mounts: mounts::all("cgroup2")?,
    })
}

/// The directory, and the mount if it is ours.
fn open(way: &CgroupMount, node: &Location) -> Result<(PathBuf, Option<Arc<OwnedFd>>)> {
    let of_mount = |mount: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let (path, mount) = match way {
        CgroupMount::Visible(path) => (path.clone(), None),
        CgroupMount::OfInit => {
            let (mount, init) = private::of_init().context(
                "cgroup2 cannot be mounted in the cgroup namespace of PID 1, which takes CAP_SYS_ADMIN \
                 and CAP_SYS_PTRACE",
            ).map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let init = init.context("PID 1 is not below the root of its cgroup namespace")?;
            (of_mount(&mount).join(init.of_machine().down.join("/")), Some(Arc::new(mount)))
        }
        CgroupMount::Own => {
            let mount = private::own().map_err(|error| {
                anyhow::anyhow!("cgroup2 cannot be mounted, which takes CAP_SYS_ADMIN: {error}")
            })?;
            (of_mount(&mount).join(node.down.join("/")), Some(Arc::new(mount)))
        }
    };
    if is_gone(&path) {
        let exists = if path.exists() { "was removed" } else { "is not there" };
        bail!("the cgroup {} {exists}", path.display());
    }
    Ok((path, mount))
}
