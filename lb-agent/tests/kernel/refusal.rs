//! A Service without backends refuses, exactly as an address without a listener does, and at once.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::{
    connect::{MAPPED, V4, V6},
    control::Control,
    raw::{dial, errno, nonblocking_tcp, udp},
    world::{World, backend4, backend6},
};

#[test]
fn no_backend_is_econnrefused() {
    World::run(|world| {
        let mut control = Control::start(world);
        // Once with a set that never had backends, once with one that lost them.
        for had in [vec![], vec![backend4(1), backend6(1)]] {
            control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &had);
            control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &[]);
            for to in [V4, V6, MAPPED].map(|form| form.parse::<SocketAddr>().unwrap()) {
                let start = Instant::now();
                assert_eq!(errno(TcpStream::connect(to)), Errno::ECONNREFUSED, "TCP {to}");
                assert_eq!(errno(udp(to)), Errno::ECONNREFUSED, "UDP {to}");
                let waits_not = nonblocking_tcp(to.is_ipv4());
                assert_eq!(dial(&waits_not, to), Err(Errno::ECONNREFUSED), "non-blocking {to}");
                assert!(start.elapsed() < Duration::from_millis(500), "not at once");
            }
        }
    });
}

/// IPv6 of a Service that has backends in IPv4 only refuses; IPv4 works.
#[test]
fn each_family_for_itself() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &[backend4(1)]);
        udp(V4.parse().unwrap()).unwrap();
        udp(MAPPED.parse().unwrap()).unwrap();
        assert_eq!(errno(udp(V6.parse().unwrap())), Errno::ECONNREFUSED);
    });
}
