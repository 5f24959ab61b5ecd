//! Objects that contradict each other or the network, or are larger than one would think: strangers get
//! what the rules say, what is not served is named, and no other Service loses anything.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{
    agent::Agent,
    lane::{Answer, Lane, PATIENCE, SILENCE, Speech, endpoint, ip, node, serve},
    packets::{Web, command_of_size, put_all, text, web},
    world::{PORT, World, soon},
};

/// The port of pod 1 at all of the addresses that it has besides.
const MANY: u16 = 8081;

/// A Service of this number, with one endpoint.
fn of(number: u8, endpoint: u8) -> Web {
    Web { number, ..web(&[endpoint]) }
}

/// The same, for the senders of these ranges.
fn within(number: u8, ranges: &[&str]) -> Web {
    Web { ranges: ranges.iter().map(|range| format!("'{range}'")).collect(), ..of(number, 1) }
}

/// The objects of a Service, with other words in some places.
fn with(web: &Web, words: &[(&str, &str)]) -> String {
    words.iter().fold(text(web), |text, (from, to)| {
        assert!(text.contains(from), "no {from:?} in\n{text}");
        text.replace(from, to)
    })
}

/// The same of a Service that is as old as that.
fn since(year: u16, web: &Web, words: &[(&str, &str)]) -> String {
    let (from, to) =
        ("default}\nspec", format!("default, creationTimestamp: {year}-01-01T00:00:00Z}}\nspec"));
    with(web, &[words, &[(from, &to)]].concat())
}

/// 5,000 ranges, none of them part of another, and none with the client.
fn very_many() -> impl Iterator<Item = String> {
    let of = |n: u16| {
        let [high, low] = n.to_be_bytes();
        [format!("10.{}.{low}.128/25", 100 + high), format!("fd99:{n:x}::/32")]
    };
    (0..2500).flat_map(of)
}

/// A thousand endpoints, one of them pod 1 by its own address.
fn thousand() -> String {
    let own = endpoint(1, true);
    let all = (0..999u16).map(|n| Ipv4Addr::from(0x0a46_0000 + u32::from(n)).into());
    let all = all.chain(iter::once(own)).map(|ip: IpAddr| format!("\n- {{addresses: [{ip}]}}"));
    all.collect::<Vec<_>>().concat()
}

