//! Agents that are killed at any point of a sync: the next one makes the tables what they are to be,
//! writes what differs and nothing else, and strangers notice nothing.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser as _;
use lb_agent::{
    config::Config,
    sources::{dir::Files, local},
};
use lb_core::{
    decider::Decider,
    engine::Engine as _,
    model::{Change, Families},
    packets::{Element, MemoryTable, PacketEngine, TableMirror, dump},
};

use super::{
    super::{
        agent::Agent,
        lane::Lane,
        packets::command_of_size,
        world::{World, soon},
    },
    Random, Report,
    endpoints::{ask, endpoint, serve},
    look,
    monitor::{Heard, Monitor},
    number,
    objects::{Endpoint, Shape, put},
    seed,
};

const KILLS: u64 = 4;
const SERVICES: u16 = 200;
const ENDPOINTS: u16 = 10;
const SIZES: [&str; 2] = ["--max-services=16384", "--max-backends=65536"];
const RANGES: [&str; 4] = ["10.0.0.0/8", "192.168.0.0/16", "fd00::/8", "'2001:db8::/32'"];

/// The Service of which nothing changes, and its file.
const STEADY: (u16, &str) = (1, "steady.yaml");
const MANY: &str = "many.yaml";

/// What is there and nobody asks for.
struct Many(Vec<Option<(Shape, BTreeSet<u16>)>>);

impl Many {
    fn new(random: &mut Random) -> Self {
        Self((0..SERVICES).map(|n| Some(draw(10 + n, random))).collect())
    }

    /// Changes about half of it.
    fn change(&mut self, random: &mut Random) {
        for (service, n) in self.0.iter_mut().zip(10..) {
            match (random.below(10), &mut *service) {
                (0, Some(_)) => *service = None,
                (1, service) => *service = Some(draw(n, random)),
                (2..=4, Some((_, endpoints))) => {
                    // Some leave, and some come.
                    let stay = random.index(endpoints.len()) + 1;
                    *endpoints = random.some(endpoints.iter().copied(), stay);
                    endpoints.extend(random.some(0..1000, 10));
                }
                _ => {}
            }
        }
    }

    fn text(&self) -> String {
        let texts = self.0.iter().flatten().map(|(shape, endpoints)| {
            shape.text(&endpoints.iter().copied().map(stranger).collect::<Vec<_>>())
        });
        texts.collect()
    }
}

fn draw(number: u16, random: &mut Random) -> (Shape, BTreeSet<u16>) {
    let affinity = random.once_in(3).then(|| [60, 600, 10_800][random.index(3)]);
    let ranges =
        if random.once_in(3) { RANGES[..2 + random.index(3)].to_vec() } else { Vec::new() };
    let local = random.once_in(4);
    (Shape { number, local, affinity, ranges }, random.some(0..1000, ENDPOINTS.into()))
}

/// An endpoint that nobody is.
fn stranger(n: u16) -> Endpoint {
    let [high, low] = n.to_be_bytes();
    Endpoint {
        ipv4: [10, 70, high, low].into(),
        ipv6: [0xfd70, 0, 0, 0, 0, 0, 0, n + 1].into(),
        is_here: n.is_multiple_of(2),
    }
}

/// What a table says that is written anew, with all of these files.
fn anew(texts: &[(&str, &str)], own: &BTreeSet<IpAddr>) -> TableMirror {
    let mut files = Files::default();
    for (name, text) in texts {
        files.put(name, text.as_bytes());
    }
    let listing = files.listing();
    assert!(listing.problems.is_empty(), "{:?}", listing.problems);
    let config = Config::try_parse_from(["lb-agent"]).unwrap();
    let families = Families { ipv4: true, ipv6: true };
    let mut decider = Decider::new(config.settings("test", families, true));
    decider.change(Change::LocalAddresses(own.clone()));
    listing.changes().into_iter().for_each(|change| decider.change(change));
    let wanted = decider.decide().wanted;
    let wanted = decider.whole(&wanted);
    let tables = [true, false].map(|ipv4| {
        let mut engine = PacketEngine::new(MemoryTable::default(), ipv4);
        engine.adopt().unwrap();
        engine.want(&wanted);
        let outcome = engine.sync(decider.claims(), &mut |_| {});
        assert!(outcome.failed.is_empty() && outcome.beside.is_empty(), "{outcome:?}");
        engine.mirror().elements().collect::<Vec<_>>()
    });
    tables.into_iter().flatten().collect()
}

