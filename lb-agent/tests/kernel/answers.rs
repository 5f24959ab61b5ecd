//! What a UDP server sends to whom it has just heard from is an answer, though the client's address and
//! port be those of a Service. What a client asks stays a question, whatever somebody sends it.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use lb_agent::maps::Exchanges;
use lb_common::{
    abi::{Counter, HEARD},
    heard::{MAX_SLOTS, SLOTS},
};
use lb_core::model::{Change, Service, Settings};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use super::{
    clients::Elsewhere,
    control::{Control, SIZES, at_node_port, counted, ips, local, node, ready, serve, service},
    echo::PATIENCE,
    node_ports::{OWN, view},
    pods::{Pods, at, client, exchange, mapped, read},
    raw::{dial, disconnect, peer},
    world::{PORT, World, backend4, backend6},
};

const B: [&str; 2] = ["198.51.100.2", "2001:db8::b"];

/// One of each kind, in both families: of a Service's, and of one without endpoints.
const FRONTENDS: [&str; 20] = [
    // Cluster IPs; the last ones have no such port.
    "10.96.0.10:53",
    "[fd00:96::a]:53",
    "10.96.0.11:53",
    "[fd00:96::b]:53",
    "10.96.0.10:54",
    "[fd00:96::a]:54",
    // External IPs.
    "203.0.113.1:53",
    "[2001:db8:1::1]:53",
    "203.0.113.3:53",
    "[2001:db8:1::3]:53",
    // Those of load balancers.
    "203.0.113.2:53",
    "[2001:db8:1::2]:53",
    // Node ports of this node, and of another one.
    "192.0.2.1:30053",
    "[2001:db8::1]:30053",
    "192.0.2.1:30054",
    "[2001:db8::1]:30054",
    "198.51.100.2:30053",
    "[2001:db8::b]:30053",
    "198.51.100.2:30054",
    "[2001:db8::b]:30054",
];
const F: &str = FRONTENDS[0];

fn objects() -> Vec<Change> {
    let with_endpoints = Service {
        external_ips: ips(&["203.0.113.1", "2001:db8:1::1"]).collect(),
        load_balancer_ips: ips(&["203.0.113.2", "2001:db8:1::2"]).collect(),
        ..at_node_port(service(&["10.96.0.10", "fd00:96::a"], 53), 30053)
    };
    let without = Service {
        external_ips: ips(&["203.0.113.3", "2001:db8:1::3"]).collect(),
        ..at_node_port(service(&["10.96.0.11", "fd00:96::b"], 53), 30054)
    };
    let endpoints = [backend4(1), backend6(1)].map(ready).to_vec();
    let mut objects = vec![local(&OWN), node("a", &OWN), node("b", &B)];
    objects.extend(serve("dns", &with_endpoints, endpoints));
    objects.extend(serve("empty", &without, vec![]));
    objects
}

/// The Services, the pods behind them, and their addresses as those of machines.
fn start(world: &World) -> (Control, Pods) {
    let control = Control::start_as(world, SIZES, view(Settings::default()), objects());
    addresses();
    (control, Pods::start([1]))
}

fn addresses() {
    let mut all: Vec<_> = FRONTENDS.iter().map(|frontend| at(frontend).ip()).collect();
    all.sort_unstable();
    all.dedup();
    for ip in all {
        let (ip, length) = (ip.to_string(), if ip.is_ipv4() { "32" } else { "128" });
        let nodad = if length == "128" { &["nodad"][..] } else { &[] };
        let status = Command::new("ip")
            .args(["address", "add", &format!("{ip}/{length}"), "dev", "lo"])
            .args(nodad)
            .status();
        assert!(status.unwrap().success());
    }
}

/// A socket that shares its port with others.
fn bound(to: SocketAddr) -> UdpSocket {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Where servers are bound; what they answer has the family of the second one.
const SERVERS: [(&str, &str); 8] = [
    ("0.0.0.0:9000", "10.2.0.1:9000"),
    ("10.2.0.1:9000", "10.2.0.1:9000"),
    ("[::]:9000", "10.2.0.1:9000"),
    ("[::ffff:0.0.0.0]:9000", "10.2.0.1:9000"),
    ("[::ffff:10.2.0.1]:9000", "10.2.0.1:9000"),
    ("[::]:9000", "[fd00:2::1]:9000"),
    ("[fd00:2::1]:9000", "[fd00:2::1]:9000"),
    // One that is asked at a Service's address.
    ("0.0.0.0:9000", "10.96.0.10:9000"),
];

/// Clients at Services' addresses, of whom the programs see nothing.
fn strangers<const N: usize>(world: &World, frontends: [&str; N]) -> [UdpSocket; N] {
    world.outside(|| {
        frontends.map(|frontend| {
            let client = UdpSocket::bind(at(frontend)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client
        })
    })
}

/// The server reads a question of the client; from whom it seems to be.
fn asked(client: &UdpSocket, to: SocketAddr, server: &UdpSocket) -> SocketAddr {
    client.send_to(b"?", to).unwrap();
    let (bytes, from) = read(server);
    assert_eq!(bytes, b"?");
    let own = client.local_addr().unwrap();
    assert_eq!((from.ip().to_canonical(), from.port()), (own.ip(), own.port()));
    from
}

fn hears(client: &UdpSocket, what: &[u8]) {
    let mut bytes = [0; 64];
    let n = client.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], what, "at {}", client.local_addr().unwrap());
}

