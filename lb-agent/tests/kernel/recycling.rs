//! The kernel gives a hash element that was removed to the next one that is put in, also under a
//! reader that has just found it. Whoever connects to one Service never gets the backend of another.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use lb_agent::datapath::Sizes;
use lb_common::abi::{ADDRESSES, Addr, Address, AddressEntry};
use lb_core::{
    op::{AddressUse, Op},
    pipeline::NodeConfig,
    socket_engine::{SocketSettings, UnknownPorts},
    store::Store as _,
};

use super::{
    control::{Control, ROOMY},
    flips::Load,
    raw::{dial, disconnect, udp_socket},
    world::{World, backend4},
};

const TIME: Duration = Duration::from_secs(8);
const A: &str = "10.96.0.1";
const B: &str = "10.96.0.2";

/// Two Services are changed in turn; `round` says how. Threads connect to both of them all the time.
fn churn(gone_at_times: bool, round: impl FnMut(&mut Control, usize, &[[IpAddr; 4]; 2]) + Send) {
    churn_in(ROOMY, gone_at_times, round);
}

fn churn_in(
    sizes: Sizes,
    gone_at_times: bool,
    mut round: impl FnMut(&mut Control, usize, &[[IpAddr; 4]; 2]) + Send,
) {
    World::run(|world| {
        let sets = [[1, 2, 3, 4].map(backend4), [5, 6, 7, 8].map(backend4)];
        // A refusal is what goes wrong here, so a port that is gone for a moment must not be one.
        let view = NodeConfig {
            sockets: SocketSettings {
                unknown_ports: UnknownPorts::Pass,
                ..SocketSettings::default()
            },
            ..NodeConfig::default()
        };
        let mut control = Control::start_as(world, sizes, view, []);
        control.put("a", &[A], 80, &sets[0]);
        control.put("b", &[B], 80, &sets[1]);

        let load = Load::default();
        let start = Instant::now();
        let mut rounds = 0;
        thread::scope(|scope| {
            for (ip, set) in [(A, &sets[0]), (B, &sets[1])] {
                let load = &load;
                scope.spawn(move || {
                    let to = format!("{ip}:80").parse().unwrap();
                    // The same socket again and again: a new one takes six times as long.
                    let socket = udp_socket(true);
                    let connect = || -> std::io::Result<SocketAddr> {
                        disconnect(&socket);
                        dial(&socket, to)?;
                        socket.local_addr()
                    };
                    load.run(u32::MAX, set, || match connect() {
                        // Without its entry the address is nobody's, and leads nowhere.
                        Err(error)
                            if gone_at_times && error.raw_os_error() == Some(libc::ENETUNREACH) =>
                        {
                            Ok((set[0], 0).into())
                        }
                        other => other,
                    });
                });
            }
            while start.elapsed() < TIME {
                rounds += 1;
                round(&mut control, rounds, &sets);
            }
            load.stop.store(true, Ordering::Relaxed);
        });
        println!("{} connects, {rounds} rounds", load.done.load(Ordering::Relaxed));
        load.verdict();
    });
}

#[test]
fn deleted_and_made_again() {
    churn(true, |control, _, sets| {
        control.delete("a");
        control.delete("b");
        control.put("b", &[B], 80, &sets[1]);
        control.put("a", &[A], 80, &sets[0]);
    });
}

#[test]
fn changed_in_turn() {
    churn(false, |control, n, sets| {
        let halves = |set: &[IpAddr; 4]| if n % 2 == 0 { set[..2].to_vec() } else { set.to_vec() };
        control.put("a", &[A], 80, &halves(&sets[0]));
        control.put("b", &[B], 80, &halves(&sets[1]));
    });
}

/// Faster than any agent: the entries alone, in system calls that follow one another. Before the
/// generation was sealed with the key, one connect in 15 to 40 million went astray here, so a short
/// run says little by itself; `lb-common` shows the same without luck.
#[test]
fn at_the_speed_of_the_kernel() {
    let mut entries = Vec::new();
    churn(true, move |control, n, _| {
        if n == 1 {
            let services = control.pipeline.mirror().services();
            entries = services.map(|(key, service)| (*key, *service)).collect();
        }
        let store = control.pipeline.store_mut();
        for _ in 0..100 {
            for (key, _) in &entries {
                store.apply(&Op::DeleteService { key: *key }).unwrap();
            }
            // The element freed last is the first to be used again: each gets another's.
            for (key, service) in &entries {
                store.apply(&Op::PutService { key: *key, service: *service }).unwrap();
            }
            entries.rotate_left(1);
        }
    });
}

