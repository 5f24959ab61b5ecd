//! The network namespaces of the machine, and visits to them.
//!
//! Promises: no descriptor keeps a namespace alive for longer than a visit to it, save what a visitor
//! leaves there; a thread that has entered a namespace ends after the tour; what cannot be entered is
//! counted and left out.
//!
//! Not found: a namespace that lives on by its sockets alone, without a process or a mount.
#![expect(unsafe_code, reason = "nix has no SO_NETNS_COOKIE")]

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Where container runtimes and `ip netns` keep namespaces mounted. The second root is for an agent
/// in a container that shares the machine's processes, but not these mounts.
const ROOTS: [&str; 2] = ["/", "/proc/1/root"];
const MOUNTS: [&str; 3] = ["run/netns", "var/run/netns", "run/docker/netns"];

/// How to get into a namespace. A path may lead elsewhere later: the cookie of the namespace tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Door {
    /// The one in which this thread was born.
    Own,
    /// A file of it.
    At(Arc<Path>),
}

impl Door {
    /// Whether it still leads there.
    pub(super) fn leads_to(&self, namespace: NamespaceId) -> bool {
        match self {
            Self::Own => true,
            Self::At(path) => id(path).is_ok_and(|id| id == namespace),
        }
    }
}

/// What there is.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// One door for each, the own namespace first.
    pub(super) doors: Vec<Door>,
    /// Behind each of them.
    pub(super) ids: Vec<NamespaceId>,
    /// Processes that do not show theirs, for lack of `CAP_SYS_PTRACE`.
    pub(super) hidden: usize,
}

/// Device and inode: the same for all files of a namespace.
pub(super) type NamespaceId = (u64, u64);

