//! Node ports at the addresses of other nodes (E5): by any endpoint with the policy Cluster, with
//! Local by those of that very node.

use std::{collections::BTreeSet, net::IpAddr};

use lb_core::model::{Change, Endpoint, Service, Settings};
use nix::errno::Errno;

use super::{
    clients::reached,
    control::{Control, SIZES, draining, local, node, object, on, ready, serve},
    echo::Backends,
    flips::udp_backend,
    node_ports::{OWN, expected, fails, four, is_untouched, objects, view, web},
    world::{World, backend4, backend6},
};

const B: [&str; 2] = ["198.51.100.2", "2001:db8::b"];
const C: [&str; 2] = ["198.51.100.3", "2001:db8::c"];

fn start(world: &World, objects: impl IntoIterator<Item = Change>) -> Control {
    let nodes = [local(&OWN), node("a", &OWN), node("b", &B), node("c", &C)];
    Control::start_as(world, SIZES, view(Settings::default()), nodes.into_iter().chain(objects))
}

fn at(ip: &str) -> String {
    std::net::SocketAddr::new(ip.parse().unwrap(), 30080).to_string()
}

fn eight(n: u8) -> impl Iterator<Item = IpAddr> {
    [backend4(n), backend6(n)].into_iter()
}

/// What the address leads to.
fn leads(to: &str) -> BTreeSet<IpAddr> {
    reached(udp_backend, &at(to))
}

#[test]
fn cluster_is_by_any_endpoint() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = start(world, objects());
        for to in [B, C].as_flattened().iter().chain(&["::ffff:198.51.100.2"]) {
            assert_eq!(leads(to), expected(&at(to)), "{to}");
            assert_eq!(reached(super::clients::TCP[0], &at(to)), expected(&at(to)), "{to}");
        }
        control.apply([node("b", &["198.51.100.4"]), Change::Node("c".into(), None)]);
        assert_eq!(leads("198.51.100.4").len(), 2);
        [B, C].as_flattened().iter().for_each(|to| is_untouched(&at(to)));
        control.apply([Change::ListedNodes([].into())]);
        is_untouched(&at("198.51.100.4"));
        assert_eq!(leads(OWN[0]).len(), 2, "its own interfaces tell what is its own");
        // No endpoint anywhere.
        control.apply([node("b", &B)]);
        control.apply(serve("web", &web(), vec![]));
        OWN.iter().chain(&B).for_each(|to| fails(&at(to), Errno::ECONNREFUSED));
    });
}

#[test]
fn local_is_by_the_endpoints_of_that_node() {
    World::run(|world| {
        let service = Service { external_local: true, ..web() };
        let endpoints = |of: &[(&str, u8)]| -> Vec<Endpoint> {
            of.iter().flat_map(|(node, n)| eight(*n).map(|ip| on(node, ready(ip)))).collect()
        };
        let mut control =
            start(world, serve("web", &service, endpoints(&[("a", 1), ("b", 2), ("b", 3)])));
        let v4 = |all: &[u8]| all.iter().copied().map(backend4).collect::<BTreeSet<_>>();
        let v6 = |all: &[u8]| all.iter().copied().map(backend6).collect::<BTreeSet<_>>();
        // This node's own address: as if it came back from outside (E4).
        assert_eq!((leads(OWN[0]), leads(OWN[1])), (v4(&[1, 2, 3]), v6(&[1, 2, 3])));
        assert_eq!((leads(B[0]), leads(B[1])), (v4(&[2, 3]), v6(&[2, 3])));
        assert_eq!(leads("::ffff:198.51.100.2"), v4(&[2, 3]));
        for to in C {
            fails(&at(to), Errno::EHOSTUNREACH);
        }

        // They move; and those on their way out serve if nobody else does.
        let mut moved = endpoints(&[("a", 1), ("c", 2)]);
        moved.extend(eight(3).map(|ip| on("b", draining(ip))));
        control.apply(serve("web", &service, moved));
        assert_eq!((leads(B[0]), leads(C[0])), (v4(&[3]), v4(&[2])));
        assert_eq!(leads(OWN[0]), v4(&[1, 2]));

        // Addresses move with their node, and go with it.
        control.apply([node("c", &B), Change::Node("b".into(), None)]);
        assert_eq!((leads(B[0]), leads(B[1])), (v4(&[2]), v6(&[2])));
        for to in C {
            is_untouched(&at(to));
        }
        // An address that this node has too is this node's.
        control.apply([local(&[OWN[0], B[0]])]);
        assert_eq!((leads(B[0]), leads(B[1])), (v4(&[1, 2]), v6(&[2])));
        control.apply([local(&OWN)]);
        assert_eq!(leads(B[0]), v4(&[2]));

        // Endpoints here only, nowhere, and no Service.
        control.apply(serve("web", &service, endpoints(&[("a", 1)])));
        for to in B {
            fails(&at(to), Errno::EHOSTUNREACH);
        }
        control.apply(serve("web", &service, vec![]));
        OWN.iter().chain(&B).for_each(|to| fails(&at(to), Errno::ECONNREFUSED));
        control.apply([Change::Service(object("web"), None)]);
        OWN.iter().chain(&B).for_each(|to| is_untouched(&at(to)));
    });
}

/// The policy changes for connections that follow, both ways.
#[test]
fn from_cluster_to_local_and_back() {
    World::run(|world| {
        let endpoints: Vec<_> =
            [("a", 1), ("b", 2)].map(|(node, n)| on(node, ready(backend4(n)))).into();
        let mut control = start(world, []);
        for _ in 0..2 {
            control.apply(serve("web", &web(), endpoints.clone()));
            assert_eq!(leads(B[0]).len(), 2);
            assert_eq!(leads(C[0]).len(), 2);
            let local = Service { external_local: true, ..web() };
            control.apply(serve("web", &local, endpoints.clone()));
            assert_eq!(leads(B[0]), [backend4(2)].into());
            fails(&at(C[0]), Errno::EHOSTUNREACH);
        }
    });
}
