//! Where things are pinned.
//!
//! ```text
//! <bpffs>/socklb/                     locked by the agent that runs
//! <bpffs>/socklb/v3/                  one directory for each layout of the maps
//! <bpffs>/socklb/v3/maps-1/           services, backends, names, ...
//! <bpffs>/socklb/v3/sockets           the state of live sockets; has no size, so is never replaced;
//!                                     so have former, flows and more_flows
//! <bpffs>/socklb/v3/links/connect4    ... one for each program
//! ```
//!
//! New maps are made and filled in `maps_new`. They get their number, and with it the next agent goes
//! on from them, when the links are about to be moved to programs that use them. A set that is given
//! up is first renamed to `maps_old`. So whatever has a number is whole and was filled; of two the
//! lower one is taken.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use lb_common::abi::{LAYOUT, SOCKETS};
use nix::fcntl::{Flock, FlockArg};

use crate::mounts;

/// The directory of all pins below a bpffs.
const HOME: &str = "socklb";
/// How long whoever has the lock is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// The programs, by the names they have in the object; also the names of their links' pins. In the
/// order in which they are attached: who is translated must be able to ask for its peer's name.
pub const PROGRAMS: [&str; 8] = [
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// The pins below one bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    home: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// The pins below `bpffs`; nothing is read or made.
    pub fn new(bpffs: &Path) -> Self {
        let home = bpffs.join(HOME);
        let root = home.join(format!("v{LAYOUT}"));
        Self { home, root }
    }

    /// `<bpffs>/socklb`.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// `<bpffs>/socklb/v<LAYOUT>`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of maps with this number.
    pub fn map_set(&self, number: u32) -> PathBuf {
        self.root.join(format!("maps-{number}"))
    }

    /// The directories of maps there are, by number.
    pub fn map_sets(&self) -> io::Result<BTreeMap<u32, PathBuf>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries?,
        };
        let mut sets = BTreeMap::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.strip_prefix("maps-")?.parse().ok());
            sets.extend(number.map(|number| (number, path)));
        }
        Ok(sets)
    }

    /// The directory of the maps in use.
    pub fn maps(&self) -> io::Result<Option<PathBuf>> {
        Ok(self.map_sets()?.pop_first().map(|(_, path)| path))
    }

    /// The directory of maps that are not in force yet.
    pub fn staging(&self) -> PathBuf {
        self.root.join("maps_new")
    }

    /// The directory of maps that are about to be removed.
    pub fn discarded(&self) -> PathBuf {
        self.root.join("maps_old")
    }

    /// Whether there is a link, of whatever layout.
    pub fn has_links(&self) -> io::Result<bool> {
        for layout in subdirectories(&self.home)? {
            let links = layout.join("links");
            if links.exists() && fs::read_dir(links)?.next().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A map of what is remembered of live sockets.
    pub fn storage(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The map of what live sockets are connected to.
    pub fn sockets(&self) -> PathBuf {
        self.storage(SOCKETS)
    }

    /// The directory of links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The link of a program.
    pub fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// The links that were pinned to replace others, and never did: their programs are at work.
    pub fn interrupted_links(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.links()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names =
            entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<String>>>()?;
        names.retain(|name| name.ends_with("_new"));
        names.sort();
        Ok(names)
    }

    /// Makes the directories.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.links())
    }

    /// Keeps every other agent away from these pins while the lock lives. `WouldBlock` if there is
    /// one. Waits, up to two seconds.
    pub fn lock(&self) -> io::Result<Flock<File>> {
        let start = Instant::now();
        let mut again = false;
        while !again || start.elapsed() < PATIENCE {
            if again {
                thread::sleep(Duration::from_millis(20));
            }
            let home = match File::open(&self.home) {
                // `--cleanup` came in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound && again => {
                    self.create()?;
                    continue;
                }
                home => home?,
            };
            again = true;
            match Flock::lock(home, FlockArg::LockExclusiveNonblock) {
                // A lock on a directory that was removed meanwhile keeps nobody away.
                Ok(lock) if is_still(&lock, &self.home) => return Ok(lock),
                Ok(_) => self.create()?,
                // `lbctl status` may be asking, or the canary of an agent that has ended be out: either
                // takes an instant, on a machine that has the time.
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {}
                Err((_, errno)) => return Err(errno.into()),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether an agent holds the lock.
    pub fn is_locked(&self) -> io::Result<bool> {
        match Flock::lock(File::open(&self.home)?, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Removes everything of every layout: links first, so that no program is left that looks into
    /// maps nobody fills. Returns what was removed.
    pub fn remove_all(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for layout in subdirectories(&self.home)? {
            remove(&layout.join("links"), &mut removed)?;
        }
        remove(&self.home, &mut removed)?;
        Ok(removed)
    }

    /// Removes the pins of other layouts. Only when the own links are in place.
    pub fn remove_other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for layout in subdirectories(&self.home)? {
            if layout != self.root {
                remove(&layout.join("links"), &mut removed)?;
                remove(&layout, &mut removed)?;
            }
        }
        Ok(removed)
    }
}

fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (file, path) = (file.metadata().map(inode), fs::metadata(path).map(inode));
    matches!((file, path), (Ok(file), Ok(path)) if file == path)
}

fn subdirectories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

/// Removes a directory and what is in it.
pub(crate) fn remove(path: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => removed.push(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Where a machine has its bpffs, and a container gets it from the machine.
const BPFFS: &str = "/sys/fs/bpf";

/// Where bpffs is mounted, unless `--bpffs` says otherwise. The same on a machine and in a container,
/// even if the machine has others.
pub fn default_bpffs() -> io::Result<Option<PathBuf>> {
    let usual = Path::new(BPFFS);
    if mounts::of(usual).is_ok_and(|mount| mount.is_some_and(|mount| mount.kind == "bpf")) {
        return Ok(Some(usual.to_owned()));
    }
    Ok(mounts::first("bpf")?.map(|mount| mount.path))
}

/// Why a pinned link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLinkError {
    /// There is no such pin, or no permission to open it.
    #[error(transparent)]
    Open(#[from] LinkError),
    /// The pin is something else.
    #[error("it is {0}; remove it, or remove all pins with `lb-agent --cleanup`")]
    Foreign(String),
}

/// Opens the pinned link of the program that the pin is named after. The second part is the id of
/// the cgroup it is attached to; 0 if that cgroup is gone.
///
/// What is pinned there may be anything: the kernel opens a map by the same call, and lets a program
/// be put into the link of another attach type, where it does harm.
pub fn open_link(path: &Path) -> Result<(FdLink, u64), OpenLinkError> {
    let foreign = |what: &str| OpenLinkError::Foreign(what.to_owned());
    let link: FdLink = PinnedLink::from_pin(path)?.into();
    let found = attachment(&link)?.ok_or_else(|| foreign("no link"))?;
    let Attachment { cgroup: Some(cgroup), attach_type: Some(attach_type) } = found else {
        return Err(foreign("no link to a cgroup"));
    };
    let program = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if ATTACH_TYPES.iter().any(|(name, of)| *name == program && u64::from(*of) == attach_type) {
        Ok((link, cgroup))
    } else {
        Err(foreign(&format!("the link of another program (attach type {attach_type})")))
    }
}

/// The id of the cgroup that a link of ours is attached to; 0 if it is attached to none any more.
pub(crate) fn attached_to(link: &FdLink) -> Result<u64, LinkError> {
    Ok(attachment(link)?.and_then(|attachment| attachment.cgroup).unwrap_or(0))
}

/// What the kernel says of a link to a cgroup.
struct Attachment {
    cgroup: Option<u64>,
    attach_type: Option<u64>,
}

/// None if this is no link.
fn attachment(link: &FdLink) -> Result<Option<Attachment>, LinkError> {
    let id = link.info()?.id();
    Ok(fdinfo(|lines| {
        let field =
            |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        (field("link_id:") == Some(u64::from(id)))
            .then(|| Attachment { cgroup: field("cgroup_id:"), attach_type: field("attach_type:") })
    }))
}

/// As in `linux/bpf.h`: `BPF_CGROUP_INET4_CONNECT` and so on.
pub(crate) const ATTACH_TYPES: [(&str, u32); PROGRAMS.len()] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// What `wanted` finds in what the kernel says of a file of this process: aya keeps the descriptor
/// of a link to itself, and the kernel tells the cgroup only here.
fn fdinfo<T>(wanted: impl Fn(&[&str]) -> Option<T>) -> Option<T> {
    let entries = fs::read_dir("/proc/self/fdinfo").ok()?;
    entries.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        wanted(&text.lines().collect::<Vec<_>>())
    })
}

/// The id of a cgroup: the number of its directory's inode.
pub fn cgroup_id(cgroup: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(cgroup.metadata()?.ino())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_lock_is_on_the_directory_that_is_there() {
        let bpffs = TempDir::new().unwrap();
        let pins = Pins::new(bpffs.path());
        pins.create().unwrap();
        let held = pins.lock().unwrap();
        let cleanup = thread::spawn({
            let pins = pins.clone();
            move || {
                thread::sleep(PATIENCE / 4);
                pins.remove_all().unwrap();
                drop(held);
            }
        });
        // An agent that starts meanwhile: it finds the directory, and waits.
        let lock = pins.lock().unwrap();
        cleanup.join().unwrap();
        assert!(pins.is_locked().unwrap(), "another agent would start beside this one");
        assert!(is_still(&lock, pins.home()));
        // One that had opened the directory, and got the lock when it was another one.
        pins.remove_all().unwrap();
        pins.create().unwrap();
        assert!(!is_still(&lock, pins.home()), "it keeps nobody away");
        assert!(!pins.is_locked().unwrap());
    }
}
