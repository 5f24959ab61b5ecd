//! The BPF programs and their maps: loaded, pinned, attached, taken over, replaced, removed.
//!
//! Promises: what is attached stays attached, with maps that belong together, whatever happens to
//! this process at whatever moment. A program is replaced in its link, atomically; its maps are
//! complete before that.

mod attach;
#[cfg(test)]
mod bytes;
pub mod effective;
mod floor;
mod inheritance;
#[cfg(test)]
mod locks;
#[cfg(test)]
mod stack;
mod trial;
mod verify;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapError, MapInfo},
    programs::{CgroupSockAddr, links::FdLink},
};
use lb_common::abi::{
    ADDRESSES, AFFINITY, BACKENDS, Backend, CLIENTS, COUNTERS, FILTER, FLOWS, FORMER, GENERATIONS,
    HEARD, HELD, Held, MAX_BONDS, MORE_FLOWS, NAMES, PORTS, SERVICES, SOCKETS, SOURCE_RANGES,
};
use lb_core::{
    op::Op,
    store::{Snapshot, Store as _, max_names},
};

use self::{
    floor::on_this_kernel,
    inheritance::{Inheritance, copies_bonds},
};
pub use self::{
    trial::{Trial, trials},
    verify::{Defect, Finding},
};
use crate::{
    maps::{Access, Pinned, copy_bonds, probe, probe_beside_storage},
    pins::{self, HomeError, PROGRAMS, Pins, shown},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/socklb-bpf"));

/// Sizes of the maps, in entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sizes {
    /// `--max-services`.
    pub services: u32,
    /// `--max-backends`.
    pub backends: u32,
    /// `--max-affinity`.
    pub affinity: u32,
}

/// The programs, loaded, and the maps they use.
#[derive(Debug)]
pub struct Datapath {
    programs: Ebpf,
    pins: Pins,
    /// Those that are attached. A pin that somebody removes takes nothing away while they are here.
    links: BTreeMap<&'static str, FdLink>,
    /// The number of the maps, once they are in force.
    set: u32,
    /// Their ids in the kernel.
    map_ids: BTreeMap<&'static str, u32>,
    /// Whether they are not in force yet.
    staged: bool,
    /// The number of the maps before them, which another size made useless.
    replaced: Option<u32>,
    /// Where programs of another layout may still make bonds that these maps do not have.
    late_bonds: Option<PathBuf>,
    /// Whether the maps say what an agent before us wrote.
    adopted: bool,
    /// Whether programs of an agent before us are attached.
    others_at_work: bool,
}

impl Datapath {
    /// Loads the programs on the pinned maps, or on new ones if there are none. Maps of another size
    /// are copied into new ones. Nothing is attached yet, and new maps are not in force.
    pub fn load(pins: &Pins, sizes: Sizes) -> Result<(Self, Pinned)> {
        pins.create().with_context(|| format!("cannot make {}", shown(&pins.links()).display()))?;
        let others_at_work = pins.has_links().context("cannot read the pins")?;
        // What a start or a resize left that was interrupted.
        discard(&pins.staging())?;
        discard(&pins.discarded())?;
        for stray in pins.strays().context("cannot read the pins")? {
            let path = shown(&stray);
            let path = path.display();
            tracing::warn!(
                "{path} has no name that lb-agent gives, and is not used: `rm -r {path}`"
            );
        }
        let mut sets = pins.map_sets().context("cannot read the pins")?.into_iter();
        let current = sets.next();
        for (_, unfinished) in sets {
            throw_away(pins, &unfinished)?;
        }
        let current = match current {
            Some((number, dir)) => match damage(&dir)? {
                None => Some((number, dir)),
                Some(what) => {
                    let path = shown(&dir);
                    tracing::warn!(
                        "{what}: the maps in {} are not used any more. Programs at work go on with them \
                         until new ones are filled",
                        path.display()
                    );
                    throw_away(pins, &dir)?;
                    None
                }
            },
            None => None,
        };
        let (set, replaced) = match &current {
            Some((number, dir)) if fit(dir, sizes)? => (*number, None),
            // There is one, see `Pins::map_sets`.
            Some((number, _)) => (number + 1, Some(*number)),
            None => (1, None),
        };
        let adopted = current.is_some();
        let staged = replaced.is_some() || !adopted;
        let dir = if staged { pins.staging() } else { pins.map_set(set) };
        if staged {
            fs::create_dir(&dir)
                .with_context(|| format!("cannot make {}", shown(&dir).display()))?;
        }
        let mut inheritance = Inheritance::take(pins, (!adopted).then_some(dir.as_path()), sizes)?;
        for (name, what) in probe_beside_storage(pins.root())? {
            tracing::warn!("{what}: it is made anew");
            let pin = pins.storage(name);
            fs::remove_file(&pin)
                .with_context(|| format!("cannot remove {}", shown(&pin).display()))?;
        }
        let programs = load(pins, &dir, sizes, &mut inheritance)?;
        let mut maps = Pinned::open(&dir, Access::Write)?;
        let map_ids = MAPS
            .map(|name| (name, dir.join(name)))
            .into_iter()
            .chain(STORAGE.map(|name| (name, pins.storage(name))))
            .map(|(name, pin)| Ok((name, MapInfo::from_pin(pin)?.id())))
            .collect::<Result<_, MapError>>()?;
        let Inheritance { names, bonds, .. } = inheritance;
        if !adopted {
            for (id, port) in names {
                if let Err(error) = maps.apply(&Op::PutName { id, port }) {
                    tracing::warn!(id, "a service port gets another id: {error}");
                }
            }
        }
        let late_bonds = bonds.filter(|theirs| copies_bonds(theirs, &dir));
        if let Some(number) = replaced {
            let old = Pinned::open(&pins.map_set(number), Access::Read)?;
            let snapshot = old.snapshot()?;
            copy(&snapshot, &mut maps, sizes).with_context(|| {
                format!(
                    "cannot move the maps from {} services and {} backends to {} and {}",
                    snapshot.max_services, snapshot.max_backends, sizes.services, sizes.backends
                )
            })?;
            copy_bonds(&pins.map_set(number), &dir)?;
            maps.set_clients(&old.clients()?)?;
            tracing::info!(services = sizes.services, backends = sizes.backends, "maps resized");
        }
        let pins = pins.clone();
        let this = Self {
            programs,
            pins,
            links: BTreeMap::new(),
            set,
            map_ids,
            staged,
            replaced,
            late_bonds,
            adopted,
            others_at_work,
        };
        Ok((this, maps))
    }

