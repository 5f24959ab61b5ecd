//! By which address a client is judged behind `loadBalancerSourceRanges` (G6): the one that its packets
//! carry. That is the socket's own, or the message's; else what routing in its network namespace says,
//! and then the programs see to it that it is that one.
//!
//! All addresses are on `lo` here, where a socket without an address takes its destination's: what
//! packets carry would be the backend's own address if nobody saw to it.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    Addr,
    abi::{CLIENTS, ClientKey, Counter, SourceAddress},
};
use lb_core::model::Service;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
        sendmsg, socket,
    },
};

use super::{
    clients::{answer, cookie},
    control::{Control, counted, ready, serve, service},
    echo::{Answer, Backends, PATIENCE, ask, ask_udp},
    node_ports::four,
    pods,
    raw::{dial, disconnect, errno},
    sources::{VIPS, client, ip, know, web},
    world::{World, backend4},
};

const INSIDE: [&str; 3] = ["10.2.0.1", "fd00:2::1", "::ffff:10.2.0.1"];
const OUTSIDE: [&str; 3] = ["10.1.0.9", "fd00:1::9", "::ffff:10.1.0.9"];
const RANGES: [&str; 2] = ["10.2.0.0/16", "fd00:2::/32"];

/// A client asks from an address, or from none.
type Ask = fn(Option<IpAddr>, SocketAddr) -> Result<Answer, Errno>;
const CONNECT: [Ask; 2] = [tcp, udp];
const SEND: [Ask; 2] = [sendto, packet_info];

fn bound(kind: SockType, from: Option<IpAddr>, to: SocketAddr) -> OwnedFd {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    if let Some(from) = from {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0))).unwrap();
    }
    fd
}

fn tcp(from: Option<IpAddr>, to: SocketAddr) -> Result<Answer, Errno> {
    let fd = bound(SockType::Stream, from, to);
    dial(&fd, to)?;
    Ok(ask(&TcpStream::from(fd)))
}

fn udp(from: Option<IpAddr>, to: SocketAddr) -> Result<Answer, Errno> {
    let fd = bound(SockType::Datagram, from, to);
    dial(&fd, to)?;
    Ok(ask_udp(&UdpSocket::from(fd)))
}

fn sendto(from: Option<IpAddr>, to: SocketAddr) -> Result<Answer, Errno> {
    let socket = UdpSocket::from(bound(SockType::Datagram, from, to));
    match socket.send_to(b"who?", to) {
        Ok(_) => Ok(read(&socket)),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap())),
    }
}

/// The socket has no address; the message has.
fn packet_info(from: Option<IpAddr>, to: SocketAddr) -> Result<Answer, Errno> {
    let Some(from) = from else { return sendto(from, to) };
    let socket = UdpSocket::from(bound(SockType::Datagram, None, to));
    let (v4, v6);
    let control = match from {
        IpAddr::V4(from) => {
            let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let ipi_addr = libc::in_addr { s_addr: 0 };
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(from) => {
            let ipi6_addr = libc::in6_addr { s6_addr: from.octets() };
            v6 = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let parts = [IoSlice::new(b"who?")];
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &parts, &[control], MsgFlags::empty(), Some(&to))?;
    Ok(read(&socket))
}

fn read(socket: &UdpSocket) -> Answer {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 256];
    let n = socket.recv(&mut bytes).unwrap();
    Answer::parse(std::str::from_utf8(&bytes[..n]).unwrap())
}

/// Each way to each of the addresses, from where the family is at home in the list.
fn each(asks: &[Ask], from: Option<&[&str; 3]>, check: impl Fn(Result<Answer, Errno>, &str)) {
    for (n, to) in VIPS.iter().enumerate() {
        for (way, ask) in asks.iter().enumerate() {
            let from = from.map(|from| ip(from[n]));
            check(ask(from, to.parse().unwrap()), &format!("way {way} to {to} from {from:?}"));
        }
    }
}

fn comes_from(answer: Result<Answer, Errno>, from: &[&str; 3], what: &str) {
    let client = answer.unwrap_or_else(|error| panic!("{what}: {error}")).client.ip();
    assert!(from.iter().any(|from| ip(from) == client.to_canonical()), "{what}: {client}");
}

fn refused(answer: &Result<Answer, Errno>, what: &str) {
    assert_eq!(answer.as_ref().err(), Some(&Errno::EACCES), "{what}: {answer:?}");
}

const ALL: [Ask; 4] = [CONNECT[0], CONNECT[1], SEND[0], SEND[1]];

#[test]
fn whoever_is_bound_is_judged_by_that() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = Control::start(world);
        control.apply(web(&RANGES, &four()));
        for home in [&INSIDE[..2], &OUTSIDE[..2], &[]] {
            know(&mut control, &[&client(cookie(), home)]);
            each(&ALL, Some(&INSIDE), |answer, what| comes_from(answer, &INSIDE, what));
            let before = counted(world, Counter::Denied);
            each(&ALL, Some(&OUTSIDE), |answer, what| refused(&answer, what));
            assert_eq!(counted(world, Counter::Denied) - before, 12);
        }
        assert_eq!(counted(world, Counter::UnknownClient), 0);
    });
}

