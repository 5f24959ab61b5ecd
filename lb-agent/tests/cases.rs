//! Golden tests of the whole control plane: YAML in, the maps as `lbctl` prints them out.
//!
//! A case is a file in `tests/cases`, made of sections:
//!
//! - before the first one: what it is about, and `max-services: N`, `max-backends: N` for small maps;
//!   `fits: any` if what fits into them depends on the order of events; `node: NAME` of the node that
//!   looks at the cluster; `proxy-name: NAME` of the proxy it is; `unknown-ports: pass` if those of
//!   cluster IPs are left alone; `adopts: no` if it counts what was said before;
//! - `-- apply FILE --`: the file has this content now;
//! - `-- remove FILE --`: the file is gone;
//! - `-- expect --`: a sync, and what the maps say then; below it the Services that failed, the
//!   frontends that went to another Service, and the slices whose ports do not match their Service's;
//! - `-- outside --`, right behind it where the case asks: what packets get that come to the node from
//!   elsewhere;
//! - `-- warn --`, behind that: what is wrong with the objects at that moment.
//!
//! `UPDATE=1 cargo test --test cases` writes down what is. Each case runs four times: as it is,
//! with a fresh pipeline that adopts the maps after each step and must find nothing to do; with one op
//! in ten failing; with each object sent by itself, in another order each time; and with somebody who
//! writes to the maps between the steps, unless they are small (what fits then is another matter) or
//! it says `meddled: no`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::format_push_string, reason = "short texts, and no error to handle")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytemuck::Zeroable as _;
use lb_agent::sources::dir::{Files, Listing};
use lb_common::abi::Backend;
use lb_core::{
    decider::Decider,
    dump,
    engine::Engine as _,
    memory::Memory,
    model::{Change, ObjectRef, Settings},
    op::Op,
    packets::{self, MemoryTable, PacketEngine},
    pipeline::{NodeConfig, Pipeline, SyncReport},
    policy::Served,
    socket_engine::{SocketSettings, UnknownPorts},
    store::{Snapshot, Store, StoreError},
};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
/// Different series of failures and orders, per case.
const SEEDS: u64 = 20;
/// A retry fails as often as the first try; so many in a row do not happen.
const SYNCS: usize = 200;

