//! `lbctl explain`: the datapath's own lookup, asked for all that it can say.

mod lookup;
mod text;

use std::{
    borrow::Cow,
    io::{self, Write},
    net::IpAddr,
};

use lb_common::{
    Flow, ReadMaps, Refusal, Verdict,
    abi::{self, Backend, Peer},
};
use lb_core::{
    dump::{self, API_VERSION, Entry},
    store::Snapshot,
};
use serde::{Serialize, Serializer};

use self::lookup::{Lookup, Pick, Who, look_up, meant, peer_of};
use super::{
    cli::{Explain, Form},
    failure::{self, Answer, Failure},
    json,
    packets::{self, ExplainedPacket},
};
use crate::{
    maps::{self, Pinned},
    pins::Pins,
    sockets,
};

pub(super) fn run(
    explain: &Explain,
    pins: &Pins,
    maps: &Pinned,
    snapshot: &Snapshot,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    let packet = packets::read(pins).map(|seen| {
        let Flow { peer, protocol } = explain.destination.0;
        let from = explain.from.map(|ip| ip.to_canonical());
        ExplainedPacket::new(&seen?, peer.into(), protocol, from)
    });
    answer((explain, who(explain, maps)?), packet, maps::now(), maps, snapshot, out)
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
    (explain, who): (&Explain, Who),
    packet: Result<Option<ExplainedPacket>, String>,
    now: u64,
    maps: &impl ReadMaps,
    snapshot: &Snapshot,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    let flow = explain.destination.0;
    let found = look_up(maps, &flow, who, now, snapshot.max_backends);
    let explanation = Explanation::new(flow, who, now, &found, snapshot);
    let packets_unread = packet.as_ref().err().cloned();
    let packet = packet.ok().flatten();
    let explanation = Explanation { packet, packets_unread, ..explanation };
    match explain.output {
        Some(Form::Json) => json(out, &explanation)?,
        None => explanation.write(out)?,
    }
    Ok(if explanation.verdict == ExplainedVerdict::Forward { Answer::Yes } else { Answer::No })
}

/// What becomes of a connection, whichever backend it gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ExplainedVerdict {
    /// It goes where it was meant to go: no Service.
    Miss,
    /// It goes to a backend.
    Forward,
    /// It fails.
    Fail(Refusal),
}

