//! getpeername() tells the truth, also of a socket with a past.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{
    control::Control,
    echo::{Backends, ask, ask_udp},
    look::{Known, Look, name, names},
    raw::{dial, disconnect, peer, udp, udp_socket},
    world::{PORT, World, backend4, backend6},
};

struct Family {
    first: SocketAddr,
    second: SocketAddr,
    empty: SocketAddr,
    /// The only backend of the first Service, and one of none.
    backend: SocketAddr,
    other: SocketAddr,
}

/// The same in IPv4, in IPv6, and in IPv4 on an AF_INET6 socket.
fn families() -> [Family; 3] {
    let [v4, v6] =
        [("10.96.0.1", "10.96.0.2", "10.96.0.3"), ("fd00:96::1", "fd00:96::2", "fd00:96::3")].map(
            |(first, second, empty)| {
                let v4 = !first.contains(':');
                let backend = |n| SocketAddr::new(if v4 { backend4(n) } else { backend6(n) }, PORT);
                let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
                Family {
                    first: at(first),
                    second: at(second),
                    empty: at(empty),
                    backend: backend(1),
                    other: backend(3),
                }
            },
        );
    let mapped = |addr: SocketAddr| match addr {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        SocketAddr::V6(_) => addr,
    };
    let mixed = Family {
        first: mapped(v4.first),
        second: mapped(v4.second),
        empty: mapped(v4.empty),
        backend: mapped(v4.backend),
        other: mapped(v4.other),
    };
    [v4, v6, mixed]
}

fn services(world: &World) -> (Control, Backends) {
    let mut control = Control::start(world);
    control.put("first", &["10.96.0.1", "fd00:96::1"], 80, &[backend4(1), backend6(1)]);
    control.put("second", &["10.96.0.2", "fd00:96::2"], 80, &[backend4(2), backend6(2)]);
    control.put("empty", &["10.96.0.3", "fd00:96::3"], 80, &[]);
    (control, Backends::start((1..=3).flat_map(|n| [backend4(n), backend6(n)])))
}

#[test]
fn of_a_udp_socket_connected_again_and_again() {
    World::run(|world| {
        let _services = services(world);
        for Family { first, second, other, backend, .. } in families() {
            let socket = udp_socket(first.is_ipv4());
            // The backend directly, right after it was reached through a Service, and the reverse.
            for to in [first, second, other, first, backend, first, first, backend, second] {
                dial(&socket, to).unwrap();
                assert_eq!(peer(&socket), Ok(to));
            }
            disconnect(&socket);
            assert_eq!(peer(&socket), Err(Errno::ENOTCONN));
        }
    });
}

/// connect(AF_UNSPEC) runs no program: what was remembered of the socket outlives the connection.
#[test]
fn of_a_socket_that_was_disconnected_between() {
    World::run(|world| {
        let _services = services(world);
        for Family { first, second, other, backend, .. } in families() {
            let udp = udp_socket(first.is_ipv4());
            for to in [first, backend, first, other, second, backend] {
                dial(&udp, to).unwrap();
                assert_eq!(peer(&udp), Ok(to));
                let answer = ask_udp(&udp);
                let direct = to == other || to == backend;
                assert_eq!(direct, answer.backend.ip() == to.ip().to_canonical(), "{to}");
                disconnect(&udp);
                assert_eq!(peer(&udp), Err(Errno::ENOTCONN));
            }

            let family = if first.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let mut tcp: OwnedFd =
                socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
            for to in [first, backend, second] {
                dial(&tcp, to).unwrap();
                assert_eq!(peer(&tcp), Ok(to));
                let stream = TcpStream::from(tcp);
                ask(&stream);
                tcp = stream.into();
                disconnect(&tcp);
                assert_eq!(peer(&tcp), Err(Errno::ENOTCONN));
            }
        }
    });
}

/// A connect() to a Service without endpoints goes on, and fails as there is no route: the UDP socket is
/// as it was.
#[test]
fn after_a_connect_to_a_service_without_endpoints() {
    World::run(|world| {
        let _services = services(world);
        for Family { first, empty, backend, .. } in families() {
            let socket = udp(first).unwrap();
            assert_eq!(dial(&socket, empty), Err(Errno::ENETUNREACH));
            assert_eq!(peer(&socket), Ok(first));
            assert_eq!(ask_udp(&socket).backend.ip(), backend.ip().to_canonical());
        }
    });
}