#[derive(Clone, Debug, PartialEq)]
enum Section {
    Apply(String, String),
    Remove(String),
    Expect(Expected),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Expected {
    /// What the maps say.
    maps: String,
    /// What packets from elsewhere get, if the case asks.
    outside: Option<String>,
    /// What is wrong.
    wrong: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Case {
    head: String,
    sections: Vec<Section>,
}

impl Case {
    fn parse(text: &str) -> Result<Self, String> {
        let mut case = Self { head: String::new(), sections: Vec::new() };
        // The part of an expectation.
        let mut part = "";
        for (i, line) in text.lines().enumerate() {
            let title = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --"));
            if let Some(title) = title {
                part = title;
                let section = match title.split_once(' ').unwrap_or((title, "")) {
                    ("apply", file) => Section::Apply(file.to_owned(), String::new()),
                    ("remove", file) => Section::Remove(file.to_owned()),
                    ("expect", "") => Section::Expect(Expected::default()),
                    ("outside" | "warn", "") => match case.sections.last_mut() {
                        Some(Section::Expect(expected)) if expected.wrong.is_empty() => {
                            if part == "outside" {
                                expected.outside.get_or_insert_default();
                            }
                            continue;
                        }
                        _ => return Err(format!("line {}: {line}", i + 1)),
                    },
                    _ => return Err(format!("line {}: {line}", i + 1)),
                };
                case.sections.push(section);
                continue;
            }
            let text = match case.sections.last_mut() {
                None => &mut case.head,
                Some(Section::Expect(expected)) => match part {
                    "warn" => &mut expected.wrong,
                    "outside" => expected.outside.get_or_insert_default(),
                    _ => &mut expected.maps,
                },
                Some(Section::Apply(_, text)) => text,
                Some(Section::Remove(_)) if line.is_empty() => continue,
                Some(Section::Remove(_)) => return Err(format!("line {}: {line}", i + 1)),
            };
            *text += line;
            text.push('\n');
        }
        Ok(case)
    }

    fn header(&self, key: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        line.map(str::trim)
    }

    fn size(&self, key: &str) -> u32 {
        self.header(key).map_or(1024, |size| size.parse().unwrap())
    }

    fn maps(&self) -> Memory {
        Memory::new(self.size("max-services"), self.size("max-backends"))
    }

    fn settings(&self) -> Settings {
        let node_name = self.header("node").unwrap_or_default().into();
        Settings { node_name, ..Settings::default() }
    }

    /// A pipeline on the case's node that goes on from what the maps say.
    fn pipeline<S: Store>(&self, store: S, snapshot: &Snapshot) -> Pipeline<S> {
        let unknown_ports = match self.header("unknown-ports") {
            Some("pass") => UnknownPorts::Pass,
            _ => UnknownPorts::Refuse,
        };
        Pipeline::with_config(
            NodeConfig {
                settings: self.settings(),
                sockets: SocketSettings { unknown_ports, ..SocketSettings::default() },
            },
            store,
            snapshot,
        )
    }

    fn print(&self) -> String {
        let mut text = self.head.clone();
        for section in &self.sections {
            text += &match section {
                Section::Apply(file, content) => format!("-- apply {file} --\n{content}"),
                Section::Remove(file) => format!("-- remove {file} --\n"),
                Section::Expect(Expected { maps, outside, wrong }) => {
                    let mut text = format!("-- expect --\n{maps}");
                    if let Some(outside) = outside {
                        text += &format!("-- outside --\n{outside}");
                    }
                    if !wrong.is_empty() {
                        text += &format!("-- warn --\n{wrong}");
                    }
                    text
                }
            };
        }
        text
    }

    /// The listings at the case's expectations, each with its number.
    fn steps(&self) -> Vec<Listing> {
        let mut files = Files::new(self.header("proxy-name").map(ToOwned::to_owned));
        let mut steps = Vec::new();
        for section in &self.sections {
            match section {
                Section::Apply(file, content) => files.put(file, content.as_bytes()),
                Section::Remove(file) => files.remove(file),
                Section::Expect(..) => steps.push(files.listing()),
            }
        }
        steps
    }
}

/// Memory that fails every tenth time or so; a failed op leaves it as it was.
struct Faulty {
    memory: Memory,
    random: Random,
    failed: usize,
}

impl Faulty {
    fn fail(&mut self) -> Result<(), StoreError> {
        if self.random.below(10) > 0 {
            return Ok(());
        }
        self.failed += 1;
        Err(StoreError::Kernel { call: "update", map: "any", error: "injected".to_owned() })
    }
}

impl Store for Faulty {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        self.fail()?;
        self.memory.apply(op)
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        self.memory.reserve(generation)
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        self.memory.read()
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        self.memory.records(block, count)
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        self.fail()?;
        self.memory.grace_period()
    }
}

/// splitmix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1);
            items.swap(i, usize::try_from(j).unwrap());
        }
    }
}

/// What packets from elsewhere get: decided, and in a table in memory.
struct Outside {
    decider: Decider,
    served: BTreeMap<ObjectRef, Arc<Served>>,
    engine: PacketEngine<MemoryTable>,
}

impl Outside {
    fn new(case: &Case) -> Self {
        let mut engine = PacketEngine::new(MemoryTable::default());
        engine.adopt().unwrap();
        Self { decider: Decider::new(case.settings()), served: BTreeMap::new(), engine }
    }

    fn change(&mut self, change: Change) {
        self.decider.change(change);
        if self.decider.is_complete() {
            self.sync();
        }
    }

    /// Returns the number of edits.
    fn sync(&mut self) -> usize {
        let mut wanted = self.decider.decide().wanted;
        if self.engine.lacks_all() {
            wanted = self.decider.whole(&wanted);
        }
        self.engine.want(&wanted);
        self.served.extend(wanted.services);
        let outcome = self.engine.sync(self.decider.claims(), &mut |_| {});
        assert!(outcome.failed.is_empty() && outcome.beside.is_empty(), "{outcome:?}");
        outcome.ops
    }

    /// What the table says, which an agent that goes on from it leaves as it is.
    fn table(&mut self) -> String {
        self.engine.adopt().unwrap();
        assert_eq!(self.sync(), 0, "an agent that adopts");
        packets::dump::text(self.engine.mirror())
    }

