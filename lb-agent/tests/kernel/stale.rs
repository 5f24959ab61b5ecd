//! Connected sockets whose backend is gone are ended, in every namespace; no other socket is.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::{Duration, Instant},
};

use lb_agent::sockets::{self, Reason};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};

use super::{
    connect::{MAPPED, V4, V6, web},
    control::Control,
    echo::{Backends, PATIENCE, ask, ask_udp},
    look::{Elsewhere, Known, Look, error_of, name, names, route_services},
    raw::{dial, disconnect, errno, peer, udp, udp_socket},
    world::{PORT, World, backend4, backend6},
};

/// The same in IPv4, in IPv6, and in IPv4 on an AF_INET6 socket.
const FORMS: [&str; 3] = [V4, V6, MAPPED];
/// From the look to the application.
const AT_ONCE: Duration = Duration::from_secs(1);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn at_port(ips: impl IntoIterator<Item = IpAddr>) -> Vec<SocketAddr> {
    ips.into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect()
}

/// One blocked in recv(), the other in poll(), of each form, here and in another namespace.
#[test]
fn blocked_readers_wake_in_every_namespace() {
    World::run(|world| {
        let _web = web(world);
        let mut look = Look::new(world);
        let elsewhere = Elsewhere::new();
        let mut waiting = Vec::new();
        for form in FORMS.map(addr) {
            for socket in [
                udp(form).unwrap(),
                udp(form).unwrap(),
                elsewhere.run(move || udp(form).unwrap()),
                elsewhere.run(move || udp(form).unwrap()),
            ] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                waiting.push(socket);
            }
        }
        let readers: Vec<_> = waiting
            .iter()
            .map(|socket| socket.try_clone().unwrap())
            .enumerate()
            .map(|(n, socket)| {
                thread::spawn(move || {
                    if n % 2 == 0 {
                        let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                        assert_eq!(poll(&mut events, PollTimeout::from(5000u16)), Ok(1));
                        assert!(events[0].revents().unwrap().contains(PollFlags::POLLERR));
                    }
                    let error = error_of(socket.recv(&mut [0; 16]));
                    (Instant::now(), error)
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(50));
        let served =
            Known { serving: at_port(backends()).into_iter().collect(), ..Known::default() };
        let (condemned, _) = look.sweep(&served);
        assert!(condemned.is_empty(), "all of them are served: {condemned:?}");

        let start = Instant::now();
        let (condemned, outcome) = look.sweep(&Known::default());
        assert!(condemned.iter().all(|(_, reason)| *reason == Reason::Stale));
        assert_eq!(condemned.len(), waiting.len());
        assert_eq!((outcome.destroyed, outcome.gone, outcome.failed), (waiting.len(), 0, 0));
        for reader in readers {
            let (woken, error) = reader.join().unwrap();
            assert_eq!(error, Some(libc::ECONNABORTED));
            assert!(woken - start < AT_ONCE, "{:?}", woken - start);
        }
        assert!(look.sweep(&Known::default()).0.is_empty(), "nothing is left");
    });
}

fn backends() -> [IpAddr; 4] {
    [backend4(1), backend4(2), backend6(1), backend6(2)]
}

/// Nothing serves any more, and yet these live.
#[test]
fn who_is_not_meant_lives() {
    World::run(|world| {
        let _web = web(world);
        route_services();
        let mut look = Look::new(world);
        let mut sockets = Vec::new();
        for form in FORMS.map(addr) {
            let v4 = form.is_ipv4();
            let backend = match form.ip().to_canonical() {
                IpAddr::V4(_) => SocketAddr::new(backend4(1), PORT),
                IpAddr::V6(_) => SocketAddr::new(backend6(1), PORT),
            };
            let unconnected = udp_socket(v4);
            let direct = udp_socket(v4);
            let disconnected = udp_socket(v4);
            let again = udp_socket(v4);
            let past = udp_socket(v4);
            let mapped = |to: SocketAddr| match to.ip() {
                IpAddr::V4(ip) if !v4 => SocketAddr::from((ip.to_ipv6_mapped(), to.port())),
                _ => to,
            };
            dial(&direct, mapped(backend)).unwrap();
            dial(&disconnected, form).unwrap();
            disconnect(&disconnected);
            dial(&again, form).unwrap();
            dial(&again, mapped(SocketAddr::new(backend.ip(), 9))).unwrap();
            // The storage of the first connection stays, and the programs do not see the second.
            dial(&past, form).unwrap();
            disconnect(&past);
            world.outside(|| dial(&past, mapped(SocketAddr::new(backend.ip(), 7))).unwrap());
            // Made outside: the programs never see it.
            let foreign = world.outside(|| udp_socket(v4));
            dial(&foreign, form).unwrap();
            let server = UdpSocket::bind((backend.ip(), 0)).unwrap();
            sockets.extend([unconnected, direct, disconnected, again, past, foreign, server]);
        }
        let before: Vec<_> = sockets.iter().map(|socket| (name(socket), peer(socket))).collect();
        let known = Known { frontends: FORMS.map(canonical).into(), ..Known::default() };
        let (condemned, _) = look.sweep(&known);
        assert!(condemned.is_empty(), "{condemned:?}");
        for (socket, before) in sockets.iter().zip(before) {
            assert_eq!((name(socket), peer(socket)), before);
            assert_eq!(socket.take_error().unwrap().map(|error| error.to_string()), None);
        }
    });
}

fn canonical(form: &str) -> SocketAddr {
    let addr = addr(form);
    (addr.ip().to_canonical(), addr.port()).into()
}

/// kube-proxy L3 leaves them; here they are ended too.
#[test]
fn the_service_is_deleted_or_has_no_endpoint_left() {
    World::run(|world| {
        let (mut control, _backends) = web(world);
        let mut look = Look::new(world);
        for end in [Control::delete as fn(&mut Control, &str), |control, name| {
            control.put(name, &["10.96.0.10", "fd00:96::a"], 80, &[]);
        }] {
            control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &backends());
            let sockets = FORMS.map(|form| udp(addr(form)).unwrap());
            end(&mut control, "web");
            assert_eq!(look.sweep(&Known::default()).1.destroyed, 3);
            for socket in sockets {
                assert_eq!(aborted(&socket), Ok(()));
            }
        }
    });
}

/// Whether a socket was ended and did not say so yet.
fn aborted(socket: &UdpSocket) -> Result<(), Option<i32>> {
    match socket.take_error().unwrap().and_then(|error| error.raw_os_error()) {
        Some(libc::ECONNABORTED) => Ok(()),
        other => Err(other),
    }
}

/// It was connected before anybody knew the Service. In another cgroup it is nobody's business.
#[test]
fn connected_before_the_service() {
    World::run(|world| {
        let mut control = Control::start(world);
        let _backends = Backends::start(backends());
        route_services();
        let mut look = Look::new(world);
        let inside = FORMS.map(|form| udp(addr(form)).unwrap());
        let outside = world.outside(|| FORMS.map(|form| udp(addr(form)).unwrap()));
        let mut known = Known::default();
        assert!(look.sweep(&known).0.is_empty());

        control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &backends());
        known.serving = at_port(backends()).into_iter().collect();
        known.frontends = FORMS.map(canonical).into();
        let expected = inside.iter().map(name).collect();
        let (condemned, outcome) = look.sweep(&known);
        assert!(condemned.iter().all(|(_, reason)| *reason == Reason::BeforeService));
        assert_eq!(names(&condemned), expected);
        assert_eq!(outcome.destroyed, 3);
        for (socket, form) in inside.iter().zip(FORMS) {
            assert_eq!(aborted(socket), Ok(()));
            // What applications do.
            dial(socket, addr(form)).unwrap();
            assert!(at_port(backends()).contains(&ask_udp(socket).backend));
        }
        for (socket, form) in outside.iter().zip(FORMS) {
            assert_eq!(peer(socket), Ok(addr(form)));
            assert_eq!(socket.send(b"?").unwrap(), 1);
        }
        assert!(look.sweep(&known).0.is_empty());
    });
}

