//! The BPF programs and their maps: loaded, pinned, attached, taken over, replaced, removed.
//!
//! Promises: what is attached stays attached, with maps that belong together, whatever happens to
//! this process at whatever moment. A program is replaced in its link, atomically; its maps are
//! complete before that.

mod effective;
#[cfg(test)]
mod locks;
mod verify;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapError, MapInfo},
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError, cgroup_sock_addr::CgroupSockAddrLink,
        links::FdLink,
    },
};
use lb_common::abi::{
    ADDRESSES, AFFINITY, BACKENDS, CLIENTS, COUNTERS, FILTER, FLOWS, FORMER, MORE_FLOWS, NAMES,
    SERVICES, SOCKETS, SOURCES,
};

pub use self::verify::{Finding, Problem};
use crate::{
    maps::Op,
    maps::{Access, Pinned, Snapshot, Store as _, max_names},
    pins::{self, PROGRAMS, Pins},
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
    /// The directory of the maps, once they are in force.
    maps: PathBuf,
    /// Their ids in the kernel.
    map_ids: BTreeMap<&'static str, u32>,
    /// Maps that are not in force yet, and the directory that they are to be in.
    staged: Option<(PathBuf, PathBuf)>,
    /// The directory of the maps before them, which another size made useless.
    replaced: Option<PathBuf>,
    /// Whether the maps say what an agent before us wrote.
    adopted: bool,
    /// Whether programs of an agent before us are attached.
    others_at_work: bool,
}