    fn text(&self) -> String {
        let ports = self.served.values().flat_map(|served| &served.outside);
        ports.map(ToString::to_string).collect()
    }
}

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

/// The dump without what depends on the order of events.
fn meaning(maps: &Memory) -> String {
    let line = |line: &str| {
        let words = line.split(' ').filter(|word| !word.starts_with("id="));
        words.collect::<Vec<_>>().join(" ") + "\n"
    };
    dump::text(&maps.snapshot()).lines().map(line).collect()
}

fn problems(listing: &Listing) -> String {
    let all = listing.problems.iter();
    all.flat_map(|(of, all)| all.iter().map(move |problem| format!("{of}: {problem}\n"))).collect()
}

/// What is, in the form of the case.
fn run_plain(case: &Case) -> Result<Case, String> {
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
fn run_faulty(case: &Case, seed: u64) -> Result<usize, String> {
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
fn run_shuffled(case: &Case, seed: u64) -> Result<(), String> {
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
fn run_meddled(case: &Case, seed: u64) -> Result<usize, String> {
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

/// What the maps should say, by a plain run of the case.
struct Reference {
    plain: Pipeline<Memory>,
    failed: usize,
    /// With room for everything; only for cases in which it matters what fits.
    roomy: Option<Pipeline<Memory>>,
    /// All lines that its dump ever had.
    ever: BTreeSet<String>,
    steps: usize,
}

impl Reference {
    fn new(case: &Case) -> Self {
        let new = |memory: Memory| {
            let snapshot = memory.snapshot();
            case.pipeline(memory, &snapshot)
        };
        let any = case.header("fits") == Some("any");
        Self {
            plain: new(case.maps()),
            failed: 0,
            roomy: any.then(|| new(Memory::new(1024, 1024))),
            ever: BTreeSet::new(),
            steps: 0,
        }
    }

    fn step(&mut self, listing: Listing) -> [Change; 3] {
        let changes = listing.changes();
        for change in changes.clone() {
            self.plain.change(change);
        }
        self.failed = self.plain.sync().sockets.failed.len();
        if let Some(roomy) = &mut self.roomy {
            for change in changes.clone() {
                roomy.change(change);
            }
            roomy.sync();
            self.ever.extend(meaning(roomy.store()).lines().map(ToOwned::to_owned));
        }
        self.steps += 1;
        changes
    }

    fn compare(&self, found: &Memory, report: &SyncReport) -> Result<(), String> {
        let found = meaning(found);
        let wanted = meaning(self.roomy.as_ref().unwrap_or(&self.plain).store());
        let same = match self.roomy {
            None => found == wanted && report.sockets.failed.len() == self.failed,
            Some(_) if report.sockets.failed.is_empty() => found == wanted,
            // What is there is some whole set of a Service that is still there; a Service without
            // a slice is one of those.
            Some(_) => found.lines().all(|line| match line.split_once(" -> ") {
                Some((frontend, set)) => {
                    let of =
                        |line: &str| line.split_once(" -> ").is_some_and(|(f, _)| f == frontend);
                    wanted.lines().any(of) && (self.ever.contains(line) || set == "refuse")
                }
                None => wanted.lines().any(|wanted| wanted == line),
            }),
        };
        if same {
            return Ok(());
        }
        let failed: Vec<_> = report.sockets.failed.values().map(ToString::to_string).collect();
        Err(format!("step {}: failed: {failed:?}\n{}", self.steps, diff(&wanted, &found)))
    }
}

/// Line by line: `-` is wanted, `+` is found.
fn diff(wanted: &str, found: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (wanted.lines().collect(), found.lines().collect());
    // Lengths of the longest common rest of each pair of rests.
    let mut common = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        let (sign, line) = if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            (' ', a[i - 1])
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', a[i - 1])
        } else {
            j += 1;
            ('+', b[j - 1])
        };
        text += &format!("{sign} {line}\n");
    }
    text
}

fn run(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let case = Case::parse(&text)?;
    if case.print() != text {
        return Err(diff(&text, &case.print()));
    }
    let found = run_plain(&case)?;
    if env::var_os("UPDATE").is_some() {
        fs::write(path, found.print()).map_err(|error| error.to_string())?;
    } else if found != case {
        return Err(diff(&text, &found.print()));
    }
    let small = ["max-services", "max-backends"].iter().any(|key| case.header(key).is_some());
    let (mut failed, mut meddled) = (0, 0);
    for seed in 0..SEEDS {
        failed += run_faulty(&case, seed).map_err(|e| format!("failing ops, seed {seed}, {e}"))?;
        run_shuffled(&case, seed).map_err(|e| format!("object by object, seed {seed}, {e}"))?;
        if small || case.header("meddled") == Some("no") {
            meddled = 1;
            continue;
        }
        meddled +=
            run_meddled(&case, seed).map_err(|e| format!("meddled with, seed {seed}, {e}"))?;
    }
    if failed.min(meddled) == 0
        && !found.sections.iter().all(|s| matches!(s, Section::Expect(e) if e.maps.is_empty()))
    {
        return Err("no op failed, or nobody meddled".to_owned());
    }
    Ok(())
}

#[test]
fn cases() {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(DIR).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(paths.len() >= 15, "where are they?");
    let mut wrong = BTreeMap::new();
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match run(&path) {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                println!("{name}: {error}");
                wrong.insert(name, error);
            }
        }
    }
    assert!(wrong.is_empty(), "failed: {:?}", wrong.keys().collect::<Vec<_>>());
}

