//! Packets of an endpoint that belong to no connection, by what connection tracking knows: they are
//! dropped (kubernetes#74839); those of anybody else go their way (kubernetes#94861).

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    lane::{Lane, PATIENCE, client, endpoint, serve},
    packets::{Web, nft, put, put_all, start, start_with, text, web},
    world::{PORT, World, soon},
};

/// A port that is no endpoint's.
const OTHER: u16 = 9999;
/// The port that nobody listens at, nor asks from.
const CLIENT: u16 = 7777;

/// Hears, and says, TCP segments at an address of a place.
struct Raw(Socket);

impl Raw {
    fn new(ip: IpAddr) -> Self {
        let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn say(&self, from: SocketAddr, to: SocketAddr, what: Says) {
        let mut segment = [0; 20];
        segment[..2].copy_from_slice(&from.port().to_be_bytes());
        segment[2..4].copy_from_slice(&to.port().to_be_bytes());
        segment[4..8].copy_from_slice(&what.sequence.to_be_bytes());
        segment[8..12].copy_from_slice(&what.acknowledged.to_be_bytes());
        segment[12..16].copy_from_slice(&[0x50, what.flags, 0x10, 0]);
        let checksum = checksum(from.ip(), to.ip(), &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.0.send_to(&segment, &SocketAddr::new(to.ip(), 0).into()).unwrap();
    }

    /// The next segment.
    fn hear(&self) -> Segment {
        let sender = self.0.peek_sender().expect("silence").as_socket().unwrap().ip();
        let mut bytes = [0; 2048];
        let len = (&self.0).read(&mut bytes).unwrap();
        // IPv4 comes with its header.
        let header = if sender.is_ipv4() { usize::from(bytes[0] & 15) * 4 } else { 0 };
        let segment = &bytes[header..len];
        let port = |at| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
        Segment {
            from: (sender, port(0)).into(),
            to: port(2),
            says: Says { sequence: number(4), acknowledged: number(8), flags: segment[13] },
            len: u32::try_from(segment.len()).unwrap() - u32::from(segment[12] >> 4) * 4,
        }
    }
}

/// What a segment says of its connection.
#[derive(Clone, Copy)]
struct Says {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
}

impl Says {
    const ACK: u8 = 0x10;
    /// SYN and ACK, which nobody has asked for.
    const UNASKED: Self = Self { sequence: 1000, acknowledged: 2000, flags: 0x12 };
}

/// A segment that was heard.
struct Segment {
    from: SocketAddr,
    to: u16,
    says: Says,
    /// Of what it carries.
    len: u32,
}

fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let len = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let all = [&octets(from)[..], &octets(to), &[0, 6], &len, segment].concat();
    let sum: u32 = all.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    !u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap()
}

/// A stray packet of the endpoint, then one of its other port: which of them the client hears first, and
/// to which of them the node says that there is no connection.
fn heard_first(lane: &Lane, ipv4: bool) -> [u16; 2] {
    let (pod, stranger) = (endpoint(1, ipv4), client(ipv4));
    let beside: IpAddr = if ipv4 { [10, 60, 1, 1].into() } else { "fd60:1::1".parse().unwrap() };
    let there = lane.client.run(move || Raw::new(stranger));
    let here = lane.pods[0].run(move || Raw::new(pod));
    for port in [PORT, OTHER] {
        here.say((pod, port).into(), (stranger, CLIENT).into(), Says::UNASKED);
        here.say((pod, port).into(), (beside, CLIENT).into(), Says::UNASKED);
    }
    let first = there.hear();
    assert_eq!(first.to, CLIENT);
    let from_node = loop {
        // The client, too, says that there is no connection: only the node's words count.
        let segment = here.hear();
        if segment.from.ip() == beside {
            assert_eq!(segment.from.port(), CLIENT);
            break segment.to;
        }
    };
    [first.from.port(), from_node]
}

/// A segment of the endpoint that is far outside of the window, so that connection tracking takes it for
/// none of the connection's, and the endpoint's address would stay in it. Whoever got it would end the
/// connection: it says what comes next there, and that is what the endpoint waits for.
fn outlives_a_stray_segment(lane: &Lane, to: SocketAddr) {
    let pod = endpoint(1, to.is_ipv4());
    let here = lane.pods[0].run(move || Raw::new(pod));
    let held = lane.hold(to);
    let heard = loop {
        let segment = here.hear();
        if segment.to == PORT && segment.len > 0 {
            break segment;
        }
    };
    let Says { sequence, acknowledged, .. } = heard.says;
    let beyond = Says {
        sequence: acknowledged.wrapping_add(100_000_000),
        acknowledged: sequence.wrapping_add(heard.len),
        flags: Says::ACK,
    };
    here.say((pod, PORT).into(), heard.from, beyond);
    for _ in 0..3 {
        assert!(held.is_alive(), "{to}");
    }
}

#[test]
fn those_of_endpoints_are_dropped_and_those_of_others_pass() {
    World::run(|world| {
        let lane = Lane::new();
        let services = [web(&[1]), Web { number: 1, local: true, ..web(&[1]) }];
        put_all(world, &services.each_ref().map(text).join("---\n"));
        let outlive_them = || {
            for (web, ipv4) in services.iter().flat_map(|web| [(web, true), (web, false)]) {
                outlives_a_stray_segment(&lane, web.vip(ipv4));
                outlives_a_stray_segment(&lane, web.at_node(ipv4));
            }
        };
        let agent = start(world);
        for ipv4 in [true, false] {
            assert_eq!(heard_first(&lane, ipv4), [OTHER; 2]);
        }
        outlive_them();
        // Also on its way out: it has its connections still.
        put(world, &Web { endpoints: vec![(1, false), (2, true)], ..web(&[]) });
        let gets_no_more = || !nft("list map ip6 socklb endpoints").contains("fd60:1::2");
        assert!(soon(gets_no_more));
        for ipv4 in [true, false] {
            assert_eq!(heard_first(&lane, ipv4), [OTHER; 2]);
        }
        // Nobody's endpoint any more.
        put(world, &web(&[2]));
        assert!(soon(|| !nft("list set ip6 socklb servers").contains("fd60:1::2")));
        for ipv4 in [true, false] {
            assert_eq!(heard_first(&lane, ipv4), [PORT; 2]);
        }
        drop(agent);
        put_all(world, &services.each_ref().map(text).join("---\n"));
        let _agent = start_with(world, &["--conntrack-tcp-be-liberal"]);
        assert!(!nft("list set ip6 socklb servers").contains("elements"));
        let liberal = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
        assert_eq!(fs::read_to_string(liberal).unwrap().trim(), "1");
        outlive_them();
    });
}

/// The node sees only what one side says: nothing of that belongs to a connection that it knows.
#[test]
fn connections_of_others_may_take_another_way_back() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1, 3]));
        let _agent = start(world);
        lane.router.ip("route add default via 10.50.2.2 table 100");
        lane.router.ip("-6 route add default via fd50:2::2 table 100");
        let servers = [true, false].map(|ipv4| SocketAddr::new(endpoint(3, ipv4), OTHER));
        for server in servers {
            lane.elsewhere.run(move || serve("stranger", server));
        }
        // The answers come by the node, then the questions go there.
        for (from, to) in [("elsewhere", "50:1"), ("client", "50:3")] {
            let rules = [
                format!("rule add iif {from} to 10.{}.0/24 table 100", to.replace(':', ".")),
                format!("-6 rule add iif {from} to fd{to}::/64 table 100"),
            ];
            for rule in &rules {
                lane.router.ip(rule);
            }
            for server in servers {
                let held = lane.hold(server);
                assert!(held.echoes(&vec![7; 100_000]), "{server}, {from}");
                assert!(held.is_alive(), "{server}, {from}");
            }
            for rule in rules {
                lane.router.ip(&rule.replace("add", "delete"));
            }
        }
    });
}
