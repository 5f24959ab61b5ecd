//! Two Services, one frontend: the older one has it, and the other inherits it. With several
//! Services at one cluster IP, each has its ports.

use lb_core::{
    model::{Change, Service, Settings},
    pipeline::NodeConfig,
};
use nix::errno::Errno;

use super::{
    clients::reached,
    control::{Control, SIZES, at_node_port, local, node, object, ready, serve, service},
    flips::udp_backend,
    node_ports::{OWN, fails, is_untouched, view},
    world::{World, backend4},
};

const SHARED: [&str; 3] = ["198.51.100.9:80", "192.0.2.1:30080", "198.51.100.2:30080"];

/// Made at this time, with the backend of this number.
fn claimant(created: i64, n: u8) -> [Change; 2] {
    let ip = format!("10.96.0.{n}");
    let service = Service {
        created,
        external_ips: vec!["198.51.100.9".parse().unwrap()],
        ..at_node_port(service(&[&ip], 80), 30080)
    };
    serve(&format!("of-{n}"), &service, vec![ready(backend4(n))])
}

fn has_all(n: u8) {
    for to in SHARED {
        assert_eq!(reached(udp_backend, to), [backend4(n)].into(), "{to}");
    }
}

#[test]
fn the_older_one_has_it_and_the_other_inherits() {
    World::run(|world| {
        let nodes = [local(&OWN), node("b", &["198.51.100.2"])];
        let mut control = Control::start_as(world, SIZES, view(Settings::default()), nodes);
        // In whatever order they are seen.
        for order in [[(100, 1), (200, 2)], [(200, 2), (100, 1)]] {
            for (created, n) in order {
                control.apply(claimant(created, n));
            }
            has_all(1);
            assert_eq!(reached(udp_backend, "10.96.0.2:80"), [backend4(2)].into());
            // The heir has it in the same moment, and gives it back to nobody younger.
            control.apply([Change::Service(object("of-1"), None)]);
            has_all(2);
            control.apply(claimant(300, 3));
            has_all(2);
            control.apply([Change::Service(object("of-2"), None)]);
            has_all(3);
            control.apply([Change::Service(object("of-3"), None)]);
            SHARED.into_iter().for_each(is_untouched);
        }
        // Of one age: the first by name.
        control.apply(claimant(100, 5));
        control.apply(claimant(100, 4));
        has_all(4);
    });
}

/// A cluster IP is not to be had by naming it.
#[test]
fn an_external_address_takes_no_cluster_ip_away() {
    World::run(|world| {
        let mut control = Control::start(world);
        let thief = Service {
            created: 1,
            external_ips: vec!["10.96.0.1".parse().unwrap()],
            ..service(&["10.96.0.2"], 80)
        };
        control.apply(serve("thief", &thief, vec![ready(backend4(2))]));
        assert_eq!(udp_backend("10.96.0.1:80").unwrap().ip(), backend4(2), "it is nobody's");
        let owner = Service { created: 2, ..service(&["10.96.0.1"], 80) };
        control.apply(serve("owner", &owner, vec![ready(backend4(1))]));
        assert_eq!(reached(udp_backend, "10.96.0.1:80"), [backend4(1)].into());
    });
}

#[test]
fn two_services_at_one_cluster_ip() {
    World::run(|world| {
        let mut control = Control::start_as(world, SIZES, NodeConfig::default(), []);
        for n in [1u8, 2] {
            let service = service(&["10.96.0.1"], 80 + u16::from(n));
            control.apply(serve(&format!("of-{n}"), &service, vec![ready(backend4(n))]));
        }
        let lead = |port: u16| udp_backend(&format!("10.96.0.1:{port}")).unwrap().ip();
        assert_eq!((lead(81), lead(82)), (backend4(1), backend4(2)));
        fails("10.96.0.1:83", Errno::ECONNREFUSED);
        control.apply([Change::Service(object("of-1"), None)]);
        fails("10.96.0.1:81", Errno::ECONNREFUSED);
        assert_eq!(lead(82), backend4(2));
        control.apply([Change::Service(object("of-2"), None)]);
        is_untouched("10.96.0.1:81");
        is_untouched("10.96.0.1:82");
    });
}
