//! Where things are pinned.
//!
//! ```text
//! <bpffs>/socklb/                     locked by the agent that runs
//! <bpffs>/socklb/v5/                  one directory for each layout of the maps
//! <bpffs>/socklb/v5/maps-1/           services, backends, names, ...
//! <bpffs>/socklb/v5/sockets           the state of live sockets, which is never replaced; so are
//!                                     former, flows, more_flows, heard, held and generations
//! <bpffs>/socklb/v5/links/connect4    ... one for each program
//! ```
//!
//! New maps are made and filled in `maps_new`. They get their number, and with it the next agent goes
//! on from them, when the links are about to be moved to programs that use them. A set that is given
//! up is first renamed to `maps_old`. So whatever has a number is whole and was filled; of two the
//! lower one is taken.

mod home;
mod link;
mod places;
mod removal;

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use lb_common::abi::{LAYOUT, SOCKETS};

use self::home::{Home, Purpose};
pub use self::{
    home::{Holder, HomeError, shown},
    link::{OpenLinkError, cgroup_id, open_link},
};
pub(crate) use self::{
    link::{ATTACH_TYPES, attached_to},
    removal::remove_at,
};
use crate::mounts;

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

/// The pins below one bpffs. The paths are for this process, and lead through a descriptor where the
/// directory is open; [`shown`] makes them what people know.
#[derive(Clone, Debug)]
pub struct Pins {
    bpffs: PathBuf,
    home: PathBuf,
    root: PathBuf,
    /// Open as long as one of the copies is; of the agent also locked.
    open: Option<Arc<Home>>,
}

impl Pins {
    /// The names below `bpffs`; nothing is opened, made or judged, and nobody is kept away.
    pub fn new(bpffs: &Path) -> Self {
        Self::at(bpffs, bpffs.join(home::NAME), None)
    }

    /// What is pinned below `bpffs`, to be looked at; none if nothing is.
    pub fn look(bpffs: &Path) -> Result<Option<Self>, HomeError> {
        Ok(Home::open(bpffs, Purpose::Look)?.map(|home| Self::opened(bpffs, home)))
    }

    /// The same to be removed; every agent is kept away while it, or a copy, lives.
    pub fn take_existing(bpffs: &Path) -> Result<Option<Self>, HomeError> {
        Ok(Home::open(bpffs, Purpose::Remove)?.map(|home| Self::opened(bpffs, home)))
    }

    /// The pins of an agent: the directory is made if it is not there, it is root's alone, and every
    /// other agent is kept away while this, or a copy, lives.
    pub fn take(bpffs: &Path) -> Result<Self, HomeError> {
        let home = Home::open(bpffs, Purpose::Own)?;
        let path = bpffs.join(home::NAME);
        let gone = || HomeError::Io { what: "make", path, error: io::ErrorKind::NotFound.into() };
        home.map(|home| Self::opened(bpffs, home)).ok_or_else(gone)
    }

    /// The same after somebody has removed the directory, moved it, or mounted the bpffs anew.
    pub fn take_again(&self) -> Result<Self, HomeError> {
        if self.is_in_place() { Ok(self.clone()) } else { Self::take(&self.bpffs) }
    }

    /// Whether the directory that is open is the one that others find.
    pub fn is_in_place(&self) -> bool {
        self.open.as_ref().is_none_or(|home| home.is_at(&self.bpffs))
    }

    /// Where the directory is that was open, if it was moved within the file system of its successor.
    pub fn moved_to(&self, successor: &Self) -> Option<PathBuf> {
        let (old, new) = (self.open.as_ref()?, successor.open.as_ref()?);
        old.is_beside(new).then(|| shown(&self.home))
    }

    fn opened(bpffs: &Path, home: Home) -> Self {
        Self::at(bpffs, home.path(), Some(Arc::new(home)))
    }

    fn at(bpffs: &Path, home: PathBuf, open: Option<Arc<Home>>) -> Self {
        let root = home.join(format!("v{LAYOUT}"));
        Self { bpffs: bpffs.to_owned(), home, root, open }
    }

    /// The bpffs, as it was named.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
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
            sets.extend(name.and_then(number).map(|number| (number, path)));
        }
        Ok(sets)
    }

    /// What looks like a directory of maps, and has no name that an agent gives: nobody goes on from
    /// it.
    pub fn strays(&self) -> io::Result<Vec<PathBuf>> {
        let mut strays = subdirectories(&self.root)?;
        let own = [self.staging(), self.discarded()];
        strays.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("maps") && number(name).is_none() && !own.contains(path)
        });
        strays.sort();
        Ok(strays)
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
        for root in subdirectories(&self.home)? {
            if (Self { root, ..self.clone() }).has_own_links()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there is a link, of this layout.
    pub fn has_own_links(&self) -> io::Result<bool> {
        match fs::read_dir(self.links()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            entries => Ok(entries?.next().is_some()),
        }
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
        DirBuilder::new().recursive(true).mode(0o700).create(self.links())
    }

    /// The agent that has the lock.
    pub fn holder(&self) -> io::Result<Option<Holder>> {
        home::locked_by(&self.home)
    }

    /// Removes everything of every layout: links first, so that no program is left that looks into
    /// maps nobody fills. Returns what was removed.
    pub fn remove_all(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for layout in subdirectories(&self.home)? {
            remove_at(&layout.join("links"), &mut removed)?;
        }
        match &self.open {
            Some(home) if home.remove()? => removed.push(self.bpffs.join(home::NAME)),
            Some(_) => {}
            None => remove_at(&self.home, &mut removed)?,
        }
        Ok(removed)
    }

    /// The pins of other layouts.
    pub fn other_layouts(&self) -> io::Result<Vec<Self>> {
        let mut roots = subdirectories(&self.home)?;
        roots.retain(|root| *root != self.root);
        roots.sort();
        Ok(roots.into_iter().map(|root| Self { root, ..self.clone() }).collect())
    }

    /// Removes the pins of other layouts. Only when the own links are in place.
    pub fn remove_other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for layout in self.other_layouts()? {
            remove_at(&layout.links(), &mut removed)?;
            remove_at(&layout.root, &mut removed)?;
        }
        Ok(removed)
    }
}

/// The number in the name of a directory of maps: from 1 on, written in one way, and with one after it.
fn number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("maps-")?;
    let number = digits.parse().ok().filter(|number| (1..u32::MAX).contains(number))?;
    (number.to_string() == digits).then_some(number)
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

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_number_is_written_in_one_way() {
        for (name, wanted) in [("maps-1", Some(1)), ("maps-4294967294", Some(u32::MAX - 1))] {
            assert_eq!(number(name), wanted, "{name}");
        }
        for name in [
            "maps-0",
            "maps-007",
            "maps-+7",
            "maps-",
            "maps-abc",
            "maps-4294967295",
            "maps-4294967296",
            "maps_new",
            "1",
        ] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
