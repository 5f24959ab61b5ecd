//! Session affinity: a client stays with its backend (kube-proxy H1-H5). A client is a network
//! namespace.

use std::{net::IpAddr, num::NonZeroU32, process::Command};

use lb_agent::datapath::Sizes;
use lb_core::{
    model::{Endpoint, Protocol, Service, ServicePort, Settings},
    pipeline::NodeConfig,
};

use super::{
    clients::{Elsewhere, TCP, UDP, reached},
    connect::{MAPPED, V4, V6},
    control::{Control, at_node_port, draining, local, on, ready, serve, service},
    echo::Backends,
    flips::udp_backend,
    world::{World, backend4, backend6},
};

pub(super) const SIZES: Sizes = Sizes { services: 256, backends: 4096, affinity: 1024 };
pub(super) const LONG: Option<NonZeroU32> = NonZeroU32::new(600);

/// Enough that two choices that do not depend on each other are hardly ever the same.
pub(super) fn backends() -> Vec<IpAddr> {
    (1..=8).flat_map(|n| [backend4(n), backend6(n)]).collect()
}

pub(super) fn endpoints() -> Vec<Endpoint> {
    backends().into_iter().map(ready).collect()
}

/// At both cluster IPs, with affinity.
pub(super) fn sticky(affinity: Option<NonZeroU32>) -> Service {
    Service { affinity, ..service(&["10.96.0.10", "fd00:96::a"], 80) }
}

/// With this many UDP ports from 1 on: each has bonds of its own.
pub(super) fn of_ports(count: u16) -> Service {
    let port = |n: u16| ServicePort::new(format!("port-{n}"), Protocol::Udp, n);
    let ports = (1..=count).map(port).collect();
    Service { ports, affinity: LONG, ..service(&["10.96.0.10"], 1) }
}

/// The backend of each of those ports.
pub(super) fn of_each(count: u16) -> Vec<IpAddr> {
    (1..=count).map(|n| udp_backend(&format!("10.96.0.10:{n}")).unwrap().ip()).collect()
}

/// Whatever address of a port it dials, a client gets one backend; in a family of its own, since the
/// other one has other endpoints.
#[test]
fn all_addresses_of_a_port_share_the_bond() {
    World::run(|world| {
        let _backends = Backends::start(backends());
        let service = Service {
            external_ips: vec!["198.51.100.1".parse().unwrap(), "2001:db8:1::1".parse().unwrap()],
            ..at_node_port(sticky(LONG), 30080)
        };
        let here = local(&["192.0.2.1", "2001:db8::1"]);
        let objects = serve("web", &service, endpoints()).into_iter().chain([here]);
        let _control = Control::start_as(world, SIZES, NodeConfig::default(), objects);
        let v4 = [V4, MAPPED, "198.51.100.1:80", "192.0.2.1:30080", "[::ffff:192.0.2.1]:30080"];
        let v6 = [V6, "[2001:db8:1::1]:80", "[2001:db8::1]:30080"];
        for ways in [TCP, UDP] {
            for forms in [&v4[..], &v6] {
                let mut all: Vec<_> = Vec::new();
                for to in forms {
                    all.extend(ways.iter().flat_map(|way| reached(*way, to)));
                }
                all.sort_unstable();
                all.dedup();
                assert_eq!(all.len(), 1, "{forms:?} lead to {all:?}");
            }
        }
    });
}

#[test]
fn each_port_and_each_client_has_its_own() {
    World::run(|world| {
        let objects = serve("web", &of_ports(16), endpoints());
        let _control = Control::start_as(world, SIZES, NodeConfig::default(), objects);
        let other = Elsewhere::new();
        let (here, there) = (of_each(16), other.within(|| of_each(16)));
        assert_ne!(here, there, "another client");
        assert!(here.iter().any(|backend| *backend != here[0]), "{here:?}: another port");
        for _ in 0..5 {
            assert_eq!((of_each(16), other.within(|| of_each(16))), (here.clone(), there.clone()));
        }
    });
}

/// The same client, however many processes it has.
#[test]
fn processes_of_one_namespace_are_one_client() {
    World::run(|world| {
        let objects = serve("web", &sticky(LONG), endpoints());
        let _control = Control::start_as(world, SIZES, NodeConfig::default(), objects);
        let _backends = Backends::start(backends());
        let script =
            "exec 3<>/dev/tcp/10.96.0.10/80 && echo who? >&3 && read -r it <&3 && echo $it";
        let ask = || {
            let output =
                Command::new("bash").args(["-c", script]).output().expect("bash is needed");
            let answer = String::from_utf8(output.stdout).unwrap();
            answer.split_once(':').expect("an answer").0.parse::<IpAddr>().unwrap()
        };
        let first = ask();
        assert!((0..10).all(|_| ask() == first));
        assert_eq!(reached(TCP[0], V4), [first].into());
    });
}

#[test]
fn it_begins_and_ends_with_the_next_connection() {
    World::run(|world| {
        let mut control = Control::start_with(world, SIZES);
        for _ in 0..3 {
            control.apply(serve("web", &sticky(None), endpoints()));
            assert!(reached(udp_backend, V4).len() > 4);
            control.apply(serve("web", &sticky(LONG), endpoints()));
            assert_eq!(reached(udp_backend, V4).len(), 1);
            assert_eq!(reached(udp_backend, V6).len(), 1);
        }
    });
}

/// Gone, or on its way out: the next connection goes elsewhere, and the client stays there, also
/// when the first one comes back.
#[test]
fn a_backend_that_leaves_is_left() {
    World::run(|world| {
        let mut control = Control::start_with(world, SIZES);
        for drains in [false, true] {
            control.apply(serve("web", &sticky(LONG), endpoints()));
            let first = udp_backend(V4).unwrap().ip();
            let mut rest = endpoints();
            rest.retain(|endpoint| endpoint.addr != first);
            rest.extend(drains.then(|| draining(first)));
            control.apply(serve("web", &sticky(LONG), rest));
            let second = reached(udp_backend, V4);
            assert!(second.len() == 1 && !second.contains(&first), "{first}, {second:?}");
            control.apply(serve("web", &sticky(LONG), endpoints()));
            assert_eq!(reached(udp_backend, V4), second);
        }
    });
}

/// H3: a bond holds where the frontend leads to its backend, and nowhere else.
#[test]
fn a_bond_does_not_lead_out_of_the_set() {
    World::run(|world| {
        let settings = Settings { node_name: "a".into(), ..Settings::default() };
        let view = NodeConfig { settings, ..NodeConfig::default() };
        let service = Service {
            internal_local: true,
            external_ips: vec!["198.51.100.1".parse().unwrap()],
            ..sticky(LONG)
        };
        let here = backend4(1);
        let mut endpoints: Vec<_> = (2..=8).map(|n| on("b", ready(backend4(n)))).collect();
        let mut control = Control::start_as(world, SIZES, view, []);
        control.apply(serve("web", &service, endpoints.clone()));
        let anywhere = reached(udp_backend, "198.51.100.1:80");
        assert_eq!(anywhere.len(), 1);
        endpoints.push(on("a", ready(here)));
        control.apply(serve("web", &service, endpoints));
        assert_eq!(reached(udp_backend, "198.51.100.1:80"), anywhere, "it is there still");
        assert_eq!(reached(udp_backend, V4), [here].into(), "this one's policy is Local");
        assert_eq!(reached(udp_backend, "198.51.100.1:80"), [here].into());
    });
}
