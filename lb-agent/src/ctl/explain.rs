//! `lbctl explain`: the datapath's own lookup, asked for every outcome it can have.

mod lookup;

use std::{
    borrow::Cow,
    io::{self, Write},
};

use lb_common::{
    Flow, Tables, Verdict,
    abi::{Peer, Service},
};
use serde::Serialize;

use self::lookup::{Candidate, Outcome, outcome};
use super::{
    cli::{Explain, Output},
    failure::{Answer, Failure},
    json,
    table::Table,
};
use crate::{
    dump::{self, API_VERSION, Entry},
    maps::KeyText,
    maps::Snapshot,
};

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
            _ => None,
        };
        Self { address, index: candidate.index, probability: candidate.probability }
    }
}

impl<'a> Hit<'a> {
    fn new(service: &Service, snapshot: &'a Snapshot) -> Self {
        let Service { block, count, kept: _, generation, id } = *service;
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
            entry.forwarding().any(|(_, record, _)| record.peer == *peer).then_some("backend")
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
    use lb_common::abi::ServiceKey;
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
        let service = Service { block: 60, count: u32::MAX, kept: 0, generation: 1, id: 77 };
        memory.apply(&Op::PutService { key, service }).unwrap();
        let (answer, out) = explain_in(&memory, "10.96.0.9:5432");
        assert_eq!(answer, Answer::No);
        assert!(out.starts_with("10.96.0.9:5432/tcp is <unknown> (id 77, block 60,"), "{out}");
        assert!(out.contains("its records are not its own"), "{out}");
        assert_eq!(out.lines().count(), 3 + 1 + 64, "no more than there are records");
    }
}
