//! `lbctl explain`: the datapath's own lookup, asked for every outcome it can have.

mod lookup;
mod text;

use std::{
    borrow::Cow,
    io::{self, Write},
    net::IpAddr,
};

use lb_common::{
    Flow, Tables, Verdict,
    abi::{self, Backend, Peer},
};
use serde::Serialize;

use self::lookup::{Candidate, Outcome, Who, meant, outcome, peer_of};
use super::{
    cli::{Explain, Output},
    failure::{self, Answer, Failure},
    json,
};
use crate::{
    dump::{self, API_VERSION, Entry},
    maps::{self, Pinned, Snapshot},
    sockets,
};

pub(super) fn run(
    explain: &Explain,
    maps: &Pinned,
    snapshot: &Snapshot,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    answer(explain, who(explain, maps)?, maps::now(), maps, snapshot, out)
}

/// The client that is asked about.
fn who(explain: &Explain, maps: &Pinned) -> Result<Who, Failure> {
    if let Some(pid) = explain.pid {
        let netns = sockets::cookie_of_process(pid).map_err(|error| no_netns(pid, &error))?;
        return Ok(Who { netns, address: None });
    }
    if let Some(netns) = explain.netns {
        return Ok(Who { netns: netns.get(), address: None });
    }
    let Some(address) = explain.from.map(|ip| ip.to_canonical()) else { return Ok(Who::default()) };
    // Its affinity is its network namespace's.
    let clients = maps.clients().map_err(|error| failure::map("clients", &error))?;
    let found = clients.into_iter().find(|(_, client)| client.addr.ip() == address);
    Ok(Who { netns: found.map_or(0, |(key, _)| key.netns), address: Some(address) })
}

/// Why the network namespace of a process cannot be entered.
fn no_netns(pid: u32, error: &io::Error) -> Failure {
    let what = format!("--pid {pid}: cannot enter its network namespace");
    match error.kind() {
        io::ErrorKind::NotFound => {
            let text =
                "there is no such process: give the number that it has where lbctl runs (`ps -e`)";
            Failure::Usage(format!("--pid {pid}: {text}"))
        }
        io::ErrorKind::PermissionDenied => Failure::Permission(format!(
            "{what}: {error}: run as root (`sudo lbctl ...`), or give lbctl CAP_SYS_ADMIN and \
             CAP_SYS_PTRACE; --netns COOKIE needs neither (`lbctl get affinity` shows cookies)"
        )),
        _ => failure::kernel(&what, error),
    }
}

fn answer(
    explain: &Explain,
    who: Who,
    now: u64,
    tables: &impl Tables,
    snapshot: &Snapshot,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    let flow = explain.destination.0;
    let outcome = outcome(tables, &flow, who, now, snapshot.max_backends);
    let explanation = Explanation::new(flow, who, now, &outcome, snapshot);
    match explain.output {
        Some(Output::Json) => json(out, &explanation)?,
        None => explanation.write(out)?,
    }
    Ok(if explanation.verdict == FORWARD { Answer::Yes } else { Answer::No })
}

/// The connection goes to a backend.
const FORWARD: &str = "forward";
/// It fails with ECONNREFUSED: no endpoints.
const REFUSE: &str = "refuse";
/// It fails with EHOSTUNREACH: there are endpoints, but none for clients here.
const UNREACHABLE: &str = "unreachable";
/// It fails with EACCES: the client's address is in no source range.
const DENIED: &str = "denied";
/// It fails with EACCES: there are source ranges, and nobody knows the client's address.
const UNKNOWN_CLIENT: &str = "unknownClient";
/// It fails with ECONNREFUSED: the cluster IP has no such port.
const UNKNOWN_PORT: &str = "unknownPort";
/// It fails with ECONNREFUSED: the address is one that the agent's probes try.
const RESERVED: &str = "reserved";
/// It fails with ECONNREFUSED: the client comes from a loopback address, and a backend is elsewhere.
const CONFINED: &str = "confined";
/// It goes where it was meant to go: no Service.
const MISS: &str = "miss";
/// It fails with ECONNREFUSED: the entry and its records do not belong together.
const DAMAGED: &str = "damaged";

