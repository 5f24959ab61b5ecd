//! Programs of others at the same hooks: of several that change a destination, the last one wins, and
//! none of them knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramInfo, loaded_programs};
use serde::Serialize;

use super::programs::{ProgramStatus, State, visible};
use crate::{
    datapath::effective,
    pins::{ATTACH_TYPES, PROGRAMS, cgroup_id},
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

/// All of them, in the cgroups of our programs and those above. One that uses a map of ours, by
/// their ids, is ours, and has lost its pin: that is noted in `ours`.
pub(super) fn find(ours: &mut [ProgramStatus], our_maps: &BTreeSet<u32>) -> io::Result<Vec<Other>> {
    let mut cgroups: BTreeSet<PathBuf> = ours.iter().filter_map(|p| p.cgroup.clone()).collect();
    let own: BTreeSet<u32> = ours.iter().filter_map(|program| program.program_id).collect();
    // Not everybody who may ask for the programs of a cgroup may look at them.
    let programs: BTreeMap<u32, ProgramInfo> =
        loaded_programs().flatten().map(|info| (info.id(), info)).collect();
    let uses_our_maps = |id: &u32| {
        let maps = programs.get(id).and_then(|info| info.map_ids().ok().flatten());
        maps.is_some_and(|maps| maps.iter().any(|map| our_maps.contains(map)))
    };
    if cgroups.is_empty() && programs.keys().any(uses_our_maps) {
        // All pins are gone, and with them what tells where the programs are.
        let runs_one = |cgroup: &Path| {
            let cgroup = File::open(cgroup).ok();
            cgroup.is_some_and(|cgroup| {
                ATTACH_TYPES.iter().any(|(_, attach_type)| {
                    effective::programs(&cgroup, *attach_type)
                        .is_ok_and(|ids| ids.iter().any(uses_our_maps))
                })
            })
        };
        cgroups.extend(visible(&runs_one));
    }
    let mut found = BTreeSet::new();
    for path in &cgroups {
        let cgroup = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            cgroup => cgroup?,
        };
        for (hook, attach_type) in ATTACH_TYPES {
            let ids = effective::programs(&cgroup, attach_type)?.into_iter();
            found.extend(ids.map(|id| (hook, id)));
        }
    }
    found.retain(|(_, id)| !own.contains(id));
    for program in ours.iter_mut().filter(|program| program.state == State::Missing) {
        let is_it = |(hook, id): &&(&str, u32)| *hook == program.name && uses_our_maps(id);
        if let Some(place) = found.iter().find(is_it).copied() {
            found.remove(&place);
            (program.state, program.program_id) = (State::Unpinned, Some(place.1));
            // All of ours are attached to one.
            program.cgroup = cgroups.first().cloned();
            program.cgroup_id =
                program.cgroup.as_deref().and_then(|path| cgroup_id(&File::open(path).ok()?).ok());
        }
    }
    let mut others: Vec<Other> = found
        .into_iter()
        .map(|(hook, id)| Other { hook, name: name(&programs, id), program_id: id })
        .collect();
    others.sort();
    Ok(others)
}

fn name(programs: &BTreeMap<u32, ProgramInfo>, id: u32) -> String {
    let name = programs.get(&id).and_then(ProgramInfo::name_as_str);
    name.unwrap_or_default().to_owned()
}
