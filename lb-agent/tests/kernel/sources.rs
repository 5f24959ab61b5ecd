//! `loadBalancerSourceRanges` (G1-G5): who may connect to a load balancer's address. A client's
//! address is that of its network namespace.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpStream},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    Addr,
    abi::{ClientKey, Counter, SourceAddress},
};
use lb_core::model::{Change, Endpoint, Service};
use nix::errno::Errno;

use super::{
    clients::{Elsewhere, UDP, Way, cookie, reached},
    control::{Control, at_node_port, counted, local, ready, serve, service},
    echo::{Backends, ask},
    flips::{Load, udp_backend},
    node_ports::{OWN, expected, fails, four},
    raw::{at_once, errno},
    world::{World, backend4},
};

pub(super) const VIPS: [&str; 3] =
    ["203.0.113.5:80", "[2001:db8:5::5]:80", "[::ffff:203.0.113.5]:80"];

/// For clients in these ranges.
pub(super) fn web(ranges: &[&str], endpoints: &[IpAddr]) -> [Change; 2] {
    let service = Service {
        load_balancer_ips: vec![ip("203.0.113.5"), ip("2001:db8:5::5")],
        external_ips: vec![ip("198.51.100.1"), ip("2001:db8:1::1")],
        source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        ..at_node_port(service(&["10.96.0.10", "fd00:96::a"], 80), 30080)
    };
    let endpoints: Vec<Endpoint> = endpoints.iter().copied().map(ready).collect();
    serve("web", &service, endpoints)
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// From where sockets of a namespace connect, in each family, as long as they are not bound.
pub(super) type Home = Vec<(ClientKey, SourceAddress)>;

pub(super) fn client(netns: u64, addrs: &[&str]) -> Home {
    let addrs = addrs.iter().map(|addr| Addr::from(ip(addr)));
    addrs
        .map(|addr| {
            (ClientKey::general(netns, addr), SourceAddress::new(addr, SourceAddress::SURE))
        })
        .collect()
}

/// Says who is at home in these namespaces.
pub(super) fn know(control: &mut Control, clients: &[&Home]) {
    let clients: BTreeMap<ClientKey, SourceAddress> =
        clients.iter().flat_map(|home| home.iter().copied()).collect();
    control.pipeline.store_mut().set_clients(&clients).unwrap();
}

fn denied() {
    for to in VIPS {
        fails(to, Errno::EACCES);
        at_once(to, Errno::EACCES);
    }
}

fn allowed(forms: &[&str]) {
    for to in forms {
        for way in ASKED.iter().chain(UDP) {
            assert_eq!(reached(*way, to), expected(to), "{to}");
        }
    }
}

/// In TCP, for a socket that the programs give an address of its own: the backend has to say who it is.
const ASKED: &[Way] = &[|to| Ok(ask(&TcpStream::connect(to)?).backend)];

#[test]
fn who_is_in_a_range_who_is_not_and_who_is_not_known() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = Control::start(world);
        control.apply([local(&OWN)]);
        let (other, stranger) = (Elsewhere::new(), Elsewhere::new());
        let here = client(cookie(), &["10.2.0.1", "fd00:2::1"]);
        let there = client(other.within(cookie), &["10.3.0.1", "fd00:3::1"]);
        know(&mut control, &[&here, &there]);
        control.apply(web(&["10.2.0.0/16", "fd00:2::/32"], &four()));

        allowed(&VIPS);
        let before = counted(world, Counter::Denied);
        other.within(denied);
        assert_eq!(counted(world, Counter::Denied) - before, 18);
        assert_eq!(counted(world, Counter::UnknownClient), 0);
        stranger.within(denied);
        assert_eq!(counted(world, Counter::UnknownClient), 18);

        // The other frontends are for everybody (G1).
        let rest = [
            "10.96.0.10:80",
            "[fd00:96::a]:80",
            "198.51.100.1:80",
            "[2001:db8:1::1]:80",
            "192.0.2.1:30080",
            "[2001:db8::1]:30080",
        ];
        for client in [&other, &stranger] {
            client.within(|| {
                for to in rest {
                    assert_eq!(reached(udp_backend, to), expected(to), "{to}");
                }
            });
        }
        // Who moves in, and who moves.
        let moved = client(stranger.within(cookie), &["10.2.0.1", "fd00:2::1"]);
        know(&mut control, &[&here, &moved]);
        let v4 = VIPS[0];
        assert!(stranger.within(|| udp_backend(v4).is_ok()));
        assert_eq!(other.within(|| errno(udp_backend(v4))), Errno::EACCES);
        know(&mut control, &[&client(cookie(), &["10.4.0.1", "fd00:4::1"])]);
        denied();
        stranger.within(denied);
    });
}

