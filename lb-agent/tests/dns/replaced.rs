//! CoreDNS goes while somebody still has a socket, or a question under way.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use super::{
    agent::Agent,
    cluster::{self, CoreDns, DNS, DNS_V6, State, WHO, resolv_conf},
    message::{ask, ask_at},
    resolvers::Libc,
    world::{World, backend4, soon},
};

const SERVERS: [(&str, &str); 2] = [("0.0.0.0:0", DNS), ("[::]:0", DNS_V6)];
/// Longer than anything takes on a busy machine. A socket that learns in this time that its backend is
/// gone learns it from the change: unasked, stale sockets are looked for every 30 seconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn socket(local: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn server(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 53)
}

fn connected(local: &str, ip: &str) -> UdpSocket {
    let socket = socket(local);
    socket.connect(server(ip)).unwrap();
    socket
}

/// As resolvers keep one that run on each node (systemd-resolved, c-ares): it would ask nobody for
/// ever.
#[test]
fn a_connected_socket_is_woken() {
    World::run(|world| {
        cluster::put(world, &[(1, State::Ready)]);
        let _one = CoreDns::start(world, 1);
        let _two = CoreDns::start(world, 2);
        let _agent = Agent::start(world);
        let kept = SERVERS.map(|(local, ip)| connected(local, ip));
        for socket in &kept {
            assert_eq!(ask(socket, 1).unwrap(), 1);
        }

        // It is told to go: who has a socket keeps it, new ones lead elsewhere.
        cluster::put(world, &[(1, State::Terminating), (2, State::Ready)]);
        for (local, ip) in SERVERS {
            assert!(soon(|| ask(&connected(local, ip), 2).unwrap() == 2), "still the old one");
        }
        for socket in &kept {
            assert_eq!(ask(socket, 3).unwrap(), 1, "it still serves");
        }

        cluster::put(world, &[(1, State::Gone), (2, State::Ready)]);
        for socket in &kept {
            // Nothing was asked: it is the end of the socket that wakes it.
            let error = socket.recv(&mut [0; 512]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
        }
        for (socket, (_, ip)) in kept.iter().zip(SERVERS) {
            socket.connect(server(ip)).unwrap();
            assert_eq!(ask(socket, 4).unwrap(), 2);
        }
    });
}

/// As musl has one, though not for long.
#[test]
fn an_unconnected_socket_goes_on_with_the_new_one() {
    World::run(|world| {
        cluster::put(world, &[(1, State::Ready)]);
        let _one = CoreDns::start(world, 1);
        let _two = CoreDns::start(world, 2);
        let _agent = Agent::start(world);
        let kept = SERVERS.map(|(local, ip)| (socket(local), server(ip)));
        // An IPv6 socket asks IPv4 servers too.
        let mapped = (socket("[::]:0"), format!("[::ffff:{DNS}]:53").parse().unwrap());
        let kept: Vec<_> = kept.into_iter().chain([mapped]).collect();
        let asked = |id| kept.iter().map(move |(socket, ip)| ask_at(socket, *ip, id).unwrap());
        assert!(asked(1).all(|n| n == 1));

        cluster::put(world, &[(1, State::Terminating), (2, State::Ready)]);
        let new = || ask_at(&socket("0.0.0.0:0"), server(DNS), 2).unwrap();
        assert!(soon(|| new() == 2), "still the old one");
        assert!(asked(3).all(|n| n == 1), "it still serves");
        cluster::put(world, &[(1, State::Gone), (2, State::Ready)]);
        assert!(soon(|| asked(4).all(|n| n == 2)), "the flow stays where nobody serves");
        cluster::put(world, &[(1, State::Ready)]);
        assert!(soon(|| asked(5).all(|n| n == 1)), "the flow stays where nobody serves");
    });
}

/// A CoreDNS that hangs swallows a question. Its endpoint goes before the resolver asks again, and so
/// the same question is asked nowhere but elsewhere.
#[test]
fn a_question_under_way_is_asked_again_elsewhere() {
    World::run(|world| {
        cluster::put(world, &[(1, State::Ready)]);
        // It hears, and says nothing.
        let hangs = UdpSocket::bind((backend4(1), 53)).unwrap();
        hangs.set_read_timeout(Some(PATIENCE)).unwrap();
        let _two = CoreDns::start(world, 2);
        let _agent = Agent::start(world);
        // glibc waits for 30 s, and musl for 6, before it asks again.
        resolv_conf(world, &format!("nameserver {DNS}\noptions timeout:30 attempts:5\n"));
        let _programs = Libc::ALL.map(|libc| libc.program(world));
        let mut swallowed = Vec::new();
        let mut hear = || -> std::io::Result<SocketAddr> {
            let mut question = [0; 512];
            let (length, from) = hangs.recv_from(&mut question)?;
            swallowed.push(question[..length].to_vec());
            Ok(from)
        };
        let mut last = None;
        // Both ask the same; who asked what is to be told apart.
        let names = [WHO.to_owned(), WHO.to_uppercase()];
        let under_way: Vec<_> = Libc::ALL
            .into_iter()
            .zip(&names)
            .map(|(libc, name)| {
                let lookups = libc.start(world, name, 1, Duration::ZERO);
                let before = last;
                while last == before {
                    last = Some(hear().expect("it asks"));
                }
                (libc, lookups)
            })
            .collect();
        cluster::put(world, &[(2, State::Ready)]);
        for (libc, lookups) in under_way {
            let lookup = lookups.finish().remove(0);
            println!("{libc:?}: {lookup:?}");
            assert_eq!(lookup.who(), [2, 2], "{libc:?}");
        }
        hangs.set_nonblocking(true).unwrap();
        while hear().is_ok() {}
        let asked = swallowed.len();
        swallowed.sort_unstable();
        swallowed.dedup();
        assert_eq!(swallowed.len(), asked, "a question was asked there again");
    });
}