/// Each server, with each client that can ask it.
fn each(world: &World, mut test: impl FnMut(&UdpSocket, SocketAddr, SocketAddr)) {
    let clients = strangers(world, FRONTENDS);
    for (own, seen) in SERVERS {
        for client in &clients {
            if client.local_addr().unwrap().is_ipv4() == at(seen).is_ipv4() {
                test(client, at(own), at(seen));
            }
        }
    }
}

#[test]
fn by_the_server_s_socket() {
    World::run(|world| {
        let (_control, pods) = start(world);
        each(world, |client, own, seen| {
            let server = bound(own);
            for _ in 0..3 {
                let from = asked(client, seen, &server);
                for answer in [b"1", b"2"] {
                    server.send_to(answer, from).unwrap();
                    hears(client, answer);
                }
            }
            // The same socket connects.
            let from = asked(client, seen, &server);
            dial(&server, from).unwrap();
            assert_eq!(peer(&server), Ok(from));
            for answer in [b"3", b"4"] {
                server.send(answer).unwrap();
                hears(client, answer);
            }
            disconnect(&server);
            server.send_to(b"5", from).unwrap();
            hears(client, b"5");
        });
        pods.assert_idle();
    });
}

/// As DTLS servers do: a socket for each client, at the same port, and connected.
#[test]
fn by_another_socket_at_the_port() {
    World::run(|world| {
        let (_control, pods) = start(world);
        each(world, |client, own, seen| {
            let server = bound(own);
            let from = asked(client, seen, &server);
            let seen_as = if own.is_ipv4() { seen } else { mapped(seen) };
            for another in [own, seen_as] {
                let another = bound(another);
                dial(&another, from).unwrap();
                assert_eq!(peer(&another), Ok(from));
                for answer in [b"1", b"2"] {
                    another.send(answer).unwrap();
                    hears(client, answer);
                }
            }
            let another = bound(own);
            another.send_to(b"3", from).unwrap();
            hears(client, b"3");
        });
        pods.assert_idle();
    });
}

/// What another port, or another client, is told is a question.
#[test]
fn nobody_else_answers() {
    World::run(|world| {
        let (_control, pods) = start(world);
        let [near, far] = strangers(world, [F, "203.0.113.1:53"]);
        let server = bound(at("10.2.0.1:9000"));
        let from = asked(&near, at("10.2.0.1:9000"), &server);
        for other in ["10.2.0.1:9001", "0.0.0.0:9002", "[::]:9003"] {
            let other = bound(at(other));
            let to = if other.local_addr().unwrap().is_ipv4() { from } else { mapped(from) };
            assert_eq!(exchange(&other, to, &pods), (pod(), to));
        }
        let unbound = client(true);
        assert_eq!(exchange(&unbound, from, &pods), (pod(), from));
        dial(&unbound, from).unwrap();
        unbound.send(b"?").unwrap();
        assert_eq!(pods.take().pod, pod());
        assert_eq!(exchange(&server, at("203.0.113.1:53"), &pods).0, pod(), "to another address");
        let elsewhere = bound(at("10.1.0.9:9000"));
        assert_eq!(exchange(&elsewhere, from, &pods).0, pod(), "from another address");
        // And yet the server answers, and whoever asked it after it had asked is still asked.
        server.send_to(b"!", from).unwrap();
        hears(&near, b"!");
        asked(&far, at("10.2.0.1:9000"), &server);
        assert_eq!(exchange(&server, at("203.0.113.1:53"), &pods).0, pod());
    });
}

fn pod() -> SocketAddr {
    (backend4(1), PORT).into()
}

