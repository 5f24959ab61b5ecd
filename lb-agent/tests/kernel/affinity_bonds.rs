//! How long a bond lasts: until the client was away for the timeout, whatever happens to the agent.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use lb_agent::{datapath::Sizes, maps::Bonds};
use lb_core::{model::Service, pipeline::NodeConfig};

use super::{
    affinity::{SIZES, endpoints, of_each, of_ports},
    clients::Elsewhere,
    control::{Control, serve},
    flips::udp_backend,
    world::World,
};

const TIMEOUT: Duration = Duration::from_secs(2);
/// A new choice for each of them, among eight backends, is the old one once in 8^16 = 10^14 times.
const PORTS: u16 = 16;

/// H2: from the last new connection.
#[test]
fn each_connection_renews_it_and_time_ends_it() {
    World::run(|world| {
        let mut control = Control::start_with(world, SIZES);
        let service = Service { affinity: NonZeroU32::new(2), ..of_ports(PORTS) };
        control.apply(serve("web", &service, endpoints()));
        let mut start = Instant::now();
        let mut last = of_each(PORTS);
        for _ in 0..3 {
            thread::sleep(TIMEOUT * 6 / 10);
            let next = Instant::now();
            let before = std::mem::replace(&mut last, of_each(PORTS));
            // Unless this machine is so busy that the client was away for too long.
            assert!(last == before || start.elapsed() >= TIMEOUT);
            start = next;
        }
        thread::sleep(TIMEOUT + Duration::from_millis(20));
        assert_ne!(of_each(PORTS), last);
    });
}

/// A timeout that is changed is that of the bonds there are.
#[test]
fn a_new_timeout_counts_at_once() {
    World::run(|world| {
        let mut control = Control::start_with(world, SIZES);
        let mut service = of_ports(PORTS);
        control.apply(serve("web", &service, endpoints()));
        let before = of_each(PORTS);
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(of_each(PORTS), before);
        thread::sleep(Duration::from_millis(1100));
        service.affinity = NonZeroU32::new(1);
        control.apply(serve("web", &service, endpoints()));
        assert_ne!(of_each(PORTS), before);
    });
}

/// The next agent goes on with the bonds, also in maps of another size.
#[test]
fn a_restart_and_a_resize_keep_it() {
    World::run(|world| {
        let sizes = [
            SIZES,
            SIZES,
            Sizes { affinity: 64, ..SIZES },
            Sizes { services: 512, backends: 2048, affinity: 4096 },
        ];
        let mut before = None;
        for sizes in sizes {
            let objects = serve("web", &of_ports(PORTS), endpoints());
            let _control = Control::start_as(world, sizes, NodeConfig::default(), objects);
            let now = of_each(PORTS);
            assert_eq!(*before.get_or_insert(now.clone()), now, "{sizes:?}");
        }
    });
}

/// Also those that are made while the maps move.
#[test]
fn a_resize_loses_none_under_way() {
    const MANY: u16 = 1000;
    const SIZES: Sizes = Sizes { services: 2048, backends: 16_384, affinity: 4096 };
    World::run(|world| {
        let object = || serve("web", &of_ports(MANY), endpoints());
        let mut control = Control::start_as(world, SIZES, NodeConfig::default(), object());
        let moves = AtomicU16::new(0);
        let first = thread::scope(|scope| {
            let client = scope.spawn(|| {
                let connect = |n: u16| {
                    // However slow the machine is, there are moves all along.
                    while moves.load(Relaxed) < n / (MANY / 5) {
                        thread::sleep(Duration::from_millis(1));
                    }
                    thread::sleep(Duration::from_millis(1));
                    udp_backend(&format!("10.96.0.10:{n}")).unwrap().ip()
                };
                (1..=MANY).map(connect).collect::<Vec<_>>()
            });
            while !client.is_finished() {
                let round = moves.fetch_add(1, Relaxed);
                let sizes = Sizes { affinity: 4096 + u32::from(round % 2), ..SIZES };
                drop(control);
                control = Control::start_as(world, sizes, NodeConfig::default(), object());
            }
            client.join().unwrap()
        });
        let now = of_each(MANY);
        let lost: Vec<_> =
            (1..=MANY).zip(first.iter().zip(&now)).filter(|(_, (a, b))| a != b).collect();
        assert!(lost.is_empty(), "{} were lost in {moves:?} moves: {:?}", lost.len(), lost[0]);
    });
}

/// What the agent forgets is what is over.
#[test]
fn only_what_is_over_is_forgotten() {
    World::run(|world| {
        let objects = serve("web", &of_ports(PORTS), endpoints());
        let control = Control::start_as(world, SIZES, NodeConfig::default(), objects);
        let other = Elsewhere::new();
        let (here, there) = (of_each(PORTS), other.within(|| of_each(PORTS)));
        let mut bonds = Bonds::open(&world.pins().maps().unwrap().unwrap()).unwrap();
        let mut timeouts = control.pipeline.affinity_timeouts();
        assert_eq!(bonds.sweep(&timeouts).unwrap(), (32, 32));
        assert_eq!((of_each(PORTS), other.within(|| of_each(PORTS))), (here, there));
        // As of a Service that has none any more, or is gone.
        let gone = *timeouts.keys().next().unwrap();
        timeouts.remove(&gone);
        assert_eq!(bonds.sweep(&timeouts).unwrap(), (32, 30));
        for timeout in timeouts.values_mut() {
            *timeout = Duration::ZERO;
        }
        assert_eq!(bonds.sweep(&timeouts).unwrap(), (30, 0));
    });
}
