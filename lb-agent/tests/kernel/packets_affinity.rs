//! Session affinity of strangers (H): a client is a source address, and has a bond for each port of a
//! Service, whichever of its frontends it asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    lane::{Asker, Lane, PATIENCE, Speech, ask_from},
    packets::{Web, cells, nft, put, start, start_with, vip, web},
    world::{World, soon},
};

/// So many clients do not all draw the same of three endpoints, nor all the same ones twice.
const CLIENTS: u8 = 14;

fn sticky(seconds: u32, endpoints: &[u8]) -> Web {
    Web { affinity: Some(seconds), ..web(endpoints) }
}

/// Which endpoint each client gets.
fn all(lane: &Lane, clients: &[IpAddr], speech: Speech, to: SocketAddr) -> Vec<String> {
    let name = |from: &IpAddr| lane.ask_from(*from, speech, to).name().to_owned();
    clients.iter().map(name).collect()
}

#[test]
fn a_client_stays_until_its_endpoint_leaves() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &sticky(10_800, &[1, 2, 3]));
        let _agent = start(world);
        let mut before = Vec::new();
        for (_, speech, to) in cells() {
            let name = lane.ask(speech, to).name().to_owned();
            for _ in 0..10 {
                assert_eq!(lane.ask(speech, to).name(), name, "{speech:?} {to}");
            }
            before.push(name);
        }
        // One bond for all frontends of a port (H1).
        let mut by_port: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for ((_, speech, to), name) in cells().into_iter().zip(&before) {
            by_port.entry((speech == Speech::Tcp, to.is_ipv4())).or_default().insert(name);
        }
        assert!(by_port.values().all(|names| names.len() == 1), "{by_port:?}");
        // As long as its Service says, although it was recorded for less.
        for family in ["ip", "ip6"] {
            let text = nft(&format!("list map {family} socklb bonds"));
            assert!(text.contains("expires 2h59m"), "{text}");
        }
        // Other tools can read the rules.
        assert!(nft("list ruleset").contains("update @bonds"));
        assert!(nft("-j list ruleset").contains("bonds"));
        // Another one comes, and another one leaves.
        for (gone, stays) in [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])] {
            put(world, &sticky(10_800, &stays));
            let gone = format!("endpoint-{gone}");
            for ((_, speech, to), before) in cells().into_iter().zip(&mut before) {
                assert!(soon(|| lane.ask(speech, to).name() != gone), "{speech:?} {to}");
                let name = lane.ask(speech, to).name().to_owned();
                if *before != gone {
                    assert_eq!(name, *before, "{speech:?} {to}");
                }
                for _ in 0..10 {
                    assert_eq!(lane.ask(speech, to).name(), name, "{speech:?} {to}");
                }
                *before = name;
            }
        }
    });
}

#[test]
fn ports_have_bonds_of_their_own_and_bonds_end() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &sticky(10_800, &[1, 2, 3]));
        let _agent = start(world);
        let clients = [true, false].map(|ipv4| (ipv4, lane.clients(ipv4, CLIENTS)));
        for (ipv4, clients) in &clients {
            let ipv4 = *ipv4;
            let [tcp, udp] = Speech::BOTH.map(|speech| all(&lane, clients, speech, vip(ipv4)));
            assert!(tcp.iter().collect::<BTreeSet<_>>().len() > 1, "clients differ");
            assert_ne!(tcp, udp, "ports differ");
            assert_eq!(all(&lane, clients, Speech::Tcp, vip(ipv4)), tcp);
        }
        // With a timeout that nobody had before. It counts from the next connection on.
        put(world, &sticky(1, &[1, 2, 3]));
        assert!(soon(|| nft("list map ip6 socklb affinity").contains(": 0x00000001")));
        for (ipv4, clients) in &clients {
            let before = all(&lane, clients, Speech::Udp, vip(*ipv4));
            thread::sleep(Duration::from_millis(1_500));
            assert_ne!(all(&lane, clients, Speech::Udp, vip(*ipv4)), before);
        }
        // And without affinity.
        put(world, &web(&[1, 2, 3]));
        assert!(soon(|| !nft("list map ip6 socklb affinity").contains(": 0x00000001")));
        let names: BTreeSet<_> =
            (0..50).map(|_| lane.ask(Speech::Tcp, vip(true)).name().to_owned()).collect();
        assert_eq!(names.len(), 3);
    });
}

