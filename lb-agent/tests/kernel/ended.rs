//! What ending a socket does to it, to its application and to its like.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use lb_agent::sockets::EndReason;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};

use super::{
    connect::{MAPPED, V4, V6, web},
    echo::{ask, ask_udp},
    look::{Known, Look, error_of, name},
    raw::{dial, errno, peer, udp},
    stale::{FORMS, aborted, addr, at_port, backends},
    world::{PORT, World, backend4, backend6},
};

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
            assert_eq!(condemned[0].1, EndReason::Deleted);
            let error = stream.take_error().unwrap().map(|error| error.raw_os_error());
            assert_eq!(error, Some(Some(libc::ECONNABORTED)));
            ask(&direct);
        }
    });
}
