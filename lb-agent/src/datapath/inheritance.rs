//! What passes from one layout of the maps to another, whichever of them is the newer one.
//!
//! A map that keeps its name, its type and its sizes from one layout to another keeps its meaning, save
//! those that the engine fills. So what is remembered of sockets and of clients is not copied: the map
//! gets one more pin. Programs of both layouts then work on it, as long as both are at work, and nothing
//! that one of them remembers is lost. Bonds are found by the ids of service ports, so they go only with the
//! names of these ids, which are copied. What is stored for sockets goes without: a socket is asked for by
//! what it dialled, and by its id only where that is nobody's any more.
//!
//! The links pass to the programs one by one, see [`Datapath::attach`](super::Datapath::attach).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo};
use lb_common::abi::{AFFINITY, CLIENTS, COUNTERS};
use lb_core::{model::PortRef, store::max_names};

use super::{STORAGE, Sizes};
use crate::{
    maps::{self, OpenError, copy_bonds, probe_clients},
    pins::{Pins, shown},
};

/// The maps of a set that no engine fills.
const OF_CLIENTS: [&str; 3] = [AFFINITY, CLIENTS, COUNTERS];

/// What programs of another layout leave to ours.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    /// The service ports, and their ids.
    pub(super) names: BTreeMap<u32, PortRef>,
    /// Where the bonds of session affinity are, if they are to be copied: that map has another size.
    pub(super) bonds: Option<PathBuf>,
    /// Our pins of maps that are theirs.
    shared: BTreeMap<&'static str, PathBuf>,
}

impl Inheritance {
    /// Pins in our places what the programs at work remember, if they are another layout's: beside the
    /// set of maps; and, if that is about to be made, in it.
    pub(super) fn take(pins: &Pins, set: Option<&Path>, sizes: Sizes) -> Result<Self> {
        let mut this = Self::default();
        let Some(other) = at_work(pins).context("cannot read the pins")? else { return Ok(this) };
        let layout = shown(other.root());
        tracing::info!(from = %layout.display(), "the programs at work are another version's");
        let theirs = other.maps().context("cannot read the pins")?;
        for name in STORAGE {
            this.share(name, &other.storage(name), pins.storage(name))?;
        }
        if let (Some(theirs), Some(set)) = (theirs, set) {
            let names = names(&theirs, sizes).inspect_err(|error| {
                tracing::warn!("no client stays with its backend: {error:#}");
            });
            let is_wanted = |name: &&str| names.is_ok() || *name != AFFINITY;
            let damaged = probe_clients(&theirs)?;
            for name in OF_CLIENTS.into_iter().filter(is_wanted) {
                if let Some((_, what)) = damaged.iter().find(|(damaged, _)| *damaged == name) {
                    tracing::warn!("{what}: it is made anew");
                } else if name == AFFINITY && !has_size(&theirs.join(name), sizes.affinity) {
                    this.bonds = Some(theirs.clone());
                } else {
                    this.share(name, &theirs.join(name), set.join(name))?;
                }
            }
            this.names = names.unwrap_or_default();
        }
        Ok(this)
    }

    /// Gives a map of theirs one more pin, if it is there.
    fn share(&mut self, name: &'static str, theirs: &Path, ours: PathBuf) -> Result<()> {
        let Ok(map) = MapData::from_pin(theirs) else { return Ok(()) };
        // Of an agent of our layout that did not live to attach its programs.
        remove(&ours)?;
        map.pin(&ours).with_context(|| format!("cannot pin {}", shown(&ours).display()))?;
        self.shared.insert(name, ours);
        Ok(())
    }

    /// The map of this name is not one of our layout: gives it back. False if it was not theirs.
    pub(super) fn renounce(&mut self, name: &str) -> Result<bool> {
        let Some(pin) = self.shared.remove(name) else { return Ok(false) };
        is_made_anew(name);
        remove(&pin)?;
        Ok(true)
    }
}

/// Copies their bonds into the maps in `dir`. False, and the log says why, if that cannot be done.
pub(super) fn copies_bonds(theirs: &Path, dir: &Path) -> bool {
    match copy_bonds(theirs, dir) {
        Ok(()) => return true,
        Err(OpenError::Foreign { .. }) => is_made_anew(AFFINITY),
        Err(error) => {
            let error = anyhow::Error::new(error);
            tracing::warn!("not all clients stay with their backends: {error:#}");
        }
    }
    false
}

/// Says that the map of this name is not one of our layout.
fn is_made_anew(name: &str) {
    tracing::info!(map = name, "another version's has another shape: it is made anew");
}

/// The pins of the other layout whose programs are at work, while none of ours is.
fn at_work(pins: &Pins) -> io::Result<Option<Pins>> {
    if pins.has_own_links()? {
        return Ok(None);
    }
    for other in pins.other_layouts()? {
        if other.has_own_links()? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// The service ports behind the ids, all of which have to fit.
fn names(dir: &Path, sizes: Sizes) -> Result<BTreeMap<u32, PortRef>> {
    let names = maps::names(dir)?;
    let room = max_names(sizes.services);
    anyhow::ensure!(
        u32::try_from(names.len()).is_ok_and(|len| len <= room),
        "{} service ports do not fit; raise --max-services",
        names.len()
    );
    Ok(names)
}

fn has_size(pin: &Path, size: u32) -> bool {
    MapInfo::from_pin(pin).is_ok_and(|info| info.max_entries() == size)
}

fn remove(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", shown(pin).display()))
        }
        _ => Ok(()),
    }
}
