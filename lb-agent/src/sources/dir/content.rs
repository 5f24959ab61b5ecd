//! The content of one file, whatever has its name.
//!
//! Only regular files are read, and links to them: nothing else keeps the reader waiting, or is taken
//! away by being read.

use std::{
    fs::{File, FileType, Metadata},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::sys::statfs::{
    CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC,
    fstatfs,
};

/// The largest file that is read, bytes. The objects of a large cluster have 50 MB.
const LARGEST: u64 = 64 << 20;
/// File systems whose files are questions to the kernel. Some give an answer once, some wait for it.
const VIEWS: [FsType; 5] =
    [PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC, CGROUP2_SUPER_MAGIC];

/// What tells one content from another without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    /// Device and inode.
    pub(super) file: (u64, u64),
    pub(super) len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a regular file looks like; any other sort is an error.
pub(super) fn regular(metadata: &Metadata) -> io::Result<Stamp> {
    let kind = metadata.file_type();
    if kind.is_file() { Ok(metadata.into()) } else { Err(io::Error::other(sort(kind))) }
}

fn sort(kind: FileType) -> String {
    let sort = match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    format!("it is {sort}; only regular files are read, and links to them")
}

/// The content of a file, and the stamp it has; none if the file is changing.
pub(super) fn read(path: &Path) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    // What has the name may have changed since it was listed: a FIFO would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    let before = regular(&file.metadata()?)?;
    if VIEWS.contains(&fstatfs(&file)?.filesystem_type()) {
        return Err(io::Error::other("it is a file of the kernel's; only those on disks are read"));
    }
    if before.len > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {} MB, at most {} are read", before.len >> 20, LARGEST >> 20),
        ));
    }
    let mut content = Vec::with_capacity(usize::try_from(before.len).unwrap_or(0) + 1);
    // One byte more shows that there is more.
    file.by_ref().take(before.len + 1).read_to_end(&mut content)?;
    let after = Stamp::from(&file.metadata()?);
    if before != after {
        return Ok(None);
    }
    if u64::try_from(content.len()).is_ok_and(|len| len > before.len) {
        return Err(io::Error::other("it has more bytes than its size says"));
    }
    Ok(Some((content, after)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Between the list and the reading the name may get another owner.
    #[test]
    fn what_is_opened_is_looked_at() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.yaml");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&path).unwrap_err().to_string().starts_with("it is a FIFO"));
        assert!(read(Path::new("/dev/null")).unwrap_err().to_string().contains("a device"));
        assert!(read(dir.path()).unwrap_err().to_string().contains("a directory"));
        let of_kernel = read(Path::new("/proc/self/mounts")).unwrap_err().to_string();
        assert!(of_kernel.contains("of the kernel's"), "{of_kernel}");
    }
}
