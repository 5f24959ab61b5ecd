//! What is explained of maps in memory.

use std::num::NonZeroU64;

use clap::Parser as _;
use lb_common::abi::{Address, AffinityKey, Bond, PortOptions, Service, ServiceKey};
use lb_core::{dump::sample, memory::Memory, op::Op, store::Store as _};
use serde_json::{Value, json};

use super::*;
use crate::ctl::{Cli, Command};

fn explain_in(memory: &Memory, words: &str) -> (Answer, String) {
    let Command::Explain(explain) =
        Cli::parse_from(format!("lbctl explain {words}").split(' ')).command
    else {
        unreachable!()
    };
    let mut out = Vec::new();
    let who = Who { netns: explain.netns.map_or(0, NonZeroU64::get), address: explain.from };
    let now = 30_000_000_000;
    let answer =
        answer((&explain, who), Ok(None), now, memory, &memory.snapshot(), &mut out).unwrap();
    (answer, String::from_utf8(out).unwrap())
}

fn explain(words: &str) -> (Answer, String) {
    explain_in(&sample::memory(), words)
}

#[test]
fn a_hit_shows_each_candidate() {
    let (answer, out) = explain("10.96.0.10:80");
    assert_eq!(
        out,
        "\
10.96.0.10:80/tcp is default/web:http (id 0, block 2, generation 102)
connect() goes to one of 2 backends:

BACKEND          INDEX   PROBABILITY
10.0.0.10:8080   2       50.0%
10.0.0.9:8080    3       50.0%
"
    );
    assert_eq!(answer, Answer::Yes);
    assert_eq!(explain("[::ffff:10.96.0.10]:80/tcp").1, out, "one address, two ways to write it");
    assert!(explain("[fd00::a]:80").1.contains("its only backend:\n\nBACKEND"));
}

#[test]
fn no_endpoints() {
    let (answer, out) = explain("10.96.0.2:53/udp");
    assert_eq!(
        out,
        "10.96.0.2:53/udp is kube-system/kube-dns:dns (id 3, block 9, generation 109)\n\
         the Service has no endpoints: sendto() fails with ECONNREFUSED, connect() goes there untouched\n"
    );
    assert_eq!(answer, Answer::No);
}

#[test]
fn a_miss_tells_what_else_there_is() {
    let (answer, out) = explain("192.0.2.99:80");
    assert_eq!(out, "192.0.2.99:80/tcp is no Service's: connect() goes there untouched\n");
    assert_eq!(answer, Answer::No);
    let (_, out) = explain("10.96.0.2:53");
    assert!(
        out.ends_with(
            "\nthe address is a Service's on other ports:\n  \
             10.96.0.2:53/udp kube-system/kube-dns:dns\n"
        ),
        "{out}"
    );
    let (_, out) = explain("10.0.0.9:8080");
    assert!(
        out.ends_with(
            "\nit is a backend:\n  10.96.0.10:80/tcp default/web:http\n  \
             192.0.2.7:80/tcp default/web:http\n"
        ),
        "{out}"
    );
}

#[test]
fn the_schema() {
    let value = |words: &str| -> Value { serde_json::from_str(&explain(words).1).unwrap() };
    assert_eq!(
        value("10.96.0.9:5432 -o json"),
        json!({
            "apiVersion": "socklb/v1", "kind": "Explanation",
            "destination": "10.96.0.9:5432", "protocol": "TCP", "verdict": "forward",
            "service": {
                "namespace": "default", "name": "db", "port": "",
                "id": 1, "block": 6, "count": 1, "generation": 106,
                "frontend": "10.96.0.9:5432/tcp", "scope": "any", "hostOnly": false,
                "affinitySeconds": 0, "sourceRanges": null, "kept": [],
            },
            "candidates": [{
                "address": "10.0.0.1:5432", "backendId": 7, "index": 6, "probability": 1.0,
            }],
            "connectUntouched": false, "meant": null, "nodePort": null, "nearby": [],
            "client": null, "bound": null,
        })
    );
    assert_eq!(
        value("10.96.0.9:5433 -o json"),
        json!({
            "apiVersion": "socklb/v1", "kind": "Explanation",
            "destination": "10.96.0.9:5433", "protocol": "TCP", "verdict": "miss",
            "service": null, "candidates": [], "connectUntouched": false,
            "nearby": [{
                "relation": "frontend", "namespace": "default", "name": "db", "port": "",
                "frontend": "10.96.0.9:5432/tcp",
            }],
            "client": null, "bound": null, "meant": null, "nodePort": null,
        })
    );
    assert_eq!(value("10.96.0.2:53/udp -o json")["service"]["count"], 0);
}

