//! The programs, and the cgroups they are attached to.

use std::{
    collections::HashMap,
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{programs::links::LinkError, sys::SyscallError};
use serde::Serialize;

use crate::{
    ctl::{
        failure::{self, Failure},
        table::NONE,
    },
    mounts,
    pins::{self, OpenLinkError, PROGRAMS, Pins},
};

/// One program, and where it is at work.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProgramStatus {
    pub(super) name: &'static str,
    pub(super) state: State,
    /// Where it is attached, as this process sees it; null if it does not see it.
    pub(super) cgroup: Option<PathBuf>,
    pub(super) cgroup_id: Option<u64>,
    /// The kernel's id of the program, as `bpftool prog` has it.
    pub(super) program_id: Option<u32>,
    /// The kernel's id of the link, as `bpftool link` has it.
    pub(super) link_id: Option<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    /// At work.
    Attached,
    /// No link is pinned, and it is not at work.
    Missing,
    /// At work by a link that has lost its pin.
    Unpinned,
    /// A link is pinned, but what it led to was removed.
    CgroupGone,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attached => "attached",
            Self::Missing => "missing",
            Self::Unpinned => "unpinned",
            Self::CgroupGone => "detached",
        })
    }
}

impl ProgramStatus {
    pub(super) fn cgroup_text(&self) -> String {
        match (self.state, &self.cgroup, self.cgroup_id) {
            (State::Missing, ..) => NONE.to_owned(),
            (State::CgroupGone, ..) => "<gone>".to_owned(),
            (State::Attached | State::Unpinned, Some(path), _) => path.display().to_string(),
            // Another cgroup namespace, or no cgroup2 mounted here.
            (State::Attached | State::Unpinned, None, id) => {
                format!("<hidden>, id {}", id.unwrap_or(0))
            }
        }
    }
}

/// All programs, in the order of their names.
pub(super) fn find(pins: &Pins) -> Result<Vec<ProgramStatus>, Failure> {
    let mut paths = HashMap::new();
    let mut names = PROGRAMS;
    names.sort_unstable();
    names.into_iter().map(|name| program(pins, name, &mut paths)).collect()
}

fn program(
    pins: &Pins,
    name: &'static str,
    paths: &mut HashMap<u64, Option<PathBuf>>,
) -> Result<ProgramStatus, Failure> {
    let path = pins.link(name);
    if !path.exists() {
        return Ok(ProgramStatus {
            name,
            state: State::Missing,
            cgroup: None,
            cgroup_id: None,
            program_id: None,
            link_id: None,
        });
    }
    let fail = |error: OpenLinkError| {
        let what = format!("cannot look at the link {}", pins::shown(&path).display());
        match error {
            OpenLinkError::Open(LinkError::SyscallError(SyscallError { io_error, .. })) => {
                failure::kernel(&what, &io_error)
            }
            other => Failure::Unreachable(format!("{what}: {other}")),
        }
    };
    let (link, cgroup_id) = pins::open_link(&path).map_err(fail)?;
    let info = link.info().map_err(|error| fail(error.into()))?;
    let gone = cgroup_id == 0;
    Ok(ProgramStatus {
        name,
        state: if gone { State::CgroupGone } else { State::Attached },
        cgroup: paths.entry(cgroup_id).or_insert_with(|| cgroup_path(cgroup_id)).clone(),
        cgroup_id: (!gone).then_some(cgroup_id),
        program_id: Some(info.program_id()),
        link_id: Some(info.id()),
    })
}

/// The directory of a cgroup, if it is visible here.
fn cgroup_path(id: u64) -> Option<PathBuf> {
    visible(&is_cgroup(id))
}

/// A cgroup's id is its directory's inode.
pub(super) fn is_cgroup(id: u64) -> impl Fn(&Path) -> bool {
    move |path| fs::metadata(path).is_ok_and(|meta| meta.ino() == id)
}

/// The first cgroup seen here of which that is so.
pub(super) fn visible(is_it: &impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mounts = mounts::all("cgroup2").ok()?;
    mounts.into_iter().find_map(|mount| search(&mount.path, is_it))
}

/// The first directory of which that is so, `dir` itself or below it. Level by level: the root of a
/// hierarchy is the likeliest place.
pub(super) fn search(dir: &Path, is_it: &impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut level = vec![dir.to_owned()];
    while !level.is_empty() {
        if let Some(path) = level.iter().find(|path| is_it(path)) {
            return Some(path.clone());
        }
        level = level.iter().flat_map(|dir| subdirectories(dir)).collect();
    }
    None
}

/// None, if the directory went meanwhile.
fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_by_its_inode() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let search = |inode| search(root.path(), &is_cgroup(inode));
        assert_eq!(search(inode(root.path())).as_deref(), Some(root.path()));
        assert_eq!(search(inode(&deep)), Some(deep));
        assert_eq!(search(inode(&root.path().join("file"))), None);
        assert_eq!(search(u64::MAX), None);
    }
}