/// By UDP: a closed TCP connection would leave something to wait for.
#[test]
fn each_of_many_clients_stays() {
    const COUNT: usize = 70_000;
    World::run(|world| {
        let lane = Lane::new();
        lane.crowd();
        put(world, &sticky(10_800, &[1, 2, 3]));
        let _agent = start(world);
        let round = || {
            lane.client.run(|| {
                let first = u32::from(Ipv4Addr::new(10, 80, 0, 1));
                let clients = (first..).take(COUNT).map(|ip| Ipv4Addr::from(ip).into());
                let ask = |from| ask_from(from, Speech::Udp, vip(true), PATIENCE).name().to_owned();
                clients.map(ask).collect::<Vec<_>>()
            })
        };
        let before = round();
        let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
        for name in &before {
            *shares.entry(name).or_default() += 1;
        }
        // 5 % off are nine standard deviations.
        let fair = COUNT / 3;
        assert!(shares.values().all(|share| share.abs_diff(fair) < fair / 20), "{shares:?}");
        let moved = round().iter().zip(&before).filter(|(now, before)| now != before).count();
        assert_eq!(moved, 0);
    });
}

#[test]
fn whoever_finds_no_room_is_served_all_the_same() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &sticky(10_800, &[1, 2, 3]));
        let _agent = start_with(world, &["--max-affinity=4"]);
        for ipv4 in [true, false] {
            let clients = lane.clients(ipv4, CLIENTS);
            for speech in Speech::BOTH {
                all(&lane, &clients, speech, vip(ipv4));
            }
            // The first four have bonds.
            let before = all(&lane, &clients[..4], Speech::Tcp, vip(ipv4));
            for _ in 0..3 {
                assert_eq!(all(&lane, &clients[..4], Speech::Tcp, vip(ipv4)), before);
            }
            let rest: BTreeSet<_> =
                (0..30).map(|_| all(&lane, &clients[13..], Speech::Tcp, vip(ipv4))).collect();
            assert!(rest.len() > 1);
        }
    });
}

/// Drawn by each for itself, they would go to different endpoints.
#[test]
fn first_packets_at_once_go_to_one_endpoint() {
    const CLIENTS: u32 = 2000;
    // As many sockets as a process may have, and more than enough.
    const AT_ONCE: usize = 200;
    World::run(|world| {
        let lane = Lane::new();
        lane.crowd();
        put(world, &sticky(10_800, &[1, 2, 3]));
        let _agent = start(world);
        let [one, other] = lane.client.run(|| {
            let sent = AtomicU32::new(0);
            let ask = || {
                let first = u32::from(Ipv4Addr::new(10, 80, 0, 1));
                let clients: Vec<_> = (first..first + CLIENTS).map(Ipv4Addr::from).collect();
                let mut turns = 2..;
                let mut names = Vec::new();
                for clients in clients.chunks(AT_ONCE) {
                    let askers =
                        clients.iter().map(|from| Asker::new((*from, 0).into(), vip(true)));
                    let askers: Vec<_> = askers.collect();
                    for (asker, turn) in askers.iter().zip((&mut turns).step_by(2)) {
                        // Both send at the same time.
                        sent.fetch_add(1, Ordering::SeqCst);
                        let since = Instant::now();
                        while sent.load(Ordering::SeqCst) < turn {
                            assert!(since.elapsed() < PATIENCE, "the other one has ended");
                        }
                        asker.send();
                    }
                    names.extend(askers.iter().map(|asker| asker.hear().name().to_owned()));
                }
                names
            };
            thread::scope(|scope| {
                let asked = [(); 2].map(|()| scope.spawn(ask));
                asked.map(|names| names.join().unwrap())
            })
        });
        let differ = one.iter().zip(&other).filter(|(one, other)| one != other).count();
        assert_eq!((one.len(), differ), (2000, 0));
    });
}