#[test]
fn a_node_port_where_no_node_is() {
    let (answer, out) = explain_rich("198.51.100.7:30080");
    assert_eq!(answer, Answer::No);
    assert_eq!(
        out,
        "198.51.100.7:30080/tcp is no Service's: connect() goes there untouched\n\n\
         a NodePort has this number, but the address is none at which NodePorts are served (`lbctl get \
         addresses`):\n  own-node-ipv4:30080/tcp shop/cart\n"
    );
    let value: Value = serde_json::from_str(&explain_rich("0.0.0.0:30081 -o json").1).unwrap();
    assert_eq!((&value["meant"], &value["nodePort"]), (&json!("127.0.0.1:30081"), &Value::Null));
    let value: Value =
        serde_json::from_str(&explain_rich("127.0.0.1:30080 --netns 78 -o json").1).unwrap();
    assert_eq!((&value["verdict"], &value["nodePort"]), (&json!("miss"), &json!("hostOnly")));
}

#[test]
fn a_process_that_is_not_there_is_a_mistake_and_one_that_is_hidden_is_not() {
    let failure = |errno| no_netns(4_194_305, &io::Error::from_raw_os_error(errno));
    for errno in [libc::EPERM, libc::EACCES] {
        let failure = failure(errno);
        let text = failure.to_string();
        assert_eq!(failure.code(), 3, "{text}");
        assert!(text.contains("--pid 4194305") && text.contains("CAP_SYS_ADMIN"), "{text}");
    }
    let gone = failure(libc::ENOENT);
    assert_eq!(gone.code(), 2);
    assert!(gone.to_string().starts_with("--pid 4194305: there is no such process"), "{gone}");
    let who = explain_pid("lbctl explain 10.0.0.1:80 --pid 4194305").unwrap_err();
    assert_eq!(who.to_string(), gone.to_string());
}

fn explain_pid(words: &str) -> Result<u64, Failure> {
    let Command::Explain(explain) = Cli::parse_from(words.split(' ')).command else {
        unreachable!()
    };
    let pid = explain.pid.unwrap();
    sockets::cookie_of_process(pid).map_err(|error| no_netns(pid, &error))
}

#[test]
fn loopback_addresses_are_what_they_are_to_connect() {
    let mut memory = sample::rich();
    let addr = abi::LOOPBACK_NET;
    let known = lb_core::op::AddressUse { flags: Address::OWN_NODE, netns: 77 };
    memory.apply(&Op::PutAddress { addr, known }).unwrap();
    for to in ["127.9.9.9:30080", "0.0.0.0:30080", "[::ffff:0.0.0.0]:30080"] {
        let (answer, out) = explain_in(&memory, to);
        assert_eq!(answer, Answer::Yes, "{out}");
        assert!(out.contains(" is shop/cart (id 5"), "{out}");
        assert!(out.contains("only processes of the host's network namespace"), "{out}");
        assert!(!out.contains("node4") && !out.contains("own-node"), "{out}");
        let taken = ", which Linux takes for 127.0.0.1:30080, is shop/cart (id 5";
        assert_eq!(out.contains(taken), to.contains("0.0.0.0"), "{out}");
        let (answer, out) = explain_in(&memory, &format!("{to} --from 127.0.0.1"));
        assert_eq!(answer, Answer::No, "{out}");
        assert!(out.contains("NodePort addresses: connect() fails with ECONNREFUSED\n"), "{out}");
    }
    let (_, out) = explain_in(&memory, "[::]:30080");
    assert_eq!(
        out,
        "[::]:30080/tcp, which Linux takes for [::1]:30080, is no Service's: connect() goes there \
         untouched\n\n\
         a NodePort has this number, but NodePorts are not served at this loopback address: lb-agent \
         serves them there with --localhost-nodeports, and if --nodeport-addresses names it; the \
         addresses that `lbctl get addresses` calls own-node are served:\n  \
         own-node-ipv4:30080/tcp shop/cart\n"
    );
    // A socket that is bound to an address of the node is the host's.
    let (answer, out) = explain_in(&memory, "127.0.0.1:30080 --from 192.0.2.1");
    assert_eq!(answer, Answer::Yes, "{out}");
    assert!(out.contains("\nit is NodePort 30080 on this node, at an address that only processes of the host's network namespace have\nconnect() goes to its only backend"), "{out}");
    // Others are not.
    for who in ["--from 10.9.9.9", "--netns 78"] {
        let (answer, out) = explain_in(&memory, &format!("127.0.0.1:30080 {who}"));
        assert_eq!(answer, Answer::No, "{out}");
        assert!(out.starts_with("127.0.0.1:30080/tcp is no Service's: connect()"), "{out}");
        assert!(
            out.contains("\n\na NodePort has this number, but at this address only for processes of the host's network namespace"),
            "{out}"
        );
        assert!(out.ends_with(":\n  own-node-ipv4:30080/tcp shop/cart\n"), "{out}");
    }
    // The backend is at this node.
    let known = lb_core::op::AddressUse { flags: Address::OWN_NODE, netns: 0 };
    memory.apply(&Op::PutAddress { addr: sample::peer("10.0.1.1:80").addr, known }).unwrap();
    let (answer, out) = explain_in(&memory, "127.0.0.1:30080 --from 127.0.0.1");
    assert_eq!(answer, Answer::Yes, "{out}");
}

