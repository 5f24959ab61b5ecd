//! Node ports at this node's own addresses, and everything beside them that is none.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use lb_core::{
    model::{Change, NodePortAddresses, Service, Settings},
    pipeline::NodeConfig,
    socket_engine::SocketSettings,
};
use nix::errno::Errno;

use super::{
    clients::{Elsewhere, TCP, UDP, Way, cookie, reached},
    control::{Control, SIZES, at_node_port, ips, local, node, ready, serve, service},
    echo::Backends,
    flips::udp_backend,
    raw::{errno, udp_fails, udp_socket},
    world::{World, backend4, backend6},
};

/// None of them can be reached without the programs.
pub(super) const OWN: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const OWN_FORMS: [&str; 3] = ["192.0.2.1:30080", "[2001:db8::1]:30080", "[::ffff:192.0.2.1]:30080"];
pub(super) const LOOPBACK_FORMS: [&str; 3] =
    ["127.0.0.1:30080", "[::1]:30080", "[::ffff:127.0.0.1]:30080"];

pub(super) fn four() -> [IpAddr; 4] {
    [backend4(1), backend4(2), backend6(1), backend6(2)]
}

/// Node port 30080 in TCP and UDP.
pub(super) fn web() -> Service {
    at_node_port(service(&["10.96.0.10", "fd00:96::a"], 80), 30080)
}

pub(super) fn objects() -> [Change; 2] {
    serve("web", &web(), four().map(ready).to_vec())
}

/// On the node "a".
pub(super) fn view(settings: Settings) -> NodeConfig {
    let settings = Settings { node_name: "a".into(), ..settings };
    NodeConfig {
        settings,
        sockets: SocketSettings { host_netns: cookie(), ..SocketSettings::default() },
    }
}

fn start(world: &World, settings: Settings) -> Control {
    Control::start_as(world, SIZES, view(settings), objects().into_iter().chain([local(&OWN)]))
}

pub(super) fn expected(to: &str) -> BTreeSet<IpAddr> {
    let to: SocketAddr = to.parse().unwrap();
    let v4 = to.ip().to_canonical().is_ipv4();
    four().into_iter().filter(|ip| ip.is_ipv4() == v4).collect()
}

/// Connections to it fail so, in TCP and UDP.
pub(super) fn fails(to: &str, error: Errno) {
    let addr: SocketAddr = to.parse().unwrap();
    assert_eq!(errno(TcpStream::connect(addr)), error, "TCP {to}");
    let [connected, unconnected] = [(); 2].map(|()| udp_socket(addr.is_ipv4()));
    assert_eq!(errno(unconnected.send_to(b"x", addr)), error, "sendto {to}");
    udp_fails(&connected, addr, error);
}

/// The programs leave it alone: no address of the tests has a route.
pub(super) fn is_untouched(to: &str) {
    fails(to, Errno::ENETUNREACH);
}

fn ways() -> impl Iterator<Item = Way> {
    TCP.iter().chain(UDP).copied()
}

#[test]
fn at_own_addresses() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = start(world, Settings::default());
        for to in OWN_FORMS {
            for way in ways() {
                assert_eq!(reached(way, to), expected(to), "{to}");
            }
            let to = to.parse().unwrap();
            assert_eq!(TcpStream::connect(to).unwrap().peer_addr().unwrap(), to);
        }
        // Pods dial the node too.
        Elsewhere::new().within(|| {
            for to in OWN_FORMS {
                assert_eq!(reached(udp_backend, to), expected(to), "{to}");
            }
        });
        // The Node says more than the interfaces do, and an address may go.
        control.apply([local(&["192.0.2.1"]), node("a", &["192.0.2.9"])]);
        assert_eq!(reached(udp_backend, "192.0.2.9:30080"), expected("192.0.2.9:30080"));
        is_untouched("[2001:db8::1]:30080");
        control.apply([local(&[]), node("a", &["192.0.2.8"])]);
        OWN_FORMS.into_iter().chain(["192.0.2.9:30080"]).for_each(is_untouched);
        // What it said last outlives it (J2).
        control.apply([Change::Node("a".into(), None)]);
        assert_eq!(reached(udp_backend, "192.0.2.8:30080"), expected("192.0.2.8:30080"));
        control.apply([local(&OWN)]);
        assert_eq!(reached(udp_backend, OWN_FORMS[0]), expected(OWN_FORMS[0]));
        control.apply([Change::Service(super::control::object("web"), None)]);
        OWN_FORMS.into_iter().for_each(is_untouched);
    });
}