/// Each family has its own ranges, and without any it is for everybody (G4).
#[test]
fn families_and_prefixes() {
    World::run(|world| {
        let mut control = Control::start(world);
        let v4 = |control: &mut Control, ranges: &[&str]| {
            control.apply(web(ranges, &four()));
            let v6 = udp_backend(VIPS[1]).map_err(|error| error.kind());
            (udp_backend(VIPS[0]).is_ok(), udp_backend(VIPS[2]).is_ok(), v6.is_ok())
        };
        // In IPv4 only: of IPv6 nothing is known.
        know(&mut control, &[&client(cookie(), &["10.2.0.1"])]);
        assert_eq!(v4(&mut control, &["10.2.0.0/16"]), (true, true, true));
        assert_eq!(v4(&mut control, &["fd00::/8"]), (true, true, false));
        assert_eq!(v4(&mut control, &["10.3.0.0/16", "::/0"]), (false, false, true));
        assert_eq!(v4(&mut control, &["10.3.0.0/16", "0.0.0.0/0"]), (true, true, true));
        for (range, has) in [
            ("10.2.0.1/32", true),
            ("10.2.0.0/32", false),
            ("10.2.0.0/31", true),
            ("10.2.0.2/31", false),
            ("8.0.0.0/6", true),
            ("0.0.0.0/1", true),
            ("128.0.0.0/1", false),
        ] {
            assert_eq!(v4(&mut control, &[range]), (has, has, true), "{range}");
        }
        know(&mut control, &[&client(cookie(), &["10.2.0.1", "fd00:2::1"])]);
        for (range, has) in [
            ("fd00:2::1/128", true),
            ("fd00:2::/128", false),
            ("fd00:2::/127", true),
            ("fc00::/7", true),
            ("8000::/1", true),
            ("::/1", false),
        ] {
            assert_eq!(v4(&mut control, &[range]), (true, true, has), "{range}");
        }
    });
}

/// G5.
#[test]
fn without_endpoints() {
    World::run(|world| {
        let mut control = Control::start(world);
        know(&mut control, &[&client(cookie(), &["10.2.0.1", "fd00:2::1"])]);
        control.apply(web(&["10.2.0.0/16", "fd00:2::/32"], &[]));
        for to in VIPS {
            fails(to, Errno::ECONNREFUSED);
        }
        control.apply(web(&["10.3.0.0/16", "fd00:3::/32"], &[]));
        denied();
        fails("10.96.0.10:80", Errno::ECONNREFUSED);
    });
}

/// Two Services, each with ranges of its own; and an id that another one takes over.
#[test]
fn each_service_has_its_own() {
    World::run(|world| {
        let mut control = Control::start(world);
        know(&mut control, &[&client(cookie(), &["10.2.0.1", "fd00:2::1"])]);
        let other = |range: &str| {
            let service = Service {
                load_balancer_ips: vec![ip("203.0.113.6")],
                source_ranges: vec![range.parse().unwrap()],
                ..service(&["10.96.0.11"], 80)
            };
            serve("another", &service, vec![ready(backend4(1))])
        };
        control.apply(web(&["10.2.0.0/16", "fd00:2::/32"], &four()));
        control.apply(other("10.3.0.0/16"));
        assert!(udp_backend(VIPS[0]).is_ok());
        fails("203.0.113.6:80", Errno::EACCES);
        control.delete("web");
        fails(VIPS[0], Errno::ENETUNREACH);
        control.delete("another");
        assert!(!control.pipeline.mirror().has_source_ranges());
        control.apply(other("10.4.0.0/16"));
        fails("203.0.113.6:80", Errno::EACCES);
    });
}

/// Ranges come and go around a client that all of them have.
#[test]
fn who_may_before_and_after_may_all_the_time() {
    const TIME: Duration = Duration::from_secs(6);
    const CHANGES: usize = 31;
    World::run(|world| {
        let mut control = Control::start(world);
        know(&mut control, &[&client(cookie(), &["10.2.0.1", "fd00:2::1"])]);
        let ranges: [&[&str]; 7] = [
            &["10.2.0.0/16"],
            &["10.0.0.0/8"],
            &["10.2.0.1/32", "192.0.2.0/24"],
            &[],
            &["10.2.0.0/24", "10.2.0.0/31"],
            &["10.2.0.0/23", "10.3.0.0/16", "172.16.0.0/12"],
            &["0.0.0.0/0"],
        ];
        control.apply(web(ranges[0], &four()));
        let (load, start) = (Load::default(), Instant::now());
        let mut changes = 0usize;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| load.run(u32::MAX, &four(), || udp_backend(VIPS[0])));
            }
            while start.elapsed() < TIME || changes < CHANGES {
                changes += 1;
                control.apply(web(ranges[changes * 3 % ranges.len()], &four()));
                if control.pipeline.retired() > 100 {
                    control.pipeline.reclaim().unwrap();
                }
            }
            load.stop.store(true, Ordering::Relaxed);
        });
        println!("{} connects, {changes} changes", load.done.load(Ordering::Relaxed));
        load.verdict();
        assert_eq!(
            TcpStream::connect(VIPS[0]).map(drop).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "nobody listens"
        );
    });
}