impl Serialize for ExplainedVerdict {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            Self::Miss => "miss",
            Self::Forward => "forward",
            Self::Fail(refusal) => refusal.name(),
        })
    }
}

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
    /// `miss`, `forward` or [`Refusal::name`].
    verdict: ExplainedVerdict,
    /// UDP: a datagram with an address is refused, while connect() leaves the destination alone.
    connect_untouched: bool,
    /// The entry that was hit; null on a miss.
    service: Option<ExplainedService<'a>>,
    /// What a connection may get; empty unless the verdict is `forward` or `damaged`.
    candidates: Vec<ExplainedBackend>,
    /// On a miss: why a NodePort of this number is not the answer; null if there is none.
    node_port: Option<NodePort>,
    /// On a miss, and if the port is unknown: what else there is at this address.
    nearby: Vec<Nearby<'a>>,
    /// The client that was asked about; null: any that may connect.
    client: Option<ExplainedClient>,
    /// Where the client stays; null if nowhere, or if no client was asked about.
    bound: Option<ExplainedBond>,
    /// What a packet from elsewhere gets, with `--packets`; missing if that is nobody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<ExplainedPacket>,
    /// Why that cannot be said; missing if it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    packets_unread: Option<String>,
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
struct ExplainedService<'a> {
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
struct ExplainedClient {
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
struct ExplainedBond {
    address: String,
    /// Since its last connection.
    age_seconds: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainedBackend {
    /// Null if the record is none of the entry's.
    address: Option<String>,
    /// The endpoint's, as this service port's; null if the record is none of the entry's.
    backend_id: Option<u32>,
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
    fn new(flow: Flow, who: Who, now: u64, found: &Lookup, snapshot: &'a Snapshot) -> Self {
        let mut explanation = Self {
            api_version: API_VERSION,
            kind: "Explanation",
            destination: flow.peer.to_string(),
            protocol: dump::protocol(flow.protocol),
            meant: meant(&flow, who).map(|peer| peer.to_string()),
            verdict: ExplainedVerdict::Miss,
            connect_untouched: false,
            service: None,
            candidates: Vec::new(),
            node_port: None,
            nearby: Vec::new(),
            client: (who != Who::default()).then(|| ExplainedClient {
                netns: (who.netns != 0).then_some(who.netns),
                address: who.address,
                by_routing: false,
                with_port: false,
            }),
            bound: None,
            packet: None,
            packets_unread: None,
        };
        match found {
            Lookup::Miss => {
                let flow = meant(&flow, who).map_or(flow, |peer| Flow { peer, ..flow });
                explanation.nearby = nearby(&flow.peer, snapshot);
                let near = node_ports(&flow, snapshot);
                explanation.node_port = (!near.is_empty()).then(|| no_node_port(&flow, snapshot));
                explanation.nearby.extend(near);
            }
            Lookup::Fail(refusal) => {
                explanation.verdict = ExplainedVerdict::Fail(*refusal);
                explanation.connect_untouched = refusal.lets_connect(flow.protocol);
                if *refusal == Refusal::UnknownPort {
                    explanation.nearby = nearby(&flow.peer, snapshot);
                }
            }
            Lookup::Hit(hit) => {
                explanation.verdict = verdict(&hit.picks);
                let lets_connect = |pick: &Pick| matches!(pick.verdict, Verdict::Fail(why) if why.lets_connect(flow.protocol));
                explanation.connect_untouched = hit.picks.iter().all(lets_connect);
                let is_bound = |pick: &&Pick| {
                    hit.bound.is_some_and(|bond| peer_of(pick.verdict) == Some(bond.backend))
                };
                let backends = hit.picks.iter().map(ExplainedBackend::from);
                explanation.candidates = match hit.picks.iter().find(is_bound) {
                    Some(pick) => {
                        vec![ExplainedBackend { probability: 1.0, ..pick.into() }]
                    }
                    None if explanation.has_candidates() => backends.collect(),
                    None => Vec::new(),
                };
                if let (Some(client), Some(from)) = (&mut explanation.client, hit.from) {
                    client.by_routing = client.address.is_none();
                    client.address = Some(from.addr.ip());
                    client.with_port = from.flags & abi::SourceAddress::SURE != 0;
                }
                explanation.bound = hit.bound.map(|bond| ExplainedBond {
                    address: bond.backend.to_string(),
                    age_seconds: now.saturating_sub(bond.used) / 1_000_000_000,
                });
                explanation.service = Some(ExplainedService::new(hit, snapshot));
            }
        }
        explanation
    }

    /// Whether there is more to tell of the candidates than that none is reached.
    fn has_candidates(&self) -> bool {
        matches!(
            self.verdict,
            ExplainedVerdict::Forward | ExplainedVerdict::Fail(Refusal::Unstable)
        )
    }
}

/// What a connection may expect, if not every pick leads to the same.
fn verdict(picks: &[Pick]) -> ExplainedVerdict {
    use Refusal::{Confined, Denied, NoEndpoints, UnknownClient, Unreachable, Unstable};

    let has = |refusal: &Refusal| picks.iter().any(|pick| pick.verdict == Verdict::Fail(*refusal));
    let forwards = |pick: &Pick| matches!(pick.verdict, Verdict::Forward(_));
    if !has(&Confined) && picks.iter().any(forwards) {
        return ExplainedVerdict::Forward;
    }
    let order = [Confined, Unstable, Denied, UnknownClient, Unreachable];
    ExplainedVerdict::Fail(order.into_iter().find(has).unwrap_or(NoEndpoints))
}

impl From<&Pick> for ExplainedBackend {
    fn from(pick: &Pick) -> Self {
        let Pick { index, backend, verdict, probability } = *pick;
        let peer = peer_of(verdict);
        let (address, backend_id) = (peer.map(|peer| peer.to_string()), peer.and(backend));
        Self { address, backend_id, index, probability }
    }
}

impl<'a> ExplainedService<'a> {
    fn new(hit: &lookup::Hit, snapshot: &'a Snapshot) -> Self {
        let (key, service) = (&hit.key, &hit.service);
        let [namespace, name, port] = dump::names(snapshot.names.get(&service.id));
        let asks = hit.record.filter(|record| record.flags & Backend::SOURCE_RANGES != 0);
        let ranges = || dump::source_ranges(snapshot, service.id);
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
            affinity_seconds: entry.map_or(0, Entry::affinity),
            source_ranges: asks.map(|_| ranges().iter().map(ToString::to_string).collect()),
            kept: kept.unwrap_or_default().iter().map(ToString::to_string).collect(),
        }
    }
}

/// As [`PortRef`](lb_core::model::PortRef) prints itself.
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
mod tests;
