//! The directory of all pins, `<bpffs>/socklb`: opened, judged, made, locked.
//!
//! Every local user may make files in a bpffs that is mounted without further options: make the
//! directory before the agent does, put a link to another place there, hold the lock. So the directory
//! is opened without following links, judged by its descriptor, and used by that descriptor from then
//! on. With mode 0700 nobody but root has any of it open, and nothing in it is anybody else's.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    sys::{
        stat::{FileStat, Mode, fchmod, fstat, major, minor, mkdirat},
        statfs::{BPF_FS_MAGIC, FsType, fstatfs},
    },
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};

use super::{
    places::{beneath, place},
    removal,
};

/// The directory's name in the bpffs.
pub(super) const NAME: &str = "socklb";
/// How long whoever has the lock is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Root's alone.
const MODE: u32 = 0o700;
/// What others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why the directory of pins is not used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another process has the lock.
    #[error("{}", held(path, holder))]
    Held {
        /// The directory.
        path: PathBuf,
        /// Whoever has it.
        holder: Holder,
    },
    /// It is not to be trusted.
    #[error("{} {wrong}", path.display())]
    Unsafe {
        /// The directory, or the bpffs.
        path: PathBuf,
        /// What is wrong, and the remedy.
        wrong: String,
    },
    /// The kernel said no.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The directory, or the bpffs.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

fn held(path: &Path, holder: &Holder) -> String {
    let path = path.display();
    if holder.is_root() {
        format!(
            "another lb-agent is running on {path} ({holder}): stop it, or give this one another --bpffs \
             and --cgroup"
        )
    } else {
        format!("{holder} has the lock of {path}, and is no lb-agent: end it")
    }
}

/// Whoever holds a lock, as far as that can be seen.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Holder {
    /// None: it is hidden in another pid namespace.
    pub pid: Option<u32>,
    name: Option<String>,
    uid: Option<u32>,
}

impl Holder {
    /// Whether it can be an agent at all.
    pub fn is_root(&self) -> bool {
        self.uid.unwrap_or(0) == 0
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return f.write_str("a process that is not seen from here");
        };
        write!(f, "the process {pid}")?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        match self.uid {
            Some(uid) if uid != 0 => write!(f, " of the user {uid}"),
            _ => Ok(()),
        }
    }
}

/// The directory, open.
#[derive(Debug)]
pub(super) struct Home {
    /// The bpffs, or the directory in it that `--bpffs` names.
    parent: File,
    dir: Dir,
}

#[derive(Debug)]
enum Dir {
    Seen(File),
    Locked(Flock<File>),
}

/// What the directory is opened for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// To read what is pinned.
    Look,
    /// To remove it, if it is there; nobody else may use it meanwhile.
    Remove,
    /// To pin things in it; it is made, and nobody else may use it.
    Own,
}

impl Home {
    /// Opens the directory below `bpffs`, which the operator has named: links on the way there are
    /// followed. None if it is not there, and not to be made. Waits for the lock, up to two seconds.
    pub(super) fn open(bpffs: &Path, purpose: Purpose) -> Result<Option<Self>, HomeError> {
        Self::open_on(bpffs, purpose, BPF_FS_MAGIC)
    }

