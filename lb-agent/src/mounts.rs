//! Where bpffs and cgroup2 are mounted, as this thread sees it.
//!
//! A mount that another one hides is in the kernel's list all the same. Whether a path leads to a
//! mount is therefore asked of the kernel, by the mount's id.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// One line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// The kernel's id of the mount.
    pub id: u64,
    /// Which directory of the file system is seen there. Of cgroup2: as the reader's cgroup namespace
    /// has it.
    pub root: String,
    /// Where.
    pub path: PathBuf,
    /// Which file system.
    pub kind: String,
    /// Whether it may not be written to.
    pub read_only: bool,
}

impl Mount {
    /// Whether its path leads to it, and not to a mount on top of it.
    fn is_visible(&self) -> bool {
        open(&self.path).and_then(|file| id_of(&file)).is_ok_and(|id| id == self.id)
    }
}

/// The mounts of a kind that can be reached, in the order in which they were made.
pub fn all(kind: &str) -> io::Result<Vec<Mount>> {
    let mut mounts = list()?;
    mounts.retain(|mount| mount.kind == kind && mount.is_visible());
    Ok(mounts)
}

/// The first mount of a file system: `bpf`, `cgroup2`.
pub fn first(kind: &str) -> io::Result<Option<Mount>> {
    Ok(list()?.into_iter().find(|mount| mount.kind == kind && mount.is_visible()))
}

/// The mount that a path lies in; none if it is in nobody's list.
pub fn of(path: &Path) -> io::Result<Option<Mount>> {
    let id = id_of(&open(path)?)?;
    Ok(list()?.into_iter().find(|mount| mount.id == id))
}

fn list() -> io::Result<Vec<Mount>> {
    Ok(parse(&read("/proc/thread-self/mountinfo")?))
}

/// Opens a path as a place, which needs no right to read what is there.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

fn id_of(file: &File) -> io::Result<u64> {
    let text = read(&format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A file of the kernel's; an error names it.
fn read(path: &str) -> io::Result<String> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    fs::read_to_string(path).map_err(named)
}

/// The lines of a mountinfo, see proc(5).
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let id = mount.next()?.parse().ok()?;
        let root = unescape(mount.nth(2)?);
        let path = PathBuf::from(unescape(mount.next()?));
        let mut system = system.split(' ');
        let kind = system.next()?.to_owned();
        let options = [mount.next()?, system.nth(1)?];
        let read_only = options.iter().any(|list| list.split(',').any(|option| option == "ro"));
        Some(Mount { id, root, path, kind, read_only })
    };
    text.lines().filter_map(line).collect()
}

/// A space in a path is written `\040`.
fn unescape(field: &str) -> String {
    let mut rest = field;
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        if let Some(code) = code {
            text.push(code.into());
            rest = &after[3..];
        } else {
            text.push('\\');
            rest = after;
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hosts_and_odd_paths() {
        let mounts = parse(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             41 31 0:38 /../.. /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw,nsdelegate\n\
             42 31 0:40 / /mnt/my\\040bpf ro,relatime - bpf bpf rw,mode=700\n\
             43 31 0:41 / /mnt/other rw,relatime - bpf bpf ro\n\nnonsense\n",
        );
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].path, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!((mounts[1].id, mounts[1].root.as_str()), (41, "/../.."));
        assert!(!mounts[1].read_only);
        assert_eq!(mounts[2].path, Path::new("/mnt/my bpf"));
        assert!(mounts[2].read_only && mounts[3].read_only, "the mount, or the file system");
    }

    #[test]
    fn a_path_belongs_to_what_is_seen_there() {
        let of = |path: &str| of(Path::new(path)).unwrap().unwrap();
        let proc = of("/proc/sys");
        assert_eq!(proc.kind, "proc");
        assert!(proc.is_visible());
        assert!(!Mount { path: "/".into(), ..proc }.is_visible());
        assert!(super::of(Path::new("/nowhere")).is_err());
    }
}
