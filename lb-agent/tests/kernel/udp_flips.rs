//! Endpoints change under datagrams: none arrives at another Service's backend, no answer seems to
//! come from another Service.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_agent::datapath::Sizes;
use lb_common::abi::{Backend, UDP};
use lb_core::{op::Op, store::Store as _};

use super::{
    affinity::{LONG, endpoints, sticky},
    connect::V4,
    control::{Control, ROOMY, serve},
    flips::Load,
    pods::{Pods, at, client, pod4, read},
    world::{World, backend4},
};

/// Both are exceeded before the test ends, however slow the machine.
const ROUNDS: u32 = 150_000;
const FLIPS: usize = 600;
const LIMIT: Duration = Duration::from_secs(300);
const STEADY: &str = "10.96.0.11:80";

/// What a datagram says of whom it is for.
fn name(to: SocketAddr) -> u8 {
    u8::from(to == at(STEADY))
}

#[test]
fn sets_flip_under_datagrams() {
    World::run(|world| {
        let sets = [[1, 2, 3, 4].map(backend4), [5, 6, 7, 8].map(backend4)];
        let mut control = Control::start_with(world, Sizes { backends: 64, ..ROOMY });
        control.put("web", &["10.96.0.10"], 80, &sets[0]);
        control.put("steady", &["10.96.0.11"], 80, &[backend4(11)]);
        let pods = Pods::start(1..=11);
        let load = Load::default();
        let (wrong, unlabelled) = (Mutex::new(Vec::new()), AtomicU32::new(0));
        let (start, silent) = (Instant::now(), AtomicBool::new(false));
        let mut flips = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                pods.serve(&silent, |letter| {
                    let steady = letter.pod == pod4(11);
                    let stranger = [9, 10].map(pod4).contains(&letter.pod);
                    if stranger || steady != (letter.bytes[0] == name(at(STEADY))) {
                        wrong.lock().unwrap().push(format!("{letter:?}"));
                    }
                });
            });
            let mut clients = Vec::new();
            for n in 0..2 {
                let (load, wrong, unlabelled) = (&load, &wrong, &unlabelled);
                clients.push(scope.spawn(move || {
                    let mut socket = client(true);
                    while !load.stop.load(Ordering::Relaxed) {
                        let round = load.done.fetch_add(1, Ordering::Relaxed);
                        if round % 100 == n {
                            socket = client(true);
                        }
                        let questions = [V4, STEADY, V4].map(at);
                        for to in questions {
                            socket.send_to(&[name(to)], to).unwrap();
                        }
                        for _ in questions {
                            let (bytes, label) = read(&socket);
                            let expected = if bytes[0] == 0 { at(V4) } else { at(STEADY) };
                            let of_backend = (1..=8).any(|n| label == pod4(n));
                            if bytes[0] == 0 && of_backend {
                                unlabelled.fetch_add(1, Ordering::Relaxed);
                            } else if label != expected {
                                wrong.lock().unwrap().push(format!("{label} for {expected}"));
                            }
                        }
                    }
                }));
            }
            while (load.done.load(Ordering::Relaxed) < ROUNDS || flips < FLIPS)
                && start.elapsed() < LIMIT
            {
                flips += 1;
                control.put("web", &["10.96.0.10"], 80, &sets[flips % 2]);
                // Their hash elements and their blocks go round among all of them.
                let name = format!("stranger-{}", flips % 3);
                let ip = format!("10.96.1.{}", flips % 7);
                if flips % 2 == 0 {
                    control.put(&name, &[&ip], 80, &[9, 10].map(backend4));
                } else {
                    control.delete(&name);
                }
                if control.pipeline.retired() > 20 {
                    control.pipeline.reclaim().unwrap();
                }
            }
            load.stop.store(true, Ordering::Relaxed);
            let results: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
            // Only now: they wait for their answers.
            silent.store(true, Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok), "a client panicked");
        });
        let (done, wrong) = (load.done.load(Ordering::Relaxed), wrong.into_inner().unwrap());
        let unlabelled = unlabelled.into_inner();
        println!(
            "{done} rounds, {flips} flips, {unlabelled} without a label, {:?}",
            start.elapsed()
        );
        assert!(wrong.is_empty(), "{} went wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        // The set flipped twice while the answer was under way.
        assert!(unlabelled * 1_000 < done * 2, "{unlabelled} of {done} have no label");
        assert!(done >= ROUNDS && flips >= FLIPS, "not done in {LIMIT:?}");
    });
}

/// A set may be replaced, and its block be used again, while a datagram is on its way from the choice of
/// a backend to the client's bond. Faster than any agent, which waits before it uses a block again.
#[test]
fn a_set_is_replaced_before_the_bond_is_seen() {
    const SENT: u32 = 200_000;
    const PAUSE: Duration = Duration::from_micros(10);
    World::run(|world| {
        let mut control = Control::start_with(world, ROOMY);
        control.apply(serve("web", &sticky(LONG), endpoints()));
        let to = at(V4);
        let found = control
            .pipeline
            .mirror()
            .services()
            .find(|(key, _)| key.peer == to.into() && key.protocol == UDP);
        let (key, mut service) = found.map(|(key, service)| (*key, *service)).unwrap();
        let store = control.pipeline.store_mut();
        let records = store.records(service.block, service.records());
        let stop = AtomicBool::new(false);
        let mut rounds = 0;
        let refused = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let refused = |_: &u32| {
                    // A new one each time: a flow that is known has no need of a bond.
                    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                    match socket.send_to(b"?", to) {
                        Ok(_) => false,
                        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => true,
                        Err(error) => panic!("{error}"),
                    }
                };
                let refused = (0..SENT).filter(refused).count();
                stop.store(true, Ordering::Relaxed);
                refused
            });
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                let stamped = |generation| {
                    let stamp = |record: &Backend| record.stamped(generation, record.service);
                    records.iter().map(stamp).collect::<Vec<_>>()
                };
                let old = service.block;
                service.block = 100 + rounds % 2 * 64;
                service.generation += 1;
                let block =
                    Op::WriteBlock { block: service.block, records: stamped(service.generation) };
                store.apply(&block).unwrap();
                store.apply(&Op::PutService { key, service }).unwrap();
                // Somebody else's by now.
                store.apply(&Op::WriteBlock { block: old, records: stamped(u32::MAX) }).unwrap();
                let start = Instant::now();
                while start.elapsed() < PAUSE {}
            }
            sender.join().unwrap()
        });
        println!("{rounds} sets; {refused} of {SENT} datagrams refused");
        assert_eq!(refused, 0, "of {SENT}, {rounds} sets");
    });
}
