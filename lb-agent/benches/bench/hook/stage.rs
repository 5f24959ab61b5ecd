//! One cgroup for each variant, with what is attached to it.

use std::{
    fs::{self, File},
    net::{IpAddr, UdpSocket},
    os::fd::OwnedFd,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use aya::programs::{ProgramInfo, loaded_programs};
use lb_agent::pins::{PROGRAMS, Pins};
use lb_common::abi::{SERVICES as SERVICES_MAP, SOCKETS};

use super::{
    ENDPOINTS, SERVICES, TCP_SERVICES,
    bare::{self, CGROUP_SOCK_ADDR, Part},
    targets::Dial,
};
use crate::{
    Baseline,
    agent::{self, Agent},
    cluster::{PORT, Shape, TARGET, cluster_ip},
    lab::{Lab, move_to},
};

/// What is attached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Program {
    /// Nothing.
    None,
    /// A program that only returns 1.
    Floor,
    /// One with a single lookup.
    Hash,
    /// One that makes the storage of a socket.
    Storage,
    /// Those of an agent that serves so many Services.
    Agent { services: u32, is_baseline: bool },
}

/// A cgroup. Its programs stay attached while it lives, and the bpffs of the lab.
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) cgroup: PathBuf,
    /// Of an agent: where it pins.
    bpffs: Option<PathBuf>,
    #[expect(dead_code, reason = "held, not used")]
    links: Vec<OwnedFd>,
}

impl Stage {
    /// What is worth dialling here: where nothing is looked up, one address is as good as another.
    pub(crate) fn dials(&self) -> &'static [Dial] {
        match self.program {
            Program::None | Program::Floor | Program::Storage => &[Dial::Outside],
            Program::Hash => &[Dial::Outside, Dial::Hit],
            Program::Agent { .. } => &Dial::ALL,
        }
    }

    /// Whether the Services that are dialled are here.
    pub(crate) const fn has_many(&self) -> bool {
        !matches!(self.program, Program::Agent { services: 1, .. })
    }
}

pub(crate) fn all(lab: &Lab, baselines: &[Baseline]) -> Result<Vec<Stage>> {
    let mut stages = vec![
        bare(lab, "nothing attached here", "nothing", Program::None, None)?,
        bare(lab, "returns 1: the floor", "floor", Program::Floor, Some(Part::Floor))?,
    ];
    let ours = |name: &str| Baseline { name: name.to_owned(), program: agent::OURS.into() };
    // The one Service is the one that is dialled again and again.
    let one = Shape { first: SERVICES / 2, services: 1, ..UDP };
    let one_of_tcp = Shape { first: SERVICES + TCP_SERVICES / 2, services: 1, ..TCP };
    let (one, many) = (files(lab, "one", one, one_of_tcp)?, files(lab, "many", UDP, TCP)?);
    stages.push(served(lab, &ours("1 Service"), &one, false)?);
    stages.push(served(lab, &ours("10,000 Services"), &many, false)?);
    let pins = Pins::new(&lab.dir().join("bpf/many"));
    let services = pins.maps()?.context("there are maps")?.join(SERVICES_MAP);
    let (hash, storage) = (Part::Hash(&services), pins.storage(SOCKETS));
    stages.push(bare(lab, "one HASH lookup", "hash", Program::Hash, Some(hash))?);
    let storage = Part::Storage(&storage);
    stages.push(bare(lab, "bare storage", "storage", Program::Storage, Some(storage))?);
    for (n, baseline) in baselines.iter().enumerate() {
        let files = Files { name: format!("baseline-{n}"), ..many.clone() };
        stages.push(served(lab, baseline, &files, true)?);
    }
    Ok(stages)
}

const UDP: Shape =
    Shape { first: 0, services: SERVICES, endpoints: ENDPOINTS, dual_stack: true, protocol: "UDP" };
