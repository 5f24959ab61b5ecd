//! Packets of an endpoint that belong to no connection, by what connection tracking knows: they are
//! dropped (kubernetes#74839); those of anybody else go their way (kubernetes#94861).

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    lane::{Lane, PATIENCE, client, endpoint},
    packets::{Web, nft, put, start, start_with, web},
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

    /// SYN and ACK, which nobody has asked for.
    fn say(&self, from: SocketAddr, to: SocketAddr) {
        let mut segment = [0; 20];
        segment[..2].copy_from_slice(&from.port().to_be_bytes());
        segment[2..4].copy_from_slice(&to.port().to_be_bytes());
        segment[4..8].copy_from_slice(&1000u32.to_be_bytes());
        segment[8..12].copy_from_slice(&2000u32.to_be_bytes());
        segment[12..16].copy_from_slice(&[0x50, 0x12, 0x10, 0]);
        let checksum = checksum(from.ip(), to.ip(), &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.0.send_to(&segment, &SocketAddr::new(to.ip(), 0).into()).unwrap();
    }

    /// The sender's and the receiver's port of the next segment.
    fn hear(&self) -> [u16; 2] {
        let mut bytes = [0; 256];
        let len = (&self.0).read(&mut bytes).expect("silence");
        let bytes = &bytes[..len];
        // IPv4 comes with its header.
        let is_ipv4 = self.0.local_addr().unwrap().is_ipv4();
        let header = if is_ipv4 { usize::from(bytes[0] & 15) * 4 } else { 0 };
        [0, 2].map(|at| u16::from_be_bytes([bytes[header + at], bytes[header + at + 1]]))
    }
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
        here.say((pod, port).into(), (stranger, CLIENT).into());
        here.say((pod, port).into(), (beside, CLIENT).into());
    }
    let [from, to] = there.hear();
    assert_eq!(to, CLIENT);
    let from_node = loop {
        // The client, too, says that there is no connection: only the node's words count.
        let who = here.0.peek_sender().expect("silence");
        let [port, to] = here.hear();
        if who.as_socket().unwrap().ip() == beside {
            assert_eq!(port, CLIENT);
            break to;
        }
    };
    [from, from_node]
}

#[test]
fn those_of_endpoints_are_dropped_and_those_of_others_pass() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1]));
        let agent = start(world);
        for ipv4 in [true, false] {
            assert_eq!(heard_first(&lane, ipv4), [OTHER; 2]);
        }
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
        put(world, &web(&[1]));
        let _agent = start_with(world, &["--conntrack-tcp-be-liberal"]);
        assert!(!nft("list set ip6 socklb servers").contains("elements"));
        let liberal = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
        assert_eq!(fs::read_to_string(liberal).unwrap().trim(), "1");
    });
}
