//! Both CoreDNS are replaced, as a Deployment does it, and nobody notices.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    agent::Agent,
    cluster::{self, CoreDns, DNS, LAMEDUCK, State, WHO, resolv_conf},
    message::{ask, ask_at},
    resolvers::Libc,
    world::World,
};

/// 20 in a second.
const PAUSE: Duration = Duration::from_millis(50);
/// So many before it begins, and after it is over. Of two that serve each is asked, but for 1 in 10^12.
const LOOKUPS: usize = 40;
/// A resolver asks again after 5 s, if nobody says otherwise, and gives up after 10 (musl after half of
/// that). So none asks more than twice; what takes longer all the same is a machine that has no time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a kept socket waits for an answer before it asks again.
const AGAIN: Duration = Duration::from_secs(2);
/// How many questions of a kept socket may get lost in all, on a machine that has no time.
const LOST: u32 = 8;
/// A little time for the news to reach the API server.
const NEWS: Duration = Duration::from_millis(300);

#[test]
fn both_instances_are_replaced() {
    World::run(|world| {
        cluster::put(world, &[(1, State::Ready), (2, State::Ready)]);
        let instances = [1, 2].map(|n| CoreDns::start(world, n));
        let _agent = Agent::start(world);
        resolv_conf(world, &format!("nameserver {DNS}\n"));
        let (start, stop) = (Instant::now(), AtomicBool::new(false));
        let loops = Libc::ALL.map(|libc| (libc, libc.start_endless(world, WHO, PAUSE)));
        let more = || loops.iter().for_each(|(_, lookups)| lookups.await_more(LOOKUPS));
        let new = thread::scope(|scope| {
            let connected = scope.spawn(|| keep_connected(&stop));
            let unconnected = scope.spawn(|| keep_unconnected(&stop));
            more();
            let new = roll(world, instances);
            println!("replaced within {:?}", start.elapsed());
            more();
            stop.store(true, Ordering::Relaxed);
            for (name, kept) in
                [("connected", connected.join()), ("unconnected", unconnected.join())]
            {
                let kept = kept.unwrap();
                println!("the {name} socket: {kept:?}");
                assert!(kept.asked > 100, "{name}: {kept:?}");
                assert!(kept.slowest < PATIENCE && kept.again <= LOST, "{name}: {kept:?}");
                assert!(kept.last == 3 || kept.last == 4, "{name}: {kept:?}");
            }
            new
        });
        for (libc, lookups) in loops {
            let lookups = lookups.stop();
            let slowest = lookups.iter().map(|lookup| lookup.took).max().unwrap();
            let retried = lookups.iter().filter(|lookup| lookup.took.as_millis() > 900).count();
            let count = lookups.len();
            println!("{libc:?}: {count} lookups, slowest {slowest:?}, {retried} asked again");
            assert!(slowest < PATIENCE, "{libc:?}: {slowest:?}");
            let who: Vec<_> = lookups.iter().map(|lookup| lookup.who()[0]).collect();
            for n in 1..=4 {
                assert!(who.contains(&n), "{libc:?}: {n} was never asked: {who:?}");
            }
            assert!(who[who.len() - 20..].iter().all(|n| *n > 2), "{libc:?}: {who:?}");
        }
        drop(new);
    });
}

/// One after the other: a new one is ready, the old one is told to go and answers for a while, then
/// does not, then is gone.
fn roll(world: &World, instances: [CoreDns; 2]) -> [CoreDns; 2] {
    let [mut one, mut two] = instances;
    let three = CoreDns::start(world, 3);
    cluster::put(world, &[(1, State::Ready), (2, State::Ready), (3, State::Ready)]);
    thread::sleep(NEWS);
    retire(world, &mut one, 1, &[(2, State::Ready), (3, State::Ready)]);
    let four = CoreDns::start(world, 4);
    cluster::put(world, &[(2, State::Ready), (3, State::Ready), (4, State::Ready)]);
    thread::sleep(NEWS);
    retire(world, &mut two, 2, &[(3, State::Ready), (4, State::Ready)]);
    [three, four]
}

fn retire(world: &World, old: &mut CoreDns, n: u8, others: &[(u8, State)]) {
    let with = |state| [&[(n, state)], others].concat();
    // The kubelet ends it when the API server says so, which is when its slice changes too.
    old.process().signal(Signal::SIGTERM);
    thread::sleep(NEWS);
    cluster::put(world, &with(State::Terminating));
    old.process().wait(Duration::from_secs(LAMEDUCK.into()) * 4);
    thread::sleep(NEWS);
    cluster::put(world, &with(State::Gone));
    thread::sleep(NEWS);
    cluster::put(world, others);
}

/// What became of somebody who keeps his socket.
#[derive(Debug, Default)]
struct Kept {
    asked: u32,
    again: u32,
    slowest: Duration,
    last: u8,
}

impl Kept {
    /// Until it is time to stop.
    fn run(stop: &AtomicBool, mut attempt: impl FnMut(u16) -> std::io::Result<u8>) -> Self {
        let mut kept = Self::default();
        for id in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let start = Instant::now();
            // An answer that came too late may be here before the next one.
            kept.last = loop {
                match attempt(id) {
                    Ok(n) => break n,
                    Err(error) => {
                        println!("asking again: {error}");
                        kept.again += 1;
                        assert!(start.elapsed() < PATIENCE, "{error}");
                    }
                }
            };
            kept.asked += 1;
            kept.slowest = kept.slowest.max(start.elapsed());
            thread::sleep(PAUSE);
        }
        kept
    }
}

fn server() -> SocketAddr {
    SocketAddr::new(DNS.parse().unwrap(), 53)
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(AGAIN)).unwrap();
    socket
}

/// Connects it again when it learns that it has to.
fn keep_connected(stop: &AtomicBool) -> Kept {
    let socket = socket();
    socket.connect(server()).unwrap();
    Kept::run(stop, |id| {
        let answer = ask(&socket, id);
        if answer.is_err() {
            socket.connect(server()).unwrap();
        }
        answer
    })
}

/// Only ever asks again.
fn keep_unconnected(stop: &AtomicBool) -> Kept {
    let socket = socket();
    Kept::run(stop, |id| ask_at(&socket, server(), id))
}