/// `kind: Explanation`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation<'a> {
    api_version: &'static str,
    kind: &'static str,
    destination: String,
    protocol: Cow<'static, str>,
    /// What Linux takes the destination for, if that is another one: the unspecified address is a
    /// loopback one.
    meant: Option<String>,
    /// One of the constants above.
    verdict: &'static str,
    /// UDP: a datagram with an address is refused, while connect() leaves the destination alone.
    connect_untouched: bool,
    /// The entry that was hit; null on a miss.
    service: Option<Hit<'a>>,
    /// What a connection may get; empty unless the verdict is `forward` or `damaged`.
    candidates: Vec<Choice>,
    /// On a miss: why a NodePort of this number is not the answer; null if there is none.
    node_port: Option<NodePort>,
    /// On a miss, and if the port is unknown: what else there is at this address.
    nearby: Vec<Nearby<'a>>,
    /// The client that was asked about; null: any that may connect.
    client: Option<Client>,
    /// Where the client stays; null if nowhere, or if no client was asked about.
    bound: Option<Bound>,
}

/// Why a NodePort is not served at the address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
enum NodePort {
    /// It is, for sockets of the host's network namespace only, and the client is not known to be there.
    HostOnly,
    /// It is a loopback address, and the agent serves none at these.
    NotAtLoopback,
    /// It is no node's, as far as the maps know.
    NoNode,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hit<'a> {
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    id: u32,
    block: u32,
    /// Number of the backends; 0 if connections fail.
    count: usize,
    generation: u32,
    /// The entry: an address, or a NodePort.
    frontend: String,
    #[serde(skip)]
    port_number: u16,
    /// See [`dump::scope`].
    scope: &'static str,
    /// Only sockets of the host's network namespace find it.
    host_only: bool,
    affinity_seconds: u32,
    /// The clients that may connect; null: any.
    source_ranges: Option<Vec<String>>,
    /// Backends with which flows of UDP that are there already may stay.
    kept: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    /// Cookie of its network namespace; null if not known.
    netns: Option<u64>,
    /// By which it is judged, if there are source ranges. Null if not known.
    address: Option<IpAddr>,
    /// Whether it is the one that routing in the network namespace gives a socket that has none.
    by_routing: bool,
    /// Whether that goes for a socket that has a port already, too.
    with_port: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound {
    address: String,
    /// Since its last connection.
    age_seconds: u64,
}

#[derive(Debug, Serialize)]
struct Choice {
    /// Null if the record is none of the entry's.
    address: Option<String>,
    index: u32,
    probability: f64,
}

#[derive(Debug, Serialize)]
struct Nearby<'a> {
    /// `frontend`: the address is a Service's, at another port or protocol. `backend`: address and
    /// port are a backend of the frontend. `nodePort`: a NodePort of this number is at other addresses.
    relation: &'static str,
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    frontend: String,
}

impl<'a> Explanation<'a> {
    fn new(flow: Flow, who: Who, now: u64, outcome: &Outcome, snapshot: &'a Snapshot) -> Self {
        let mut explanation = Self {
            api_version: API_VERSION,
            kind: "Explanation",
            destination: flow.peer.to_string(),
            protocol: dump::protocol(flow.protocol),
            meant: meant(&flow, who).map(|peer| peer.to_string()),
            verdict: MISS,
            connect_untouched: false,
            service: None,
            candidates: Vec::new(),
            node_port: None,
            nearby: Vec::new(),
            client: (who != Who::default()).then(|| Client {
                netns: (who.netns != 0).then_some(who.netns),
                address: who.address,
                by_routing: false,
                with_port: false,
            }),
            bound: None,
        };
        match outcome {
            Outcome::Miss => {
                let flow = meant(&flow, who).map_or(flow, |peer| Flow { peer, ..flow });
                explanation.nearby = nearby(&flow.peer, snapshot);
                let near = node_ports(&flow, snapshot);
                explanation.node_port = (!near.is_empty()).then(|| no_node_port(&flow, snapshot));
                explanation.nearby.extend(near);
            }
            Outcome::UnknownPort => {
                explanation.verdict = UNKNOWN_PORT;
                explanation.connect_untouched = Verdict::UnknownPort.lets_connect(flow.protocol);
                explanation.nearby = nearby(&flow.peer, snapshot);
            }
            Outcome::Reserved => explanation.verdict = RESERVED,
            Outcome::Hit(hit) => {
                explanation.verdict = verdict(&hit.candidates);
                explanation.connect_untouched =
                    hit.candidates.iter().all(|c| c.verdict.lets_connect(flow.protocol));
                let is_bound = |candidate: &&Candidate| {
                    hit.bound.is_some_and(|bond| peer_of(candidate.verdict) == Some(bond.backend))
                };
                let choices = hit.candidates.iter().map(Choice::from);
                explanation.candidates = match hit.candidates.iter().find(is_bound) {
                    Some(candidate) => vec![Choice { probability: 1.0, ..candidate.into() }],
                    None if matches!(explanation.verdict, FORWARD | DAMAGED) => choices.collect(),
                    None => Vec::new(),
                };
                if let (Some(client), Some(from)) = (&mut explanation.client, hit.from) {
                    client.by_routing = client.address.is_none();
                    client.address = Some(from.addr.ip());
                    client.with_port = from.flags & abi::Client::SURE != 0;
                }
                explanation.bound = hit.bound.map(|bond| Bound {
                    address: bond.backend.to_string(),
                    age_seconds: now.saturating_sub(bond.used) / 1_000_000_000,
                });
                explanation.service = Some(Hit::new(hit, snapshot));
            }
        }
        explanation
    }
}

