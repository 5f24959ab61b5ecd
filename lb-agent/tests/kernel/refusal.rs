//! A Service without backends refuses, exactly as an address without a listener does, and at once.

use nix::errno::Errno;

use super::{
    connect::{MAPPED, V4, V6},
    control::Control,
    node_ports::fails,
    raw::{at_once, udp},
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
            for to in [V4, V6, MAPPED] {
                fails(to, Errno::ECONNREFUSED);
                at_once(to, Errno::ECONNREFUSED);
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
        fails(V6, Errno::ECONNREFUSED);
    });
}