/// As where routing to the load balancer gives another source than routing to the backend.
#[test]
fn packets_carry_the_address_that_was_judged() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = Control::start(world);
        control.apply(web(&RANGES, &four()));
        know(&mut control, &[&home(&INSIDE, 0)]);
        each(&ALL, None, |answer, what| comes_from(answer, &INSIDE, what));
        know(&mut control, &[&home(&OUTSIDE, 0)]);
        each(&ALL, None, |answer, what| refused(&answer, what));
        // An address that is not there, or not any more: nothing leaves from another one.
        know(&mut control, &[&home(&["10.2.0.9", "fd00:2::9", "::ffff:10.2.0.9"], 0)]);
        let before = counted(world, Counter::UnknownClient);
        each(&CONNECT, None, |answer, what| refused(&answer, what));
        assert_eq!(counted(world, Counter::UnknownClient) - before, 6);
        for to in [VIPS[0], VIPS[2]] {
            let sent = sendto(None, to.parse().unwrap());
            // Which one depends on the kernel.
            let refused = matches!(sent, Err(Errno::EINVAL | Errno::ENETUNREACH));
            assert!(refused, "{to}: {sent:?}");
        }
    });
}

fn home(from: &[&str; 3], flags: u32) -> Vec<(ClientKey, SourceAddress)> {
    let known = client(cookie(), &from[..2]).into_iter();
    known.map(|(key, client)| (key, SourceAddress { flags, ..client })).collect()
}

/// It cannot be bound any more.
#[test]
fn whoever_has_a_port_has_to_be_beyond_doubt() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = Control::start(world);
        control.apply(web(&RANGES, &four()));
        let any = ["0.0.0.0", "::", "::ffff:0.0.0.0"];
        know(&mut control, &[&home(&INSIDE, 0)]);
        each(&CONNECT, Some(&any), |answer, what| refused(&answer, what));
        each(&SEND[..1], Some(&any), |answer, what| comes_from(answer, &INSIDE, what));
        know(&mut control, &[&home(&INSIDE, SourceAddress::SURE)]);
        each(&CONNECT, Some(&any), |answer, what| assert!(answer.is_ok(), "{what}: {answer:?}"));
        know(&mut control, &[&home(&OUTSIDE, SourceAddress::SURE)]);
        each(&ALL, Some(&any), |answer, what| refused(&answer, what));
    });
}

/// Where routing makes a difference between load balancers.
#[test]
fn one_load_balancer_may_be_met_from_another_address() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = Control::start(world);
        control.apply(web(&RANGES, &four()));
        let towards = |from: &[&str; 3]| -> Vec<(ClientKey, SourceAddress)> {
            let to = [VIPS[0], VIPS[1]].map(|to| to.parse::<SocketAddr>().unwrap().ip());
            let to = to.map(Addr::from).into_iter().zip(client(cookie(), &from[..2]));
            to.map(|(to, (key, client))| (key.towards(to), SourceAddress { flags: 0, ..client }))
                .collect()
        };
        let others = SourceAddress::OTHERS | SourceAddress::SURE;
        know(&mut control, &[&home(&OUTSIDE, others), &towards(&INSIDE)]);
        each(&ALL, None, |answer, what| comes_from(answer, &INSIDE, what));
        know(&mut control, &[&home(&INSIDE, others), &towards(&OUTSIDE)]);
        each(&ALL, None, |answer, what| refused(&answer, what));
        // Without an entry of its own, and with entries that nobody asks for any more.
        know(&mut control, &[&home(&INSIDE, others)]);
        each(&ALL, None, |answer, what| comes_from(answer, &INSIDE, what));
    });
}

