//! A datagram that has nowhere to go fails at once, and nothing leaves.

use lb_core::model::Change;
use nix::{errno::Errno, sys::socket::MsgFlags};

use super::{
    connect::{MAPPED, V4, V6},
    control::{Control, object, service, slice},
    pods::{Pods, at, client, exchange, send_message},
    raw::{dial, errno},
    world::{World, backend4, backend6},
};

const IPS: [&str; 2] = ["10.96.0.10", "fd00:96::a"];

/// Whatever the call: this errno, of the call itself, each time. The socket is as it was.
fn refused(pods: &Pods, forms: [&str; 3], expected: Errno) {
    for to in forms.map(at) {
        let client = client(to.is_ipv4());
        // Whoever does not wait learns it too: no call has anything to wait for.
        for waits_not in [false, true] {
            client.set_nonblocking(waits_not).unwrap();
            assert_eq!(errno(client.send_to(b"hello", to)), expected, "{to}");
            let message = send_message(&client, &[b"hello"], to, MsgFlags::MSG_DONTWAIT);
            assert_eq!(message, Err(expected), "{to}");
        }
        client.set_nonblocking(false).unwrap();
        pods.assert_idle();
        let (good, ..) = if to.ip().to_canonical().is_ipv4() {
            ("10.96.0.99:80", ())
        } else {
            ("[fd00:96::99]:80", ())
        };
        let good = if to.is_ipv4() || to.ip().to_canonical().is_ipv6() {
            at(good)
        } else {
            at("[::ffff:10.96.0.99]:80")
        };
        assert_eq!(exchange(&client, good, pods).1, good, "the socket works");
        assert_eq!(errno(client.send_to(b"hello", to)), expected, "{to}");
        // A connected socket that sends elsewhere, too.
        dial(&client, good).unwrap();
        assert_eq!(errno(client.send_to(b"hello", to)), expected, "{to}");
        pods.assert_idle();
    }
}

#[test]
fn no_way_out_no_datagram() {
    World::run(|world| {
        let mut control = Control::start(world);
        let ips = [backend4(1), backend6(1)];
        control.put("good", &["10.96.0.99", "fd00:96::99"], 80, &ips);
        let pods = Pods::start(1..=1);

        for had in [&[][..], &ips] {
            control.put("web", &IPS, 80, had);
            control.put("web", &IPS, 80, &[]);
            refused(&pods, [V4, V6, MAPPED], Errno::ECONNREFUSED);
        }

        // The only endpoints are on other nodes.
        let mut local = service(&IPS, 80);
        local.internal_local = true;
        control.pipeline.change(Change::Slice(object("web"), Some(slice("web", &ips))));
        control.pipeline.change(Change::Service(object("web"), Some(local)));
        assert!(control.sync().sockets.failed.is_empty());
        refused(&pods, [V4, V6, MAPPED], Errno::EHOSTUNREACH);

        control.put("web", &IPS, 80, &ips);
        let unknown = ["10.96.0.10:81", "[fd00:96::a]:81", "[::ffff:10.96.0.10]:81"];
        refused(&pods, unknown, Errno::ECONNREFUSED);

        // No Service's address: the programs have no say.
        let nobody = ["10.96.7.7:80", "[fd00:96::7]:80", "[::ffff:10.96.7.7]:80"];
        refused(&pods, nobody, Errno::ENETUNREACH);
    });
}
