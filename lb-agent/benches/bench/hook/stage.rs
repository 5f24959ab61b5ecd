//! One cgroup for each variant, with what is attached to it.

use std::{
    env,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramInfo, loaded_programs},
};
use lb_agent::{
    datapath::{Datapath, MAX_NODE_ADDRESSES, Sizes},
    maps::Pinned,
    pins::{PROGRAMS, Pins},
};
use lb_common::abi::{ADDRESSES, BACKENDS, FILTER, NAMES, SERVICES};
use lb_core::{pipeline::Pipeline, store::max_names};

use super::{floor, targets::Dial};
use crate::{cluster::Shape, lab::Lab};

/// What is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Program {
    /// Nothing.
    None,
    /// A program that only returns 1.
    Floor,
    /// Ours.
    Socklb,
    /// Ours, from another object file.
    Other,
}

pub(crate) const ONE: &str = "1 Service";
pub(crate) const MANY: &str = "10,000 Services";

/// A cgroup. Its programs stay attached while it lives.
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) cgroup: PathBuf,
    /// How many there are to be dialled.
    pub(crate) services: u32,
    #[expect(dead_code, reason = "held, not used")]
    held: Held,
}

enum Held {
    Nothing,
    Floor { _links: Vec<OwnedFd> },
    Socklb { _datapath: Box<Datapath>, _pipeline: Box<Pipeline<Pinned>> },
    Other { _programs: Ebpf },
}

impl Stage {
    /// What is worth dialling here: without maps, a hit is as good as a miss.
    pub(crate) fn dials(&self) -> impl Iterator<Item = Dial> + use<> {
        let hits = matches!(self.program, Program::Socklb | Program::Other);
        [Dial::Miss, Dial::Hit].into_iter().take(if hits { 2 } else { 1 })
    }
}

pub(crate) fn all(lab: &Lab, services: u32, endpoints: u32) -> Result<Vec<Stage>> {
    let mut stages = vec![
        Stage {
            name: "nothing attached here".to_owned(),
            program: Program::None,
            cgroup: lab.cgroup("nothing")?,
            services,
            held: Held::Nothing,
        },
        bare(lab, services)?,
        socklb(lab, ONE, "one", 1, endpoints)?,
        socklb(lab, MANY, "many", services, endpoints)?,
    ];
    if let Some(objects) = env::var_os("SOCKLB_BENCH_AGAINST") {
        for object in env::split_paths(&objects) {
            stages.push(other(lab, &object, services)?);
        }
    }
    Ok(stages)
}

fn bare(lab: &Lab, services: u32) -> Result<Stage> {
    let cgroup = lab.cgroup("floor")?;
    let links = floor::attach(&File::open(&cgroup)?)?;
    let held = Held::Floor { _links: links };
    let name = "returns 1: the floor".to_owned();
    Ok(Stage { name, program: Program::Floor, cgroup, services, held })
}

/// The product: its loader, its control plane, its maps in their default sizes.
fn socklb(
    lab: &Lab,
    name: &'static str,
    dir: &str,
    services: u32,
    endpoints: u32,
) -> Result<Stage> {
    let cgroup = lab.cgroup(dir)?;
    let pins = Pins::new(&lab.bpffs(dir)?);
    let (mut datapath, maps) = Datapath::load(&pins, SIZES)?;
    let snapshot = maps.snapshot()?;
    let mut pipeline = Box::new(Pipeline::new(maps, &snapshot));
    let shape = Shape { services, endpoints, dual_stack: true, protocol: "UDP" };
    for change in shape.cluster().listed() {
        pipeline.change(change);
    }
    let report = pipeline.sync();
    ensure!(report.sockets.failed.is_empty(), "not written: {:?}", report.sockets.failed);
    datapath.attach(&cgroup)?;
    let held = Held::Socklb { _datapath: Box::new(datapath), _pipeline: pipeline };
    let name = name.to_owned();
    Ok(Stage { name, program: Program::Socklb, cgroup, services, held })
}

/// Programs of another object file, on the maps of `many`; the state of sockets is their own.
fn other(lab: &Lab, object: &Path, services: u32) -> Result<Stage> {
    let name = object.file_stem().context("an object file")?.to_string_lossy().into_owned();
    let cgroup = lab.cgroup(&name)?;
    let dir = File::open(&cgroup)?;
    let maps = Pins::new(&lab.dir().join("bpf/many")).maps()?.context("`many` has maps")?;
    let mut programs = EbpfLoader::new()
        .map_max_entries(SERVICES, SIZES.services)
        .map_max_entries(NAMES, max_names(SIZES.services))
        .map_max_entries(BACKENDS, SIZES.backends)
        .map_max_entries(ADDRESSES, SIZES.services + MAX_NODE_ADDRESSES)
        .map_pin_path(ADDRESSES, maps.join(ADDRESSES))
        .map_pin_path(FILTER, maps.join(FILTER))
        .map_pin_path(SERVICES, maps.join(SERVICES))
        .map_pin_path(NAMES, maps.join(NAMES))
        .map_pin_path(BACKENDS, maps.join(BACKENDS))
        .load_file(object)
        .with_context(|| format!("cannot load {}", object.display()))?;
    for program in PROGRAMS {
        let program: &mut CgroupSockAddr = programs
            .program_mut(program)
            .with_context(|| format!("no program {program}"))?
            .try_into()?;
        program.load()?;
        program.attach(&dir, CgroupAttachMode::Single)?;
    }
    let held = Held::Other { _programs: programs };
    Ok(Stage { name, program: Program::Other, cgroup, services, held })
}

/// Whether anybody has programs for socket addresses.
pub(crate) fn are_programs_loaded() -> bool {
    // `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    let kind = |info: &ProgramInfo| info.program_type() as u32 == floor::CGROUP_SOCK_ADDR;
    loaded_programs().filter_map(Result::ok).any(|info| kind(&info))
}

/// How large the programs are, as the kernel has them.
pub(crate) fn print_programs() {
    println!(
        "\nThe programs: instructions, those looked at by the verifier, bytes of machine code"
    );
    for name in PROGRAMS {
        // The last one of this name is ours.
        let loaded = loaded_programs().filter_map(Result::ok);
        let Some(info) = loaded.filter(|info| info.name_as_str() == Some(name)).last() else {
            continue;
        };
        let instructions = info.size_translated().unwrap_or(0) / 8;
        let verified = info.verified_instruction_count().unwrap_or(0);
        println!("{name:<22}{instructions:>6}{verified:>8}{:>8}", info.size_jitted());
    }
}

/// The defaults of `--max-services` and `--max-backends`.
const SIZES: Sizes = Sizes { services: 65_536, backends: 262_144, affinity: 1024 };