/// The programs had let it pass, or had chosen a backend, and then the connect failed: there is no
/// route. The socket still has its old peer, to which it came through a Service, and is woken when that
/// is gone.
#[test]
fn after_a_connect_that_failed_later() {
    World::run(|world| {
        let (mut control, _backends) = services(world);
        let nowhere = ["10.9.9.9".parse().unwrap(), "fd09::9".parse().unwrap()];
        control.put("second", &["10.96.0.2", "fd00:96::2"], 80, &nowhere);
        let mut look = Look::new(world);
        for Family { first, second, other, backend, .. } in families() {
            let away = match first {
                SocketAddr::V4(_) => "10.9.9.1:80",
                SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => "[::ffff:10.9.9.1]:80",
                SocketAddr::V6(_) => "[fd09::1]:80",
            };
            let away: SocketAddr = away.parse().unwrap();
            for attempts in [&[away][..], &[second], &[away, second, second, away], &[second, away]]
            {
                let socket = udp(first).unwrap();
                // More than once.
                for connected in [first, other, first] {
                    dial(&socket, connected).unwrap();
                    for attempt in attempts {
                        assert_eq!(dial(&socket, *attempt), Err(Errno::ENETUNREACH));
                        assert_eq!(peer(&socket), Ok(connected), "{attempt}");
                    }
                    let reached = if connected == first { backend } else { other };
                    assert_eq!(ask_udp(&socket).backend.ip(), reached.ip().to_canonical());
                    assert_eq!(peer(&socket), Ok(connected));
                }
                let own = name(&socket);
                let gone = names(&look.sweep(&Known::default()).0);
                assert_eq!(gone, [own].into(), "woken as its backend is gone");
                // The next connect() begins anew, and so does one to the backend itself.
                for to in [first, backend, first] {
                    dial(&socket, to).unwrap();
                    assert_eq!(peer(&socket), Ok(to));
                }
            }
        }
    });
}

/// A TCP socket that is connected, or tries to be, is refused before any program runs; one that failed
/// has no peer any more.
#[test]
fn of_a_tcp_socket_that_is_connected_again() {
    World::run(|world| {
        let (mut control, _backends) = services(world);
        let nowhere = ["10.9.9.9".parse().unwrap(), "fd09::9".parse().unwrap()];
        control.put("second", &["10.96.0.2", "fd00:96::2"], 80, &nowhere);
        // Nobody listens on it.
        control.put("third", &["10.96.0.4", "fd00:96::4"], 80, &[backend4(9), backend6(9)]);
        for Family { first, second, .. } in families() {
            let third = match first.ip().to_canonical() {
                IpAddr::V4(_) if first.is_ipv4() => "10.96.0.4:80",
                IpAddr::V4(_) => "[::ffff:10.96.0.4]:80",
                IpAddr::V6(_) => "[fd00:96::4]:80",
            };
            let family = if first.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let tcp: OwnedFd = socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
            assert_eq!(dial(&tcp, second), Err(Errno::ENETUNREACH));
            assert_eq!(dial(&tcp, third.parse().unwrap()), Err(Errno::ECONNREFUSED));
            dial(&tcp, first).unwrap();
            assert_eq!(dial(&tcp, second), Err(Errno::EISCONN));
            assert_eq!(peer(&tcp), Ok(first));
            ask(&TcpStream::from(tcp));
        }
    });
}

/// The Service is gone, or has other backends; who was connected still knows whom it dialled.
#[test]
fn of_a_connection_that_outlives_its_service() {
    World::run(|world| {
        let (mut control, _backends) = services(world);
        for Family { first, .. } in families() {
            control.put("first", &["10.96.0.1", "fd00:96::1"], 80, &[backend4(1), backend6(1)]);
            let stream = TcpStream::connect(first).unwrap();
            control.put("first", &["10.96.0.1", "fd00:96::1"], 80, &[backend4(2), backend6(2)]);
            assert_eq!(stream.peer_addr().unwrap(), first);
            control.delete("first");
            assert_eq!(stream.peer_addr().unwrap(), first);
            ask(&stream);
        }
    });
}
