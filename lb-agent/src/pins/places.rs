//! Directories by descriptors: nobody who renames one, or puts a link in its place, leads us elsewhere.

use std::{fs::File, path::Path};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// Opens a directory as a place, which needs no right to read what is there.
pub(super) fn place(path: &Path) -> Result<File, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map(File::from)
}

/// Opens the directory `name` in `parent`, and nothing that a link of that name leads to.
pub(super) fn beneath(parent: &File, name: &str, flags: OFlag) -> Result<File, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let flags = flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve)).map(File::from)
}
