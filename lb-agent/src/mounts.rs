//! Where bpffs and cgroup2 are mounted, as this process sees it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One line of `/proc/mounts`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// Where.
    pub path: PathBuf,
    /// Which file system.
    pub kind: String,
    /// Whether it may not be written to.
    pub read_only: bool,
}

/// The mounts, in the order in which they were made.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string("/proc/self/mounts")?))
}

/// The first mount of a file system: `bpf`, `cgroup2`.
pub fn first(kind: &str) -> io::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().find(|mount| mount.kind == kind))
}

/// The mount that a path lies in.
pub fn of(path: &Path) -> io::Result<Option<Mount>> {
    let path = path.canonicalize()?;
    // Of two mounts at one place the later one is seen.
    let depth = |mount: &Mount| mount.path.components().count();
    Ok(mounts()?.into_iter().filter(|mount| path.starts_with(&mount.path)).max_by_key(depth))
}

fn parse(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let path = PathBuf::from(unescape(fields.next()?));
        let kind = fields.next()?.to_owned();
        let read_only = fields.next()?.split(',').any(|option| option == "ro");
        Some(Mount { path, kind, read_only })
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
            "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n\
             bpf /mnt/my\\040bpf bpf ro,mode=700 0 0\n\nnonsense\n",
        );
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].path, Path::new("/sys/fs/cgroup/unified"));
        assert!(!mounts[1].read_only);
        assert_eq!(mounts[2].path, Path::new("/mnt/my bpf"));
        assert!(mounts[2].read_only);
    }
}
