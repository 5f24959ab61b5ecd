//! `lbctl explain`: the datapath's own lookup, asked for every outcome it can have.
//!
//! Nothing is computed here that `select` decides: the lookup runs over the live maps once for each
//! candidate, with random bits that lead to it, and what it read on the way is written down.

use std::{
    borrow::Cow,
    cell::Cell,
    io::{self, Write},
};

use lb_common::{
    ATTEMPTS, Flow, Tables, Verdict,
    abi::{Backend, Peer, Service, ServiceKey},
    select,
};
use serde::Serialize;

use super::{
    cli::{Explain, Output},
    failure::{Answer, Failure},
    json,
    table::Table,
};
use crate::{
    dump::{self, API_VERSION, Entry},
    maps::Snapshot,
    plan::KeyText,
};

/// All that a connection may get.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// No Service's address.
    Miss,
    /// The entry that was hit, and each record it may lead to.
    Hit(Service, Vec<Candidate>),
}

/// One record, and what the lookup says if it picks that one.
#[derive(Clone, Debug, PartialEq)]
struct Candidate {
    index: u32,
    verdict: Verdict,
    probability: f64,
}

/// Tables that remember what was read last.
struct Traced<'a, T> {
    tables: &'a T,
    service: Cell<Option<Service>>,
    index: Cell<u32>,
}

impl<T: Tables> Tables for Traced<'_, T> {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.service.set(self.tables.service(key));
        self.service.get()
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.index.set(index);
        self.tables.backend(index)
    }
}

/// At most `limit` candidates: a damaged entry may claim billions.
fn outcome(tables: &impl Tables, flow: &Flow, limit: u32) -> Outcome {
    let traced = Traced { tables, service: Cell::new(None), index: Cell::new(0) };
    let mut last = Outcome::Miss;
    // Again if the set was replaced between two candidates.
    for _ in 0..ATTEMPTS {
        let verdict = select(&traced, flow, 0);
        let Some(service) = traced.service.get().filter(|_| verdict != Verdict::Miss) else {
            return Outcome::Miss;
        };
        let count = service.count.max(1);
        let candidate = |i| {
            let (first, next) = (first_random(i, count), first_random(i + 1, count));
            let verdict = select(&traced, flow, u32::try_from(first).unwrap_or(u32::MAX));
            Candidate { index: traced.index.get(), verdict, probability: share(next - first) }
        };
        let candidates = (0..count.min(limit.max(1))).map(candidate).collect();
        last = Outcome::Hit(service, candidates);
        if traced.service.get() == Some(service) {
            break;
        }
    }
    last
}

/// The least number with which [`lb_common::pick`] picks `i` of `count`; 2^32 if `i` is `count`.
const fn first_random(i: u32, count: u32) -> u64 {
    ((i as u64) << 32).div_ceil(count as u64)
}

/// How likely one of so many 32-bit numbers is.
fn share(numbers: u64) -> f64 {
    const ALL: f64 = 4_294_967_296.0;
    #[expect(clippy::cast_precision_loss, reason = "at most 2^32, which an f64 holds exactly")]
    let numbers = numbers as f64;
    numbers / ALL
}

pub(super) fn run(
    explain: &Explain,
    tables: &impl Tables,
    snapshot: &Snapshot,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    let flow = explain.destination.0;
    let explanation =
        Explanation::new(flow, &outcome(tables, &flow, snapshot.max_backends), snapshot);
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
    /// `forward`, `refuse`, `miss` or `damaged`.
    verdict: &'static str,
    /// The entry that was hit; null on a miss.
    service: Option<Hit<'a>>,
    /// What a connection may get; empty unless the verdict is `forward` or `damaged`.
    candidates: Vec<Choice>,
    /// On a miss: what else there is at this address.
    nearby: Vec<Nearby<'a>>,
}

#[derive(Debug, Serialize)]
struct Hit<'a> {
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    id: u32,
    block: u32,
    count: u32,
    generation: u32,
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
    /// port are a backend of the frontend.
    relation: &'static str,
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    frontend: String,
}