/// Sockets that share both addresses: the kernel finds one, until it is ended.
#[test]
fn several_sockets_with_the_same_addresses() {
    World::run(|world| {
        let _web = web(world);
        let mut look = Look::new(world);
        for (from, form) in [("10.2.0.1", V4), ("fd00:2::1", V6), ("::ffff:10.2.0.1", MAPPED)] {
            let form = addr(form);
            let mut twins = Vec::new();
            // At least three of them go to the same of two backends.
            while twins.len() < 5 {
                let family =
                    if form.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let twin = socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
                setsockopt(&twin, sockopt::ReusePort, &true).unwrap();
                let from = SocketAddr::new(from.parse().unwrap(), 4444);
                bind(twin.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
                dial(&twin, form).unwrap();
                twins.push(UdpSocket::from(twin));
            }
            assert_eq!(look.sweep(&Known::default()).1.destroyed, twins.len());
            for twin in twins {
                assert_eq!(aborted(&twin), Ok(()));
            }
        }
    });
}

/// What the module promises of a socket that was ended.
#[test]
fn what_the_application_sees() {
    World::run(|world| {
        let _web = web(world);
        let mut look = Look::new(world);
        for (from, form) in [("10.2.0.1", V4), ("fd00:2::1", V6), ("::ffff:10.2.0.1", MAPPED)] {
            let form = addr(form);
            let bound = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 4000)).unwrap();
            bound.connect(form).unwrap();
            let auto = udp(form).unwrap();
            let (reader, sender, asker) = (&bound, &auto, udp(form).unwrap());
            assert_eq!(look.sweep(&Known::default()).1.destroyed, 3);

            // The error comes once; send() has one of its own, and comes first.
            assert_eq!(error_of(reader.recv(&mut [0])), Some(libc::ECONNABORTED));
            assert_eq!(errno(sender.send(b"?")), Errno::EDESTADDRREQ);
            assert_eq!(aborted(sender), Ok(()));
            assert_eq!(aborted(&asker), Ok(()));
            assert_eq!(name(&asker).port(), 0, "the kernel had chosen it");
            for socket in [&bound, &auto, &asker] {
                assert_eq!(peer(socket), Err(Errno::ENOTCONN));
                assert_eq!(errno(socket.send(b"?")), Errno::EDESTADDRREQ);
                socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
                assert_eq!(error_of(socket.recv(&mut [0])), Some(libc::EAGAIN), "it waits");
            }
            assert_eq!(name(&bound).port(), 4000, "chosen by the application");
            for socket in [&bound, &auto] {
                dial(socket, form).unwrap();
                assert_eq!(peer(socket), Ok(form));
                ask_udp(socket);
            }
        }
    });
}

