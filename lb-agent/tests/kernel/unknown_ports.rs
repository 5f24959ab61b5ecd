//! A port that a cluster IP lacks is refused at once (E12), unless the agent was told to let it pass.

use std::net::{TcpListener, TcpStream, UdpSocket};

use lb_common::abi::Counter;
use lb_core::{
    pipeline::NodeConfig,
    socket_engine::{SocketSettings, UnknownPorts},
};
use nix::errno::Errno;

use super::{
    clients::{answer, reached},
    connect::{MAPPED, V4, V6},
    control::{Control, SIZES, counted, local, node, ready, serve, service},
    echo::{Backends, ask},
    flips::udp_backend,
    node_ports::{fails, is_untouched},
    raw::{at_once, dial, exotic},
    world::{PORT, World, backend4, backend6},
};

const UNKNOWN: [&str; 3] = ["10.96.0.10:81", "[fd00:96::a]:81", "[::ffff:10.96.0.10]:81"];

fn put(control: &mut Control) {
    let service = service(&["10.96.0.10", "fd00:96::a"], 80);
    control.apply(serve("web", &service, vec![ready(backend4(1)), ready(backend6(1))]));
}

#[test]
fn it_is_refused_at_once() {
    World::run(|world| {
        let mut control = Control::start(world);
        UNKNOWN.into_iter().for_each(is_untouched);
        put(&mut control);
        let counts =
            || [Counter::Refused, Counter::UdpConnectUntouched].map(|it| counted(world, it));
        let before = counts();
        for to in UNKNOWN {
            fails(to, Errno::ECONNREFUSED);
            at_once(to, Errno::ECONNREFUSED);
        }
        assert_eq!([0, 1].map(|i| counts()[i] - before[i]), [12, 6]);
        for to in [V4, V6, MAPPED] {
            assert_eq!(reached(udp_backend, to).len(), 1);
        }
        // Neighbours of the address are not the Service's.
        ["10.96.0.11:81", "10.96.0.9:80", "[fd00:96::b]:81"].into_iter().for_each(is_untouched);
        control.delete("web");
        UNKNOWN.into_iter().chain([V4, V6, MAPPED]).for_each(is_untouched);
    });
}

#[test]
fn it_passes_if_it_is_to() {
    World::run(|world| {
        let pass = || NodeConfig {
            sockets: SocketSettings {
                unknown_ports: UnknownPorts::Pass,
                ..SocketSettings::default()
            },
            ..NodeConfig::default()
        };
        let mut control = Control::start_as(world, SIZES, pass(), []);
        put(&mut control);
        UNKNOWN.into_iter().for_each(is_untouched);
        assert_eq!(reached(udp_backend, V4).len(), 1);
        drop(control);
        // An agent that is told otherwise makes it so.
        let object = || {
            let service = service(&["10.96.0.10", "fd00:96::a"], 80);
            serve("web", &service, vec![ready(backend4(1)), ready(backend6(1))])
        };
        let control = Control::start_as(world, SIZES, NodeConfig::default(), object());
        for to in UNKNOWN {
            fails(to, Errno::ECONNREFUSED);
        }
        drop(control);
        let _control = Control::start_as(world, SIZES, pass(), object());
        UNKNOWN.into_iter().for_each(is_untouched);
    });
}

#[test]
fn other_protocols_are_left_alone() {
    World::run(|world| {
        put(&mut Control::start(world));
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        for (kind, protocol) in
            [(libc::SOCK_DGRAM, libc::IPPROTO_ICMP), (libc::SOCK_RAW, libc::IPPROTO_UDP)]
        {
            let fd = exotic(true, kind, protocol).unwrap();
            for to in [V4, UNKNOWN[0], "10.96.0.10:0"] {
                assert_eq!(dial(&fd, to.parse().unwrap()), Err(Errno::ENETUNREACH));
            }
        }
    });
}

/// A cluster IP that is the address of a backend, of another Service or of the Service itself: each
/// connection is translated once. Dialled directly, the backend's port is one that the cluster IP
/// lacks; and so is that of a client there, to whom a server sends a datagram.
#[test]
fn a_cluster_ip_that_is_a_backend_s() {
    World::run(|world| {
        let mut control = Control::start(world);
        let _backends = Backends::start([backend4(1), backend4(2)]);
        // 10.1.0.1:8080 leads to the second backend, and web to 10.1.0.1:8080.
        let strange = service(&["10.1.0.1"], PORT);
        control.apply(serve("strange", &strange, vec![ready(backend4(2))]));
        control.apply(serve("web", &service(&["10.96.0.10"], 80), vec![ready(backend4(1))]));
        let own = service(&["10.1.0.2"], 80);
        control.apply(serve("own", &own, vec![ready(backend4(2))]));
        let direct = format!("10.1.0.1:{PORT}");
        for (to, n) in [(V4, 1), (&*direct, 2), ("10.1.0.2:80", 2)] {
            let stream = TcpStream::connect(to).unwrap();
            assert_eq!(stream.peer_addr().unwrap().to_string(), to);
            assert_eq!(ask(&stream).backend.ip(), backend4(n), "{to}");
            assert_eq!(udp_backend(to).unwrap().ip(), backend4(n), "{to}");
            let socket = UdpSocket::bind("10.2.0.1:0").unwrap();
            assert_eq!(answer(&socket, to.parse().unwrap()).unwrap().ip(), backend4(n), "{to}");
        }
        fails(&format!("10.1.0.2:{PORT}"), Errno::ECONNREFUSED);
        control.delete("own");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((backend4(2), PORT)).unwrap();
        assert_eq!(super::echo::ask_udp(&socket).backend.ip(), backend4(2));
    });
}

/// A cluster IP that is this node's own address: the Service is served there, and so is all else that
/// the node itself has. At another node's address it is the Service's alone.
#[test]
fn a_cluster_ip_that_is_the_node_s() {
    World::run(|world| {
        let _backends = Backends::start([backend4(1)]);
        let mut control = Control::start(world);
        let ips = ["10.2.0.1", "192.0.2.9"];
        for (name, ip) in ["here", "there"].into_iter().zip(ips) {
            control.apply(serve(name, &service(&[ip], 80), vec![ready(backend4(1))]));
        }
        control.apply([local(&["10.2.0.1"]), node("other", &["192.0.2.9"])]);
        for ip in ips {
            let stream = TcpStream::connect((ip, 80)).unwrap();
            assert_eq!(ask(&stream).backend.ip(), backend4(1), "{ip}");
        }
        let listener = TcpListener::bind("10.2.0.1:22").unwrap();
        let stream = TcpStream::connect("10.2.0.1:22").unwrap();
        assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
        fails("192.0.2.9:22", Errno::ECONNREFUSED);
    });
}