const TCP: Shape = Shape { first: SERVICES, services: TCP_SERVICES, protocol: "TCP", ..UDP };

fn bare(
    lab: &Lab,
    name: &str,
    dir: &str,
    program: Program,
    part: Option<Part<'_>>,
) -> Result<Stage> {
    let cgroup = lab.cgroup(dir)?;
    let dir = File::open(&cgroup)?;
    let links = part.map_or(Ok(Vec::new()), |part| bare::attach(&dir, part))?;
    Ok(Stage { name: name.to_owned(), program, cgroup, bpffs: None, links })
}

/// A cluster in files.
#[derive(Clone)]
struct Files {
    /// Of whatever is made for the agent that reads them.
    name: String,
    dir: PathBuf,
    /// Its Services of UDP.
    udp: Shape,
}

fn files(lab: &Lab, name: &str, udp: Shape, tcp: Shape) -> Result<Files> {
    let dir = lab.dir().join(name);
    fs::create_dir(&dir)?;
    agent::write(&udp.cluster().and(tcp.cluster()), &dir)?;
    Ok(Files { name: name.to_owned(), dir, udp })
}

/// What an agent has left when it had done its work: its programs and its maps.
fn served(lab: &Lab, agent: &Baseline, files: &Files, is_baseline: bool) -> Result<Stage> {
    let name = agent.name.clone();
    eprintln!("the programs of {name}");
    let Files { name: place, dir, udp } = files;
    let (cgroup, bpffs) = (lab.cgroup(place)?, lab.bpffs(place)?);
    let mut process = Agent::start(&agent.program, dir, &bpffs, &cgroup)?;
    move_to(&cgroup)?;
    let ends = [(udp.first, true), (udp.first + udp.services - 1, false)];
    process.until(|| {
        for (service, ipv4) in ends {
            if !is_served(service, ipv4)? {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    drop(process);
    let program = Program::Agent { services: udp.services, is_baseline };
    Ok(Stage { name, program, cgroup, bpffs: Some(bpffs), links: Vec::new() })
}

/// Whether a datagram to the Service reaches one of its endpoints.
fn is_served(service: u32, ipv4: bool) -> Result<bool> {
    let any: IpAddr = if ipv4 { [0; 4].into() } else { [0_u16; 8].into() };
    let endpoints = UdpSocket::bind((any, TARGET))?;
    endpoints.set_nonblocking(true)?;
    let client = UdpSocket::bind((any, 0))?;
    client.connect((cluster_ip(service, ipv4), PORT))?;
    Ok(client.send(b"?").is_ok() && endpoints.recv(&mut [0; 8]).is_ok())
}

/// Whether anybody has programs for socket addresses.
pub(crate) fn are_programs_loaded() -> bool {
    // `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    let kind = |info: &ProgramInfo| info.program_type() as u32 == CGROUP_SOCK_ADDR;
    loaded_programs().filter_map(Result::ok).any(|info| kind(&info))
}

impl Stage {
    /// How large the programs of an agent are, as the kernel has them: instructions, those looked at by
    /// the verifier, bytes of machine code.
    pub(crate) fn sizes(&self) -> Result<Vec<(&'static str, [u32; 3])>> {
        let Some(bpffs) = &self.bpffs else { return Ok(Vec::new()) };
        // One directory, of the layout that the agent has.
        let layout = fs::read_dir(bpffs.join("socklb"))?.next().context("nothing is pinned")??;
        let size = |name: &&'static str| {
            let id = bare::program_of(&layout.path().join("links").join(name))?;
            let mut all = loaded_programs().filter_map(Result::ok);
            let info = all.find(|info| info.id() == id).context("a link has a program")?;
            let instructions = info.size_translated().unwrap_or(0) / 8;
            let verified = info.verified_instruction_count().unwrap_or(0);
            Ok((*name, [instructions, verified, info.size_jitted()]))
        };
        PROGRAMS.iter().map(size).collect()
    }
}