/// One Service with many ports and endpoints.
fn wide(ports: usize, endpoints: usize) -> Listing {
    let mut files = Files::default();
    let list = |line: &dyn Fn(usize) -> String| (0..ports).map(line).collect::<Vec<_>>().join(", ");
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, \
         spec: {{clusterIP: 10.96.0.10, ports: [{}]}}}}",
        list(&|i| format!("{{name: p{i}, port: {}}}", 1000 + i)),
    );
    let endpoints: Vec<_> =
        (0..endpoints).map(|i| format!("{{addresses: [10.0.{}.{}]}}", i / 250, i % 250)).collect();
    let slice = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-1, \
         labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, ports: [{}], \
         endpoints: [{}]}}",
        list(&|i| format!("{{name: p{i}, port: {}}}", 8000 + i)),
        endpoints.join(", "),
    );
    files.put("web.yaml", format!("{service}\n---\n{slice}\n").as_bytes());
    files.listing()
}

#[test]
fn a_thousand_endpoints_with_fifty_ports() {
    let maps = || Memory::new(100, 110_000);
    let mut pipeline = Pipeline::new(maps(), &maps().snapshot());
    for endpoints in [1000, 999, 0, 1000] {
        wide(50, endpoints).changes().into_iter().for_each(|change| pipeline.change(change));
        let report = pipeline.sync();
        assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
        let dump = meaning(pipeline.store());
        assert_eq!(dump.lines().count(), 50 + 1, "and the cluster IP");
        let frontends = dump.lines().filter(|line| !line.starts_with("address"));
        for (i, line) in frontends.collect::<BTreeSet<_>>().into_iter().enumerate() {
            let (frontend, backends) = line.split_once(" -> ").unwrap();
            let port: usize = frontend.split([' ', ':', '/']).nth(4).unwrap().parse().unwrap();
            assert!((1000..1050).contains(&port), "{i}: {frontend}");
            let backends: Vec<_> = backends.split(' ').collect();
            if endpoints == 0 {
                assert_eq!(backends, ["refuse"]);
                continue;
            }
            assert_eq!(backends.len(), endpoints, "{frontend}");
            let suffix = format!(":{}", port + 7000);
            assert!(backends.iter().all(|b| b.ends_with(&suffix)), "{frontend}");
            assert_eq!(backends.iter().collect::<BTreeSet<_>>().len(), endpoints);
        }
    }
    let snapshot = pipeline.store().snapshot();
    let mut fresh = Pipeline::new(Memory::from(&snapshot), &snapshot);
    wide(50, 1000).changes().into_iter().for_each(|change| fresh.change(change));
    assert_eq!(fresh.sync().sockets.ops, 0);
}

/// How often the maps were waited for.
struct Patient(Memory, usize);

impl Store for Patient {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        self.0.apply(op)
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        self.0.reserve(generation)
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        self.0.read()
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        self.0.records(block, count)
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        self.1 += 1;
        self.0.grace_period()
    }
}

