//! Sockets that are connected, or were.

use std::net::SocketAddr;

use nix::errno::Errno;

use super::{
    connect::{MAPPED, V4, V6},
    pods::{Pods, at, client, exchange, mapped, read},
    raw::{dial, disconnect, peer},
    udp::web,
    world::{World, backend4},
};

/// Sends without an address, and has the answer: the backend, and the label.
fn ask(client: &std::net::UdpSocket, pods: &Pods) -> (SocketAddr, SocketAddr) {
    client.send(b"who?").unwrap();
    let letter = pods.take();
    pods.answer(&letter);
    (letter.pod, read(client).1)
}

fn form(to: SocketAddr, addr: SocketAddr) -> SocketAddr {
    if to.is_ipv4() { addr } else { mapped(addr) }
}

#[test]
fn answers_come_from_the_service() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for to in [V4, V6, MAPPED].map(at) {
            for _ in 0..20 {
                let client = client(to.is_ipv4());
                dial(&client, to).unwrap();
                let (pod, label) = ask(&client, &pods);
                assert_eq!((label, peer(&client)), (to, Ok(to)));
                for _ in 0..3 {
                    assert_eq!(exchange(&client, to, &pods), (pod, to), "with an address");
                    assert_eq!(ask(&client, &pods), (pod, to), "without");
                }
            }
        }
    });
}

/// Also a socket that sent to the Service before it was connected to it.
#[test]
fn the_connection_decides() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for to in [V4, V6, MAPPED].map(at) {
            for _ in 0..20 {
                let client = client(to.is_ipv4());
                let (first, _) = exchange(&client, to, &pods);
                dial(&client, to).unwrap();
                let (pod, label) = ask(&client, &pods);
                assert_eq!(label, to);
                assert_eq!(exchange(&client, to, &pods), (pod, to));
                disconnect(&client);
                // Either is a backend that it has talked to; from now on it is always the same.
                let (then, label) = exchange(&client, to, &pods);
                assert!([first, pod].contains(&then), "{then}");
                assert_eq!(label, to);
                assert_eq!(exchange(&client, to, &pods), (then, to));
            }
        }
    });
}

#[test]
fn a_past_as_a_connected_socket_leaves_no_label() {
    World::run(|world| {
        let (mut control, pods) = web(world);
        control.put("other", &["10.96.0.11"], 80, &[backend4(2)]);
        for to in [V4, V6, MAPPED].map(at) {
            let client = client(to.is_ipv4());
            dial(&client, to).unwrap();
            let (pod, label) = ask(&client, &pods);
            assert_eq!(label, to);
            let direct = form(to, pod);

            disconnect(&client);
            assert_eq!(exchange(&client, direct, &pods), (pod, direct), "it was asked directly");
            assert_eq!(peer(&client), Err(Errno::ENOTCONN));
            assert_eq!(exchange(&client, to, &pods).1, to);
            assert_eq!(exchange(&client, direct, &pods), (pod, direct));

            // Connected to the backend itself, to another Service, to the first one again.
            dial(&client, direct).unwrap();
            assert_eq!(ask(&client, &pods), (pod, direct));
            if to.ip().to_canonical().is_ipv4() {
                let other = form(to, at("10.96.0.11:80"));
                dial(&client, other).unwrap();
                assert_eq!(ask(&client, &pods).1, other);
                disconnect(&client);
                let second = form(to, (backend4(2), super::world::PORT).into());
                assert_eq!(exchange(&client, second, &pods).1, second);
            }
            dial(&client, to).unwrap();
            assert_eq!(ask(&client, &pods).1, to);
        }
    });
}

/// A connected socket may send to others; what they answer never reaches it, so nothing is to be
/// labelled, but it has to arrive at the right place.
#[test]
fn a_connected_socket_sends_elsewhere() {
    World::run(|world| {
        let (mut control, pods) = web(world);
        control.put("other", &["10.96.0.11"], 80, &[backend4(3)]);
        for to in [V4, MAPPED].map(at) {
            let client = client(to.is_ipv4());
            dial(&client, to).unwrap();
            let (pod, _) = ask(&client, &pods);
            client.send_to(b"elsewhere", form(to, at("10.96.0.11:80"))).unwrap();
            assert_eq!(pods.take().pod.ip(), backend4(3));
            assert_eq!(ask(&client, &pods), (pod, to));
        }
    });
}

/// What goes to the peer is translated once, by connect(), though the kernel shows each datagram of an
/// IPv4 connection of an IPv6 socket. Here the backend's address is another Service's.
#[test]
fn a_backend_that_is_a_service() {
    World::run(|world| {
        let (mut control, pods) = web(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        control.put("shadow", &["10.1.0.1"], super::world::PORT, &[backend4(3)]);
        for (from, to) in [("10.2.0.1:0", V4), ("[::ffff:10.2.0.1]:0", MAPPED)] {
            let to = at(to);
            let client = std::net::UdpSocket::bind(at(from)).unwrap();
            dial(&client, to).unwrap();
            let (pod, label) = ask(&client, &pods);
            assert_eq!((pod.ip(), label), (backend4(1), to));
        }
    });
}
