//! While endpoints and Services come and go, each new connection from outside reaches an endpoint that
//! was one at that time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use lb_core::{
    model::Scope,
    packets::dump::{self, PacketFate},
};

use super::{
    super::{
        lane::{Lane, Place},
        packets::command_of_size,
        world::{World, soon},
        yaml,
    },
    Random, Report,
    endpoints::{Asked, ENDPOINTS, ask, endpoint, number, serve},
    journal::{Journal, Set},
    look, number as of_environment,
    objects::{Shape, put},
    seed,
};
use crate::kernel::agent::Agent;

const CONNECTIONS: u64 = 3_000;
const CHANGES: usize = 60;
/// Connections at once.
const CLIENTS: u64 = 4;
/// So few that they are used again and again.
const PORTS: &str = "20000 21999";
/// So that connection tracking forgets while they are.
const TIMEOUTS: [(&str, &str); 5] =
    [("time_wait", "1"), ("close", "1"), ("fin_wait", "2"), ("last_ack", "1"), ("close_wait", "2")];
/// What connection tracking must not have had to do.
const VOID: [&str; 3] = ["insert_failed", "drop", "early_drop"];
/// The Service that comes and goes.
const STRANGER: &str = "stranger.yaml";

/// A Service, and what was put of it.
struct Served {
    shape: Shape,
    journal: Journal,
    /// How many endpoints it may have; two numbers take turns.
    sizes: &'static [usize],
}

impl Served {
    /// Draws other endpoints: all of them, and those that strangers may get to, one at least.
    fn draw(&self, random: &mut Random) -> [Set; 2] {
        let turn = self.journal.len() + random.index(self.sizes.len() - 1);
        loop {
            let all = random.some(0..ENDPOINTS, self.sizes[turn % self.sizes.len()]);
            let offered: Set = all.iter().copied().filter(|n| self.is_offered(*n)).collect();
            if !offered.is_empty() && self.journal.is_another(&offered) {
                return [all, offered];
            }
        }
    }

    /// Puts other endpoints.
    fn change(&mut self, world: &World, random: &mut Random) {
        let [all, offered] = self.draw(random);
        let all: Vec<_> = all.into_iter().map(endpoint).collect();
        self.journal.put(offered);
        put(world, &format!("{}.yaml", self.shape.number), &self.shape.text(&all));
    }

    /// Waits until what was put last is in force.
    fn settle(&mut self) {
        let Self { shape, journal, .. } = self;
        let last = journal.last();
        assert!(soon(|| is_in_force(shape, last)), "{shape:?} does not get {last:?}");
        journal.is_in_force();
    }

    /// Whether strangers may get to an endpoint.
    fn is_offered(&self, n: u16) -> bool {
        !self.shape.local || endpoint(n).is_here
    }
}

/// The Services.
fn services() -> [Served; 4] {
    let of = |number| Shape { number, ..Shape::default() };
    let all: [(Shape, &[usize]); 4] = [
        (of(1), &[1, 2, 3, 4, 5, 8, 9, 16, 20]),
        (of(2), &[1, 20]),
        (Shape { local: true, ..of(3) }, &[2, 3, 4, 7, 12]),
        (Shape { affinity: Some(1), ..of(4) }, &[1, 2, 3, 8]),
    ];
    all.map(|(shape, sizes)| Served { shape, journal: Journal::default(), sizes })
}

/// Another Service, with endpoints of the others', comes or changes, goes, or stays as it is. True if it
/// comes or changes.
fn change_stranger(world: &World, random: &mut Random) -> bool {
    let turn = random.below(4);
    if turn == 0 {
        let some: Vec<_> = random.some(0..ENDPOINTS, 5).into_iter().map(endpoint).collect();
        put(world, STRANGER, &Shape { number: 5, ..Shape::default() }.text(&some));
    } else if turn == 1 {
        let _ = fs::remove_file(yaml::objects(world).join(STRANGER));
    }
    turn == 0
}

/// What became of a connection.
struct Made {
    service: usize,
    to: SocketAddr,
    asked: Asked,
    is_reset: bool,
    at: [Instant; 2],
}

