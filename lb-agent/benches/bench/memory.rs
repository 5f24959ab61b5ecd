//! What the agent takes: the real program, resident, after it has read 10,000 Services from files;
//! and what its maps take in the kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapInfo;
use k8s_openapi::Resource;
use lb_agent::{
    maps::{Access, Pinned},
    pins::Pins,
};
use lb_common::abi::{BACKENDS, NAMES, SERVICES};
use serde_json::{Value, json};

use crate::{cluster::Shape, lab::Lab, samples::verdict};

const SERVICES_PER_FILE: usize = 100;
const ENDPOINTS: u32 = 10;
/// Aim, in MB of 10^6 bytes.
const AIM: f64 = 64.0;
/// How long the agent may take until the maps are complete.
const PATIENCE: Duration = Duration::from_secs(120);
/// Then, until it has come to rest: retired blocks, buffers.
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
    let shape = Shape { services, endpoints: ENDPOINTS, dual_stack: false, protocol: "TCP" };
    write(&shape, 0, &files)?;
    let mut agent = Agent::start(&files, &bpffs, &lab.cgroup(&name)?)?;
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
    let maps = [SERVICES, BACKENDS, NAMES].map(|map| size(&pins, map));
    let maps = maps.into_iter().collect::<Result<_>>()?;
    drop(agent);
    fs::remove_dir_all(&files)?;
    fs::remove_dir_all(&bpffs)?;
    Ok(Footprint { fields, churned, maps })
}

/// The agent as a process; killed when dropped.
struct Agent(Child);

impl Agent {
    fn start(files: &Path, bpffs: &Path, cgroup: &Path) -> Result<Self> {
        let mut source = std::ffi::OsString::from("dir:");
        source.push(files);
        let mut agent = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        agent.arg("--source").arg(source).arg("--bpffs").arg(bpffs).arg("--cgroup").arg(cgroup);
        agent.args(["--node-name", "bench"]).args(["--log", "warn"]).stdin(Stdio::null());
        Ok(Self(agent.spawn().context("cannot start lb-agent")?))
    }

    fn until(&mut self, done: impl Fn() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done()? {
            if let Some(status) = self.0.try_wait()? {
                bail!("lb-agent ended: {status}");
            }
            if start.elapsed() > PATIENCE {
                bail!("lb-agent is not ready after {} s", PATIENCE.as_secs());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A field of `/proc/PID/status`, in MB.
    fn status(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no such field")?;
        Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
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

/// Multi-document files, each with a hundred Services and their slices.
fn write(shape: &Shape, edition: u32, dir: &Path) -> Result<()> {
    let mut cluster = shape.cluster();
    if edition != 0 {
        let slices = (0..shape.services).map(|i| shape.slice(i, true, ENDPOINTS, edition));
        cluster.slices = slices.collect();
    }
    let pairs =
        cluster.services.chunks(SERVICES_PER_FILE).zip(cluster.slices.chunks(SERVICES_PER_FILE));
    for (n, (services, slices)) in pairs.enumerate() {
        let mut text = String::new();
        for (service, slice) in services.iter().zip(slices) {
            text.push_str(&document(service)?);
            text.push_str(&document(slice)?);
        }
        // As an editor saves: the new file takes the place of the old one at once.
        let fresh = dir.join(format!(".{n:04}"));
        fs::write(&fresh, text)?;
        fs::rename(fresh, dir.join(format!("{n:04}.yaml")))?;
    }
    Ok(())
}

fn document<T: Resource + serde::Serialize>(object: &T) -> Result<String> {
    let mut value = serde_json::to_value(object)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("apiVersion".to_owned(), json!(T::API_VERSION));
        fields.insert("kind".to_owned(), json!(T::KIND));
    }
    Ok(format!("---\n{}", serde_saphyr::to_string(&value)?))
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
