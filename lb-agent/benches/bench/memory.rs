//! What the agent takes: the real program, resident, after it has read 10,000 Services from files;
//! and what its maps take in the kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use lb_agent::{
    maps::{Access, Pinned},
    pins::Pins,
};
use lb_common::abi::{BACKENDS, NAMES, PORTS, SERVICES};

use crate::{
    agent::{self, Agent, SERVICES_PER_FILE},
    cluster::Shape,
    lab::Lab,
    samples::verdict,
};

const ENDPOINTS: u32 = 10;
/// Aim, in MB of 10^6 bytes.
const AIM: f64 = 64.0;
/// How long the agent has, once the maps are complete, to come to rest: retired blocks, buffers.
const REST: Duration = Duration::from_secs(3);

pub(crate) fn run() -> Result<()> {
    let lab = Lab::enter()?;
    let mut measured = Vec::new();
    for services in [0, 1_000, 10_000, 20_000] {
        eprintln!("{services} Services");
        measured.push((services, measure(&lab, services)?));
    }
    report(&measured);
    Ok(())
}

/// Fields of `/proc/PID/status` in kB, and the maps.
struct Footprint {
    fields: Vec<(&'static str, f64)>,
    /// After a change to every Service, and back.
    churned: f64,
    /// Name, entries there is room for, bytes.
    maps: Vec<(&'static str, u32, f64)>,
}

const FIELDS: [&str; 5] = ["VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"];

fn measure(lab: &Lab, services: u32) -> Result<Footprint> {
    let name = services.to_string();
    let (files, bpffs) = (lab.dir().join(&name), lab.bpffs(&name)?);
    fs::create_dir(&files)?;
    let shape =
        Shape { first: 0, services, endpoints: ENDPOINTS, dual_stack: false, protocol: "TCP" };
    write(&shape, 0, &files)?;
    let mut agent = Agent::start(agent::OURS.as_ref(), &files, &bpffs, &lab.cgroup(&name)?)?;
    let pins = Pins::new(&bpffs);
    agent.until(|| Ok(frontends(&pins)? == Some(services as usize)))?;
    sleep(REST);
    let fields = FIELDS
        .into_iter()
        .map(|field| Ok((field, agent.status(field)?)))
        .collect::<Result<Vec<_>>>()?;
    for edition in [1, 0] {
        let before = generation(&pins)?;
        write(&shape, edition, &files)?;
        agent.until(|| Ok(generation(&pins)? >= before + services))?;
    }
    sleep(REST);
    let churned = agent.status("VmRSS")?;
    let maps = [SERVICES, BACKENDS, PORTS, NAMES].map(|map| size(&pins, map));
    let maps = maps.into_iter().collect::<Result<_>>()?;
    drop(agent);
    fs::remove_dir_all(&files)?;
    fs::remove_dir_all(&bpffs)?;
    Ok(Footprint { fields, churned, maps })
}

/// How many frontends there are; none before the maps are made.
fn frontends(pins: &Pins) -> Result<Option<usize>> {
    let Some(maps) = pins.maps()?.filter(|maps| maps.join(NAMES).exists()) else { return Ok(None) };
    Ok(Some(Pinned::open(&maps, Access::Read)?.snapshot()?.services.len()))
}

fn generation(pins: &Pins) -> Result<u32> {
    let maps = pins.maps()?.context("no maps")?;
    Ok(Pinned::open(&maps, Access::Read)?.snapshot()?.last_generation)
}

/// What the kernel charges for a map, in MB.
fn size(pins: &Pins, name: &'static str) -> Result<(&'static str, u32, f64)> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path: PathBuf = pins.maps()?.context("no maps")?.join(name);
    let entries = MapInfo::from_pin(&path)?.max_entries();
    let map = aya::maps::MapData::from_pin(&path)?;
    let fd = map.fd().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("memlock")?;
    Ok((name, entries, bytes.trim().parse::<f64>()? / 1e6))
}

/// The cluster of an edition, as files.
fn write(shape: &Shape, edition: u32, dir: &Path) -> Result<()> {
    let mut cluster = shape.cluster();
    if edition != 0 {
        let slices = (0..shape.services).map(|i| shape.slice(i, true, ENDPOINTS, edition));
        cluster.slices = slices.collect();
    }
    agent::write(&cluster, dir)
}

fn report(measured: &[(u32, Footprint)]) {
    println!(
        "Resident memory of lb-agent, in MB of 10^6 bytes, {} s after the maps were complete. {ENDPOINTS} \
         endpoints\nof each Service, from YAML files of {SERVICES_PER_FILE} Services. RssFile and \
         RssShmem are pages of the program's file and\nof the backends map, which the kernel has anyway. \
         VmHWM is the peak. \"churned\" is VmRSS after one\nendpoint of every Service was replaced, and \
         put back.\n",
        REST.as_secs()
    );
    print!("{:>10}", "Services");
    for field in FIELDS {
        print!("{field:>10}");
    }
    println!("{:>10}", "churned");
    for (services, footprint) in measured {
        print!("{services:>10}");
        for (_, value) in &footprint.fields {
            print!("{value:>10.1}");
        }
        println!("{:>10.1}", footprint.churned);
    }
    println!("\nMaps, as the kernel charges for them, in MB\n");
    print!("{:>10}", "Services");
    if let Some((_, footprint)) = measured.first() {
        for (name, entries, _) in &footprint.maps {
            print!("{:>20}", format!("{name}[{entries}]"));
        }
    }
    println!();
    for (services, footprint) in measured {
        print!("{services:>10}");
        for (.., bytes) in &footprint.maps {
            print!("{bytes:>20.1}");
        }
        println!();
    }
    if let Some((_, footprint)) = measured.iter().find(|(services, _)| *services == 10_000) {
        let rss = footprint.fields.first().map_or(f64::NAN, |(_, value)| *value);
        println!("\nAim, with 10,000 Services: {rss:.0} MB, aim {AIM:.0}: {}", verdict(rss < AIM));
        println!(
            "\nkube-proxy 1.36.3 in nftables mode, measured earlier on the same kind of machine with as \
             many\nServices and endpoints: 383 MB."
        );
    }
}