/// Whether two tables say the same, whatever the numbers of groups, slots and bonds in them.
fn are_alike(one: &TableMirror, other: &TableMirror) -> bool {
    one.len() == other.len() && dump::text(one) == dump::text(other)
}

fn elements(table: &TableMirror) -> BTreeSet<Element> {
    table.elements().collect()
}

/// A client that connects to the same Service again and again.
#[derive(Default)]
struct Client {
    stop: AtomicBool,
    done: AtomicU64,
    lost: Mutex<Vec<String>>,
}

impl Client {
    fn connect(&self, to: &Shape) {
        for to in to.addresses().iter().cycle() {
            if self.stop.load(Relaxed) {
                return;
            }
            let began = Instant::now();
            if let Err(error) = ask(*to, true) {
                let after = began.elapsed();
                self.lost.lock().unwrap().push(format!("{to}: {error} after {after:?}"));
            }
            self.done.fetch_add(1, Relaxed);
            // Others have something to do, too.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Stop(Arc<Client>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// An agent that says that it is in sync.
fn start(world: &World) -> Agent {
    let agent = spawn(world);
    agent.wait_for_start(SYNCED);
    agent
}

fn spawn(world: &World) -> Agent {
    Agent::spawn(command_of_size(world, &SIZES, &[]))
}

/// From when on an agent may write that was started.
const READS: &str = "going on from the pinned maps";
/// It has written all.
const SYNCED: &str = "in sync";

/// Starts an agent that has something to write. How long it takes until all is written, and the last part of
/// that, from when on something is.
fn measure(world: &World, monitor: &Monitor) -> (Agent, [Duration; 2]) {
    monitor.hear();
    let agent = spawn(world);
    agent.wait_for_start(READS);
    let (began, mut first) = (Instant::now(), None);
    assert!(soon(|| {
        if first.is_none() && monitor.hear() != Heard::default() {
            first = Some(began.elapsed());
        }
        agent.log().contains(SYNCED)
    }));
    let whole = began.elapsed();
    (agent, [whole, whole.saturating_sub(first.unwrap_or_default())])
}

/// What came after a kill.
struct Next {
    agent: Agent,
    /// How many elements were not as they are to be, or not there, or there and not to be.
    differed: usize,
    /// How many were written.
    written: usize,
}

impl Next {
    /// Starts the next agent and, when that has done what is to be done, one more.
    fn start(world: &World, monitor: &Monitor, wanted: &TableMirror, when: &str) -> Self {
        let before = elements(&look().table);
        monitor.hear();
        let agent = start(world);
        let heard = monitor.hear();
        let now = look().table;
        assert!(
            are_alike(&now, wanted),
            "{when}: {} elements, not {}\n{}",
            now.len(),
            wanted.len(),
            difference(&dump::text(wanted), &dump::text(&now)),
        );
        let now = elements(&now);
        let differed = before.symmetric_difference(&now).count();
        let written = heard.added + heard.deleted;
        println!("{when}: {differed} elements differed, {written} were written ({heard:?})");
        let sum = (before.len() + heard.added).checked_sub(heard.deleted);
        assert_eq!(sum, Some(now.len()), "{when}: not all was heard");
        assert!(written <= differed, "{when}: {written} were written, {differed} differed");

        agent.kill();
        monitor.hear();
        let agent = start(world);
        assert_eq!(monitor.hear(), Heard::default(), "{when}: nothing had changed");
        assert_eq!(elements(&look().table), now, "{when}");
        Self { agent, differed, written }
    }
}

#[test]
fn an_agent_is_killed_at_any_point_of_a_sync() {
    let kills = number("SOCKLB_CHURN_KILLS", KILLS);
    World::run(|world| {
        let mut report = Report::of("kills at random points of a sync");
        let lane = Lane::new();
        serve(&lane);
        let mut random = Random(seed());
        let steady = Shape { number: STEADY.0, ..Shape::default() };
        let steady_text = steady.text(&(0..6).map(endpoint).collect::<Vec<_>>());
        let mut many = Many::new(&mut random);
        put(world, STEADY.1, &steady_text);
        put(world, MANY, &many.text());
        let own = local::addresses().unwrap();
        let fresh = |many: &Many| anew(&[(STEADY.1, &steady_text), (MANY, &many.text())], &own);
        let mut agent = start(world);
        let wanted = fresh(&many);
        assert!(are_alike(&look().table, &wanted));
        report.say("Services", &SERVICES);
        report.say("elements", &wanted.len());

        let client = Arc::new(Client::default());
        let stop = Stop(Arc::clone(&client));
        let thread = {
            let (client, steady) = (Arc::clone(&client), steady.clone());
            lane.client.run(move || thread::spawn(move || client.connect(&steady)))
        };

        let monitor = Monitor::open();
        agent.kill();
        many.change(&mut random);
        put(world, MANY, &many.text());
        let took;
        (agent, took) = measure(world, &monitor);
        let [whole, writing] = took;
        report.say("a sync", &format!("{whole:?}, {writing:?} of it to write"));

        // Where the kills were: before anything was written, between, and after all was.
        let mut points = [0; 3];
        let (mut differed, mut written) = (0, 0);
        for round in 0..kills {
            let before = elements(&look().table);
            many.change(&mut random);
            let text = many.text();
            let (is_at_work, is_aimed) = (random.once_in(2), !random.once_in(4));
            let share = u32::try_from(random.below(1000)).unwrap();
            let after = if is_aimed { writing } else { whole } * share / 1000;
            monitor.hear();
            let wanted = thread::scope(|scope| {
                let wanted = scope.spawn(|| fresh(&many));
                if is_at_work {
                    put(world, MANY, &text);
                } else {
                    agent.kill();
                    put(world, MANY, &text);
                    agent = spawn(world);
                    agent.wait_for_start(READS);
                }
                if is_aimed {
                    assert!(soon(|| monitor.hear() != Heard::default()), "it writes nothing");
                }
                thread::sleep(after);
                agent.kill();
                wanted.join().unwrap()
            });
            let killed = look().table;
            let point = match (elements(&killed) == before, are_alike(&killed, &wanted)) {
                (true, _) => 0,
                (_, false) => 1,
                (_, true) => 2,
            };
            points[point] += 1;

            let when = format!(
                "round {round}, killed {after:?} after {} of {}",
                if is_aimed { "the first write" } else { "the beginning" },
                if is_at_work { "a change" } else { "a start" },
            );
            let next = Next::start(world, &monitor, &wanted, &when);
            (differed, written) = (differed + next.differed, written + next.written);
            agent = next.agent;
        }
        drop(stop);
        thread.join().unwrap();
        let (done, lost) = (client.done.load(Relaxed), client.lost.lock().unwrap());
        report.say("kills", &kills);
        let [none, some, all] = points;
        report.say("killed", &format!("{none} before, {some} between, {all} after what it wrote"));
        report.say("differed", &format!("{differed} elements after the kills"));
        report.say(
            "written",
            &format!("{written} elements by the next agents, 0 by those after them"),
        );
        report.say("connections", &done);
        report.say("lost or refused", &lost.len());
        assert!(lost.is_empty(), "{} were lost: {:?}", lost.len(), &lost[..lost.len().min(5)]);
        assert!(done > 0);
        report.end();
    });
}

/// The lines that only one of them has.
fn difference(expected: &str, found: &str) -> String {
    let [expected, found] = [expected, found].map(|text| text.lines().collect::<BTreeSet<_>>());
    let missing = expected.difference(&found).map(|line| format!("- {line}\n"));
    let others = found.difference(&expected).map(|line| format!("+ {line}\n"));
    missing.chain(others).take(20).collect()
}