impl<'a> Explanation<'a> {
    fn new(flow: Flow, outcome: &Outcome, snapshot: &'a Snapshot) -> Self {
        let (verdict, service, candidates, nearby) = match outcome {
            Outcome::Miss => (MISS, None, Vec::new(), nearby(&flow.peer, snapshot)),
            Outcome::Hit(service, candidates) => {
                let verdict = verdict(candidates);
                let choices = candidates.iter().map(Choice::from).collect();
                let shown = if verdict == REFUSE { Vec::new() } else { choices };
                (verdict, Some(Hit::new(service, snapshot)), shown, Vec::new())
            }
        };
        Self {
            api_version: API_VERSION,
            kind: "Explanation",
            destination: flow.peer.to_string(),
            protocol: dump::protocol(flow.protocol),
            verdict,
            service,
            candidates,
            nearby,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let asked = format!("{}/{}", self.destination, self.protocol.to_ascii_lowercase());
        let Some(hit) = &self.service else {
            writeln!(out, "{asked} is no Service's: connect() goes there untouched")?;
            return self.write_nearby(out);
        };
        writeln!(
            out,
            "{asked} is {} (id {}, block {}, generation {})",
            full_name([hit.namespace, hit.name, hit.port]),
            hit.id,
            hit.block,
            hit.generation
        )?;
        match (self.verdict, self.candidates.len()) {
            (REFUSE, _) => {
                return writeln!(out, "it has no endpoints: connect() fails with ECONNREFUSED");
            }
            (DAMAGED, _) => writeln!(
                out,
                "its records are not its own: connect() fails with ECONNREFUSED until lb-agent, at \
                 its next start, repairs the maps"
            )?,
            (_, 1) => writeln!(out, "connect() goes to its only backend:")?,
            (_, count) => writeln!(out, "connect() goes to one of {count} backends:")?,
        }
        writeln!(out)?;
        let mut table = Table::new(&["BACKEND", "INDEX", "PROBABILITY"]);
        for Choice { address, index, probability } in &self.candidates {
            let address = address.clone().unwrap_or_else(|| "<damaged>".to_owned());
            let probability = format!("{:.1}%", probability * 100.0);
            table.push(vec![address, index.to_string(), probability]);
        }
        table.write(out, true)
    }

    fn write_nearby(&self, out: &mut dyn Write) -> io::Result<()> {
        for (relation, title) in [
            ("frontend", "\nthe address is a Service's on other ports:"),
            ("backend", "\nit is a backend:"),
        ] {
            let mut titles = Some(title);
            for near in self.nearby.iter().filter(|near| near.relation == relation) {
                if let Some(title) = titles.take() {
                    writeln!(out, "{title}")?;
                }
                let name = full_name([near.namespace, near.name, near.port]);
                writeln!(out, "  {} {name}", near.frontend)?;
            }
        }
        Ok(())
    }
}

fn verdict(candidates: &[Candidate]) -> &'static str {
    let any = |wanted: fn(&Verdict) -> bool| candidates.iter().any(|c| wanted(&c.verdict));
    if any(|verdict| matches!(verdict, Verdict::Forward(_))) {
        FORWARD
    } else if any(|verdict| *verdict == Verdict::Unstable) {
        DAMAGED
    } else {
        REFUSE
    }
}

impl From<&Candidate> for Choice {
    fn from(candidate: &Candidate) -> Self {
        let address = match &candidate.verdict {
            Verdict::Forward(backend) => Some(backend.peer.to_string()),
            Verdict::Miss | Verdict::Refuse(_) | Verdict::Unstable => None,
        };
        Self { address, index: candidate.index, probability: candidate.probability }
    }
}

