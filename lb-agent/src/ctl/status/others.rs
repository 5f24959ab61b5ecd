//! Programs of others at the same hooks: of several that change a destination, the last one wins, and
//! none of them knows.
#![expect(unsafe_code, reason = "aya does not ask a cgroup for its programs")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::Path,
};

use aya::programs::loaded_programs;
use serde::Serialize;

use super::programs::Attachment;
use crate::pins::{ATTACH_TYPES, PROGRAMS};

/// A program that is not pinned here.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Other {
    /// Where it is attached, by the name of our program there.
    pub(super) hook: &'static str,
    /// The name it has in the kernel; empty if it has none, or does not tell.
    pub(super) name: String,
    /// The kernel's id of the program.
    pub(super) program_id: u32,
}

impl Other {
    /// Whether it has the name of one of ours: of an agent with another bpffs.
    pub(super) fn is_socklb(&self) -> bool {
        PROGRAMS.contains(&&*self.name)
    }
}

/// All of them, in the cgroups of our programs and those above.
pub(super) fn find(ours: &[Attachment]) -> io::Result<Vec<Other>> {
    let cgroups: BTreeSet<&Path> = ours.iter().filter_map(|p| p.cgroup.as_deref()).collect();
    let own: BTreeSet<u32> = ours.iter().filter_map(|program| program.program_id).collect();
    let mut found = BTreeSet::new();
    for cgroup in cgroups {
        let cgroup = match File::open(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            cgroup => cgroup?,
        };
        for (hook, attach_type) in ATTACH_TYPES {
            found.extend(query(&cgroup, attach_type)?.into_iter().map(|id| (hook, id)));
        }
    }
    found.retain(|(_, id)| !own.contains(id));
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // Not everybody who may ask for the programs of a cgroup may look at them.
    let names: BTreeMap<u32, String> = loaded_programs()
        .flatten()
        .map(|info| (info.id(), info.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut others: Vec<Other> = found
        .into_iter()
        .map(|(hook, id)| Other {
            hook,
            name: names.get(&id).cloned().unwrap_or_default(),
            program_id: id,
        })
        .collect();
    others.sort();
    Ok(others)
}

/// Most programs of a hook that the kernel lets be attached to one cgroup, times its depth, about.
const MOST: usize = 256;
const BPF_PROG_QUERY: libc::c_int = 16;
/// Also those of the cgroups above.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// `union bpf_attr`, as far as `BPF_PROG_QUERY` had it from the first.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// The ids of the programs that run for a socket in the cgroup.
fn query(cgroup: &File, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; MOST];
    let mut query = Query {
        target: u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?,
        attach_type,
        flags: BPF_F_QUERY_EFFECTIVE,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        padding: 0,
    };
    // SAFETY: `query` is as long as is said, and the kernel writes at most `count` ids to `ids`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    // With more than fit, the kernel gives the first ones and says ENOSPC.
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() != Some(libc::ENOSPC) {
        return Err(error);
    }
    ids.truncate(usize::try_from(query.count).unwrap_or(MOST));
    Ok(ids)
}