#[test]
fn damage_is_found_by_the_lookup() {
    let mut memory = sample::memory();
    let key = ServiceKey { peer: sample::peer("10.96.0.9:5432"), protocol: 6, scope: 0 };
    let service = Service { block: 60, count: u32::MAX, kept: 0, generation: 1, id: 77 };
    memory.apply(&Op::PutService { key, service }).unwrap();
    let (answer, out) = explain_in(&memory, "10.96.0.9:5432");
    assert_eq!(answer, Answer::No);
    assert!(out.starts_with("10.96.0.9:5432/tcp is <unknown> (id 77, block 60,"), "{out}");
    assert!(
        out.contains("the records in the maps are not those of the Service, or say what these"),
        "{out}"
    );
    assert_eq!(out.lines().count(), 3 + 1 + 64, "no more than there are records");
}

fn explain_rich(words: &str) -> (Answer, String) {
    explain_in(&sample::rich(), words)
}

#[test]
fn node_ports_and_traffic_policies() {
    let (answer, out) = explain_rich("192.0.2.1:30080");
    assert_eq!(
        out,
        "\
192.0.2.1:30080/tcp is shop/cart (id 5, block 4, generation 104)
it is NodePort 30080 on this node
connect() goes to its only backend:

BACKEND        INDEX   PROBABILITY
10.0.1.1:80    4       100.0%
"
        .replace("10.0.1.1:80    4", "10.0.1.1:80   4")
        .replace("BACKEND        INDEX", "BACKEND       INDEX")
    );
    assert_eq!(answer, Answer::Yes);
    let (_, out) = explain_rich("192.0.2.9:30080");
    assert!(
        out.contains("it is NodePort 30080 on another node, by that node's own endpoints\n"),
        "{out}"
    );
    let (_, out) = explain_rich("127.0.0.1:30080");
    assert!(out.contains("only processes of the host's network namespace"), "{out}");
    let (_, out) = explain_rich("127.0.0.1:30080 --netns 77");
    assert!(out.contains("only backend"), "{out}");
    let (_, out) = explain_rich("127.0.0.1:30080 --netns 78");
    assert!(out.contains("is no Service's"), "{out}");

    let mut memory = sample::rich();
    let addr = sample::peer("192.0.2.8:0").addr;
    let known = lb_core::op::AddressUse { flags: Address::OTHER_NODE, netns: 0 };
    memory.apply(&Op::PutAddress { addr, known }).unwrap();
    let (answer, out) = explain_in(&memory, "192.0.2.8:30080");
    assert!(
        out.contains("it is NodePort 30080 on another node\nthe Service has endpoints, but"),
        "{out}"
    );
    assert!(out.ends_with("EHOSTUNREACH\n"), "{out}");
    assert_eq!(answer, Answer::No);
}

#[test]
fn a_port_that_the_cluster_ip_lacks() {
    let (answer, out) = explain_rich("10.96.0.21:81");
    assert_eq!(
        out,
        "10.96.0.21:81/tcp: the cluster IP does not have this port: connect() fails with \
         ECONNREFUSED\n\nthe address is a Service's on other ports:\n  \
         10.96.0.21:80/tcp shop/cart\n"
    );
    assert_eq!(answer, Answer::No);
}