#[test]
fn nothing_else_is_one() {
    World::run(|world| {
        let mut control =
            start(world, Settings { localhost_nodeports: true, ..Settings::default() });
        let others = [
            "192.0.2.2:30080",
            "192.0.2.1:30081",
            "192.0.2.1:80",
            "[2001:db8::2]:30080",
            "[2001:db8::1]:80",
            "[::ffff:192.0.2.2]:30080",
            "10.96.0.11:30080",
        ];
        others.into_iter().for_each(is_untouched);
        assert!(udp_backend("127.0.0.2:30081").unwrap().ip().is_loopback());
        // A cluster IP has no node ports.
        fails("10.96.0.10:30080", Errno::ECONNREFUSED);
        // A real listener at the node's address, beside the node port.
        control.apply([local(&["10.2.0.1"])]);
        let listener = TcpListener::bind("10.2.0.1:30081").unwrap();
        let stream = TcpStream::connect("10.2.0.1:30081").unwrap();
        assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
        // At the node port itself nobody is reached, listening or not (E13).
        let _hidden = TcpListener::bind("10.2.0.1:30080").unwrap();
        let _backends = Backends::start(four());
        assert_eq!(reached(TCP[0], "10.2.0.1:30080"), expected("10.2.0.1:30080"));
    });
}

/// Loopback is the node's own in the host's network namespace only.
#[test]
fn at_loopback() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let settings = Settings { localhost_nodeports: true, ..Settings::default() };
        let control = start(world, settings.clone());
        for to in LOOPBACK_FORMS {
            for way in ways() {
                assert_eq!(reached(way, to), expected(to), "{to}");
            }
        }
        Elsewhere::new().within(|| {
            for to in LOOPBACK_FORMS {
                let addr: SocketAddr = to.parse().unwrap();
                assert_eq!(errno(TcpStream::connect(addr)), Errno::ECONNREFUSED, "{to}");
                assert_eq!(udp_backend(to).unwrap().ip(), addr.ip(), "{to}");
                let _listener = TcpListener::bind(addr).unwrap();
                assert_eq!(TcpStream::connect(addr).unwrap().local_addr().unwrap().ip(), addr.ip());
            }
            assert_eq!(reached(udp_backend, OWN_FORMS[0]), expected(OWN_FORMS[0]));
        });
        drop(control);
        // Nobody knows which namespace is the host's, or nobody asked for it.
        let nowhere = NodeConfig { settings, ..NodeConfig::default() };
        for view in [nowhere, view(Settings::default())] {
            let all = objects().into_iter().chain([local(&OWN), node("a", &["127.0.0.1"])]);
            let _control = Control::start_as(world, SIZES, view, all);
            for to in LOOPBACK_FORMS {
                let addr: SocketAddr = to.parse().unwrap();
                assert_eq!(udp_backend(to).unwrap().ip(), addr.ip(), "{to}");
            }
            assert_eq!(reached(udp_backend, OWN_FORMS[0]), expected(OWN_FORMS[0]));
        }
    });
}

/// I1, I2: in these ranges, or at the first address in the Node's status.
#[test]
fn only_at_the_addresses_that_were_chosen() {
    World::run(|world| {
        let all = ["192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8:1::1"];
        let at = |ip: IpAddr| SocketAddr::new(ip, 30080).to_string();
        let cases = [
            ("", &all[..]),
            ("primary", &["198.51.100.1", "2001:db8::1"]),
            ("192.0.2.0/24,2001:db8:1::/48", &["192.0.2.1", "2001:db8:1::1"]),
            ("192.0.2.0/24", &["192.0.2.1", "2001:db8::1", "2001:db8:1::1"]),
            ("10.0.0.0/8,::/0", &["2001:db8::1", "2001:db8:1::1"]),
        ];
        for (text, served) in cases {
            let nodeport_addresses: NodePortAddresses = text.parse().unwrap();
            let view = view(Settings { nodeport_addresses, ..Settings::default() });
            // Here in the order of the status.
            let own = node("a", &["198.51.100.1", "192.0.2.1", "2001:db8::1", "2001:db8:1::1"]);
            let more = [local(&all), own];
            let _control = Control::start_as(world, SIZES, view, objects().into_iter().chain(more));
            for ip in ips(&all) {
                let to = at(ip);
                if ips(served).any(|served| served == ip) {
                    assert_eq!(reached(udp_backend, &to), expected(&to), "{text}: {to}");
                } else {
                    is_untouched(&to);
                }
            }
        }
    });
}
