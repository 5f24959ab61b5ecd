//! Connected sockets whose backend is gone are ended, in every namespace; no other socket is.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    process::Command,
    thread,
    time::Duration,
};

use lb_agent::sockets::{self, EndReason, SocketKind};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
};

use super::{
    connect::{MAPPED, V4, V6, web},
    control::Control,
    echo::{Backends, PATIENCE, ask_udp},
    look::{Elsewhere, Known, Look, error_of, name, names, route_services},
    raw::{dial, disconnect, peer, udp, udp_socket},
    world::{PORT, World, backend4, backend6, network},
};

/// The same in IPv4, in IPv6, and in IPv4 on an AF_INET6 socket.
pub(super) const FORMS: [&str; 3] = [V4, V6, MAPPED];
pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn at_port(ips: impl IntoIterator<Item = IpAddr>) -> Vec<SocketAddr> {
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
                    error_of(socket.recv(&mut [0; 16]))
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(50));
        let served =
            Known { serving: at_port(backends()).into_iter().collect(), ..Known::default() };
        let (condemned, _) = look.sweep(&served);
        assert!(condemned.is_empty(), "all of them are served: {condemned:?}");

        let (condemned, outcome) = look.sweep(&Known::default());
        // By now, and not some day.
        assert!(waiting.iter().all(|socket| peer(socket) == Err(Errno::ENOTCONN)));
        assert!(waiting.iter().all(|socket| socket.local_addr().unwrap().port() == 0));
        assert!(condemned.iter().all(|(_, reason)| *reason == EndReason::Stale));
        assert_eq!(condemned.len(), waiting.len());
        assert_eq!((outcome.destroyed, outcome.gone, outcome.failed), (waiting.len(), 0, 0));
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Some(libc::ECONNABORTED), "not woken");
        }
        assert!(look.sweep(&Known::default()).0.is_empty(), "nothing is left");
    });
}

pub(super) fn backends() -> [IpAddr; 4] {
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
            // To the very backend that it had been sent to.
            dial(&past, form).unwrap();
            let same = SocketAddr::new(name(&past).ip(), PORT);
            disconnect(&past);
            dial(&past, mapped(same)).unwrap();
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
pub(super) fn aborted(socket: &UdpSocket) -> Result<(), Option<i32>> {
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
        assert!(condemned.iter().all(|(_, reason)| *reason == EndReason::BeforeService));
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

/// A machine's address and port become those of a Service, by which a server's socket is connected to
/// its client there. Told by who has chosen the port. At a cluster IP there is no client.
#[test]
fn connected_to_a_client_before_the_service() {
    World::run(|world| {
        let _control = Control::start(world);
        route_services();
        let mut look = Look::new(world);
        let elsewhere = Elsewhere::new();
        let machines = ["10.2.0.1:30053", "[fd00:2::1]:30053", "[::ffff:10.2.0.1]:30053"];
        let bound = |n: u16, to: &str| {
            let to = addr(to);
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, n)).unwrap();
            dial(&socket, to).unwrap();
            socket
        };
        let all = |n: u16| -> Vec<UdpSocket> {
            (n..).zip(machines).map(|(n, to)| bound(n, to)).collect()
        };
        // Some of them are in the range from which the kernel chooses.
        let mut servers = all(9000);
        servers.extend(all(40_000));
        servers.extend(elsewhere.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:9000").unwrap();
            socket.connect(machines[0]).unwrap();
            [socket]
        }));
        let mut clients: Vec<_> = machines.map(|to| udp(addr(to)).unwrap()).into();
        clients.push(elsewhere.run(move || udp(addr(machines[0])).unwrap()));
        // Bound to an address; the port is the kernel's choice.
        let at_address = UdpSocket::bind("10.2.0.1:0").unwrap();
        at_address.connect(machines[0]).unwrap();
        clients.push(at_address);
        clients.push(bound(9010, FORMS[0]));
        let known = Known {
            frontends: machines.map(canonical).into_iter().chain(FORMS.map(canonical)).collect(),
            machines: machines.map(|to| canonical(to).ip()).into(),
            ..Known::default()
        };
        assert!(look.sweep(&Known::default()).0.is_empty());
        let before: Vec<_> = servers.iter().map(|socket| (name(socket), peer(socket))).collect();
        let (_, outcome) = look.sweep(&known);
        assert_eq!((outcome.destroyed, outcome.failed), (clients.len(), 0));
        for (server, before) in servers.iter().zip(before) {
            assert_eq!((name(server), peer(server)), before);
            assert_eq!(server.send(b"!").unwrap(), 1);
        }
        for client in &clients {
            assert_eq!(aborted(client), Ok(()));
        }
    });
}

/// Nobody is in it; it is mounted.
#[test]
fn a_namespace_without_a_process() {
    World::run(|world| {
        let _web = web(world);
        // Only this world sees it.
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert!(Command::new("ip").args(["netns", "add", "box"]).status().unwrap().success());
        let visit = || {
            let door = File::open("/run/netns/box").unwrap();
            setns(door, CloneFlags::CLONE_NEWNET).unwrap();
            network();
            FORMS.map(|form| udp(addr(form)).unwrap())
        };
        let sockets = thread::scope(|scope| scope.spawn(visit).join().unwrap());
        let mut look = Look::new(world);
        assert_eq!(look.sweep(&Known::default()).1.destroyed, sockets.len());
        for socket in &sockets {
            assert_eq!(aborted(socket), Ok(()));
        }
        // A namespace that is gone when its sockets are to be ended.
        for (socket, form) in sockets.iter().zip(FORMS) {
            dial(socket, addr(form)).unwrap();
        }
        let found = look.scan(&[SocketKind::Udp]).found;
        assert_eq!(found.len(), sockets.len());
        assert!(Command::new("ip").args(["netns", "delete", "box"]).status().unwrap().success());
        let outcome = sockets::destroy(&found);
        assert_eq!((outcome.destroyed, outcome.gone, outcome.failed), (0, 3, 0));
    });
}