/// Services whose ports, which are numbered, all have these endpoints.
fn crowd(services: usize, ports: std::ops::Range<usize>, endpoints: &[usize]) -> Listing {
    let mut files = Files::default();
    for of in 0..services {
        let ports =
            |of: &dyn Fn(usize) -> String| ports.clone().map(of).collect::<Vec<_>>().join(", ");
        let at = |i: &usize| format!("{{addresses: [10.{of}.{}.{}]}}", i / 250, i % 250);
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{of}}}, \
             spec: {{clusterIP: 10.96.0.{of}, ports: [{}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s{of}-1, \
             labels: {{kubernetes.io/service-name: s{of}}}}}, addressType: IPv4, ports: [{}], \
             endpoints: [{}]}}\n",
            ports(&|i| format!("{{name: p{i}, port: {}}}", 1000 + i)),
            ports(&|i| format!("{{name: p{i}, port: {}}}", 8000 + i)),
            endpoints.iter().map(at).collect::<Vec<_>>().join(", "),
        );
        files.put(&format!("s{of}.yaml"), yaml.as_bytes());
    }
    files.listing()
}

fn all(endpoints: std::ops::Range<usize>) -> Vec<usize> {
    endpoints.collect()
}

/// What [`crowd`] would have in maps without limits.
fn in_large_maps(listing: &Listing) -> String {
    let maps = Memory::new(4096, 1 << 20);
    let mut pipeline = Pipeline::new(maps.clone(), &maps.snapshot());
    listing.clone().changes().into_iter().for_each(|change| pipeline.change(change));
    assert!(pipeline.sync().sockets.failed.is_empty());
    meaning(pipeline.store())
}

/// Each set needs room for its old and its new records, but not for those of all the other sets.
#[test]
fn services_that_fill_more_than_half_of_the_map_go_on_changing() {
    for (services, ports, endpoints, max) in [(1, 50, 50, 4000), (7, 9, 50, 4000)] {
        let maps = Memory::new(1024, max);
        let snapshot = maps.snapshot();
        let mut pipeline = Pipeline::new(Patient(maps, 0), &snapshot);
        let mut one_new = all(0..endpoints);
        one_new[endpoints / 2] = endpoints;
        let others = ports / 3..ports + ports / 3;
        let steps = [
            (0..ports, all(0..endpoints)),
            (0..ports, one_new),
            // All of them at once, and other ports too.
            (0..ports, all(endpoints..2 * endpoints)),
            (others.clone(), all(0..endpoints)),
            (others, all(0..endpoints + 5)),
            (0..ports, vec![]),
            (0..ports, all(1..endpoints)),
        ];
        for (step, (ports, endpoints)) in steps.into_iter().enumerate() {
            let listing = crowd(services, ports.clone(), &endpoints);
            for restarted in [false, true] {
                if restarted {
                    // The next step begins in maps of an agent before it.
                    let snapshot = pipeline.store().0.snapshot();
                    pipeline = Pipeline::new(Patient(Memory::from(&snapshot), 0), &snapshot);
                }
                listing.clone().changes().into_iter().for_each(|change| pipeline.change(change));
                let report = pipeline.sync();
                assert!(
                    report.sockets.failed.is_empty(),
                    "{max}, step {step}: {:?}",
                    report.sockets.failed
                );
                assert!(meaning(&pipeline.store().0) == in_large_maps(&listing), "{max}: {step}");
                let waited = std::mem::take(&mut pipeline.store_mut().1);
                assert!(4 * waited < services * ports.len(), "step {step}: waited {waited} times");
                assert_eq!(report.sockets.ops > 0, !restarted, "{max}, step {step}");
            }
        }
    }
}

/// In maps of the default size.
#[test]
fn four_hundred_ports_with_four_hundred_endpoints() {
    let maps = Memory::new(65_536, 262_144);
    let snapshot = maps.snapshot();
    let mut pipeline = Pipeline::new(Patient(maps, 0), &snapshot);
    for (ports, endpoints) in
        [(0..400, all(0..400)), (0..400, all(1..401)), (100..500, all(401..801))]
    {
        let listing = crowd(1, ports, &endpoints);
        listing.clone().changes().into_iter().for_each(|change| pipeline.change(change));
        let report = pipeline.sync();
        assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
        let right = in_large_maps(&listing);
        assert!(meaning(&pipeline.store().0) == right, "{endpoints:?}");
        let waited = std::mem::take(&mut pipeline.store_mut().1);
        assert!(waited < 10, "waited {waited} times");
    }
}