/// `--terminate-tcp=deleted`.
#[test]
fn tcp_ends_with_its_endpoint() {
    World::run(|world| {
        let _web = web(world);
        let mut look = Look::new(world);
        let known = |listed: &[IpAddr]| Known {
            listed: at_port(listed.iter().copied()).into_iter().collect(),
            ..Known::default()
        };
        for form in FORMS.map(addr) {
            let stream = TcpStream::connect(form).unwrap();
            let direct = match form.ip().to_canonical() {
                IpAddr::V4(_) => TcpStream::connect((backend4(1), PORT)).unwrap(),
                IpAddr::V6(_) => TcpStream::connect((backend6(1), PORT)).unwrap(),
            };
            assert!(look.sweep(&known(&backends())).0.is_empty());
            let (condemned, outcome) = look.sweep(&known(&[]));
            assert_eq!((condemned.len(), outcome.destroyed), (1, 1));
            assert_eq!(condemned[0].1, Reason::Deleted);
            let error = stream.take_error().unwrap().map(|error| error.raw_os_error());
            assert_eq!(error, Some(Some(libc::ECONNABORTED)));
            ask(&direct);
        }
    });
}

#[test]
fn clients_by_namespace() {
    World::run(|_| {
        let elsewhere = Elsewhere::new();
        let here = sockets::own_netns().unwrap();
        let there = elsewhere.run(|| sockets::own_netns().unwrap());
        assert_ne!(here, there);
        let clients = sockets::clients().unwrap();
        for netns in [here, there] {
            let client = clients[&netns];
            // All addresses are on lo, and the kernel lists the latest IPv6 address first.
            assert_eq!(client.v4.map(IpAddr::from), Some(backend4(1)));
            assert!(client.v6.is_some());
        }
    });
}
