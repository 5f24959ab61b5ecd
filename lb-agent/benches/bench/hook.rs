//! What the hook adds to connect(): ns per call with nothing attached, with a program that only
//! returns 1 (the floor), on a miss and on a hit, with few and with many Services.
//!
//! The sockets are UDP's, so connect() sends nothing. A socket belongs to the cgroup in which it was
//! made, so one process measures all variants: short batches in turn, each difference taken within
//! one round, and the median over all rounds. What else the machine does falls on all alike.
//!
//! `SOCKLB_BENCH_AGAINST=FILE:FILE...` measures the programs of other object files too, on the same
//! maps.

mod datagrams;
mod floor;
mod stage;
mod targets;

use std::{collections::BTreeMap, fs::File, time::Duration};

use anyhow::{Context as _, Result};
use nix::time::ClockId;

use self::{
    stage::{Program, Stage},
    targets::{Dial, Family, Load, Reach, Targets},
};
use crate::{
    lab::{Lab, move_to, pin_to_one_cpu},
    samples::{SPREAD, Samples, verdict},
};

const ROUNDS: usize = 200;
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;

/// Aims, in ns above the floor.
const AIM_MISS: f64 = 40.0;
const AIM_HIT: f64 = 120.0;

/// What is measured: `load` on the sockets of a stage, whose programs find a Service or do not.
struct Row {
    stage: usize,
    load: Load,
    dial: Dial,
    targets: Targets,
    ns: Samples,
}

pub(crate) fn run() -> Result<()> {
    let lab = Lab::enter()?;
    pin_to_one_cpu()?;
    eprintln!("the floor, {ROUNDS} rounds");
    let others = stage::are_programs_loaded();
    let bare = bare(&lab)?;
    let stages = stage::all(&lab, SERVICES, ENDPOINTS)?;
    let mut rows = Vec::new();
    for load in Load::ALL {
        for (index, stage) in stages.iter().enumerate() {
            move_to(&stage.cgroup)?;
            for dial in stage.dials() {
                let services = stage.services;
                if services == 1 && load.reach != Reach::Same {
                    continue;
                }
                let targets = Targets::new(load, dial, services)?;
                rows.push(Row { stage: index, load, dial, targets, ns: Samples::default() });
            }
        }
    }
    eprintln!("{} variants, {ROUNDS} rounds", rows.len());
    for round in 0..ROUNDS {
        // Each round begins elsewhere, so that nobody always runs after the same neighbour.
        for turn in 0..stages.len() {
            // Nor always before the same one: some share maps, and the second finds them in cache.
            let turn = if round % 2 == 0 { turn } else { stages.len() - 1 - turn };
            let stage = (round / 2 + turn) % stages.len();
            move_to(&stages[stage].cgroup)?;
            let mut of_stage: Vec<&mut Row> =
                rows.iter_mut().filter(|r| r.stage == stage).collect();
            let len = of_stage.len();
            of_stage.rotate_left(round % len);
            for row in of_stage {
                let ns = batch(row.load, &mut row.targets)?;
                row.ns.push(ns);
            }
        }
    }
    report(&stages, &rows, &bare, others)?;
    eprintln!("datagrams, {ROUNDS} rounds");
    datagrams::run(&stages)
}

/// What an attached program costs that does nothing: loads with nothing attached on the machine,
/// and with the floor. As long as any cgroup has a program, connect() looks for programs in all of
/// them, so this is measured before there are any, attaching and detaching in each round.
fn bare(lab: &Lab) -> Result<Vec<(Load, Samples, Samples)>> {
    let cgroup = lab.cgroup("bare")?;
    move_to(&cgroup)?;
    let cgroup = File::open(&cgroup)?;
    let mut rows = Vec::new();
    for load in Load::ALL.into_iter().filter(|load| load.reach == Reach::Same) {
        let targets = Targets::new(load, Dial::Miss, SERVICES)?;
        rows.push((load, targets, Samples::default(), Samples::default()));
    }
    for _ in 0..ROUNDS {
        for (load, targets, nothing, _) in &mut rows {
            nothing.push(batch(*load, targets)?);
        }
        let links = floor::attach(&cgroup)?;
        for (load, targets, _, floor) in &mut rows {
            floor.push(batch(*load, targets)?);
        }
        drop(links);
    }
    Ok(rows.into_iter().map(|(load, _, nothing, floor)| (load, nothing, floor)).collect())
}

