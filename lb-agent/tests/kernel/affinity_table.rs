//! The map of bonds with many writers, and with no room.

use std::{
    net::IpAddr,
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use lb_agent::{datapath::Sizes, maps::Bonds};
use lb_common::abi::Counter;
use lb_core::{
    model::{Change, Service},
    pipeline::NodeConfig,
};

use super::{
    affinity::{LONG, SIZES, endpoints, of_each, of_ports},
    clients::{Elsewhere, MANY, reached},
    control::{Control, counted, object, serve, service},
    flips::udp_backend,
    world::World,
};

/// Of two first connections at one time, the second one follows the first.
#[test]
fn two_at_once_get_one_backend() {
    const PORTS: u16 = 200;
    const ROUNDS: u32 = 15;
    World::run(|world| {
        let mut control = Control::start_with(world, Sizes { backends: 16_384, ..SIZES });
        let mut bonds = Bonds::open(&world.pins().maps().unwrap().unwrap()).unwrap();
        let (mut met, mut differ) = (0, Vec::new());
        control.apply(serve("web", &of_ports(PORTS), endpoints()));
        for _ in 0..ROUNDS {
            let (turn, order) = (AtomicU32::new(0), Barrier::new(2));
            let run = || {
                order.wait();
                let connect = |n: u16| {
                    let to = format!("10.96.0.10:{n}");
                    // Both at once, without a system call in between.
                    let mine = turn.fetch_add(1, Ordering::AcqRel);
                    let mut spins = 0u32;
                    while turn.load(Ordering::Acquire) < u32::from(n) * 2 && spins < 2_000_000 {
                        spins += 1;
                    }
                    (udp_backend(&to).unwrap().ip(), mine % 2 == 0 && spins > 0)
                };
                (1..=PORTS).map(connect).collect::<Vec<(IpAddr, bool)>>()
            };
            let (ours, theirs) = thread::scope(|scope| {
                let theirs = scope.spawn(run);
                (run(), theirs.join().unwrap())
            });
            for (n, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                met += usize::from(a.1 || b.1);
                if a.0 != b.0 {
                    differ.push((n, a.0, b.0));
                }
            }
            assert_eq!(bonds.sweep(&[].into()).unwrap(), (usize::from(PORTS), 0));
        }
        println!("{met} pairs met");
        assert!(differ.is_empty(), "{} pairs were parted: {:?}", differ.len(), differ.first());
        assert!(met > 500, "only {met} pairs met");
    });
}

/// Who finds no room is served without affinity; who has a place keeps it, whatever others do.
#[test]
fn nobody_is_driven_out() {
    World::run(|world| {
        let objects = serve("web", &of_ports(16), endpoints());
        let sizes = Sizes { affinity: 16, ..SIZES };
        let mut control = Control::start_as(world, sizes, NodeConfig::default(), objects);
        let bound = of_each(16);
        assert_eq!(counted(world, Counter::AffinityFull), 0);

        let late = Service { affinity: LONG, ..service(&["10.96.0.11"], 80) };
        control.apply(serve("late", &late, endpoints()));
        let other = Elsewhere::new();
        assert!(reached(udp_backend, "10.96.0.11:80").len() > 4, "each connection anew");
        other.within(|| (0..20).for_each(|_| drop(of_each(16))));
        assert_eq!(counted(world, Counter::AffinityFull), MANY + 320);
        assert_eq!(of_each(16), bound);
        assert_eq!(counted(world, Counter::AffinityFull), MANY + 320);

        // What becomes free is taken.
        control.apply([Change::Service(object("web"), None)]);
        let mut bonds = Bonds::open(&world.pins().maps().unwrap().unwrap()).unwrap();
        assert_eq!(bonds.sweep(&control.pipeline.affinity_timeouts()).unwrap(), (16, 0));
        assert_eq!(reached(udp_backend, "10.96.0.11:80").len(), 1);
    });
}