impl<'a> Hit<'a> {
    fn new(service: &Service, snapshot: &'a Snapshot) -> Self {
        let Service { block, count, generation, id } = *service;
        let [namespace, name, port] = dump::names(snapshot.names.get(&id));
        Self { namespace, name, port, id, block, count, generation }
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
            entry.forwarding().any(|(_, record)| record.peer == *peer).then_some("backend")
        }
    };
    let entries = dump::entries(snapshot).into_iter();
    entries
        .filter_map(|entry| {
            let [namespace, name, port] = entry.names();
            let frontend = KeyText(entry.key).to_string();
            Some(Nearby { relation: relation(&entry)?, namespace, name, port, frontend })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use lb_common::pick;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        ctl::{Cli, Command},
        dump::sample,
        maps::{Memory, Store as _},
        plan::Op,
    };

    fn explain_in(memory: &Memory, words: &str) -> (Answer, String) {
        let Command::Explain(explain) =
            Cli::parse_from(format!("lbctl explain {words}").split(' ')).command
        else {
            unreachable!()
        };
        let mut out = Vec::new();
        let answer = run(&explain, memory, &memory.snapshot(), &mut out).unwrap();
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
             it has no endpoints: connect() fails with ECONNREFUSED\n"
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
                },
                "candidates": [{ "address": "10.0.0.1:5432", "index": 6, "probability": 1.0 }],
                "nearby": [],
            })
        );
        assert_eq!(
            value("10.96.0.9:5433 -o json"),
            json!({
                "apiVersion": "socklb/v1", "kind": "Explanation",
                "destination": "10.96.0.9:5433", "protocol": "TCP", "verdict": "miss",
                "service": null, "candidates": [],
                "nearby": [{
                    "relation": "frontend", "namespace": "default", "name": "db", "port": "",
                    "frontend": "10.96.0.9:5432/tcp",
                }],
            })
        );
    }

    #[test]
    fn damage_is_found_by_the_lookup() {
        let mut memory = sample::memory();
        let key = ServiceKey { peer: sample::peer("10.96.0.9:5432"), protocol: 6, scope: 0 };
        let service = Service { block: 60, count: u32::MAX, generation: 1, id: 77 };
        memory.apply(&Op::PutService { key, service }).unwrap();
        let (answer, out) = explain_in(&memory, "10.96.0.9:5432");
        assert_eq!(answer, Answer::No);
        assert!(out.starts_with("10.96.0.9:5432/tcp is <unknown> (id 77, block 60,"), "{out}");
        assert!(out.contains("its records are not its own"), "{out}");
        assert_eq!(out.lines().count(), 3 + 1 + 64, "no more than there are records");
    }

    #[test]
    fn random_bits_lead_to_the_candidate_they_are_made_for() {
        for count in [1, 2, 3, 7, 10, 1000, 65_537] {
            let mut total = 0;
            for i in 0..count {
                let (first, next) = (first_random(i, count), first_random(i + 1, count));
                assert_eq!(pick(u32::try_from(first).unwrap(), count), i);
                assert_eq!(pick(u32::try_from(next - 1).unwrap(), count), i);
                total += next - first;
            }
            assert!((share(total) - 1.0).abs() < f64::EPSILON);
        }
    }

    /// Tables in which the set is replaced after a few readings.
    struct Moving(Memory, Memory, Cell<u32>);

    impl Moving {
        fn current(&self) -> &Memory {
            self.2.set(self.2.get() + 1);
            if self.2.get() < 3 { &self.0 } else { &self.1 }
        }
    }

    impl Tables for Moving {
        fn service(&self, key: &ServiceKey) -> Option<Service> {
            Tables::service(self.current(), key)
        }
        fn backend(&self, index: u32) -> Option<Backend> {
            self.1.backend(index)
        }
    }

    #[test]
    fn candidates_are_all_of_one_set() {
        let old = sample::memory();
        let mut new = old.clone();
        let web = (0, "default", "web", "http");
        sample::put(&mut new, web, &["10.96.0.10:80"], 30, &["10.0.0.3:80", "10.0.0.4:80"]);
        let flow = Flow { peer: sample::peer("10.96.0.10:80"), protocol: 6 };
        let Outcome::Hit(service, candidates) = outcome(&Moving(old, new, Cell::new(0)), &flow, 64)
        else {
            unreachable!()
        };
        assert_eq!(service.block, 30);
        assert_eq!(candidates.iter().map(|c| c.index).collect::<Vec<_>>(), [30, 31]);
    }
}
