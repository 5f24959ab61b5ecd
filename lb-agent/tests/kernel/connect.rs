//! A connection to a Service reaches a backend, and looks at both ends as it should.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use nix::errno::Errno;

use super::{
    control::Control,
    echo::{Answer, Backends, ask, ask_udp},
    raw::{dial, disconnect, finished, nonblocking_tcp, peer, tcp_from, udp, udp_socket},
    world::{PORT, World, backend4, backend6},
};

pub(crate) const V4: &str = "10.96.0.10:80";
pub(crate) const V6: &str = "[fd00:96::a]:80";
pub(crate) const MAPPED: &str = "[::ffff:10.96.0.10]:80";
const FORMS: [&str; 3] = [V4, V6, MAPPED];

/// The Service web, two backends of each family.
pub(crate) fn web(world: &World) -> (Control, Backends) {
    let ips = [backend4(1), backend4(2), backend6(1), backend6(2)];
    let mut control = Control::start(world);
    control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &ips);
    (control, Backends::start(ips))
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    (addr.ip().to_canonical(), addr.port()).into()
}

fn expected(to: SocketAddr) -> BTreeSet<SocketAddr> {
    let ips = if to.ip().to_canonical().is_ipv4() {
        [backend4(1), backend4(2)]
    } else {
        [backend6(1), backend6(2)]
    };
    ips.map(|ip| SocketAddr::new(ip, PORT)).into()
}

/// Both ends of a connection that was made to `to`.
fn check(to: SocketAddr, local: SocketAddr, peer: SocketAddr, answer: &Answer) {
    assert!(expected(to).contains(&answer.backend), "{to} led to {}", answer.backend);
    assert_eq!(peer, to, "getpeername() tells what was dialled, in the same form");
    assert_eq!(local.is_ipv4(), to.is_ipv4(), "getsockname() is of the socket's family");
    assert_eq!(canonical(local), answer.client, "the backend sees the client itself");
    assert_ne!(local.port(), 0);
}

#[test]
fn tcp() {
    World::run(|world| {
        let _web = web(world);
        for to in FORMS.map(|form| form.parse().unwrap()) {
            for _ in 0..20 {
                let stream = TcpStream::connect(to).unwrap();
                let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                check(to, local, peer, &ask(&stream));
            }
        }
    });
}

#[test]
fn connected_udp() {
    World::run(|world| {
        let _web = web(world);
        for to in FORMS.map(|form| form.parse().unwrap()) {
            for _ in 0..20 {
                let socket = udp(to).unwrap();
                let (local, peer) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
                check(to, local, peer, &ask_udp(&socket));
            }
        }
    });
}

#[test]
fn the_backend_sees_the_address_that_the_client_chose() {
    World::run(|world| {
        let _web = web(world);
        for (from, to) in [("10.2.0.1", V4), ("fd00:2::1", V6), ("::ffff:10.2.0.1", MAPPED)] {
            let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let stream = tcp_from(from, to).unwrap();
            let answer = ask(&stream);
            check(to, stream.local_addr().unwrap(), stream.peer_addr().unwrap(), &answer);
            assert_eq!(answer.client.ip(), from.to_canonical());

            let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
            socket.connect(to).unwrap();
            let answer = ask_udp(&socket);
            check(to, socket.local_addr().unwrap(), socket.peer_addr().unwrap(), &answer);
            assert_eq!(answer.client.ip(), from.to_canonical());
        }
    });
}

/// UDP lets an AF_INET6 socket be given a `sockaddr_in`; the kernel then runs connect4, and
/// getpeername6 later.
#[test]
fn a_v6_socket_given_a_v4_address() {
    World::run(|world| {
        let _web = web(world);
        let socket = udp_socket(false);
        dial(&socket, V4.parse().unwrap()).unwrap();
        let to = MAPPED.parse().unwrap();
        let (local, peer) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
        check(to, local, peer, &ask_udp(&socket));
    });
}

#[test]
fn a_socket_that_does_not_wait() {
    World::run(|world| {
        let _web = web(world);
        for to in FORMS.map(|form| form.parse::<SocketAddr>().unwrap()) {
            let fd = nonblocking_tcp(to.is_ipv4());
            assert_eq!(dial(&fd, to), Err(Errno::EINPROGRESS));
            finished(&fd).unwrap();
            let stream = TcpStream::from(fd);
            stream.set_nonblocking(false).unwrap();
            let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            check(to, local, peer, &ask(&stream));
        }
    });
}

/// Made by one thread, connected by another, looked at by a third.
#[test]
fn a_socket_that_wanders_between_threads() {
    World::run(|world| {
        let _web = web(world);
        let to: SocketAddr = V4.parse().unwrap();
        let socket = thread::spawn(|| udp_socket(true)).join().unwrap();
        thread::scope(|scope| scope.spawn(|| dial(&socket, to).unwrap()).join().unwrap());
        let (local, peer) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
        check(to, local, peer, &ask_udp(&socket));
    });
}

/// An MPTCP socket connects on a TCP subflow, which is translated; getpeername() asks the MPTCP socket
/// itself.
#[test]
fn mptcp() {
    World::run(|world| {
        let _web = web(world);
        let to: SocketAddr = V4.parse().unwrap();
        let fd = match super::raw::exotic(true, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) {
            Ok(fd) => fd,
            Err(error) => return println!("left out, this kernel has no MPTCP: {error}"),
        };
        dial(&fd, to).unwrap();
        assert_eq!(peer(&fd), Ok(to));
        let stream = TcpStream::from(fd);
        let backend = ask(&stream).backend;
        assert!(expected(to).contains(&backend));
        // To the same backend, but not through the Service.
        disconnect(&stream);
        dial(&stream, backend).unwrap();
        assert_eq!(peer(&stream), Ok(backend));
        assert_eq!(ask(&stream).backend, backend);
    });
}