/// Somebody sends datagrams that seem to come from the cluster's DNS to everybody who reads some.
#[test]
fn a_forged_datagram_switches_nothing_off() {
    World::run(|world| {
        let (_control, pods) = start(world);
        for (dns, own) in [
            (at(F), "10.2.0.1:7000"),
            (mapped(at(F)), "[::ffff:10.2.0.1]:7001"),
            (at(FRONTENDS[1]), "[fd00:2::1]:7002"),
        ] {
            let is_v4 = at(own).ip().to_canonical().is_ipv4();
            let [forger] = strangers(world, [if is_v4 { F } else { FRONTENDS[1] }]);
            let to = |socket: &UdpSocket| {
                let addr = socket.local_addr().unwrap();
                SocketAddr::from((addr.ip().to_canonical(), addr.port()))
            };
            let forge = |socket: &UdpSocket| {
                for _ in 0..5 {
                    forger.send_to(b"forged", to(socket)).unwrap();
                    assert_eq!(read(socket).0, b"forged");
                }
            };
            // A resolver that asked first goes on.
            let resolver = bound((at(own).ip(), 0).into());
            let (reached, label) = exchange(&resolver, dns, &pods);
            assert_eq!(label, dns);
            forge(&resolver);
            for _ in 0..3 {
                assert_eq!(exchange(&resolver, dns, &pods), (reached, dns));
            }
            // So does one that was connected, even if another socket at its port was deceived.
            let connected = bound(at(own));
            dial(&connected, dns).unwrap();
            let deceived = bound(at(own));
            forge(&deceived);
            for _ in 0..2 {
                connected.send(b"?").unwrap();
                let letter = pods.take();
                assert_eq!(letter.pod, reached);
                pods.answer(&letter);
                assert_eq!(read(&connected).1, dns);
                dial(&connected, dns).unwrap();
                assert_eq!(peer(&connected), Ok(dns));
            }
            // All others, before and after.
            let other = client(dns.is_ipv4());
            assert_eq!(exchange(&other, dns, &pods), (reached, dns));
            let sent = client(dns.is_ipv4());
            assert_eq!(exchange(&sent, dns, &pods), (reached, dns));
            let dialled = client(dns.is_ipv4());
            dial(&dialled, dns).unwrap();
            assert_eq!(peer(&dialled), Ok(dns));
            dialled.send(b"?").unwrap();
            assert_eq!(pods.take().pod, reached);
            // Who was deceived before it asked answers the forger, as with connection tracking.
            deceived.send_to(b"to whom?", dns).unwrap();
            hears(&forger, b"to whom?");
        }
        pods.assert_idle();
    });
}

