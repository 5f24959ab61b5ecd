//! What the agent takes: the real program, resident, after it has read 10,000 Services from files;
//! and what its maps take in the kernel.

use std::{collections::BTreeMap, fs, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use lb_agent::{
    maps::{Access, Pinned},
    pins::Pins,
};
use lb_common::abi::NAMES;

use crate::{
    agent::{self, Agent, SERVICES_PER_FILE},
    cluster::Shape,
    lab::Lab,
    samples::verdict,
};

const ENDPOINTS: u32 = 10;
/// Numbers of Services, each with what the agent needs to be told.
const SIZES: [(u32, &[&str]); 5] = [
    (0, &[]),
    (1_000, &[]),
    (10_000, &[]),
    (20_000, &[]),
    (100_000, &["--max-services", "131072", "--max-backends", "1250000"]),
];
/// Up to so many Services every one of them is changed, too.
const CHURNED: u32 = 20_000;
/// Aim, in MB of 10^6 bytes.
const AIM: f64 = 64.0;
/// How long the agent has, once the maps are complete, to come to rest: retired blocks, buffers.
const REST: Duration = Duration::from_secs(3);

pub(crate) fn run() -> Result<()> {
    let lab = Lab::enter()?;
    let mut measured = Vec::new();
    for (services, flags) in SIZES {
        eprintln!("{services} Services");
        measured.push((services, measure(&lab, services, flags)?));
    }
    report(&measured);
    Ok(())
}

/// Fields of `/proc/PID/status` in kB, and the maps.
struct Footprint {
    fields: Vec<(&'static str, f64)>,
    /// After a change to every Service, and back.
    churned: Option<f64>,
    /// By name: entries there is room for, and MB.
    maps: BTreeMap<String, (u32, f64)>,
}

const FIELDS: [&str; 5] = ["VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"];

fn measure(lab: &Lab, services: u32, flags: &[&str]) -> Result<Footprint> {
    let name = services.to_string();
    let (files, bpffs) = (lab.dir().join(&name), lab.bpffs(&name)?);
    fs::create_dir(&files)?;
    let shape =
        Shape { first: 0, services, endpoints: ENDPOINTS, dual_stack: false, protocol: "TCP" };
    write(&shape, 0, &files)?;
    let cgroup = lab.cgroup(&name)?;
    let mut agent = Agent::start_with(agent::OURS.as_ref(), &files, &bpffs, &cgroup, flags)?;
    let pins = Pins::new(&bpffs);
    agent.until(|| Ok(frontends(&pins)? == Some(services as usize)))?;
    sleep(REST);
    let fields = FIELDS
        .into_iter()
        .map(|field| Ok((field, agent.status(field)?)))
        .collect::<Result<Vec<_>>>()?;
    let maps = maps(&pins)?;
    let churned = if services <= CHURNED {
        for edition in [1, 0] {
            let before = generation(&pins)?;
            write(&shape, edition, &files)?;
            agent.until(|| Ok(generation(&pins)? >= before + services))?;
        }
        sleep(REST);
        Some(agent.status("VmRSS")?)
    } else {
        None
    };
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

/// All maps that are pinned.
fn maps(pins: &Pins) -> Result<BTreeMap<String, (u32, f64)>> {
    let mut all = BTreeMap::new();
    for directory in [pins.maps()?.context("no maps")?, pins.root().to_owned()] {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                all.insert(entry.file_name().to_string_lossy().into_owned(), size(&entry.path())?);
            }
        }
    }
    Ok(all)
}

/// How many entries a map has room for, and what the kernel charges for it, in MB.
fn size(path: &Path) -> Result<(u32, f64)> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let entries = MapInfo::from_pin(path)?.max_entries();
    let map = aya::maps::MapData::from_pin(path)?;
    let fd = map.fd().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("memlock")?;
    Ok((entries, bytes.trim().parse::<f64>()? / 1e6))
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
        let churned = footprint.churned.map_or_else(|| "-".to_owned(), |mb| format!("{mb:.1}"));
        println!("{churned:>10}");
    }
    report_maps(measured);
    if let Some((_, footprint)) = measured.iter().find(|(services, _)| *services == 10_000) {
        let rss = footprint.fields.first().map_or(f64::NAN, |(_, value)| *value);
        println!("\nAim, with 10,000 Services: {rss:.0} MB, aim {AIM:.0}: {}", verdict(rss < AIM));
        println!(
            "\nkube-proxy 1.36.3 in nftables mode, measured earlier on the same kind of machine with as \
             many\nServices and endpoints: 383 MB."
        );
    }
}

/// A line for each map, a column for each number of Services.
fn report_maps(measured: &[(u32, Footprint)]) {
    println!(
        "\nMaps, as the kernel charges for them (memlock), in MB; before each the entries it has room for, in \
         thousands.\nWhat is stored for sockets is charged when it is stored.\n"
    );
    print!("{:<20}", "Services");
    for (services, _) in measured {
        print!("{services:>16}");
    }
    println!();
    let names = measured.first().map(|(_, footprint)| footprint.maps.keys());
    for name in names.into_iter().flatten() {
        print!("{name:<20}");
        for (_, footprint) in measured {
            let (entries, mb) = footprint.maps.get(name).copied().unwrap_or_default();
            print!("{:>16}", format!("{:.1} | {mb:.1}", f64::from(entries) / 1e3));
        }
        println!();
    }
    print!("{:<20}", "all");
    for (_, footprint) in measured {
        print!("{:>16.1}", footprint.maps.values().map(|(_, mb)| mb).sum::<f64>());
    }
    println!();
    for (services, flags) in SIZES.iter().filter(|(_, flags)| !flags.is_empty()) {
        println!("\nWith {services} Services: {}", flags.join(" "));
    }
}
