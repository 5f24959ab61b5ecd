//! The ways to run a case.

use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use lb_agent::sources::dir::Listing;
use lb_common::abi::{Backend, PortOptions};
use lb_core::{
    dump,
    memory::Memory,
    model::Change,
    op::Op,
    pipeline::{Pipeline, SyncReport},
    store::{Snapshot, Store as _},
};

use super::{
    case::{Case, Section},
    chance::{Faulty, Random},
    outside::Outside,
    reference::{Reference, diff},
};

/// A retry fails as often as the first try; so many in a row do not happen.
const SYNCS: usize = 200;

/// The maps, and what did not get into them.
fn state(snapshot: &Snapshot, report: &SyncReport) -> String {
    let mut text = dump::text(snapshot);
    for (name, error) in &report.sockets.failed {
        text += &format!("failed {name}: {error}\n");
    }
    for (name, lost) in &report.lost {
        for lost in lost {
            text += &format!("lost {name} {} to {}\n", lost.frontend, lost.owner);
        }
    }
    for (name, unmatched) in &report.unmatched {
        text += &format!("unmatched {name}: {unmatched}\n");
    }
    text
}

fn problems(listing: &Listing) -> String {
    let all = listing.problems.iter();
    all.flat_map(|(of, all)| all.iter().map(move |problem| format!("{of}: {problem}\n"))).collect()
}

/// What is, in the form of the case.
pub(crate) fn run_plain(case: &Case) -> Result<Case, String> {
    let mut pipeline = case.pipeline(case.maps(), &case.maps().snapshot());
    let mut outside = Outside::new(case);
    let mut found = case.clone();
    let mut steps = case.steps().into_iter();
    for section in &mut found.sections {
        let Section::Expect(expected) = section else { continue };
        let mut listing = steps.next().unwrap();
        expected.wrong = problems(&listing);
        listing.problems.clear();
        let known = listing.clone();
        for change in listing.changes() {
            outside.change(change.clone());
            pipeline.change(change);
        }
        if let Some(text) = &mut expected.outside {
            *text = outside.text();
        }
        let report = pipeline.sync();
        let snapshot = pipeline.store().snapshot();
        expected.maps = state(&snapshot, &report);
        if case.header("adopts") == Some("no") {
            continue;
        }

        let mut fresh = case.pipeline(Memory::from(&snapshot), &snapshot);
        let mut changes = known.changes().into_iter();
        let last = changes.next_back();
        for change in changes {
            fresh.change(change);
        }
        assert_eq!(fresh.sync().sockets.ops, 0, "half of what is known is nothing");
        fresh.change(last.unwrap());
        let mut ops = String::new();
        fresh.sync_with(&mut |op| ops += &format!("  {op}\n"));
        if !ops.is_empty() {
            return Err(format!("an agent that adopts\n{}does\n{ops}", expected.maps));
        }
    }
    Ok(found)
}

/// Runs the case with failing ops; the maps must say the same in the end. Returns how many failed.
pub(crate) fn run_faulty(case: &Case, seed: u64) -> Result<usize, String> {
    let memory = case.maps();
    let snapshot = memory.snapshot();
    let faulty = Faulty { memory, random: Random(seed), failed: 0 };
    let mut pipeline = case.pipeline(faulty, &snapshot);
    let mut reference = Reference::new(case);
    for listing in case.steps() {
        for change in reference.step(listing) {
            pipeline.change(change);
        }
        let mut syncs = 0;
        let report = loop {
            let report = pipeline.sync();
            let injected =
                report.sockets.failed.values().any(|e| e.to_string().contains("injected"));
            // What failed for want of room may have it after what else this sync did.
            if report.sockets.ops == 0
                && !injected
                && pipeline.is_dirty() != report.sockets.failed.is_empty()
            {
                break report;
            }
            syncs += 1;
            assert!(syncs < SYNCS, "no end of retries");
        };
        reference.compare(&pipeline.store().memory, &report)?;
        let named = pipeline.store().memory.snapshot().blocks;
        let named: usize = named.values().map(Vec::len).sum();
        if usize::try_from(pipeline.mirror().blocks().used()) != Ok(named) {
            return Err("records that a failed op left behind are lost".to_owned());
        }
    }
    Ok(pipeline.store().failed)
}

