//! How many bonds one cgroup may have, and what becomes of those of network namespaces that are gone.

use std::{net::UdpSocket, time::Duration};

use lb_agent::{datapath::Sizes, maps::Bonds, sockets::Gone};
use lb_common::abi::{Counter, Held};
use lb_core::pipeline::NodeConfig;

use super::{
    affinity::{SIZES, endpoints, of_each, of_ports},
    clients::{Elsewhere, MANY, reached},
    control::{Control, counted, serve},
    flips::udp_backend,
    udp_bounded::Tenant,
    world::{World, soon},
};

const PORTS: u16 = 100;
/// As many as a cgroup may have of few.
const BOUND: usize = Held::FEW_BONDS as usize;
/// For all that one cgroup may have, and a few more.
const ROOM: u32 = Held::FEW_BONDS + 100;

/// Dials each port. Nothing leads anywhere from a bare namespace, but the programs have run.
fn dial_each() {
    for port in 1..=PORTS {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let _ = socket.connect(("10.96.0.10", port));
    }
}

fn bonds(world: &World) -> Bonds {
    Bonds::open(&world.pins().maps().unwrap().unwrap()).unwrap()
}

#[test]
fn a_cgroup_with_many_namespaces_leaves_room_for_others() {
    World::run(|world| {
        let sizes = Sizes { affinity: ROOM, backends: 16_384, ..SIZES };
        let objects = serve("web", &of_ports(PORTS), endpoints());
        let control = Control::start_as(world, sizes, NodeConfig::default(), objects);
        let timeouts = control.pipeline.affinity_timeouts();
        let everywhere: Vec<_> = (0..12).map(|_| Elsewhere::bare()).collect();
        let dial_everywhere = || everywhere.iter().for_each(|other| other.within(dial_each));
        let over = u64::try_from(12 * usize::from(PORTS) - BOUND).unwrap();
        let bounded = || counted(world, Counter::AffinityBounded);

        let first = Tenant::new(world, "first");
        for times in 1..=3 {
            dial_everywhere();
            assert_eq!(bounded(), times * over, "who has a bond keeps it");
            assert_eq!(bonds(world).sweep(&timeouts).unwrap(), (BOUND, BOUND));
        }
        assert!(reached(udp_backend, "10.96.0.10:50").len() > 4, "each connection anew");
        assert_eq!(bounded(), 3 * over + MANY);

        // Clients in another cgroup have theirs.
        let second = Tenant::new(world, "second");
        let bound = of_each(16);
        assert_eq!(of_each(16), bound);
        // They are one client with whoever shares their namespace.
        first.enter();
        assert_eq!(of_each(16), bound);
        assert_eq!(bounded(), 3 * over + MANY);
        assert_eq!(counted(world, Counter::AffinityFull), 0);
        assert_eq!(bonds(world).sweep(&timeouts).unwrap(), (BOUND + 16, BOUND + 16));

        // What is over no longer counts, and what is made afterwards does.
        assert_eq!(bonds(world).sweep(&[].into()).unwrap(), (BOUND + 16, 0));
        dial_everywhere();
        assert_eq!(bounded(), 4 * over + MANY);
        drop((first, second));
    });
}

/// A map that others have filled costs nobody a part of what it may have.
#[test]
fn who_finds_no_room_has_nothing() {
    World::run(|world| {
        let objects = serve("web", &of_ports(PORTS), endpoints());
        let sizes = Sizes { affinity: 16, ..SIZES };
        let control = Control::start_as(world, sizes, NodeConfig::default(), objects);
        let first = Tenant::new(world, "first");
        of_each(16);
        let second = Tenant::new(world, "second");
        for _ in 0..BOUND + 10 {
            udp_backend("10.96.0.10:50").unwrap();
        }
        assert_eq!(counted(world, Counter::AffinityFull), u64::from(Held::FEW_BONDS) + 10);
        let timeouts = control.pipeline.affinity_timeouts();
        assert_eq!(bonds(world).sweep(&[].into()).unwrap(), (16, 0));
        assert_eq!(reached(udp_backend, "10.96.0.10:50").len(), 1);
        assert_eq!(bonds(world).sweep(&timeouts).unwrap(), (1, 1));
        assert_eq!(counted(world, Counter::AffinityBounded), 0);
        drop((first, second));
    });
}

#[test]
fn bonds_end_with_their_namespace() {
    World::run(|world| {
        let objects = serve("web", &of_ports(16), endpoints());
        let control = Control::start_as(world, SIZES, NodeConfig::default(), objects);
        let timeouts = control.pipeline.affinity_timeouts();
        // Nobody is in it, and it is mounted nowhere: an open file keeps it.
        let other = Elsewhere::new();
        let (here, there) = (of_each(16), other.within(|| of_each(16)));
        let mut gone = Gone::default();
        // How many are left, by a look that could tell.
        let mut sweep = |idle| {
            let mut left = None;
            let is_told = soon(|| {
                let among = |asked| {
                    let gone = gone.among(world.cgroup(), asked);
                    left = gone.as_ref().map(|_| 0);
                    gone.unwrap_or_default()
                };
                let swept = bonds(world).sweep_with(&timeouts, idle, among).unwrap();
                left = left.map(|_| swept.1);
                left.is_some()
            });
            assert!(is_told, "some namespace can never be looked at");
            left.unwrap()
        };
        for _ in 0..3 {
            assert_eq!(sweep(Duration::ZERO), 32);
        }
        assert_eq!(other.within(|| of_each(16)), there);

        drop(other);
        for _ in 0..3 {
            assert_eq!(sweep(Duration::from_secs(3600)), 32, "they have connected just now");
        }
        assert_eq!(sweep(Duration::ZERO), 32, "it was missed once");
        assert!(soon(|| sweep(Duration::ZERO) == 16));
        assert_eq!(of_each(16), here);
    });
}