/// A server that was silent for too long asks the Service instead. That makes it no client for good: it
/// answers again once it has heard again.
#[test]
fn a_server_that_spoke_too_late_answers_what_it_hears_next() {
    World::run(|world| {
        let (_control, pods) = start(world);
        each(world, |client, own, seen| {
            let server = bound(own);
            let from = asked(client, seen, &server);
            server.send_to(b"1", from).unwrap();
            hears(client, b"1");
            age(world, Duration::from_secs(181));
            match server.send_to(b"late", from) {
                Ok(_) => assert_eq!(pods.take().bytes, b"late"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
            }
            for answer in [b"2", b"3"] {
                assert_eq!(asked(client, seen, &server), from);
                server.send_to(answer, from).unwrap();
                hears(client, answer);
            }
        });
        pods.assert_idle();
    });
}

/// All of 127.0.0.0/8 is a node's address there.
#[test]
fn to_any_loopback_address() {
    World::run(|world| {
        let settings = Settings { localhost_nodeports: true, ..Settings::default() };
        let _control = Control::start_as(world, SIZES, view(settings), objects());
        let pods = Pods::start([1]);
        let clients = ["127.0.0.1:30053", "127.5.0.1:30053", "127.255.9.9:30054", "[::1]:30053"];
        for client in &strangers(world, clients) {
            let (to, servers) = if client.local_addr().unwrap().is_ipv4() {
                ("127.0.0.1:9000", &["127.0.0.1:9000", "0.0.0.0:9000", "[::]:9000"][..])
            } else {
                ("[::1]:9000", &["[::1]:9000", "[::]:9000"][..])
            };
            for server in servers {
                let server = bound(at(server));
                let from = asked(client, at(to), &server);
                server.send_to(b"!", from).unwrap();
                hears(client, b"!");
            }
        }
        pods.assert_idle();
    });
}

type Raw = HashMap<MapData, [u8; 16], [u8; 104]>;

fn heard(world: &World) -> Raw {
    let map = MapData::from_pin(world.pins().storage(HEARD)).unwrap();
    HashMap::try_from(Map::HashMap(map)).unwrap()
}

/// As if so much time had passed since.
fn age(world: &World, time: Duration) {
    let mut map = heard(world);
    let all: Vec<_> = map.iter().collect::<Result<_, _>>().unwrap();
    for (slot, value) in all {
        let mut words: [u64; 13] = bytemuck::must_cast(value);
        for last in words[1..].chunks_mut(3).map(|place| &mut place[2]) {
            *last = last.saturating_sub(u64::try_from(time.as_nanos()).unwrap() & !1);
        }
        map.insert(&slot, &bytemuck::must_cast::<_, [u8; 104]>(words), 0).unwrap();
    }
}

#[test]
fn it_is_kept_for_a_while_after_it_was_heard() {
    World::run(|world| {
        let (_control, pods) = start(world);
        let [client] = strangers(world, [F]);
        let seconds = Duration::from_secs;
        let to = at("10.2.0.1:9000");
        let is_answer = |server: &UdpSocket| {
            server.send_to(b"!", at(F)).unwrap();
            let mut pfd = [0; 8];
            client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let heard = client.recv(&mut pfd).is_ok();
            if !heard {
                assert_eq!(pods.take().pod, pod());
            }
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            heard
        };
        for (ages, kept) in [
            (&[29][..], true),
            (&[31], false),
            // It is answered in between, which does not begin the time anew.
            (&[29, 150], true),
            (&[29, 100, 52], false),
        ] {
            let server = bound(to);
            asked(&client, to, &server);
            let (last, before) = ages.split_last().unwrap();
            for time in before {
                age(world, seconds(*time));
                assert!(is_answer(&server), "{ages:?}");
            }
            age(world, seconds(*last));
            assert_eq!(is_answer(&server), kept, "{ages:?}");
            // What the next server hears is another matter.
            age(world, seconds(200));
        }
        // The agent forgets what is over, and nothing else.
        let server = bound(to);
        asked(&client, to, &server);
        let mut exchanges = Exchanges::open(&world.pins()).unwrap();
        assert_eq!(exchanges.sweep().unwrap(), (1, 1));
        age(world, seconds(31));
        assert_eq!(exchanges.sweep().unwrap(), (1, 0));
        asked(&client, to, &server);
        assert!(is_answer(&server), "it is heard again");
        assert_eq!(exchanges.fill(), (1, u32::try_from(MAX_SLOTS).unwrap()));
    });
}

/// However much is heard in one network namespace, it has its share; and another one has its own.
#[test]
fn each_network_namespace_has_its_own_room() {
    World::run(|world| {
        let (_control, _pods) = start(world);
        let [client] = strangers(world, [F]);
        let to = |port| SocketAddr::from(([10, 2, 0, 1], port));
        let exchange = |client: &UdpSocket, port| {
            let server = bound(to(port));
            let from = asked(client, to(port), &server);
            server.send_to(b"!", from).unwrap();
            hears(client, b"!");
        };
        (9000..9600).for_each(|port| exchange(&client, port));
        assert_eq!(heard(world).keys().count(), SLOTS as usize);
        let elsewhere = Elsewhere::new();
        elsewhere.within(|| {
            addresses();
            let client = UdpSocket::bind(at(F)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            // The question of a socket inside is one to a server, and no Service's.
            exchange(&client, 9000);
        });
        assert_eq!(heard(world).keys().count(), SLOTS as usize + 1);
    });
}

/// Nothing is pushed out. Who comes later gets what everybody got before: it is counted.
#[test]
fn a_full_map_is_counted() {
    World::run(|world| {
        let (_control, pods) = start(world);
        let mut map = heard(world);
        for slot in 0..u64::try_from(MAX_SLOTS).unwrap() {
            map.insert(&bytemuck::must_cast::<_, [u8; 16]>([u64::MAX - slot, 0]), &[0; 104], 0)
                .unwrap();
        }
        let [client] = strangers(world, [F]);
        let server = bound(at("10.2.0.1:9000"));
        let from = asked(&client, at("10.2.0.1:9000"), &server);
        assert_eq!(counted(world, Counter::HeardFull), 1);
        server.send_to(b"!", from).unwrap();
        assert_eq!(pods.take().pod, pod());
        // Others make room once they are over, as these are.
        Exchanges::open(&world.pins()).unwrap().sweep().unwrap();
        let server = bound(at("10.2.0.1:9001"));
        let from = asked(&client, at("10.2.0.1:9001"), &server);
        server.send_to(b"!", from).unwrap();
        hears(&client, b"!");
        assert_eq!(counted(world, Counter::HeardFull), 1);
    });
}