/// Room for the old and the new records of all: nobody is waited for.
#[test]
fn a_change_waits_only_where_room_is_lacking() {
    let maps = Memory::new(64, 1000);
    let snapshot = maps.snapshot();
    let mut pipeline = Pipeline::new(Patient(maps, 0), &snapshot);
    let mut waited = |endpoints: &[usize]| {
        let listing = crowd(1, 0..10, endpoints);
        listing.changes().into_iter().for_each(|change| pipeline.change(change));
        let failed = pipeline.sync().sockets.failed;
        (std::mem::take(&mut pipeline.store_mut().1), failed.into_values().next())
    };
    assert!(matches!(waited(&all(0..40)), (0, None)));
    assert!(matches!(waited(&all(1..41)), (0, None)));
    // 800 are in use, or were a moment ago.
    assert!(matches!(waited(&all(2..42)), (1, None)));
    assert!(matches!(waited(&all(0..60)), (_, None)));
    // A set that fits nowhere is named, stays as it was, and is not waited for for nothing.
    for _ in 0..2 {
        let (grace_periods, error) = waited(&all(0..500));
        let error = error.unwrap().to_string();
        assert!(error.starts_with("the backends map is full: no 500 records in a row"), "{error}");
        assert!(error.contains("raise --max-backends"), "{error}");
        assert_eq!(grace_periods, 0);
    }
    assert_eq!(meaning(&pipeline.store().0), in_large_maps(&crowd(1, 0..10, &all(0..60))));
}

/// A load balancer whose source ranges are these.
fn guarded(ranges: &str) -> Listing {
    let mut files = Files::default();
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: LoadBalancer, \
         clusterIP: 10.96.0.10, ports: [{{port: 80}}], loadBalancerSourceRanges: [{ranges}]}}, \
         status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.1}}]}}}}}}",
    );
    files.put("web.yaml", service.as_bytes());
    files.listing()
}

#[test]
fn ranges_come_before_who_asks_for_them_and_go_after_it() {
    let maps = || Memory::new(8, 8);
    let mut pipeline = Pipeline::new(maps(), &maps().snapshot());
    let mut ops_of = |ranges: &str| {
        guarded(ranges).changes().into_iter().for_each(|change| pipeline.change(change));
        let mut ops = Vec::new();
        pipeline.sync_with(&mut |op| ops.push(op.to_string()));
        let about = |op: &String| op.contains("source") || op.contains("203.0.113.1");
        ops.retain(about);
        ops
    };
    let (entry, generation) = ("put service 203.0.113.1:80/tcp id 0 block", "count 1 generation");
    assert_eq!(
        ops_of("10.0.0.0/8"),
        ["put source range 0 10.0.0.0/8".to_owned(), format!("{entry} 1 {generation} 2")]
    );
    // The records say only that there are ranges.
    assert_eq!(
        ops_of("192.0.2.0/24"),
        ["put source range 0 192.0.2.0/24", "delete source range 0 10.0.0.0/8"]
    );
    assert_eq!(
        ops_of(""),
        [format!("{entry} 0 {generation} 1"), "delete source range 0 192.0.2.0/24".to_owned()]
    );
}

#[test]
fn a_case_that_is_wrong_is_found() {
    let text = fs::read_to_string(Path::new(DIR).join("endpoints.txt")).unwrap();
    let mut case = run_plain(&Case::parse(&text).unwrap()).unwrap();
    assert_eq!(run_plain(&case).unwrap(), case);
    let expected = |section| match section {
        &mut Section::Expect(ref mut expected) => Some(expected),
        _ => None,
    };
    let Some(expected) = case.sections.iter_mut().find_map(expected) else {
        panic!("it expects nothing")
    };
    expected.maps = expected.maps.replace("10.0.0.3:8080", "10.0.0.4:8080");
    assert_ne!(run_plain(&case).unwrap(), case);
    assert!(Case::parse("-- aply x --\n").is_err() && Case::parse("-- warn --\n").is_err());
    assert_eq!(diff("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
}
