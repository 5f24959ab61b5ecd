//! From objects delivered to maps complete: translation, model, policy, plan, and the real maps.
//!
//! What came over the network and was decoded is not counted: the objects are there, as a watch
//! would deliver them.

use std::{path::Path, time::Instant};

use anyhow::{Result, ensure};
use lb_agent::{
    admin::{Admin, Events, Family, server},
    agent::Agent,
    config::TerminateTcp,
    datapath::{Datapath, Sizes},
    maps::Pinned,
    node_cgroup::Cgroup,
    pins::Pins,
};
use lb_core::{model::Change, pipeline::Pipeline, socket_engine::SocketReport};

use crate::{
    cluster::{Cluster, Shape, event},
    lab::Lab,
    samples::{SPREAD, Samples, verdict},
};

/// How often the whole is repeated, each time on new maps.
const REPEAT: usize = 5;
/// How many single changes are measured in each repetition.
const CHANGES: u32 = 200;
const ENDPOINTS: u32 = 10;
/// Endpoints of the one large Service.
const LARGE: u32 = 100;

const FIRST: &str = "first sync";
const ONE: &str = "one endpoint of one Service changes";
const MANY: &str = "100 endpoints of one Service change";
const RECLAIM: &str = "blocks that became free are made usable";
const LOOP: &str = "one endpoint changes, in the agent's loop";
const TICK: &str = "a second without news, in the agent's loop";
const RESTART: &str = "restart, nothing changed";
const TEARDOWN: &str = "every Service is deleted";

/// Aims, in ms.
const AIM_FIRST: f64 = 400.0;
const AIM_ONE: f64 = 5.0;

/// What was measured at one size.
struct Figures {
    services: u32,
    /// In ms, with the ops of each.
    steps: Vec<(&'static str, Samples, usize)>,
}

pub(crate) fn run() -> Result<()> {
    let lab = Lab::enter()?;
    let sizes = [
        (1_000, Sizes { services: 65_536, backends: 262_144, affinity: 1024 }),
        (10_000, Sizes { services: 65_536, backends: 262_144, affinity: 1024 }),
        (50_000, Sizes { services: 65_536, backends: 1_048_576, affinity: 1024 }),
    ];
    let mut all = Vec::new();
    for (services, sizes) in sizes {
        eprintln!("{services} Services, {REPEAT} times");
        all.push(measure(&lab, services, sizes)?);
    }
    report(&all);
    Ok(())
}

fn measure(lab: &Lab, services: u32, sizes: Sizes) -> Result<Figures> {
    let shape =
        Shape { first: 0, services, endpoints: ENDPOINTS, dual_stack: false, protocol: "TCP" };
    let cluster = shape.cluster();
    let steps = [FIRST, ONE, MANY, RECLAIM, LOOP, TICK, RESTART, TEARDOWN];
    let mut figures =
        Figures { services, steps: steps.map(|step| (step, Samples::default(), 0)).to_vec() };
    for run in 0..REPEAT {
        let name = format!("{services}-{run}");
        let (bpffs, cgroup) = (lab.bpffs(&name)?, lab.cgroup(&name)?);
        once(&bpffs, &cgroup, shape, &cluster, sizes, &mut figures)?;
        std::fs::remove_dir_all(&bpffs)?;
    }
    Ok(figures)
}

fn once(
    bpffs: &Path,
    cgroup: &Path,
    shape: Shape,
    cluster: &Cluster,
    sizes: Sizes,
    figures: &mut Figures,
) -> Result<()> {
    let pins = Pins::new(bpffs);
    let (mut datapath, mut pipeline) = start(&pins, sizes)?;
    figures.time(FIRST, || deliver(&mut pipeline, cluster.listed()))?;
    ensure!(pipeline.mirror().services().len() == cluster.services.len(), "Services are missing");
    // From here on the maps are in force, and the next agent goes on from them.
    datapath.attach(cgroup)?;

    for n in 0..CHANGES {
        // Far apart from each other, so that each is new to the CPU's caches.
        let i = n * (shape.services / CHANGES);
        let slice = shape.slice(i, true, ENDPOINTS, 1);
        let ops = figures.time(ONE, || deliver(&mut pipeline, [event(&slice)]))?;
        ensure!(ops == 2, "a block and a service value: {ops} ops");
    }
    let large = |edition| {
        let mut slice = shape.slice(0, true, LARGE, 0);
        // Every endpoint is another one.
        slice.endpoints = shape.slice(LARGE * edition, true, LARGE, 0).endpoints;
        slice
    };
    for edition in 0..10 {
        let slice = large(edition);
        figures.time(MANY, || deliver(&mut pipeline, [event(&slice)]))?;
    }
    figures.time(RECLAIM, || {
        pipeline.reclaim()?;
        Ok(0)
    })?;
    drop((datapath, pipeline));
    within_the_loop(&pins, cgroup, shape, cluster, sizes, figures)?;

    let (_datapath, mut pipeline) = figures.time_with(RESTART, || {
        let (mut datapath, mut pipeline) = start(&pins, sizes)?;
        ensure!(datapath.is_adopted(), "the restart does not go on from the maps");
        datapath.attach(cgroup)?;
        let ops = deliver(&mut pipeline, cluster.listed())?;
        Ok((ops, (datapath, pipeline)))
    })?;
    let nothing = [
        Change::ListedNodes([].into()),
        Change::ListedServices([].into()),
        Change::ListedSlices([].into()),
    ];
    figures.time(TEARDOWN, || deliver(&mut pipeline, nothing))?;
    ensure!(pipeline.store().snapshot()?.services.is_empty(), "something is left");
    Ok(())
}

/// What the agent does for a change besides writing it: what it tells, and what it sees to once a second.
fn within_the_loop(
    pins: &Pins,
    cgroup: &Path,
    shape: Shape,
    cluster: &Cluster,
    sizes: Sizes,
    figures: &mut Figures,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let nowhere = server::BindAddress(None);
    let settings =
        server::ServerSettings { health: nowhere, metrics: nowhere, bind_hard_fail: true };
    let mut admin = Admin::start(&settings, &[Family::V4, Family::V6], Events::none())?;
    let (datapath, pipeline) = start(pins, sizes)?;
    let cgroup = Cgroup::named(cgroup)?;
    let mut agent = Agent::new(TerminateTcp::Never, pipeline, (datapath, cgroup));
    hear(&mut agent, &mut admin, cluster.listed())?;
    for n in 0..CHANGES {
        let i = n * (shape.services / CHANGES);
        let change = event(&shape.slice(i, true, ENDPOINTS, 2));
        figures.time(LOOP, || hear(&mut agent, &mut admin, [change]))?;
    }
    for _ in 0..10 {
        figures.time(TICK, || agent.tick(&admin).map(|()| 0))?;
    }
    // Back to what the lists say, so that the restart finds nothing to do.
    hear(&mut agent, &mut admin, cluster.listed())?;
    drop((agent, entered));
    runtime.shutdown_background();
    Ok(())
}

fn hear(
    agent: &mut Agent,
    admin: &mut Admin,
    changes: impl IntoIterator<Item = Change>,
) -> Result<usize> {
    changes.into_iter().for_each(|change| agent.take(change));
    agent.turn(true, admin)?;
    Ok(0)
}

/// What the agent does when it starts: load the programs, make or adopt the maps, read them.
fn start(pins: &Pins, sizes: Sizes) -> Result<(Datapath, Pipeline<Pinned>)> {
    let (datapath, maps) = Datapath::load(pins, sizes)?;
    let snapshot = maps.snapshot()?;
    Ok((datapath, Pipeline::new(maps, &snapshot)))
}

/// Returns the number of ops.
fn deliver(
    pipeline: &mut Pipeline<Pinned>,
    changes: impl IntoIterator<Item = Change>,
) -> Result<usize> {
    for change in changes {
        pipeline.change(change);
    }
    let SocketReport { failed, ops, .. } = pipeline.sync().sockets;
    ensure!(failed.is_empty(), "not written: {failed:?}");
    Ok(ops)
}

impl Figures {
    fn time(&mut self, step: &str, work: impl FnOnce() -> Result<usize>) -> Result<usize> {
        self.time_with(step, || work().map(|ops| (ops, ops)))
    }