fn verdict(candidates: &[Candidate]) -> &'static str {
    let any = |wanted: fn(&Verdict) -> bool| candidates.iter().any(|c| wanted(&c.verdict));
    if any(|verdict| *verdict == Verdict::Confined) {
        CONFINED
    } else if any(|verdict| matches!(verdict, Verdict::Forward(_))) {
        FORWARD
    } else if any(|verdict| *verdict == Verdict::Unstable) {
        DAMAGED
    } else if any(|verdict| matches!(verdict, Verdict::Denied(_))) {
        DENIED
    } else if any(|verdict| matches!(verdict, Verdict::UnknownClient(_))) {
        UNKNOWN_CLIENT
    } else if any(|verdict| matches!(verdict, Verdict::Unreachable(_))) {
        UNREACHABLE
    } else {
        REFUSE
    }
}

impl From<&Candidate> for Choice {
    fn from(candidate: &Candidate) -> Self {
        let address = peer_of(candidate.verdict).map(|peer| peer.to_string());
        Self { address, index: candidate.index, probability: candidate.probability }
    }
}

impl<'a> Hit<'a> {
    fn new(hit: &lookup::Hit, snapshot: &'a Snapshot) -> Self {
        let (key, service) = (&hit.key, &hit.service);
        let [namespace, name, port] = dump::names(snapshot.names.get(&service.id));
        let asks = hit.record.filter(|record| record.flags & Backend::SOURCES != 0);
        let ranges = || dump::sources(snapshot, service.id);
        let entries = dump::entries(snapshot);
        let entry = entries.iter().find(|entry| entry.key == key);
        let kept = entry.map(Entry::kept);
        Self {
            namespace,
            name,
            port,
            id: service.id,
            block: service.block,
            count: entry.map_or(0, |entry| entry.backends().len()),
            generation: service.generation,
            frontend: dump::frontend_text(key),
            port_number: key.peer.port.number(),
            scope: dump::scope(key),
            host_only: hit.host_only,
            affinity_seconds: hit.record.map_or(0, |record| record.affinity),
            source_ranges: asks.map(|_| ranges().iter().map(ToString::to_string).collect()),
            kept: kept.unwrap_or_default().iter().map(ToString::to_string).collect(),
        }
    }
}

/// As [`PortRef`](crate::model::PortRef) prints itself.
fn full_name([namespace, name, port]: [&str; 3]) -> String {
    match (name, port) {
        ("", _) => "<unknown>".to_owned(),
        (_, "") => format!("{namespace}/{name}"),
        _ => format!("{namespace}/{name}:{port}"),
    }
}

fn nearby<'a>(peer: &Peer, snapshot: &'a Snapshot) -> Vec<Nearby<'a>> {
    let relation = |entry: &Entry<'_>| {
        if entry.key.peer.addr == peer.addr {
            Some("frontend")
        } else {
            entry.forwarding().any(|(_, record, _)| record.peer == *peer).then_some("backend")
        }
    };
    let entries = dump::entries(snapshot).into_iter();
    entries
        .filter_map(|entry| {
            let [namespace, name, port] = entry.names();
            let frontend = dump::frontend_text(entry.key);
            Some(Nearby { relation: relation(&entry)?, namespace, name, port, frontend })
        })
        .collect()
}

/// The NodePorts of the destination's number on this node, in any family.
fn node_ports<'a>(flow: &Flow, snapshot: &'a Snapshot) -> Vec<Nearby<'a>> {
    let entries = dump::entries(snapshot).into_iter();
    entries
        .filter(|entry| {
            entry.key.scope == abi::SCOPE_OWN_NODE
                && entry.key.protocol == flow.protocol
                && entry.key.peer.port == flow.peer.port
        })
        .map(|entry| {
            let [namespace, name, port] = entry.names();
            let frontend = dump::frontend_text(entry.key);
            Nearby { relation: "nodePort", namespace, name, port, frontend }
        })
        .collect()
}