/// Runs the case as a watch would tell it: object by object, in any order, a sync after each.
pub(crate) fn run_shuffled(case: &Case, seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    let mut pipeline = case.pipeline(case.maps(), &case.maps().snapshot());
    let mut reference = Reference::new(case);
    let (mut outside, mut plain) = (Outside::new(case), Outside::new(case));
    let (mut services, mut slices, mut nodes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for change in Listing::default().changes() {
        outside.change(change.clone());
        pipeline.change(change);
    }
    for listing in case.steps() {
        let mut changes = Vec::new();
        for name in listing.services.keys().chain(services.keys()) {
            changes.push(Change::Service(name.clone(), listing.services.get(name).cloned()));
        }
        for name in listing.slices.keys().chain(slices.keys()) {
            changes.push(Change::Slice(name.clone(), listing.slices.get(name).cloned()));
        }
        for name in listing.nodes.keys().chain(nodes.keys()) {
            changes.push(Change::Node(name.name.clone(), listing.nodes.get(name).cloned()));
        }
        (services, slices, nodes) =
            (listing.services.clone(), listing.slices.clone(), listing.nodes.clone());
        random.shuffle(&mut changes);
        for change in changes {
            outside.change(change.clone());
            pipeline.change(change);
            pipeline.sync();
        }
        for change in reference.step(listing) {
            plain.change(change);
        }
        for (plain, found) in [(plain.text(), outside.text()), (plain.table(), outside.table())] {
            if found != plain {
                return Err(format!("outside:\n{}", diff(&plain, &found)));
            }
        }
        let report = pipeline.sync();
        reference.compare(pipeline.store(), &report)?;
    }
    Ok(())
}

/// What somebody else might do to some of what the maps say: it is deleted, or says what its neighbour
/// says.
fn meddling(there: &Snapshot, random: &mut Random) -> Vec<Op> {
    let mut ops = Vec::new();
    // Nothing, a deletion, a change.
    let mut what = |ops: &mut Vec<Op>, delete: Op, change: Op| match random.below(6) {
        0 => ops.push(delete),
        1 => ops.push(change),
        _ => {}
    };
    let neighbours = there.services.values().cycle().skip(1);
    for ((key, _), neighbour) in there.services.iter().zip(neighbours) {
        let change = Op::PutService { key: *key, service: *neighbour };
        what(&mut ops, Op::DeleteService { key: *key }, change);
    }
    let neighbours = there.names.values().cycle().skip(1);
    for ((id, _), neighbour) in there.names.iter().zip(neighbours) {
        let change = Op::PutName { id: *id, port: neighbour.clone() };
        what(&mut ops, Op::DeleteName { id: *id }, change);
    }
    let neighbours = there.addresses.values().cycle().skip(1);
    for ((addr, _), neighbour) in there.addresses.iter().zip(neighbours) {
        let change = Op::PutAddress { addr: *addr, known: *neighbour };
        what(&mut ops, Op::DeleteAddress { addr: *addr }, change);
    }
    for (id, range) in &there.source_ranges {
        let change = Op::PutSourceRange { id: id + 1, range: *range };
        what(&mut ops, Op::DeleteSourceRange { id: *id, range: *range }, change);
    }
    for (id, options) in &there.ports {
        let put = |options| Op::PutPort { id: *id, options };
        let other = PortOptions::with_affinity(options.affinity + 1);
        what(&mut ops, put(PortOptions::default()), put(other));
    }
    for (block, records) in &there.blocks {
        let nothing = vec![Backend::zeroed(); records.len()];
        let mut turned = records.clone();
        turned.reverse();
        let op = |records| Op::WriteBlock { block: *block, records };
        what(&mut ops, op(nothing), op(turned));
    }
    ops
}

/// Runs the case with somebody else at the maps, which are read anew then; they must say the same in
/// the end.
pub(crate) fn run_meddled(case: &Case, seed: u64) -> Result<usize, String> {
    let mut random = Random(seed);
    let mut pipeline = case.pipeline(case.maps(), &case.maps().snapshot());
    let mut reference = Reference::new(case);
    let mut meddled = 0;
    for listing in case.steps() {
        for change in reference.step(listing) {
            pipeline.change(change);
        }
        let mut syncs = 0;
        let settle = |pipeline: &mut Pipeline<Memory>, syncs: &mut usize| loop {
            let report = pipeline.sync();
            if report.sockets.ops == 0 && pipeline.is_dirty() != report.sockets.failed.is_empty() {
                break report;
            }
            *syncs += 1;
            assert!(*syncs < SYNCS, "no end of retries");
        };
        settle(&mut pipeline, &mut syncs);
        let ops = meddling(&pipeline.store().snapshot(), &mut random);
        meddled += ops.len();
        for op in &ops {
            pipeline.store_mut().apply(op).unwrap();
        }
        pipeline.adopt().unwrap();
        let report = settle(&mut pipeline, &mut syncs);
        let mut done = String::new();
        for op in &ops {
            done += &format!("  {op}\n");
        }
        reference
            .compare(pipeline.store(), &report)
            .map_err(|error| format!("{error}after somebody did\n{done}"))?;
    }
    Ok(meddled)
}