/// An entry is replaced while others share its bucket. Without `BPF_F_LOCK` the kernel puts a new
/// element at the head of the bucket's list and then takes the old one out of the tail: a reader on
/// its way from the one to the other finds neither.
#[test]
fn replaced_in_a_crowded_bucket() {
    // As many buckets as entries. Which of them meet in one is another matter with each map.
    let crowded = Sizes { services: 4, backends: 256, affinity: 1024 };
    for _ in 0..3 {
        let mut entries = Vec::new();
        churn_in(crowded, false, move |control, n, _| {
            if n == 1 {
                let services = control.pipeline.mirror().services();
                entries = services.map(|(key, service)| (*key, *service)).collect();
            }
            let store = control.pipeline.store_mut();
            for (key, service) in entries.iter().cycle().take(1000) {
                store.apply(&Op::PutService { key: *key, service: *service }).unwrap();
            }
        });
    }
}

/// Addresses in the order of the map: those of one bucket are neighbours in it.
fn in_order(world: &World) -> Vec<Addr> {
    type Entries = HashMap<MapData, [u8; 16], [u8; size_of::<AddressEntry>()]>;
    let pin = world.pins().maps().unwrap().unwrap().join(ADDRESSES);
    let map = Entries::try_from(Map::HashMap(MapData::from_pin(pin).unwrap())).unwrap();
    map.keys().map(|key| bytemuck::cast(key.unwrap())).collect()
}

/// The same for an address: a port that its Service lacks is refused all the time.
#[test]
fn an_address_replaced_in_a_crowded_bucket() {
    World::run(|world| {
        let mut control = Control::start(world);
        let store = control.pipeline.store_mut();
        let known = AddressUse { flags: Address::CLUSTER_IP, netns: 0 };
        let put = |store: &mut lb_agent::maps::Pinned, addr| {
            store.apply(&Op::PutAddress { addr, known }).unwrap();
        };
        let addr =
            |n: u16| Addr::from(IpAddr::from([10, 96, n.to_be_bytes()[0], n.to_be_bytes()[1]]));
        (0..4000).for_each(|n| put(store, addr(n)));
        // What is put in is the first of its bucket.
        let before = in_order(world);
        let (neighbours, _) = before.as_chunks::<2>();
        for pair in neighbours {
            store.apply(&Op::DeleteAddress { addr: pair[1] }).unwrap();
            put(store, pair[1]);
        }
        let after = in_order(world);
        let is_swapped = |pair: &&[Addr; 2]| {
            let at = after.iter().position(|addr| *addr == pair[1]).unwrap();
            after.get(at + 1) == Some(&pair[0])
        };
        let pairs: Vec<_> = neighbours.iter().filter(is_swapped).take(8).collect();
        assert!(pairs.len() > 3, "{} pairs share a bucket", pairs.len());

        let stop = AtomicBool::new(false);
        let (sent, passed) = thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|n| {
                    let (stop, pairs) = (&stop, &pairs);
                    scope.spawn(move || {
                        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                        let (mut sent, mut passed) = (0u64, Vec::new());
                        while !stop.load(Ordering::Relaxed) {
                            for pair in pairs {
                                let to = SocketAddr::from((pair[n].ip(), 9));
                                let error = socket.send_to(b"?", to).unwrap_err();
                                sent += 1;
                                if error.raw_os_error() != Some(libc::ECONNREFUSED) {
                                    passed.push(error);
                                }
                            }
                        }
                        (sent, passed)
                    })
                })
                .collect();
            let start = Instant::now();
            while start.elapsed() < TIME {
                for addr in pairs.iter().copied().flatten().cycle().take(1000) {
                    put(store, *addr);
                }
            }
            stop.store(true, Ordering::Relaxed);
            let results = readers.into_iter().map(|reader| reader.join().unwrap());
            results.fold((0, Vec::new()), |(sent, mut all), (more, passed)| {
                all.extend(passed);
                (sent + more, all)
            })
        });
        println!("{sent} datagrams to {} pairs", pairs.len());
        assert!(passed.is_empty(), "{} passed: {:?}", passed.len(), passed.first());
    });
}