fn no_node_port(flow: &Flow, snapshot: &Snapshot) -> NodePort {
    let addr = flow.peer.addr;
    let known = snapshot.addresses.get(&addr).or_else(|| {
        let net = snapshot.addresses.get(&abi::LOOPBACK_NET);
        net.filter(|_| addr.is_v4() && addr.is_loopback())
    });
    match known {
        Some(known) if known.netns != 0 => NodePort::HostOnly,
        _ if addr.is_loopback() => NodePort::NotAtLoopback,
        _ => NodePort::NoNode,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use clap::Parser as _;
    use lb_common::abi::{Address, AffinityKey, Bond, Service, ServiceKey};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        ctl::{Cli, Command},
        dump::sample,
        maps::Op,
        maps::{Memory, Store as _},
    };

    fn explain_in(memory: &Memory, words: &str) -> (Answer, String) {
        let Command::Explain(explain) =
            Cli::parse_from(format!("lbctl explain {words}").split(' ')).command
        else {
            unreachable!()
        };
        let mut out = Vec::new();
        let who = Who { netns: explain.netns.map_or(0, NonZeroU64::get), address: explain.from };
        let now = 30_000_000_000;
        let answer = answer(&explain, who, now, memory, &memory.snapshot(), &mut out).unwrap();
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
        assert_eq!(
            explain("[::ffff:10.96.0.10]:80/tcp").1,
            out,
            "one address, two ways to write it"
        );
        assert!(explain("[fd00::a]:80").1.contains("its only backend:\n\nBACKEND"));
    }

    #[test]
    fn no_endpoints() {
        let (answer, out) = explain("10.96.0.2:53/udp");
        assert_eq!(
            out,
            "10.96.0.2:53/udp is kube-system/kube-dns:dns (id 3, block 9, generation 109)\n\
             it has no endpoints: sendto() fails with ECONNREFUSED, connect() goes there untouched\n"
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
                "candidates": [{ "address": "10.0.0.1:5432", "index": 6, "probability": 1.0 }],
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
        assert_eq!(
            (&value["meant"], &value["nodePort"]),
            (&json!("127.0.0.1:30081"), &Value::Null)
        );
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
        let known = maps::Known { flags: Address::OWN_NODE, netns: 77 };
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
            assert!(out.contains("connect() fails with ECONNREFUSED where the backend"), "{out}");
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
        let known = maps::Known { flags: Address::OWN_NODE, netns: 0 };
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
        assert!(out.contains("its records are not its own"), "{out}");
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
        let known = maps::Known { flags: Address::OTHER_NODE, netns: 0 };
        memory.apply(&Op::PutAddress { addr, known }).unwrap();
        let (answer, out) = explain_in(&memory, "192.0.2.8:30080");
        assert!(
            out.contains("it is NodePort 30080 on another node\nit has endpoints, but"),
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
            "10.96.0.21:81/tcp is a port that this cluster IP does not have: connect() fails with \
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
            ("--from 11.0.0.1", Answer::No, "this client is not one of them: EACCES"),
            ("--netns 4", Answer::No, "this client's address is not known"),
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

    impl Tables for Sticky {
        fn service(&self, key: &ServiceKey) -> Option<Service> {
            Tables::service(&self.0, key)
        }
        fn backend(&self, index: u32) -> Option<Backend> {
            self.0.backend(index)
        }
        fn address(&self, addr: &lb_common::Addr) -> Option<Address> {
            self.0.address(addr)
        }
        fn client(&self, key: &abi::ClientKey) -> Option<abi::Client> {
            self.0.client(key)
        }
        fn allows(&self, client: &abi::SourceKey) -> bool {
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
            .map(|addr| Backend { affinity: 30, ..Backend::forward(sample::peer(addr)) })
            .map(|record| record.stamped(102, 0));
        let mut sorted = records.to_vec();
        sorted.sort_by_key(|record| record.peer.order());
        memory.apply(&Op::WriteBlock { block: 2, records: sorted }).unwrap();
        let explain = |used: u64, backend: &str, who: &str| {
            let bond = Bond { used, backend: sample::peer(backend), reserved: [0; 6] };
            let words = format!("lbctl explain 10.96.0.10:80{who}");
            let Command::Explain(explain) = Cli::parse_from(words.split(' ')).command else {
                unreachable!()
            };
            let mut out = Vec::new();
            let who = Who { netns: explain.netns.map_or(0, NonZeroU64::get), address: None };
            let (tables, now) = (Sticky(memory.clone(), bond), 100_000_000_000);
            answer(&explain, who, now, &tables, &memory.snapshot(), &mut out).unwrap();
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
}
