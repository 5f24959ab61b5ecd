//! Traffic policies, topology and endpoints on their way out, from end to end. Which endpoints a
//! policy chooses is tested where it is decided.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use lb_core::model::{Change, Conditions, Endpoint, Hints, Node, Service, Settings};
use nix::errno::Errno;

use super::{
    clients::{TCP, UDP, reached},
    connect::{MAPPED, V4, V6},
    control::{Control, SIZES, draining, on, ready, serve, service},
    echo::Backends,
    flips::udp_backend,
    node_ports::{fails, view},
    world::{World, backend4, backend6},
};

const FORMS: [&str; 3] = [V4, V6, MAPPED];

fn start(world: &World) -> Control {
    Control::start_as(world, SIZES, view(Settings::default()), [])
}

fn web() -> Service {
    service(&["10.96.0.10", "fd00:96::a"], 80)
}

fn both(n: u8) -> [IpAddr; 2] {
    [backend4(n), backend6(n)]
}

/// The numbers of the backends that all forms of the address lead to.
fn leads() -> Vec<u8> {
    let of = |to: &str| -> BTreeSet<u8> {
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        reached(udp_backend, to).into_iter().map(number).collect()
    };
    let all = FORMS.map(of);
    assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
    all[0].iter().copied().collect()
}

/// D6, F2.
#[test]
fn internal_traffic_that_is_local() {
    World::run(|world| {
        let mut control = start(world);
        let _backends = Backends::start((1..=2).flat_map(both));
        let local = Service {
            internal_local: true,
            external_ips: vec!["198.51.100.1".parse().unwrap()],
            ..web()
        };
        let mut put = |of: &[(&str, u8)]| {
            let endpoints =
                of.iter().flat_map(|(node, n)| both(*n).map(|ip| on(node, ready(ip)))).collect();
            control.apply(serve("web", &local, endpoints));
        };
        put(&[("a", 1), ("b", 2), ("b", 3)]);
        assert_eq!(leads(), [1]);
        for way in TCP.iter().chain(UDP) {
            assert_eq!(reached(*way, V4), [backend4(1)].into());
        }
        assert_eq!(reached(udp_backend, "198.51.100.1:80").len(), 3, "another policy's");
        put(&[("b", 2)]);
        for to in FORMS {
            fails(to, Errno::EHOSTUNREACH);
        }
        assert_eq!(reached(udp_backend, "198.51.100.1:80"), [backend4(2)].into());
        put(&[]);
        for to in FORMS {
            fails(to, Errno::ECONNREFUSED);
        }
        put(&[("b", 2), ("a", 4)]);
        assert_eq!(leads(), [4]);
    });
}

fn hinted(n: u8, zones: &[&str], nodes: &[&str]) -> impl Iterator<Item = Endpoint> + use<> {
    let names = |all: &[&str]| all.iter().map(|name| Arc::from(*name)).collect();
    let hints = Arc::new(Hints { zones: names(zones), nodes: names(nodes) });
    both(n).into_iter().map(move |ip| Endpoint { hints: Some(Arc::clone(&hints)), ..ready(ip) })
}

fn in_zone(zone: Option<&str>) -> Change {
    let node = Node { zone: zone.map(Arc::from), ..Node::default() };
    Change::Node("a".into(), Some(node))
}

/// D8, D11.
#[test]
fn topology_follows_the_node() {
    World::run(|world| {
        let mut control = start(world);
        let zones = || {
            let all = [(1, "z1"), (2, "z2"), (3, "z2")];
            all.into_iter().flat_map(|(n, zone)| hinted(n, &[zone], &[])).collect::<Vec<_>>()
        };
        control.apply(serve("web", &web(), zones()));
        assert_eq!(leads(), [1, 2, 3], "no zone is known");
        for (zone, expected) in [
            (Some("z1"), &[1][..]),
            (Some("z2"), &[2, 3]),
            (Some("z3"), &[1, 2, 3]),
            (Some("z2"), &[2, 3]),
            (None, &[1, 2, 3]),
        ] {
            control.apply([in_zone(zone)]);
            assert_eq!(leads(), expected, "{zone:?}");
        }
        control.apply([in_zone(Some("z1"))]);
        // One without a hint, and hints for nodes, which go before zones.
        control.apply(serve(
            "web",
            &web(),
            zones().into_iter().chain(both(4).map(ready)).collect(),
        ));
        assert_eq!(leads(), [1, 2, 3, 4]);
        let nodes = hinted(1, &["z1"], &["b"]).chain(hinted(2, &["z2"], &["a"])).collect();
        control.apply(serve("web", &web(), nodes));
        assert_eq!(leads(), [2]);
    });
}

/// An endpoint in some condition.
type State = fn(IpAddr) -> Endpoint;

/// D4, D6.
#[test]
fn those_on_their_way_out_serve_if_nobody_else_does() {
    World::run(|world| {
        let mut control = start(world);
        let unready =
            |ip| Endpoint::new(ip, Conditions { ready: false, serving: false, terminating: false });
        for internal_local in [false, true] {
            let service = Service { internal_local, ..web() };
            let mut put = |of: &[(u8, State)]| {
                let endpoints =
                    of.iter().flat_map(|(n, state)| both(*n).map(|ip| on("a", state(ip))));
                control.apply(serve("web", &service, endpoints.collect()));
            };
            put(&[(1, ready), (2, draining), (3, unready)]);
            assert_eq!(leads(), [1]);
            put(&[(1, unready), (2, draining), (3, unready)]);
            assert_eq!(leads(), [2]);
            put(&[(1, unready)]);
            for to in FORMS {
                fails(to, Errno::ECONNREFUSED);
            }
        }
    });
}
