//! Programs of others at the same hooks: of several that change a destination, the last one wins, and
//! none of them knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::Path,
};

use aya::programs::loaded_programs;
use serde::Serialize;

use super::programs::Attachment;
use crate::{
    datapath::effective,
    pins::{ATTACH_TYPES, PROGRAMS},
};

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
            let ids = effective::programs(&cgroup, attach_type)?.into_iter();
            found.extend(ids.map(|id| (hook, id)));
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