    fn open_on(bpffs: &Path, purpose: Purpose, kind: FsType) -> Result<Option<Self>, HomeError> {
        let path = bpffs.join(NAME);
        let start = Instant::now();
        loop {
            let Some((parent, dir)) = open(bpffs, purpose, kind)? else { return Ok(None) };
            if purpose == Purpose::Look {
                return Ok(Some(Self { parent, dir: Dir::Seen(dir) }));
            }
            let locked = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Ok(Self { parent, dir: Dir::Locked(lock) }),
                Err((dir, Errno::EWOULDBLOCK)) => Err(holder(&dir, &["WRITE", "READ"])),
                Err((_, errno)) => return Err(io_error("lock", &path)(errno)),
            };
            // A lock on a directory that was removed meanwhile keeps nobody away: `--cleanup` came in
            // between. If nobody has the lock and it cannot be had, `lbctl status` is asking, or the
            // canary of an agent that has ended is out: either takes an instant, on a machine that has
            // the time.
            let late = start.elapsed() >= PATIENCE;
            match locked {
                Ok(home) if home.is_at(bpffs) => return Ok(Some(home)),
                Err(holder) if late => return Err(HomeError::Held { path, holder }),
                Ok(_) if late => {
                    let holder = Holder::default();
                    return Err(HomeError::Held { path, holder });
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub(super) fn dir(&self) -> &File {
        match &self.dir {
            Dir::Seen(dir) => dir,
            Dir::Locked(lock) => lock,
        }
    }

    /// Removes it, and all in it; whether it still had its name.
    pub(super) fn remove(&self) -> io::Result<bool> {
        removal::empty(self.dir())?;
        match unlinkat(&self.parent, NAME, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(false),
            removed => Ok(removed.map(|()| true)?),
        }
    }

    /// A path that leads to this directory, whatever becomes of its name.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("{DESCRIPTORS}/{}", self.dir().as_raw_fd()))
    }

    /// Whether this is another directory in the same file system as `other`, and not removed.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        let of = |home: &Self| home.dir().metadata().map(|it| (it.dev(), it.ino(), it.nlink()));
        match (of(self), of(other)) {
            (Ok((device, inode, links)), Ok((other_device, other_inode, _))) => {
                device == other_device && inode != other_inode && links > 0
            }
            _ => false,
        }
    }

    /// Whether this is the directory that is found below `bpffs` now.
    pub(super) fn is_at(&self, bpffs: &Path) -> bool {
        let found = place(bpffs).and_then(|parent| beneath(&parent, NAME, OFlag::O_PATH));
        found.is_ok_and(|found| is_same(self.dir(), &found))
    }
}

/// Whether both lead to the same file.
pub(super) fn is_same(one: &File, other: &File) -> bool {
    let inode = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((inode(one), inode(other)), (Ok(one), Ok(other)) if one == other)
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(Errno) -> HomeError {
    move |errno| HomeError::Io { what, path: path.to_owned(), error: errno.into() }
}

/// Both directories, judged.
fn open(bpffs: &Path, purpose: Purpose, kind: FsType) -> Result<Option<(File, File)>, HomeError> {
    let path = bpffs.join(NAME);
    let distrust = |path: &Path, wrong: String| HomeError::Unsafe { path: path.to_owned(), wrong };
    let at_bpffs = |what| io_error(what, bpffs);
    let parent = place(bpffs).map_err(at_bpffs("open"))?;
    if fstatfs(&parent).map_err(at_bpffs("look at"))?.filesystem_type() != kind {
        return Err(distrust(bpffs, "is not in a bpf file system".to_owned()));
    }
    if purpose == Purpose::Own {
        let seen = fstat(&parent).map_err(at_bpffs("look at"))?;
        judge_parent(&seen, geteuid().as_raw(), bpffs).map_err(|wrong| distrust(bpffs, wrong))?;
    }
    let dir = loop {
        match beneath(&parent, NAME, OFlag::O_RDONLY) {
            Ok(dir) => break dir,
            Err(Errno::ENOENT) if purpose == Purpose::Own => {
                match mkdirat(&parent, NAME, Mode::from_bits_truncate(MODE)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(io_error("make", &path)(errno)),
                }
            }
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno @ (Errno::ELOOP | Errno::ENOTDIR)) => {
                let what = if errno == Errno::ELOOP { "a symbolic link" } else { "no directory" };
                let wrong = format!(
                    "is {what}, and lb-agent did not make it: find out who did, and `rm {}`",
                    path.display()
                );
                return Err(distrust(&path, wrong));
            }
            Err(errno) => return Err(io_error("open", &path)(errno)),
        }
    };
    if fstatfs(&dir).map_err(io_error("look at", &path))?.filesystem_type() != kind {
        let wrong = format!(
            "is not in the bpf file system, something else is mounted there: `umount {}`",
            path.display()
        );
        return Err(distrust(&path, wrong));
    }
    let seen = fstat(&dir).map_err(io_error("look at", &path))?;
    judge(&seen, geteuid().as_raw(), &path).map_err(|wrong| distrust(&path, wrong))?;
    if purpose == Purpose::Own && seen.st_mode & 0o777 != MODE {
        fchmod(&dir, Mode::from_bits_truncate(MODE))
            .map_err(io_error("change the mode of", &path))?;
        let before = format!("{:04o}", seen.st_mode & 0o7777);
        tracing::info!(path = %path.display(), before, "is root's alone now");
    }
    Ok(Some((parent, dir)))
}

/// Nobody else may have put anything into the directory of pins.
fn judge(seen: &FileStat, own: u32, path: &Path) -> Result<(), String> {
    let path = path.display();
    let (uid, mode) = (seen.st_uid, seen.st_mode & 0o7777);
    let remedy = format!(
        "remove it with `rm -r {path}` (if programs are pinned there, nothing is translated until \
         lb-agent runs again)"
    );
    if uid != 0 && uid != own {
        Err(format!(
            "belongs to the user {uid}, not to root, so lb-agent did not make it: {remedy}"
        ))
    } else if mode & OTHERS_WRITE != 0 {
        Err(format!(
            "has the mode {mode:04o}: others than root may have changed what is in it; {remedy}, or, if \
             you know all that is in it, `chmod 0700 {path}`"
        ))
    } else {
        Ok(())
    }
}

/// Nobody else may put another directory in its place.
fn judge_parent(seen: &FileStat, own: u32, path: &Path) -> Result<(), String> {
    let path = path.display();
    let (uid, mode) = (seen.st_uid, seen.st_mode & 0o7777);
    if uid != 0 && uid != own {
        Err(format!(
            "belongs to the user {uid}, who can put other pins in the place of lb-agent's: `chown 0 {path}`"
        ))
    } else if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        Err(format!(
            "has the mode {mode:04o}, without the sticky bit, so that others than root can put other \
             pins in the place of lb-agent's: `chmod 0700 {path}`, or mount it with `-o mode=0700`"
        ))
    } else {
        Ok(())
    }
}

