//! What others did to the programs while the agent runs, and its repair (kube-proxy M6).

use std::{
    fmt,
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::MapInfo,
    programs::{CgroupSockAddr, ProgramInfo},
};
use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    statvfs::FsFlags,
};

use super::{Datapath, MAPS, STORAGE, effective};
use crate::pins::{self, ATTACH_TYPES, OpenLinkError, PROGRAMS, shown};

/// Something that is not as [`Datapath::attach`] left it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The program's or the map's name.
    pub name: &'static str,
    /// What about it.
    pub problem: Defect,
}

/// What may be wrong with a program or a map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Defect {
    /// The program's pin is gone. It works on, until the agent ends.
    Unpinned,
    /// What is pinned in its place is not ours.
    Foreign(String),
    /// The program is attached to no cgroup: it was detached, or the cgroup was removed.
    Detached,
    /// The program is attached to another cgroup, with this id.
    Elsewhere(u64),
    /// Another program is in our link, with this id.
    Replaced(u32),
    /// The kernel does not run the program, although the link is there.
    Ineffective,
    /// Another program runs before ours, and what it decides we do not see.
    Behind {
        /// The other program's id.
        id: u32,
        /// Its name.
        name: Option<String>,
    },
    /// The map's pin is gone. The programs use it on; the next agent would not find it.
    MapUnpinned,
    /// The map that is pinned is not the one that the programs use.
    OtherMap,
    /// The directory of all pins was removed or moved, and the lock with it; or the file system was
    /// unmounted.
    Lost,
}

impl Defect {
    /// Whether [`Datapath::repair`] ends it.
    pub const fn is_repairable(&self) -> bool {
        !matches!(self, Self::Foreign(_) | Self::Behind { .. } | Self::OtherMap)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.problem {
            Defect::Unpinned => write!(f, "the program {name} has lost its pin"),
            Defect::Foreign(what) => write!(f, "the pin of {name} is not ours: {what}"),
            Defect::Detached => write!(f, "the program {name} was detached"),
            Defect::Elsewhere(id) => write!(f, "the program {name} serves another cgroup ({id})"),
            Defect::Replaced(id) => write!(f, "the program {id} took the place of {name}"),
            Defect::Ineffective => write!(f, "the kernel does not run the program {name}"),
            Defect::Behind { id, name: other } => {
                let other = other.as_deref();
                write!(f, "the program {} ({id}) runs before our {name}", other.unwrap_or("?"))?;
                if other == Some(name) {
                    f.write_str(
                        ", likely another lb-agent's: stop that one, and run `lb-agent --cleanup` \
                         with its --bpffs",
                    )?;
                }
                Ok(())
            }
            Defect::MapUnpinned => write!(f, "the map {name} has lost its pin"),
            Defect::Lost => write!(
                f,
                "the directory {name} of the pins is not where it was: somebody removed or moved it, or \
                 unmounted the bpf file system"
            ),
            Defect::OtherMap => write!(
                f,
                "the map pinned as {name} is not the one in use: restart lb-agent, it goes on from \
                 what is pinned"
            ),
        }
    }
}

impl Datapath {
    /// Whether all is as [`Datapath::attach`] left it, at this cgroup, by its path.
    pub fn verify(&self, cgroup: &Path) -> Result<Vec<Finding>> {
        let dir = File::open(cgroup)
            .with_context(|| format!("cannot open the cgroup {}", cgroup.display()))?;
        let mut findings = Vec::new();
        if !self.pins.is_in_place() {
            // What is in it matters no more.
            findings.push(Finding { name: "socklb", problem: Defect::Lost });
            return Ok(findings);
        }
        for name in PROGRAMS {
            let info = self.info(name)?;
            let problem = match self.link(name, &info, &dir)? {
                None => order(name, &info, &dir)?,
                problem => problem,
            };
            findings.extend(problem.map(|problem| Finding { name, problem }));
        }
        for (name, path) in self.map_pins() {
            let problem = match MapInfo::from_pin(&path) {
                Ok(info) if self.map_ids.get(name) == Some(&info.id()) => None,
                Err(_) if !path.exists() => Some(Defect::MapUnpinned),
                _ => Some(Defect::OtherMap),
            };
            findings.extend(problem.map(|problem| Finding { name, problem }));
        }
        Ok(findings)
    }

