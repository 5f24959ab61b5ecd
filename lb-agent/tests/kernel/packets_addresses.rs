//! Which of this node's addresses serve strangers: node ports by `--nodeport-addresses`, one list for
//! packets and for sockets; and load balancers' addresses that an interface of the node has.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use nix::net::if_::if_nametoindex;

use super::{
    agent::{Agent, SIZES},
    lane::{Answer, Lane, PATIENCE, SILENCE, Speech, ask, ask_from, endpoint, ip},
    packets::{Web, put_all, start, text, web},
    world::{World, soon},
};

/// This node, whose primary addresses are the router's side's.
const NODE: &str = "---
apiVersion: v1
kind: Node
metadata: {name: test}
status: {addresses: [{type: InternalIP, address: 10.50.2.2}, {type: InternalIP, address: 'fd50:2::2'}]}
";

/// The addresses of a link, which is between the node and the router.
const OF_LINK: [&str; 2] = ["169.254.50.2", "fe80::50:2"];

/// What kinds of addresses a node has.
const KINDS: [(&str, [&str; 2]); 7] = [
    ("primary", ["10.50.2.2", "fd50:2::2"]),
    ("of the pods' side", ["10.60.2.1", "fd60:2::1"]),
    ("of a bridge", ["10.90.1.1", "fd90:1::1"]),
    ("of a tunnel", ["10.90.2.1", "fd90:2::1"]),
    ("of a load balancer", ["192.0.2.250", "2001:db8::fa"]),
    ("of a link", OF_LINK),
    ("of loopback", ["127.0.0.1", "::1"]),
];

/// Gives them to the node, and sends what is for them there.
fn settle(lane: &Lane) {
    for words in ["br0 type bridge", "tunnel0 type vxlan id 1 dstport 4789"] {
        ip(&format!("link add {words}"));
    }
    for (device, kind) in [("br0", 2), ("tunnel0", 3), ("lo", 4), ("router", 5)] {
        let (_, [ipv4, ipv6]) = KINDS[kind];
        ip(&format!("address add {ipv4}/32 dev {device}"));
        ip(&format!("address add {ipv6}/128 dev {device} nodad"));
        ip(&format!("link set {device} up"));
    }
    lane.router.run(|| {
        ip("route add 10.90.0.0/16 via 10.50.2.2");
        ip("route add fd90::/16 via fd50:2::2");
        ip("route add 169.254.50.2 dev node");
    });
}

/// Node ports there, where the thread is; an address of one link is that of this device.
fn node_port(address: &str, device: &str) -> [(Speech, SocketAddr); 2] {
    let port = web(&[]).node_port();
    let to = match address.parse().unwrap() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, port, 0, if_nametoindex(device).unwrap()).into()
        }
        ip => SocketAddr::new(ip, port),
    };
    Speech::BOTH.map(|speech| (speech, to))
}

/// What packets get there: of a stranger, or of who can send them at all.
fn by_packets(world: &World, lane: &Lane, kind: &str, address: &'static str) -> [Answer; 2] {
    // Linux forwards no packet whose sender is an address of a link.
    let router = if address.contains(':') { "fd50:2::1" } else { "10.50.2.1" }.parse().unwrap();
    let by_router = move || {
        node_port(address, "node").map(|(speech, to)| ask_from(router, speech, to, PATIENCE))
    };
    let ask = move || node_port(address, "").map(|(speech, to)| ask(speech, to, PATIENCE));
    world.outside(|| match kind {
        "of loopback" => ask(),
        "of a link" => lane.router.run(by_router),
        _ => lane.client.run(ask),
    })
}