/// ns for each call of a batch.
fn batch(load: Load, targets: &mut Targets) -> Result<f64> {
    targets.run(load.warm)?;
    // Of this thread only: the time that others had the CPU does not count, though what they did to
    // its caches does.
    let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    let start = clock()?;
    targets.run(load.batch)?;
    Ok(Duration::from(clock()? - start).as_secs_f64() * 1e9 / f64::from(load.batch))
}

fn report(
    stages: &[Stage],
    rows: &[Row],
    bare: &[(Load, Samples, Samples)],
    others: bool,
) -> Result<()> {
    println!(
        "One connect() of a UDP socket, in ns. {SERVICES} Services with {ENDPOINTS} backends in each \
         of two families;\nmedians of {ROUNDS} rounds; differences are medians of those within each \
         round.\n"
    );
    println!("{:<22}{:<34}{:>8}{:>12}", "", "", "ns", "- floor");
    let mut above = BTreeMap::new();
    for load in Load::ALL {
        let of_load = || rows.iter().filter(move |row| row.load == load);
        let floor = of_load()
            .find(|row| stages[row.stage].program == Program::Floor)
            .context("the floor is among the stages")?;
        for row in of_load() {
            let stage = &stages[row.stage];
            let difference = row.ns.minus(&floor.ns).median();
            println!(
                "{:<22}{:<34}{:>8.0}{:>+12.0}",
                load.name,
                title(stage, row.dial),
                row.ns.median(),
                difference
            );
            above.insert((load.name, stage.name.as_str(), row.dial), difference);
        }
        println!();
    }
    aims(&above);
    println!("\nThe floor itself, against nothing attached on the whole machine");
    if others {
        println!("(not so: other programs of this kind were there, so their price is in both)");
    }
    for (load, nothing, floor) in bare {
        let (ns, more) = (nothing.median(), floor.minus(nothing).median());
        println!("{:<22}{ns:>6.0}{more:>+6.0}", load.name);
    }
    stage::print_programs();
    println!("\nEvery variant: ns, and its spread over the rounds\n");
    println!("{:<56}{SPREAD}", "");
    for row in rows {
        let what = format!("{:<22}{}", row.load.name, title(&stages[row.stage], row.dial));
        println!("{what:<56}{}", row.ns);
    }
    Ok(())
}

fn title(stage: &Stage, dial: Dial) -> String {
    match stage.program {
        Program::None | Program::Floor => stage.name.clone(),
        Program::Socklb | Program::Other => format!("{}, {}", stage.name, dial.name()),
    }
}

fn aims(above: &BTreeMap<(&str, &str, Dial), f64>) {
    let get = |load: Load, stage, dial| above.get(&(load.name, stage, dial)).copied();
    println!("Aims, with {SERVICES} Services in the maps");
    for load in Load::ALL.into_iter().filter(|load| !load.fresh) {
        let miss = get(load, stage::MANY, Dial::Miss).unwrap_or(f64::NAN);
        let hit = get(load, stage::MANY, Dial::Hit).unwrap_or(f64::NAN);
        println!(
            "{:<22}miss {miss:+4.0}, aim +{AIM_MISS:.0}: {:<5} hit {hit:+4.0}, aim +{AIM_HIT:.0}: {}",
            load.name,
            verdict(miss <= AIM_MISS),
            verdict(hit <= AIM_HIT)
        );
    }
    println!(
        "The maps are the same for all. \"same\" dials one address again and again; \"any of N\" another\n\
         one of N each time, after each was dialled once: the more addresses, the less of the maps is\n\
         in the CPU's caches, and the more a figure needs a machine that does nothing else."
    );
    println!("\nFlat in the number of Services: {SERVICES} against 1, dialling the same one");
    for load in Load::ALL.into_iter().filter(|load| load.reach == Reach::Same) {
        for dial in [Dial::Miss, Dial::Hit] {
            if let (Some(many), Some(one)) =
                (get(load, stage::MANY, dial), get(load, stage::ONE, dial))
            {
                println!("{:<22}{:<5}{:+4.0}", load.name, dial.name(), many - one);
            }
        }
    }
    println!(
        "\nRemembering the destination: a hit on a new socket against one on a socket that has it"
    );
    for fresh in Load::ALL.into_iter().filter(|load| load.fresh && load.reach == Reach::Same) {
        let again = Load::ALL
            .into_iter()
            .find(|load| !load.fresh && load.reach == Reach::Same && load.family == fresh.family);
        let hit = |load| get(load, stage::MANY, Dial::Hit);
        if let (Some(new), Some(old)) = (hit(fresh), again.and_then(hit)) {
            println!("{:<22}{:+5.0}", Family::name(fresh.family), new - old);
        }
    }
}