#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    done: AtomicU64,
    made: Mutex<Vec<Made>>,
    lost: Mutex<Vec<String>>,
}

impl Clients {
    /// Connects until it is told to stop.
    fn connect(&self, to: &[(usize, SocketAddr)], mut random: Random) {
        let mut made = Vec::new();
        while !self.stop.load(Relaxed) {
            let (service, to) = to[random.index(to.len())];
            let began = Instant::now();
            let is_reset = !random.once_in(8);
            match ask(to, is_reset) {
                Ok(asked) => {
                    let at = [began, Instant::now()];
                    made.push(Made { service, to, asked, is_reset, at });
                }
                Err(error) => {
                    let after = began.elapsed();
                    self.lost.lock().unwrap().push(format!("{to}: {error} after {after:?}"));
                }
            }
            self.done.fetch_add(1, Relaxed);
        }
        self.made.lock().unwrap().append(&mut made);
    }
}

/// Ends the clients also if the test panics.
struct Stop(Arc<Clients>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// What connection tracking counted in this network namespace.
fn counted() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").unwrap();
    let mut lines = text.lines();
    let names: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    let mut all = BTreeMap::new();
    for line in lines {
        for (name, value) in names.iter().zip(line.split_whitespace()) {
            *all.entry((*name).to_owned()).or_default() += u64::from_str_radix(value, 16).unwrap();
        }
    }
    all
}

/// How often a place's TCP sent something again.
fn retransmitted(place: &Place) -> u64 {
    place.run(|| {
        let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut tcp =
            text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
        let mut values = tcp.next().unwrap().zip(tcp.next().unwrap());
        values.find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
    })
}

/// Whether strangers get these endpoints, and no others, at each address of the Service.
fn is_in_force(shape: &Shape, set: &Set) -> bool {
    let seen = look();
    let mut count = 0;
    let mut is_it = true;
    for entry in dump::entries(&seen.table) {
        let (addr, ipv4) = (entry.frontend.addr, entry.frontend.addr.is_ipv4());
        let at_node = entry.frontend.scope == Scope::OwnNode && addr.port() == shape.node_port();
        if at_node || addr == shape.vip(ipv4) {
            count += 1;
            let fate = entry.strangers.as_ref().unwrap_or(&entry.everybody);
            let PacketFate::Forward(all) = fate else { return false };
            let all: Option<Set> = all.iter().map(|addr| number(addr.ip())).collect();
            is_it &= all.as_ref() == Some(set);
        }
    }
    is_it && count == 4
}

/// Which connections led where they must not, and how many more connection tracking sent there, see
/// [`reopened`].
fn judge<'a>(made: &'a [Made], all: &[Served]) -> (Vec<&'a Made>, usize) {
    let is_wrong = |made: &&Made| {
        let journal = &all[made.service].journal;
        !number(made.asked.endpoint).is_some_and(|n| journal.allows(n, made.at))
    };
    let mut wrong: Vec<_> = made.iter().filter(is_wrong).collect();
    let flow = |made: &Made| (made.to, made.asked.port);
    let mut flows: BTreeMap<_, Vec<&Made>> =
        wrong.iter().map(|made| (flow(made), vec![])).collect();
    for made in made {
        if let Some(of) = flows.get_mut(&flow(made)) {
            of.push(made);
        }
    }
    let count = wrong.len();
    wrong.retain(|made| !reopened(made, &flows[&flow(made)]));
    let others = count - wrong.len();
    (wrong, others)
}

/// Whether a connection went to the endpoint of the one before it, by the same port, that was reset. An
/// acknowledgement of the client's may arrive behind its reset. Then connection tracking takes the next
/// first packet for one of the same connection (`nf_conntrack_tcp_packet` kills the entry of an aborted
/// connection only if the last packet was the reset), until the entry is forgotten: whoever makes rules,
/// none of them sees it.
fn reopened(made: &Made, same: &[&Made]) -> bool {
    let earlier = same.iter().filter(|other| other.at[1] <= made.at[0]);
    let last = earlier.max_by_key(|other| other.at[1]);
    last.is_some_and(|last| last.is_reset && last.asked.endpoint == made.asked.endpoint)
}