/// All objects; those with ranges admit the client, or mostly not.
fn objects(admit: bool) -> String {
    let overlapping: &[&str] = if admit {
        &["fd50::/16", "fd50:1::/32", "fd50:1::2/128", "10.0.0.0/8"]
    } else {
        &["fd50:1::/112", "fd50:1::/120", "fd50:1::2/128", "10.99.0.0/16"]
    };
    let own = ["10.50.1.2/32".to_owned(), "fd50:1::2/128".to_owned()];
    let many: Vec<_> = very_many().chain(admit.then_some(own).into_iter().flatten()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let only = format!(
        "\n- {{addresses: ['{}'], nodeName: test, conditions: {{ready: true, serving: true, terminating: false}}}}",
        endpoint(1, true)
    );
    [
        text(&of(0, 1)),
        since(2024, &of(1, 1), &[]),
        since(2025, &of(2, 2), &[("30082", "30081")]),
        with(&of(3, 1), &[("192.0.2.83", "10.50.2.2"), ("2001:db8::53", "fd50:2::2")]),
        text(&within(4, &["0.0.0.0/0", "10.99.0.0/16", "fd99::/16"])),
        text(&within(5, &["fd99::/16"])),
        text(&within(6, overlapping)),
        text(&within(7, &many)),
        with(
            &Web { external: true, ..of(8, 1) },
            &[("192.0.2.168", "10.60.2.2"), ("2001:db8::a8", "fd60:2::2")],
        ),
        text(&of(9, 1)),
        with(
            &within(10, &["10.99.0.0/16", "fd99::/16"]),
            &[
                ("192.0.2.90", "192.0.2.89"),
                ("2001:db8::5a", "2001:db8::59"),
                ("port: 80,", "port: 81,"),
            ],
        ),
        with(
            &of(11, 2),
            &[
                ("192.0.2.91", "192.0.2.89"),
                ("2001:db8::5b", "2001:db8::59"),
                ("port: 80,", "port: 82,"),
            ],
        ),
        with(&of(12, 1), &[("192.0.2.92}", "192.0.2.92, ipMode: Proxy}")]),
        with(&of(13, 1), &[(&only, &thousand()), ("port: 8080", &format!("port: {MANY}"))]),
        with(&of(14, 1), &[("192.0.2.94", "127.0.0.1"), ("2001:db8::5e", "fe80::1")]),
    ]
    .join("---\n")
}

/// What a client gets.
#[derive(Clone, Copy, Debug)]
enum Gets {
    Endpoint(u8),
    Refused,
    /// Nobody answers: it is dropped, or to and fro between node and router.
    Nothing,
}
use Gets::{Endpoint, Nothing, Refused};

/// What is expected of the objects at each address of a family, and why.
fn expected(admit: bool, ipv4: bool) -> Vec<(&'static str, SocketAddr, Gets)> {
    let vip = |n| of(n, 1).vip(ipv4);
    let at_node = |n| of(n, 1).at_node(ipv4);
    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    let if_in = |admitted| if admitted { Endpoint(1) } else { Nothing };
    vec![
        ("as it should be", vip(0), Endpoint(1)),
        ("as it should be", at_node(0), Endpoint(1)),
        ("the older one has the node port", at_node(1), Endpoint(1)),
        ("the older one has its address, too", vip(1), Endpoint(1)),
        ("the younger one has its address", vip(2), Endpoint(2)),
        ("the node's address", at(node(ipv4), 80), Endpoint(1)),
        ("another port of it", at(node(ipv4), 81), Refused),
        ("/0 of one family", vip(4), if_in(ipv4)),
        ("ranges of one family", vip(5), if_in(ipv4)),
        ("ranges that overlap", vip(6), if_in(admit || !ipv4)),
        ("5,000 ranges", vip(7), if_in(admit)),
        ("they are for one address", at_node(7), Endpoint(1)),
        ("a pod's address", at(endpoint(2, ipv4), 80), Endpoint(1)),
        ("another port of it", at(endpoint(2, ipv4), PORT), Endpoint(2)),
        ("one address, three ports", vip(9), Endpoint(1)),
        ("one address, three ports", at(vip(9).ip(), 81), Nothing),
        ("one address, three ports", at(vip(9).ip(), 82), Endpoint(2)),
        ("its own would be this", vip(11), Nothing),
        ("ipMode Proxy of IPv4", vip(12), if_in(!ipv4)),
        ("ipMode Proxy", at_node(12), Endpoint(1)),
        ("its addresses are every machine's", at_node(14), Endpoint(1)),
    ]
}

/// Where a client gets something else, of all addresses.
fn others(lane: &Lane, admit: bool) -> Vec<String> {
    let mut others = Vec::new();
    let rows: Vec<_> = [true, false].into_iter().flat_map(|ipv4| expected(admit, ipv4)).collect();
    for nothing in [false, true] {
        let rows = rows.iter().filter(|(.., gets)| matches!(gets, Nothing) == nothing);
        let rows: Vec<_> =
            rows.flat_map(|row| Speech::BOTH.map(|speech| (row, (speech, row.1)))).collect();
        let cells: Vec<_> = rows.iter().map(|(_, cell)| *cell).collect();
        let answers = lane.ask_all(&cells, if nothing { SILENCE } else { PATIENCE });
        for ((row, cell), answer) in rows.into_iter().zip(answers) {
            let is_so = match row.2 {
                Endpoint(n) => {
                    matches!(&answer, Answer::From { name, .. } if *name == format!("endpoint-{n}"))
                }
                Refused => answer == Answer::Refused,
                Nothing => matches!(answer, Answer::Silence | Answer::Astray),
            };
            if !is_so {
                others.push(format!("{row:?}, {:?}: {answer:?}", cell.0));
            }
        }
    }
    others
}

#[test]
fn strangers_get_what_the_rules_say() {
    World::run(|world| {
        let lane = Lane::new();
        ip("route add 10.70.0.0/16 via 10.60.1.2");
        lane.pods[0].run(|| {
            ip("route add local 10.70.0.0/16 dev lo");
            serve("thousand", (Ipv4Addr::UNSPECIFIED, MANY).into());
        });
        put_all(world, &objects(true));
        let sizes = ["--max-services=1024", "--max-backends=16384"];
        let agent = Agent::spawn(command_of_size(world, &sizes, &[]));
        agent.wait_for_start("in sync");
        assert_eq!(others(&lane, true), [""; 0]);
        // By TCP: a socket of all addresses answers datagrams from the first one.
        for _ in 0..50 {
            assert_eq!(lane.ask(Speech::Tcp, of(13, 1).vip(true)).name(), "thousand");
        }
        for words in [
            "belongs to another Service: own-node-ipv4:30081/tcp (default/web-1)",
            "remedy=\"give one of them another address or port\"",
            "status.loadBalancer.ingress[0].ip: 127.0.0.1 is an address of every machine; it is not \
             served: correct the address",
            "status.loadBalancer.ingress[1].ip: fe80::1 is an address of every machine",
            // Of sockets: packets have them all.
            "the source_ranges map is full; raise --max-services service=default/web-7",
        ] {
            agent.wait_for(words);
        }
        put_all(world, &objects(false));
        let mut last = Vec::new();
        let is_so = soon(|| {
            last = others(&lane, false);
            last.is_empty()
        });
        assert!(is_so, "{last:?}");
    });
}
