//! From a bpffs to the maps in it; where there are none, what to do about it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lb_common::abi::LAYOUT;
use lb_core::store::Snapshot;

use super::failure::{self, Failure};
use crate::{
    maps::{Access, Pinned},
    mounts,
    pins::{self, Pins, shown},
};

/// The pins below `bpffs`, or below the one that the agent takes by itself.
pub(super) fn pins(bpffs: Option<&Path>) -> Result<Pins, Failure> {
    let bpffs = match bpffs {
        Some(path) => checked(path)?,
        None => pins::default_bpffs()
            .map_err(|error| failure::kernel("cannot read the mounts", &error))?
            .ok_or_else(|| {
                Failure::Unreachable(
                    "no bpf file system is mounted here, so no agent can have pinned anything; if \
                     it runs elsewhere, run lbctl in its mount namespace"
                        .to_owned(),
                )
            })?,
    };
    let found = Pins::look(&bpffs).map_err(|error| failure::home(&error))?;
    found.ok_or_else(|| missing(&Pins::new(&bpffs)))
}

fn checked(path: &Path) -> Result<PathBuf, Failure> {
    let remedy = "name the bpf file system that lb-agent has (its --bpffs or SOCKLB_BPFFS)";
    let mount = mounts::of(path).map_err(|error| {
        let what = format!("--bpffs {}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::Unreachable(format!("{what}: there is no such directory: {remedy}"))
            }
            _ => failure::kernel(&what, &error),
        }
    })?;
    if mount.is_none_or(|mount| mount.kind != "bpf") {
        let text = format!("--bpffs {}: not in a bpf file system: {remedy}", path.display());
        return Err(Failure::Unreachable(text));
    }
    Ok(path.to_owned())
}

/// The maps in use, and what they say.
pub(super) fn maps(pins: &Pins) -> Result<(Pinned, Snapshot), Failure> {
    let what = || format!("cannot read {}", shown(pins.root()).display());
    let dir = pins
        .maps()
        .map_err(|error| failure::kernel(&what(), &error))?
        .ok_or_else(|| missing(pins))?;
    let maps = Pinned::open(&dir, Access::Read).map_err(|error| failure::open(&error))?;
    let snapshot = maps.snapshot().map_err(|error| failure::unreadable(pins, &error))?;
    Ok((maps, snapshot))
}

/// No maps: the agent was never here, or one of another version was.
fn missing(pins: &Pins) -> Failure {
    let (root, home) = (shown(pins.root()), shown(pins.home()));
    let root = root.display();
    let names = fs::read_dir(pins.home()).into_iter().flatten().flatten();
    let mut others: Vec<_> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| *name != format!("v{LAYOUT}"))
        .collect();
    others.sort();
    let holder = pins.holder().ok().flatten();
    Failure::Unreachable(if let Some(holder) = holder.filter(|_| others.is_empty()) {
        format!(
            "no maps are in force at {root} yet: an agent is running ({holder}), and makes them once it \
             knows all Services; `lbctl status` says what it waits for"
        )
    } else if others.is_empty() {
        format!(
            "no maps are pinned at {root}: start lb-agent, or name its bpf file system by --bpffs"
        )
    } else {
        format!(
            "no maps of layout v{LAYOUT} are pinned at {}, only {}: use the lbctl of the lb-agent \
             that pinned them",
            home.display(),
            others.join(", ")
        )
    })
}