    /// Whether the maps say what an agent before us wrote. If not, they are to be filled before
    /// [`Datapath::attach`]: other programs may be at work with maps of their own.
    pub const fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whether programs of an agent before us are attached, perhaps with maps that are not these.
    pub const fn others_at_work(&self) -> bool {
        self.others_at_work
    }

    /// Writes to the log what the programs of a `bpf-log` build say, until the runtime ends.
    #[cfg(feature = "bpf-log")]
    pub fn follow_log(&mut self) -> Result<()> {
        let mut logger = aya_log::EbpfLogger::init(&mut self.programs)?;
        tokio::spawn(async move {
            loop {
                logger.flush();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        Ok(())
    }

    /// Where all this is pinned.
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The directory of the maps, once they are in force.
    fn maps(&self) -> PathBuf {
        self.pins.map_set(self.set)
    }
}

/// Removes a set of maps. It ceases to be one in a single step: half a set must never be found.
fn throw_away(pins: &Pins, set: &Path) -> Result<()> {
    let discarded = pins.discarded();
    discard(&discarded)?;
    fs::rename(set, &discarded)
        .with_context(|| format!("cannot rename {}", shown(set).display()))?;
    discard(&discarded)
}

fn discard(dir: &Path) -> Result<()> {
    pins::remove_at(dir, &mut Vec::new())
        .with_context(|| format!("cannot remove {}", shown(dir).display()))
}

/// The maps that are replaced together when their sizes change.
const MAPS: [&str; 10] = [
    SERVICES,
    BACKENDS,
    PORTS,
    NAMES,
    ADDRESSES,
    FILTER,
    SOURCE_RANGES,
    CLIENTS,
    AFFINITY,
    COUNTERS,
];
/// The maps of what is remembered of sockets, and of the generations that they may remember: of no size,
/// or of one that no flag changes.
pub const STORAGE: [&str; 7] = [SOCKETS, FORMER, FLOWS, MORE_FLOWS, HEARD, HELD, GENERATIONS];
/// Size of the map of network namespaces: more than a node has.
const MAX_CLIENTS: u32 = 65_536;
/// Room for the addresses of nodes: Kubernetes goes up to 5,000 of them, each with a few.
pub const MAX_NODE_ADDRESSES: u32 = 1 << 15;

/// What makes it impossible to go on from these maps; another shape is told where they are opened.
fn damage(dir: &Path) -> Result<Option<String>> {
    match MAPS.iter().find(|name| !dir.join(name).exists()) {
        Some(missing) => Ok(Some(format!("the map {missing} has lost its pin"))),
        None => Ok(probe(dir)?),
    }
}

/// Whether the maps are of these sizes.
fn fit(dir: &Path, sizes: Sizes) -> Result<bool> {
    let size = |name| -> Result<u32> {
        let path = dir.join(name);
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("cannot open the pinned map {}", shown(&path).display()))?;
        Ok(info.max_entries())
    };
    Ok(size(SERVICES)? == sizes.services
        && size(BACKENDS)? == sizes.backends
        && size(NAMES)? == max_names(sizes.services)
        && size(PORTS)? == max_names(sizes.services)
        && size(AFFINITY)? == sizes.affinity)
}

fn load(pins: &Pins, dir: &Path, sizes: Sizes, inheritance: &mut Inheritance) -> Result<Ebpf> {
    let max_bonds = Held::max_bonds(sizes.affinity);
    let mut loader = EbpfLoader::new();
    loader.override_global(MAX_BONDS, &max_bonds, true);
    for (map, size) in [
        (SERVICES, sizes.services),
        (NAMES, max_names(sizes.services)),
        (PORTS, max_names(sizes.services)),
        (BACKENDS, sizes.backends),
        // Each frontend may have an address of its own, and source ranges are few.
        (ADDRESSES, sizes.services.saturating_add(MAX_NODE_ADDRESSES)),
        (SOURCE_RANGES, sizes.services),
        (CLIENTS, MAX_CLIENTS),
        (AFFINITY, sizes.affinity),
    ] {
        loader.map_max_entries(map, size);
    }
    for map in MAPS {
        loader.map_pin_path(map, dir.join(map));
    }
    for map in STORAGE {
        loader.map_pin_path(map, pins.storage(map));
    }
    let mut programs = loop {
        let error = match loader.load(OBJECT) {
            Ok(programs) => break programs,
            Err(error) => error,
        };
        let is_given_back = match &error {
            EbpfError::MapError(MapError::IncompatiblePinnedMap { name, .. }) => {
                inheritance.renounce(name)?
            }
            _ => false,
        };
        if !is_given_back {
            let dir = if dir == pins.staging() { pins.root() } else { dir };
            return Err(explain(error, dir));
        }
    };
    for name in PROGRAMS {
        let program: &mut CgroupSockAddr = programs
            .program_mut(name)
            .with_context(|| {
                format!("the object has no program {name}: was another one embedded?")
            })?
            .try_into()?;
        program
            .load()
            .with_context(|| on_this_kernel(&format!("the kernel refuses the program {name}")))?;
    }
    Ok(programs)
}

fn explain(error: EbpfError, dir: &Path) -> anyhow::Error {
    match error {
        EbpfError::MapError(MapError::IncompatiblePinnedMap {
            name,
            property,
            expected,
            actual,
        }) => {
            anyhow::anyhow!(
                "the map {name} pinned below {} is not one of this version of socklb: its {property} is \
                 {actual}, not {expected}; remove all pins with `lb-agent --cleanup` (Services are \
                 not translated until the agent runs again), or choose another --bpffs",
                shown(dir).display()
            )
        }
        other => anyhow::Error::new(other).context(on_this_kernel("cannot make the maps")),
    }
}

/// Writes into empty maps what others say, each thing in its place.
fn copy(snapshot: &Snapshot, maps: &mut Pinned, sizes: Sizes) -> Result<()> {
    let end = |(block, records): (&u32, &Vec<_>)| u64::from(*block) + records.len() as u64;
    let needed = snapshot.blocks.iter().map(end).max().unwrap_or(0);
    if needed > u64::from(sizes.backends) {
        bail!("records up to the {needed}th are in use; raise --max-backends to {needed} at least");
    }
    // Who has a greater id gets another one. Until then its options have no place, and nobody asks for them.
    let has_place = |id: u32| id < max_names(sizes.services);
    for (id, port) in &snapshot.names {
        if has_place(*id) {
            maps.apply(&Op::PutName { id: *id, port: port.clone() })?;
        }
    }
    for (id, options) in &snapshot.ports {
        if has_place(*id) {
            maps.apply(&Op::PutPort { id: *id, options: *options })?;
        }
    }
    for (block, records) in &snapshot.blocks {
        let mut records = records.clone();
        for record in records.iter_mut().filter(|record| !has_place(record.service)) {
            record.flags &= !Backend::OPTIONS;
        }
        maps.apply(&Op::WriteBlock { block: *block, records })?;
    }
    for (id, range) in &snapshot.source_ranges {
        maps.apply(&Op::PutSourceRange { id: *id, range: *range })?;
    }
    for (addr, known) in &snapshot.addresses {
        maps.apply(&Op::PutAddress { addr: *addr, known: *known })?;
    }
    for (key, service) in &snapshot.services {
        maps.apply(&Op::PutService { key: *key, service: *service })?;
    }
    Ok(())
}

/// Detaches the programs and removes every pin. Returns what was removed; nothing if nothing was there.
pub fn cleanup(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let Some(pins) = Pins::take_existing(bpffs).map_err(|error| match error {
        HomeError::Held { path, holder } if holder.is_root() => {
            anyhow::anyhow!("an agent is running on {} ({holder}): stop it first", path.display())
        }
        other => other.into(),
    })?
    else {
        return Ok(Vec::new());
    };
    let path = shown(pins.home());
    pins.remove_all().with_context(|| format!("cannot remove everything below {}", path.display()))
}
