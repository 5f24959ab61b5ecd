//! What the hook adds to connect(): ns per call with nothing attached, with a program that only
//! returns 1 (the floor), on a miss and on a hit, with few and with many Services.
//!
//! UDP's connect() sends nothing; TCP's is called where it fails right behind the programs. A socket
//! belongs to the cgroup in which it was made, so one process measures all variants: short batches in
//! turn, each difference taken within one round, and the median over all rounds. What else the machine
//! does falls on all alike.
//!
//! A baseline is another agent, which has loaded its own programs and filled its own maps.

mod bare;
mod datagrams;
mod report;
mod stage;
mod targets;

use std::{fs::File, time::Duration};

use anyhow::Result;
use nix::time::ClockId;

use self::{
    bare::Part,
    report::Measured,
    stage::Stage,
    targets::{Dial, Load, Reach, Targets},
};
use crate::{
    Baseline,
    lab::{Lab, move_to, pin_to_one_cpu},
    samples::Samples,
};

/// Services with a port of UDP; behind them those with a port of TCP.
const SERVICES: u32 = 10_000;
const TCP_SERVICES: u32 = 1_000;
const ENDPOINTS: u32 = 10;

/// What is measured: `load` on the sockets of a stage, whose programs find a Service or do not.
struct Row {
    stage: usize,
    load: Load,
    dial: Dial,
    targets: Targets,
    ns: Samples,
}

pub(crate) fn run(baselines: &[Baseline], rounds: usize) -> Result<()> {
    let lab = Lab::enter()?;
    pin_to_one_cpu()?;
    eprintln!("the floor, {rounds} rounds");
    let others = stage::are_programs_loaded();
    let bare = bare(&lab, rounds)?;
    let stages = stage::all(&lab, baselines)?;
    let mut rows = rows(&lab, &stages)?;
    eprintln!("{} variants, {rounds} rounds", rows.len());
    for round in 0..rounds {
        for load in Load::ALL {
            let mut of_load: Vec<&mut Row> = rows.iter_mut().filter(|r| r.load == load).collect();
            // Each round begins elsewhere, so that nobody always runs after the same neighbour, nor
            // always before the same one.
            let len = of_load.len();
            of_load.rotate_left(round / 2 % len);
            if round % 2 == 1 {
                of_load.reverse();
            }
            let mut at = None;
            for row in of_load {
                // Only the sockets that are made now belong to where the process is.
                if load.fresh && at != Some(row.stage) {
                    move_to(&stages[row.stage].cgroup)?;
                    at = Some(row.stage);
                }
                let ns = batch(&lab, load, &mut row.targets)?;
                row.ns.push(ns);
            }
        }
    }
    let measured = Measured { stages: &stages, rows: &rows, rounds };
    measured.print(&bare, others)?;
    eprintln!("datagrams, {rounds} rounds");
    datagrams::run(&stages, rounds)
}

/// Loads are dialled at every stage, as far as it has what is dialled.
fn rows(lab: &Lab, stages: &[Stage]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for load in Load::ALL {
        for (index, stage) in stages.iter().enumerate() {
            move_to(&stage.cgroup)?;
            for &dial in stage.dials() {
                if load.reach != Reach::Same && !stage.has_many() {
                    continue;
                }
                let targets = Targets::new(lab, load, dial)?;
                rows.push(Row { stage: index, load, dial, targets, ns: Samples::default() });
            }
        }
    }
    Ok(rows)
}

/// What an attached program costs that does nothing: loads with nothing attached on the machine,
/// and with the floor. As long as any cgroup has a program, connect() looks for programs in all of
/// them, so this is measured before there are any, attaching and detaching in each round.
fn bare(lab: &Lab, rounds: usize) -> Result<Vec<(Load, Samples, Samples)>> {
    let cgroup = lab.cgroup("bare")?;
    move_to(&cgroup)?;
    let cgroup = File::open(&cgroup)?;
    let mut rows = Vec::new();
    for load in Load::ALL.into_iter().filter(|load| load.reach == Reach::Same) {
        let targets = Targets::new(lab, load, Dial::Outside)?;
        rows.push((load, targets, Samples::default(), Samples::default()));
    }
    for _ in 0..rounds {
        for (load, targets, nothing, _) in &mut rows {
            nothing.push(batch(lab, *load, targets)?);
        }
        let links = bare::attach(&cgroup, Part::Floor)?;
        for (load, targets, _, floor) in &mut rows {
            floor.push(batch(lab, *load, targets)?);
        }
        drop(links);
    }
    Ok(rows.into_iter().map(|(load, _, nothing, floor)| (load, nothing, floor)).collect())
}

/// ns for each call of a batch.
fn batch(lab: &Lab, load: Load, targets: &mut Targets) -> Result<f64> {
    // Of this thread only: the time that others had the CPU does not count, though what they did to
    // its caches does.
    let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    let spent = targets.batch(lab, |calls| {
        let start = clock()?;
        calls()?;
        Ok(Duration::from(clock()? - start))
    })?;
    Ok(spent.as_secs_f64() * 1e9 / f64::from(load.batch))
}