impl Datapath {
    /// Loads the programs on the pinned maps, or on new ones if there are none. Maps of another size
    /// are copied into new ones. Nothing is attached yet, and new maps are not in force.
    pub fn load(pins: &Pins, sizes: Sizes) -> Result<(Self, Pinned)> {
        pins.create().with_context(|| format!("cannot make {}", pins.links().display()))?;
        let others_at_work = pins.has_links().context("cannot read the pins")?;
        // What a start or a resize left that was interrupted.
        discard(&pins.staging())?;
        discard(&pins.discarded())?;
        let mut sets = pins.map_sets().context("cannot read the pins")?.into_iter();
        let current = sets.next();
        for (_, unfinished) in sets {
            throw_away(pins, &unfinished)?;
        }
        let current = match current {
            // Damage. Programs that use these maps go on with them until the new ones are filled.
            Some((_, dir)) if !is_complete(&dir) => {
                throw_away(pins, &dir)?;
                None
            }
            current => current,
        };
        let (dir, replaced) = match current {
            Some((_, dir)) if fit(&dir, sizes)? => (dir, None),
            Some((number, dir)) => (pins.map_set(number + 1), Some(dir)),
            None => (pins.map_set(1), None),
        };
        let adopted = dir.exists() || replaced.is_some();
        let staged = (!dir.exists()).then(|| (pins.staging(), dir.clone()));
        let in_force = dir.clone();
        let dir = staged.as_ref().map_or(dir, |(staging, _)| staging.clone());

        if staged.is_some() {
            fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let programs = load(pins, &dir, sizes)?;
        let mut maps = Pinned::open(&dir, Access::Write)?;
        let map_ids = MAPS
            .map(|name| (name, dir.join(name)))
            .into_iter()
            .chain(STORAGE.map(|name| (name, pins.storage(name))))
            .map(|(name, pin)| Ok((name, MapInfo::from_pin(pin)?.id())))
            .collect::<Result<_, MapError>>()?;
        if let Some(old) = &replaced {
            let old = Pinned::open(old, Access::Read)?;
            let snapshot = old.snapshot()?;
            copy(&snapshot, &mut maps, sizes).with_context(|| {
                format!(
                    "cannot move the maps from {} services and {} backends to {} and {}",
                    snapshot.max_services, snapshot.max_backends, sizes.services, sizes.backends
                )
            })?;
            maps.take_bonds(&old)?;
            maps.set_clients(&old.clients()?)?;
            tracing::info!(services = sizes.services, backends = sizes.backends, "maps resized");
        }
        let pins = pins.clone();
        let this = Self {
            programs,
            pins,
            links: BTreeMap::new(),
            maps: in_force,
            map_ids,
            staged,
            replaced,
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

    /// Puts the programs to work for the sockets of a cgroup and all below it. From here on the maps
    /// are those that the next agent goes on from.
    pub fn attach(&mut self, cgroup: &Path) -> Result<()> {
        let dir = File::open(cgroup)
            .with_context(|| format!("cannot open the cgroup {}", cgroup.display()))?;
        let staged = self.staged.take();
        if let Some((staging, in_force)) = &staged {
            fs::rename(staging, in_force)
                .with_context(|| format!("cannot rename {}", staging.display()))?;
        }
        for name in PROGRAMS {
            self.attach_one(name, &dir).with_context(|| {
                format!("cannot attach the program {name} to {}", cgroup.display())
            })?;
        }
        if let Some(old) = self.replaced.take() {
            if let Some((_, in_force)) = staged {
                // Of the clients that came since they were copied.
                take_late_bonds(&old, &in_force).unwrap_or_else(|error| {
                    tracing::warn!(%error, "not all clients stay with their backends");
                });
            }
            throw_away(&self.pins, &old)?;
        }
        for removed in self.pins.remove_other_layouts()? {
            tracing::info!(path = %removed.display(), "removed another version's pins");
        }
        Ok(())
    }

    fn attach_one(&mut self, name: &'static str, cgroup: &File) -> Result<()> {
        let program: &mut CgroupSockAddr =
            self.programs.program_mut(name).context("it is not in the object")?.try_into()?;
        let pin = self.pins.link(name);
        let fresh = self.pins.link(&format!("{name}_new"));
        let cgroup_id = pins::cgroup_id(cgroup)?;
        if !pin.exists()
            && let Some(link) = self.links.remove(name)
            && pins::attached_to(&link)? == cgroup_id
        {
            tracing::info!(program = name, "is attached, and gets its pin back");
            link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        }
        if pin.exists() {
            let (link, attached_to) = pins::open_link(&pin)
                .with_context(|| format!("{} is not a link of ours", pin.display()))?;
            if attached_to == cgroup_id {
                let id = program.attach_to_link(CgroupSockAddrLink::try_from(link)?)?;
                self.links.insert(name, program.take_link(id)?.try_into()?);
                // A move to another cgroup that was interrupted, and given up.
                return remove_pin(&fresh);
            }
            let what = if attached_to == 0 { "was detached" } else { "moves to another cgroup" };
            tracing::info!(program = name, "{what}");
        }
        let id = program.attach(cgroup, CgroupAttachMode::Single)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        // Renaming replaces a link to another cgroup, if there is one, in one step.
        remove_pin(&fresh)?;
        let link = link.pin(&fresh).with_context(|| format!("cannot pin {}", fresh.display()))?;
        fs::rename(&fresh, &pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        self.links.insert(name, link.into());
        Ok(())
    }
}

fn take_late_bonds(old: &Path, in_force: &Path) -> Result<()> {
    let old = Pinned::open(old, Access::Read)?;
    Ok(Pinned::open(in_force, Access::Write)?.take_bonds(&old)?)
}

/// Removes a set of maps. It ceases to be one in a single step: half a set must never be found.
fn throw_away(pins: &Pins, set: &Path) -> Result<()> {
    let discarded = pins.discarded();
    discard(&discarded)?;
    fs::rename(set, &discarded).with_context(|| format!("cannot rename {}", set.display()))?;
    discard(&discarded)
}

fn discard(dir: &Path) -> Result<()> {
    pins::remove(dir, &mut Vec::new()).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Removes a pin, if it is there.
fn remove_pin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

/// The maps that are replaced together when their sizes change.
const MAPS: [&str; 9] =
    [SERVICES, BACKENDS, NAMES, ADDRESSES, FILTER, SOURCES, CLIENTS, AFFINITY, COUNTERS];
/// The maps of what is remembered of sockets, which have no size.
const STORAGE: [&str; 4] = [SOCKETS, FORMER, FLOWS, MORE_FLOWS];
/// Size of the map of network namespaces: more than a node has.
const MAX_CLIENTS: u32 = 16_384;
/// Room for the addresses of nodes: Kubernetes goes up to 5,000 of them, each with a few.
pub const MAX_NODE_ADDRESSES: u32 = 1 << 15;

/// Whether the directory holds every map.
fn is_complete(dir: &Path) -> bool {
    MAPS.iter().all(|name| dir.join(name).exists())
}

/// Whether the maps are of these sizes.
fn fit(dir: &Path, sizes: Sizes) -> Result<bool> {
    let size = |name| -> Result<u32> {
        let path = dir.join(name);
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("cannot open the pinned map {}", path.display()))?;
        Ok(info.max_entries())
    };
    Ok(size(SERVICES)? == sizes.services
        && size(BACKENDS)? == sizes.backends
        && size(NAMES)? == max_names(sizes.services)
        && size(AFFINITY)? == sizes.affinity)
}

fn load(pins: &Pins, dir: &Path, sizes: Sizes) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for (map, size) in [
        (SERVICES, sizes.services),
        (NAMES, max_names(sizes.services)),
        (BACKENDS, sizes.backends),
        // Each frontend may have an address of its own, and source ranges are few.
        (ADDRESSES, sizes.services.saturating_add(MAX_NODE_ADDRESSES)),
        (SOURCES, sizes.services),
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
    let mut programs = loader
        .load(OBJECT)
        .map_err(|error| explain(error, if dir == pins.staging() { pins.root() } else { dir }))?;
    for name in PROGRAMS {
        let program: &mut CgroupSockAddr = programs
            .program_mut(name)
            .with_context(|| {
                format!("the object has no program {name}: was another one embedded?")
            })?
            .try_into()?;
        program.load().map_err(|error| refused(name, error))?;
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
                dir.display()
            )
        }
        other => anyhow::Error::new(other).context("cannot make the maps"),
    }
}

/// The oldest kernel on which socklb is tested.
const FLOOR: (u32, u32) = (6, 1);

fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "?".to_owned(), |uts| uts.release().to_string_lossy().into_owned());
    let text = if is_older(&release) {
        format!(
            "the kernel refuses the program {name}: it is {release}, and socklb needs {}.{} or later",
            FLOOR.0, FLOOR.1
        )
    } else {
        format!("the kernel ({release}) refuses the program {name}")
    };
    anyhow::Error::new(error).context(text)
}