fn id(path: &Path) -> io::Result<NamespaceId> {
    let metadata = fs::metadata(path).map_err(|error| seen(path, error))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// `NotFound` for whatever the kernel says of a file `/proc/PID/ns/net` whose process ends just then:
/// ESRCH, or EACCES as of one that may not be looked at.
fn seen(path: &Path, error: io::Error) -> io::Error {
    let is_gone = match error.raw_os_error() {
        Some(libc::ESRCH) => true,
        Some(libc::EACCES) => path.ancestors().nth(2).is_some_and(|process| !process.exists()),
        _ => false,
    };
    if is_gone { io::ErrorKind::NotFound.into() } else { error }
}

impl Namespaces {
    /// The namespaces of every thread, and those that are mounted somewhere known.
    pub(super) fn find() -> io::Result<Self> {
        Self::look(|_| Vec::new())
    }

    /// Also those of which a process has an open file. With many open files this takes a while.
    fn find_open() -> io::Result<Self> {
        Self::look(|process| {
            let mut files: Vec<_> = entries(&process.join("fd")).collect();
            files.retain(|file| {
                let name = fs::read_link(file);
                name.is_ok_and(|name| name.to_str().is_some_and(|name| name.starts_with("net:[")))
            });
            files
        })
    }

    fn look(also_of: impl Fn(&Path) -> Vec<PathBuf>) -> io::Result<Self> {
        let own = id(Path::new("/proc/thread-self/ns/net"))?;
        // First the mounts: they last longer than a process.
        let mut doors = Self::mounted_beside(own);
        let mut add = |path: PathBuf| match id(&path) {
            Ok(id) => {
                if id != own {
                    doors.entry(id).or_insert_with(|| Door::At(path.into()));
                }
                true
            }
            // The process has just ended, or is somebody else's.
            Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
        };
        let mut hidden = 0;
        for process in entries(Path::new("/proc")) {
            let name = process.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            if !add(process.join("ns/net")) {
                hidden += 1;
                continue;
            }
            for thread in entries(&process.join("task")) {
                if !thread.ends_with(name) {
                    add(thread.join("ns/net"));
                }
            }
            for file in also_of(&process) {
                add(file);
            }
        }
        doors.remove(&own);
        let all = std::iter::once((own, Door::Own)).chain(doors);
        let (ids, doors) = all.unzip();
        Ok(Self { doors, ids, hidden })
    }

    /// Those that are mounted somewhere known; none if the own one cannot be told from them.
    pub(super) fn mounted() -> BTreeMap<NamespaceId, Door> {
        let own = id(Path::new("/proc/thread-self/ns/net"));
        own.map_or_else(|_| BTreeMap::new(), Self::mounted_beside)
    }

    fn mounted_beside(own: NamespaceId) -> BTreeMap<NamespaceId, Door> {
        let mut doors = BTreeMap::new();
        for root in ROOTS {
            for directory in MOUNTS {
                for path in entries(&Path::new(root).join(directory)) {
                    // What lies there without being mounted is an empty file of another file system.
                    if let Ok(id) = id(&path)
                        && id.0 == own.0
                        && id != own
                    {
                        doors.entry(id).or_insert_with(|| Door::At(path.into()));
                    }
                }
            }
        }
        doors
    }
}

/// Opens a namespace, of the file system of another one. What a process has put into its place meanwhile
/// is not opened, since that could wait for ever: it is not found.
fn open(path: &Path, other: &File) -> io::Result<File> {
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    if place.metadata()?.dev() != other.metadata()?.dev() {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// What is in a directory; nothing if it cannot be read.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Goes through these doors, one after the other, in a thread of its own, and does something behind
/// each. The results come in the order of the doors.
pub(super) fn tour<D, T, F>(doors: &[D], mut visit: F) -> Vec<io::Result<T>>
where
    D: AsRef<Door> + Sync,
    T: Send,
    F: FnMut(usize) -> io::Result<T> + Send,
{
    let run = move || {
        // Back home: the own namespace need not be the first, and cannot be entered without
        // CAP_SYS_ADMIN either, so nothing is done where nothing was left.
        let mut away = false;
        let home = File::open("/proc/thread-self/ns/net");
        let mut go = |door: &Door| -> io::Result<()> {
            match (door, &home) {
                (Door::Own, _) if !away => Ok(()),
                (Door::Own, Ok(home)) => Ok(setns(home, CloneFlags::CLONE_NEWNET)?),
                (Door::Own, Err(error)) => Err(io::Error::from(error.kind())),
                (Door::At(path), _) => {
                    let home = home.as_ref().map_err(|error| io::Error::from(error.kind()))?;
                    let door = open(path, home).map_err(|error| seen(path, error))?;
                    setns(door, CloneFlags::CLONE_NEWNET)?;
                    away = true;
                    Ok(())
                }
            }
        };
        doors
            .iter()
            .enumerate()
            .map(|(index, door)| go(door.as_ref()).and_then(|()| visit(index)))
            .collect::<Vec<_>>()
    };
    let result = thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespaces".into()).spawn_scoped(scope, run);
        thread.map(thread::ScopedJoinHandle::join)
    });
    match result {
        Ok(Ok(results)) => results,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        // No thread could be started.
        Err(error) => doors.iter().map(|_| Err(io::Error::from(error.kind()))).collect(),
    }
}

impl AsRef<Self> for Door {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// The cookie of the network namespace of a process.
pub fn cookie_of_process(pid: u32) -> io::Result<u64> {
    let door = Door::At(Path::new(&format!("/proc/{pid}/ns/net")).into());
    tour(&[door], |_| cookie()).pop().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
}

/// Does something in the network namespace of a process, in a thread of its own if that is another one
/// than this thread's: to enter it takes CAP_SYS_ADMIN, and to find it out mostly CAP_SYS_PTRACE.
pub fn in_netns_of_process<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    if id(&path)? == id(Path::new("/proc/thread-self/ns/net"))? {
        return Ok(work());
    }
    let mut work = Some(work);
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let visit = |_| work.take().map(|work| work()).ok_or_else(gone);
    tour(&[Door::At(path.into())], visit).pop().unwrap_or_else(|| Err(gone()))
}

/// Whether a process that lives does not show its namespace.
pub(super) fn is_hidden(pid: &str) -> bool {
    let shown = id(&Path::new("/proc").join(pid).join("ns/net"));
    shown.is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
}

/// The cookies of all namespaces that can be found, those included of which a process has an open file; none
/// if one of them could not be looked at.
pub(super) fn cookies() -> io::Result<Option<HashSet<u64>>> {
    let found = Namespaces::find_open()?;
    Ok(tour(&found.doors, |_| cookie()).into_iter().collect::<io::Result<_>>().ok())
}

/// The cookie of the network namespace of this thread, as `bpf_get_netns_cookie` gives it: no other
/// namespace ever has the same.
pub(super) fn cookie() -> io::Result<u64> {
    let family = AddressFamily::Unix;
    cookie_of(&socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The cookie of the network namespace that a socket was made in.
pub(super) fn cookie_of(socket: &OwnedFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the pointers are to variables of the sizes that are given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_first_and_needs_no_privilege() {
        let found = Namespaces::find().unwrap();
        assert_eq!(found.doors.first(), Some(&Door::Own));
        assert_eq!(found.doors.iter().filter(|door| **door == Door::Own).count(), 1);
        let here = cookie().unwrap();
        let there = tour(&[Door::Own, Door::Own], |_| cookie());
        assert_eq!(there.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [here; 2]);
    }

    #[test]
    fn a_process_that_ends_is_not_one_that_hides() {
        let kind =
            |path: &str, errno| seen(Path::new(path), io::Error::from_raw_os_error(errno)).kind();
        for (errno, ended, alive) in [
            (libc::ENOENT, io::ErrorKind::NotFound, io::ErrorKind::NotFound),
            (libc::ESRCH, io::ErrorKind::NotFound, io::ErrorKind::NotFound),
            (libc::EACCES, io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied),
        ] {
            assert_eq!(kind("/proc/4194305/ns/net", errno), ended, "{errno}");
            assert_eq!(kind("/proc/self/ns/net", errno), alive, "{errno}");
        }
        assert_eq!(kind("/run/netns/a", libc::EACCES), io::ErrorKind::PermissionDenied);
    }

    /// A process may put anything where a file of a namespace was seen.
    #[test]
    fn what_is_in_the_place_of_a_namespace_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        assert_eq!(open(&fifo, &home).unwrap_err().kind(), io::ErrorKind::NotFound);
        let again = open(Path::new("/proc/thread-self/ns/net"), &home).unwrap();
        assert_eq!(again.metadata().unwrap().ino(), home.metadata().unwrap().ino());
    }

    #[test]
    fn a_door_that_is_none_is_an_error_and_the_tour_goes_on() {
        let doors = ["/nowhere", "/proc/self/ns/uts", "/dev/null"];
        let mut doors = doors.map(|path| Door::At(Path::new(path).into())).to_vec();
        doors.push(Door::Own);
        let results = tour(&doors, Ok);
        assert!(results[..3].iter().all(Result::is_err));
        assert_eq!(*results[3].as_ref().unwrap(), 3);
    }
}