/// Whether a process has the lock, and which. Looks into `/proc/locks` first: trying the lock, for an
/// instant, holds it, and an agent that starts in that instant would take us for another one.
pub(super) fn locked_by(dir: &Path) -> io::Result<Option<Holder>> {
    let dir = File::open(dir)?;
    let found = holder(&dir, &["WRITE"]);
    if found.pid.is_some() {
        return Ok(Some(found));
    }
    match Flock::lock(dir, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((_, Errno::EWOULDBLOCK)) => Ok(Some(found)),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// The process with a lock of one of these kinds; of the first kind that there is.
fn holder(dir: &File, kinds: &[&str]) -> Holder {
    let found =
        dir.metadata().ok().zip(fs::read_to_string("/proc/locks").ok()).and_then(|(of, text)| {
            let file = format!("{:02x}:{:02x}:{}", major(of.dev()), minor(of.dev()), of.ino());
            let pid = kinds.iter().find_map(|kind| pid_in(&text, kind, &file))?;
            Some((pid, file))
        });
    let Some((pid, file)) = found else { return Holder::default() };
    // Whoever took it may have ended, and have left it to a process that it began.
    let pid = if is_there(pid) { pid } else { heir(&file).unwrap_or(pid) };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let name = name.map(|name| name.trim_end().escape_debug().to_string());
    let uid = fs::metadata(format!("/proc/{pid}")).ok().map(|metadata| metadata.uid());
    Holder { pid: Some(pid), name, uid }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A process that has a locked file open.
fn heir(file: &str) -> Option<u32> {
    let is_locked = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("lock:")).any(|line| line.contains(file))
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut open = fs::read_dir(process.path().join("fdinfo")).ok()?.flatten();
        open.any(|entry| is_locked(entry.path())).then_some(pid)
    })
}

/// The process that holds a lock, in a text such as `1: FLOCK  ADVISORY  WRITE 1234 00:2b:18 0 EOF`.
fn pid_in(locks: &str, kind: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| match *line.split_ascii_whitespace().collect::<Vec<_>>() {
        [_, "FLOCK", _, of, pid, at, ..] if of == kind && at == file => pid.parse().ok(),
        _ => None,
    })
}

/// Where the kernel shows a process its descriptors.
const DESCRIPTORS: &str = "/proc/self/fd";

/// A path as people know it: below a directory that is open, the name that it has now.
pub fn shown(path: &Path) -> PathBuf {
    let below = path.strip_prefix(DESCRIPTORS).ok().and_then(|rest| {
        let mut parts = rest.components();
        let place = fs::read_link(Path::new(DESCRIPTORS).join(parts.next()?)).ok()?;
        let rest = parts.as_path();
        Some(if rest.as_os_str().is_empty() { place } else { place.join(rest) })
    });
    below.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests;
