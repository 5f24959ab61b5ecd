//! Removing a directory and all in it, by descriptors: no link is followed, and no other file system
//! entered, whoever changes what is there meanwhile.

use std::{
    fs::{File, Metadata},
    io,
    os::fd::AsRawFd as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{UnlinkatFlags, unlinkat},
};

use super::places::{beneath, place};

/// Removes the directory `name` in `parent`; whether it was there. What is no directory is an error,
/// and stays.
pub(super) fn remove(parent: &File, name: &str) -> io::Result<bool> {
    let dir = match beneath(parent, name, OFlag::O_RDONLY) {
        Err(Errno::ENOENT) => return Ok(false),
        dir => dir?,
    };
    if device(&dir.metadata()?) != device(&parent.metadata()?) {
        return Err(io::Error::other(format!(
            "a file system is mounted at {name}: unmount it first"
        )));
    }
    empty(&dir)?;
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(false),
        removed => Ok(removed.map(|()| true)?),
    }
}

fn device(metadata: &Metadata) -> u64 {
    metadata.dev()
}

/// Removes what is in a directory.
pub(super) fn empty(dir: &File) -> io::Result<()> {
    for (name, is_dir) in entries(dir)? {
        if is_dir {
            remove(dir, &name)?;
        } else {
            match unlinkat(dir, &*name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// What is in a directory, and which of it are directories. Of links: they are none.
fn entries(dir: &File) -> io::Result<Vec<(String, bool)>> {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().into_string();
        let name =
            name.map_err(|name| io::Error::other(format!("{} is no text", name.display())))?;
        found.push((name, entry.file_type()?.is_dir()));
    }
    Ok(found)
}

/// The same by a path, of which all but the last name is to be trusted.
pub(crate) fn remove_at(path: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    let (Some(parent), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match place(parent) {
        Err(Errno::ENOENT) => return Ok(()),
        parent => parent?,
    };
    if remove(&parent, name)? {
        removed.push(super::shown(path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_a_link_leads_to_stays() {
        let dir = TempDir::new().unwrap();
        let (tree, elsewhere) = (dir.path().join("tree"), dir.path().join("elsewhere"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir_all(elsewhere.join("c")).unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        symlink(&elsewhere, tree.join("a/link")).unwrap();
        symlink(&elsewhere, tree.join("a/b/link")).unwrap();
        let mut removed = Vec::new();
        remove_at(&tree, &mut removed).unwrap();
        assert!(!tree.exists() && elsewhere.join("c").exists());
        assert_eq!(removed, [tree.as_path()]);
        // A link in its place is no directory, and stays as well.
        symlink(&elsewhere, &tree).unwrap();
        let error = remove_at(&tree, &mut removed).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        assert!(tree.is_symlink() && elsewhere.join("c").exists());
        remove_at(Path::new("/nowhere/socklb"), &mut removed).unwrap();
        assert_eq!(removed.len(), 1, "what is not there was not removed");
    }
}