/// Also where neither the set nor its generation changes.
#[test]
fn flows_that_are_there_follow_the_ranges() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = Control::start(world);
        know(&mut control, &[&client(cookie(), &INSIDE[..2])]);
        let both = ["10.2.0.0/16", "10.3.0.0/16", "fd00:2::/32", "fd00:3::/32"];
        control.apply(web(&both, &four()));
        let sockets = VIPS.map(|to| {
            let to: SocketAddr = to.parse().unwrap();
            let socket = pods::client(to.is_ipv4());
            let backend = answer(&socket, to).unwrap();
            (socket, to, backend)
        });
        for (ranges, may) in [
            (&both[..], true),
            (&both[1..2], false),
            (&["10.3.0.0/16", "fd00:3::/32"], false),
            (&both[..], true),
            (&[], true),
            (&["192.0.2.0/24", "2001:db8::/32"], false),
            (&RANGES[..], true),
        ] {
            control.apply(web(ranges, &four()));
            for (socket, to, backend) in &sockets {
                // Of one range, the other family has none.
                let may = may || (ranges.len() == 1 && to.ip().to_canonical().is_ipv6());
                match answer(socket, *to) {
                    Ok(now) => assert!(may && now == *backend, "{to} in {ranges:?}: {now}"),
                    error => assert!(!may && errno(error) == Errno::EACCES, "{to} in {ranges:?}"),
                }
            }
        }
    });
}

/// The client moves to and fro within its range, and so do those that share its bucket: nobody ever finds
/// that nothing is known of it. Without `BPF_F_LOCK` the kernel puts a new element at the head of the
/// bucket's list and then takes the old one out: a reader in between finds neither.
#[test]
fn a_client_that_moves_is_known_all_the_time() {
    const TIME: Duration = Duration::from_secs(6);
    World::run(|world| {
        let mut control = Control::start(world);
        let service = Service {
            load_balancer_ips: vec![ip("203.0.113.5")],
            source_ranges: vec!["10.1.0.0/16".parse().unwrap()],
            ..service(&["10.96.0.10"], 80)
        };
        control.apply(serve("web", &service, vec![ready(backend4(1))]));
        let addrs = [5, 6].map(|n| Addr::from(backend4(n)));
        let at = |n: usize| SourceAddress::new(addrs[n % 2], SourceAddress::SURE);
        let own = ClientKey::general(cookie(), addrs[0]);
        let store = control.pipeline.store_mut();
        store.put_client(&own, at(0)).unwrap();
        let crowd = crowd(world, own, |key| store.put_client(key, at(0)).unwrap());
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut changes = 0;
        thread::scope(|scope| {
            for port in [7001, 7002] {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || {
                    // It keeps the port, and so is never bound to an address: it is asked about each time.
                    let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
                    let to = VIPS[0].parse().unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        disconnect(&socket);
                        let result = dial(&socket, to);
                        done.fetch_add(1, Ordering::Relaxed);
                        if result.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        assert_eq!(result, Ok(()), "after {done:?} connects");
                    }
                });
            }
            let start = Instant::now();
            while start.elapsed() < TIME && !stop.load(Ordering::Relaxed) {
                // Each is the last of its bucket when its turn comes.
                for key in crowd.iter().cycle().take(1000) {
                    changes += 1;
                    store.put_client(key, at(changes / crowd.len())).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{done:?} connects, {changes} changes");
    });
}

/// Some that share the bucket of `own`, or one next to it, and it too: what stands around it in the
/// order of the buckets, of many that are tried.
fn crowd(world: &World, own: ClientKey, mut put: impl FnMut(&ClientKey)) -> Vec<ClientKey> {
    const TRIED: u64 = 60_000;
    let pin = world.pins().maps().unwrap().unwrap().join(CLIENTS);
    let map = Map::HashMap(MapData::from_pin(pin).unwrap());
    let mut map: HashMap<_, [u8; 24], [u8; 32]> = HashMap::try_from(map).unwrap();
    for round in 1..=8 {
        for n in 0..TRIED {
            put(&ClientKey { netns: round << 40 | n, ..own });
        }
        let keys: Vec<[u8; 24]> = map.keys().map(Result::unwrap).collect();
        let sought: [u8; 24] = bytemuck::cast(own);
        let place = keys.iter().position(|key| *key == sought).unwrap();
        let near = place.saturating_sub(6)..=place + 6;
        for (n, key) in keys.iter().enumerate() {
            if !near.contains(&n) {
                map.remove(key).unwrap();
            }
        }
    }
    map.keys().map(|key| bytemuck::cast(key.unwrap())).collect()
}