    /// Makes all be as [`Datapath::attach`] left it, as far as that is for us to do. Where the directory
    /// of the pins is made anew, it is locked before anything is pinned.
    pub fn repair(&mut self, cgroup: &Path) -> Result<()> {
        // What could not be pinned again would be lost.
        let bpffs = self.pins.bpffs();
        let fs = statfs(bpffs).with_context(|| format!("cannot see {}", bpffs.display()))?;
        if fs.filesystem_type() != BPF_FS_MAGIC || fs.flags().contains(FsFlags::ST_RDONLY) {
            bail!("{} is no bpf file system any more, or is read-only", bpffs.display());
        }
        let pins = self.pins.take_again()?;
        if let Some(elsewhere) = self.pins.moved_to(&pins) {
            let path = elsewhere.display();
            tracing::warn!(
                "{path} is what was moved away, and keeps programs and maps: `rm -r {path}`"
            );
        }
        self.pins = pins;
        self.pins
            .create()
            .with_context(|| format!("cannot make {}", shown(self.pins.root()).display()))?;
        if !self.staged {
            self.pin_maps()?;
        }
        self.attach(cgroup)
    }

    fn pin_maps(&self) -> Result<()> {
        let dir = self.maps();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", shown(&dir).display()))?;
        for (name, path) in self.map_pins() {
            if !path.exists() {
                let map = self.programs.map(name).context("it is not in the object")?;
                map.pin(&path).with_context(|| format!("cannot pin {}", shown(&path).display()))?;
                tracing::info!(map = name, "is in use, and gets its pin back");
            }
        }
        Ok(())
    }

    fn map_pins(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let dir = self.maps();
        let sized = MAPS.into_iter().map(move |name| (name, dir.join(name)));
        sized.chain(STORAGE.into_iter().map(|name| (name, self.pins.storage(name))))
    }

    fn info(&self, name: &str) -> Result<ProgramInfo> {
        let program = self.programs.program(name).context("it is not in the object")?;
        let program: &CgroupSockAddr = program.try_into()?;
        Ok(program.info()?)
    }

    /// What is wrong with the link, and its pin.
    fn link(&self, name: &str, info: &ProgramInfo, cgroup: &File) -> Result<Option<Defect>> {
        let wanted = pins::cgroup_id(cgroup)?;
        let pin = self.pins.link(name);
        let (link, attached_to) = match pins::open_link(&pin) {
            Ok(found) => found,
            Err(OpenLinkError::Foreign(what)) => return Ok(Some(Defect::Foreign(what))),
            Err(OpenLinkError::Open(error)) if pin.exists() => {
                return Ok(Some(Defect::Foreign(error.to_string())));
            }
            Err(OpenLinkError::Open(_)) => {
                let attached_to = self.links.get(name).map(pins::attached_to).transpose()?;
                let works = attached_to == Some(wanted);
                return Ok(Some(if works { Defect::Unpinned } else { Defect::Detached }));
            }
        };
        Ok(match (attached_to, link.info()?.program_id()) {
            (0, _) => Some(Defect::Detached),
            (other, _) if other != wanted => Some(Defect::Elsewhere(other)),
            (_, other) if other != info.id() => Some(Defect::Replaced(other)),
            _ => None,
        })
    }
}

/// Whether the kernel runs the program, and before others.
fn order(name: &str, info: &ProgramInfo, cgroup: &File) -> Result<Option<Defect>> {
    let (_, attach_type) =
        ATTACH_TYPES.into_iter().find(|(of, _)| *of == name).context("no such program")?;
    let order =
        effective::programs(cgroup, attach_type).context("cannot ask which programs run")?;
    Ok(match order.first() {
        Some(first) if *first == info.id() => None,
        Some(first) if order.contains(&info.id()) => {
            Some(Defect::Behind { id: *first, name: effective::name(*first) })
        }
        _ => Some(Defect::Ineffective),
    })
}