fn is_older(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < FLOOR,
        _ => false,
    }
}

/// Writes into empty maps what others say, each thing in its place.
fn copy(snapshot: &Snapshot, maps: &mut Pinned, sizes: Sizes) -> Result<()> {
    let end = |(block, records): (&u32, &Vec<_>)| u64::from(*block) + records.len() as u64;
    let needed = snapshot.blocks.iter().map(end).max().unwrap_or(0);
    if needed > u64::from(sizes.backends) {
        bail!("records up to the {needed}th are in use; raise --max-backends to {needed} at least");
    }
    for (id, port) in &snapshot.names {
        maps.apply(&Op::PutName { id: *id, port: port.clone() })?;
    }
    for (block, records) in &snapshot.blocks {
        maps.apply(&Op::WriteBlock { block: *block, records: records.clone() })?;
    }
    for (id, range) in &snapshot.sources {
        maps.apply(&Op::PutSource { id: *id, range: *range })?;
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
pub fn cleanup(pins: &Pins) -> Result<Vec<PathBuf>> {
    let lock = match pins.lock() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("an agent is running on {}: stop it first", pins.home().display())
        }
        lock => lock.with_context(|| format!("cannot lock {}", pins.home().display()))?,
    };
    let removed = pins
        .remove_all()
        .with_context(|| format!("cannot remove everything below {}", pins.home().display()))?;
    drop(lock);
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, older) in [
            ("5.15.0-91-generic", true),
            ("6.0.19", true),
            ("6.1.0-13-amd64", false),
            ("6.18.44-fc-v595", false),
            ("10.0", false),
            ("custom", false),
        ] {
            assert_eq!(is_older(release), older, "{release}");
        }
    }
}