#[test]
fn source_ranges_for_anybody_and_for_one() {
    let (answer, out) = explain_rich("10.96.0.21:80");
    assert!(out.contains("only clients in 10.0.0.0/8, 2001:db8::/32 may connect, others"));
    assert_eq!(answer, Answer::Yes);
    for (who, answer, word) in [
        ("--from 10.9.9.9", Answer::Yes, "only backend"),
        ("--from 11.0.0.1", Answer::No, "source ranges: connect() fails with EACCES\n"),
        (
            "--netns 4",
            Answer::No,
            "the client's address is not known: connect() fails with EACCES, until lb-agent",
        ),
    ] {
        let explained = explain_rich(&format!("10.96.0.21:80 {who}"));
        assert!(explained.0 == answer && explained.1.contains(word), "{who}: {explained:?}");
    }
    let value: Value =
        serde_json::from_str(&explain_rich("10.96.0.21:80 --from 11.0.0.1 -o json").1).unwrap();
    assert_eq!((&value["verdict"], &value["candidates"]), (&json!("denied"), &json!([])));
    assert_eq!(
        value["client"],
        json!({ "netns": null, "address": "11.0.0.1", "byRouting": false, "withPort": true })
    );
    assert_eq!(value["service"]["sourceRanges"], json!(["10.0.0.0/8", "2001:db8::/32"]));
}

/// The maps, in which a client is bound.
struct Sticky(Memory, Bond);

impl ReadMaps for Sticky {
    fn port(&self, id: u32) -> Option<PortOptions> {
        self.0.port(id)
    }
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        ReadMaps::service(&self.0, key)
    }
    fn backend(&self, index: u32) -> Option<Backend> {
        self.0.backend(index)
    }
    fn address(&self, addr: &lb_common::Addr) -> Option<Address> {
        self.0.address(addr)
    }
    fn client(&self, key: &abi::ClientKey) -> Option<abi::SourceAddress> {
        self.0.client(key)
    }
    fn allows(&self, client: &abi::SourceRangeKey) -> bool {
        self.0.allows(client)
    }
    fn bond(&self, key: &AffinityKey) -> Bond {
        assert_eq!((key.service, key.family), (0, 4));
        if key.netns == 4711 { self.1 } else { Bond::NONE }
    }
}

#[test]
fn a_client_stays_where_it_is_bound_for_as_long_as_that_lasts() {
    let mut memory = sample::memory();
    let records = ["10.0.0.10:8080", "10.0.0.9:8080"]
        .map(|addr| Backend { flags: Backend::OPTIONS, ..Backend::forward(sample::peer(addr)) })
        .map(|record| record.stamped(102, 0));
    let mut sorted = records.to_vec();
    sorted.sort_by_key(|record| record.peer.order());
    memory.apply(&Op::WriteBlock { block: 2, records: sorted }).unwrap();
    memory.apply(&Op::PutPort { id: 0, options: PortOptions::with_affinity(30) }).unwrap();
    let explain = |used: u64, backend: &str, who: &str| {
        let bond = Bond { used, backend: sample::peer(backend), reserved: [0; 6] };
        let words = format!("lbctl explain 10.96.0.10:80{who}");
        let Command::Explain(explain) = Cli::parse_from(words.split(' ')).command else {
            unreachable!()
        };
        let mut out = Vec::new();
        let who = Who { netns: explain.netns.map_or(0, NonZeroU64::get), address: None };
        let (maps, now) = (Sticky(memory.clone(), bond), 100_000_000_000);
        answer((&explain, who), Ok(None), now, &maps, &memory.snapshot(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let stays = "a client stays for 30 s with the backend it got";
    let anybody = explain(90_000_000_000, "10.0.0.10:8080", "");
    assert!(anybody.contains("one of 2 backends") && anybody.contains(&format!("{stays}\n")));
    for backend in ["10.0.0.10:8080", "10.0.0.9:8080"] {
        let out = explain(90_000_000_000, backend, " --netns 4711");
        let there = format!("{stays}; this one with {backend}, which it used 10 s ago\n");
        assert!(out.contains(&there) && out.contains("100.0%"), "{out}");
    }
    let over = explain(60_000_000_000, "10.0.0.10:8080", " --netns 4711");
    assert!(over.contains(&format!("{stays}; this one is free\n")), "{over}");
    let gone = explain(90_000_000_000, "10.0.0.7:8080", " --netns 4711");
    assert!(gone.contains("one of 2 backends"), "{gone}");
    assert!(explain(90_000_000_000, "10.0.0.9:8080", " --netns 5").contains("is free"));
}