    fn time_with<T>(&mut self, step: &str, work: impl FnOnce() -> Result<(usize, T)>) -> Result<T> {
        let start = Instant::now();
        let (ops, result) = work()?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        for (name, samples, last) in &mut self.steps {
            if *name == step {
                samples.push(ms);
                *last = ops;
            }
        }
        Ok(result)
    }

    fn median(&self, step: &str) -> f64 {
        self.find(step).map_or(f64::NAN, |(_, samples, _)| samples.median())
    }

    fn ops(&self, step: &str) -> usize {
        self.find(step).map_or(usize::MAX, |(_, _, ops)| *ops)
    }

    fn find(&self, step: &str) -> Option<&(&'static str, Samples, usize)> {
        self.steps.iter().find(|(name, ..)| *name == step)
    }
}

fn report(all: &[Figures]) {
    println!(
        "From objects delivered to maps complete, in ms. {ENDPOINTS} endpoints of each Service; {REPEAT} \
         runs on new maps,\n{CHANGES} single changes in each. The restart counts loading and \
         attaching the programs, and reading the maps.\n"
    );
    print!("{:<42}", "median");
    for figures in all {
        print!("{:>18}", format!("{} Services", figures.services));
    }
    println!("{:>14}", "ops");
    let steps: Vec<&str> =
        all.first().map(|f| f.steps.iter().map(|(step, ..)| *step).collect()).unwrap_or_default();
    for step in steps {
        print!("{step:<42}");
        for figures in all {
            print!("{:>18.3}", figures.median(step));
        }
        let ops = all.iter().map(|figures| figures.ops(step).to_string());
        println!("{:>26}", ops.collect::<Vec<_>>().join(" / "));
    }
    if let Some(figures) = all.iter().find(|figures| figures.services == 10_000) {
        let (first, one) = (figures.median(FIRST), figures.median(ONE));
        let writes = figures.ops(RESTART);
        println!("\nAims, with 10,000 Services");
        println!("first sync {first:.0} ms, aim {AIM_FIRST:.0}: {}", verdict(first < AIM_FIRST));
        println!("one endpoint {one:.3} ms, aim {AIM_ONE:.0}: {}", verdict(one < AIM_ONE));
        println!("restart, nothing changed: {writes} writes, aim 0: {}", verdict(writes == 0));
        println!(
            "\nkube-proxy 1.36.3 in nftables mode, measured earlier on the same kind of machine with as \
             many\nServices and endpoints: first sync 42.5 s, one endpoint 4.4 to 4.6 s."
        );
    }
    println!("\nEvery step: ms, and its spread\n");
    println!("{:<56}{SPREAD}", "");
    for figures in all {
        for (step, samples, _) in &figures.steps {
            println!("{:<56}{samples:.3}", format!("{:>6} Services, {step}", figures.services));
        }
    }
}