#[test]
fn endpoints_and_services_come_and_go_under_new_connections() {
    let wanted = of_environment("SOCKLB_CHURN_CONNECTIONS", CONNECTIONS);
    World::run(|world| {
        let mut report = Report::of("connections under churn");
        let lane = Lane::new();
        serve(&lane);
        lane.client.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", PORTS).unwrap();
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
        });
        let mut random = Random(seed());
        let mut all = services();
        for served in &mut all {
            served.change(world, &mut random);
        }
        let sizes = ["--max-services=1024", "--max-backends=8192"];
        let agent = Agent::spawn(command_of_size(world, &sizes, &[]));
        agent.wait_for_start("in sync");
        all.iter_mut().for_each(Served::settle);
        // There are such settings once there are rules that track.
        for (name, seconds) in TIMEOUTS {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}");
            fs::write(path, seconds).unwrap();
        }
        let (before, again) = (counted(), retransmitted(&lane.client));

        let addresses =
            |(service, served): (usize, &Served)| served.shape.addresses().map(|to| (service, to));
        let to: Vec<_> = all.iter().enumerate().flat_map(addresses).collect();
        let clients = Arc::new(Clients::default());
        let stop = Stop(Arc::clone(&clients));
        let start = Instant::now();
        let threads: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (clients, to) = (Arc::clone(&clients), to.clone());
                let random = Random(seed() + 1 + n);
                lane.client.run(move || thread::spawn(move || clients.connect(&to, random)))
            })
            .collect();
        let (mut changes, mut strangers) = (0, 0);
        while clients.done.load(Relaxed) < wanted || changes < CHANGES {
            let which = random.index(all.len());
            // Some are replaced before anybody has seen them.
            for _ in 0..=random.below(8).saturating_sub(5) {
                all[which].change(world, &mut random);
                changes += 1;
            }
            strangers += u32::from(change_stranger(world, &mut random));
            all[which].settle();
        }
        drop(stop);
        for thread in threads {
            thread.join().unwrap();
        }
        let took = start.elapsed();

        let after = counted();
        let made = std::mem::take(&mut *clients.made.lock().unwrap());
        let lost = clients.lost.lock().unwrap();
        let (wrong, reopened) = judge(&made, &all);
        let told = |Made { to, asked, at, .. }: &Made| {
            let [began, ended] = at.map(|at| at.duration_since(start));
            format!("{to} led to {} from {began:?} to {ended:?}", asked.endpoint)
        };
        let wrong: Vec<_> = wrong.into_iter().map(told).collect();
        let reached: BTreeSet<_> = made.iter().map(|made| made.asked.endpoint).collect();
        let longest = made.iter().map(|made| made.at[1].duration_since(made.at[0])).max().unwrap();
        let difference = |name: &str| after[name] - before[name];
        report.say("connections", &made.len());
        report.say("per second", &(made.len() as u64 / took.as_secs().max(1)));
        report.say("endpoints", &format!("{} addresses reached", reached.len()));
        report.say("changes of sets", &changes);
        report.say("other Service", &format!("came or changed {strangers} times"));
        report.say("lost or refused", &lost.len());
        report.say("wrong endpoint", &wrong.len());
        report.say("reopened", &format!("{reopened} by connection tracking, after a reset"));
        report.say("longest", &format!("{longest:?}"));
        report.say("retransmitted", &(retransmitted(&lane.client) - again));
        for name in VOID.into_iter().chain(["clashres", "search_restart", "invalid"]) {
            if after.contains_key(name) {
                report.say(name, &difference(name));
            }
        }
        for name in VOID {
            assert_eq!(difference(name), 0, "this run is void: connection tracking counts {name}");
        }
        let first = |all: &[String]| all[..all.len().min(5)].to_vec();
        assert!(lost.is_empty(), "{} were lost: {:?}", lost.len(), first(&lost));
        assert!(wrong.is_empty(), "{} went wrong: {:?}", wrong.len(), first(&wrong));
        assert_eq!(reached.len(), 2 * usize::from(ENDPOINTS));
        report.end();
    });
}