#[test]
fn one_list_says_where_node_ports_are_for_both_engines() {
    World::run(|world| {
        let lane = world.outside(Lane::new);
        settle(&lane);
        put_all(world, &(text(&web(&[2])) + NODE));
        let all =
            ["primary", "of the pods' side", "of a bridge", "of a tunnel", "of a load balancer"];
        let everywhere = [&all[..], &["of a link"]].concat();
        for (list, served) in [
            // Those of loopback never, whoever names them.
            ("10.90.1.0/24,fd90:1::/64,127.0.0.0/8,::1/128", &all[2..3]),
            ("", &everywhere),
        ] {
            let flag = format!("--nodeport-addresses={list}");
            let more = ["--packets=external", &flag];
            let agent = Agent::start_with(world, &[&SIZES[..], &more].concat());
            for (kind, addresses) in KINDS {
                for address in addresses {
                    let is_served = served.contains(&kind);
                    for answer in by_packets(world, &lane, kind, address) {
                        let name = "endpoint-2".to_owned();
                        let seen = if address.contains(':') { "fd60:2::1" } else { "10.60.2.1" };
                        let answers = Answer::From { name, seen: seen.parse().unwrap() };
                        let expected = if is_served { answers } else { Answer::Refused };
                        assert_eq!(answer, expected, "{list}: {kind}, {address}, packets");
                    }
                    let by_pod = || node_port(address, "node");
                    for (speech, to) in lane.pods[0].run(by_pod) {
                        // A link's address is another one on the pod's link.
                        if kind == "of a link" && !is_served {
                            continue;
                        }
                        let answer = lane.pods[0].run(move || ask(speech, to, PATIENCE));
                        let name = "endpoint-2".to_owned();
                        let answers = Answer::From { name, seen: endpoint(1, to.is_ipv4()) };
                        let expected = if is_served { answers } else { Answer::Refused };
                        assert_eq!(answer, expected, "{list}: {kind}, {address}, a pod's socket");
                    }
                }
            }
            if list.is_empty() {
                goes_with_its_address(world, &lane);
            }
            drop(agent);
        }
    });
}

/// An address that leaves the node takes its node ports along, and no others.
fn goes_with_its_address(world: &World, lane: &Lane) {
    ip("link delete br0");
    let (_, bridge) = KINDS[2];
    let cells: Vec<_> = bridge.into_iter().flat_map(|of| node_port(of, "")).collect();
    // They go to and fro between the node and its router.
    let is_lost = |answer: &Answer| matches!(answer, Answer::Astray | Answer::Silence);
    let answers = || world.outside(|| lane.ask_all(&cells, SILENCE));
    assert!(soon(|| answers().iter().all(is_lost)), "{:?}", answers());
    for ipv4 in [true, false] {
        let to = web(&[]).at_node(ipv4);
        assert_eq!(world.outside(|| lane.ask(Speech::Tcp, to)).name(), "endpoint-2");
    }
}

/// As kube-vip and BGP speakers have it: the node is then a client with the load balancer's address (G3).
#[test]
fn a_load_balancers_address_may_be_an_interfaces() {
    World::run(|world| {
        let lane = Lane::new();
        let ranges = |number, all: &[&str]| Web {
            number,
            ranges: all.iter().map(|range| format!("'{range}'")).collect(),
            ..web(&[1])
        };
        let services = [
            ranges(0, &[]),
            ranges(1, &["10.50.2.2/32", "fd50:2::2/128"]),
            ranges(2, &["10.99.0.0/16", "fd99::/16"]),
        ];
        for (web, ipv4) in services.iter().flat_map(|web| [(web, true), (web, false)]) {
            let (length, option) = if ipv4 { (32, "") } else { (128, " nodad") };
            ip(&format!("address add {}/{length} dev lo{option}", web.vip(ipv4).ip()));
        }
        put_all(world, &(services.each_ref().map(text).join("---\n") + NODE));
        let _agent = start(world);
        for ipv4 in [true, false] {
            for speech in Speech::BOTH {
                let [open, own, others] = services.each_ref().map(|web| (speech, web.vip(ipv4)));
                assert_eq!(lane.ask(speech, open.1).name(), "endpoint-1");
                let silence = [const { Answer::Silence }; 2];
                assert_eq!(lane.ask_all(&[own, others], SILENCE), silence);
                // Who is no Service's is the node's.
                let other_port = SocketAddr::new(open.1.ip(), 81);
                assert_eq!(lane.ask(speech, other_port), Answer::Refused);
                for (_, to) in [open, own] {
                    assert_eq!(ask(speech, to, PATIENCE).name(), "endpoint-1", "{speech:?} {to}");
                }
                let dropped = ask(speech, others.1, SILENCE);
                assert!(matches!(dropped, Answer::Silence | Answer::Forbidden), "{dropped:?}");
            }
        }
    });
}
