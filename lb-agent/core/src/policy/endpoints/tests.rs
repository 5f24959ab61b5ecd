//! kube-proxy's `TestCategorizeEndpoints`, case by case under its names there.

use std::sync::Arc;

use super::*;
use crate::model::{Conditions, Hints};

const HERE: &str = "node-1";
const IGNORED: &str = "-";

/// `10.0.0.1 ready local zone=a zone=b node=x`; terminating ones are `draining` or `dead`.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let addr = words.next().unwrap().parse().unwrap();
    let conditions = Conditions { ready: false, serving: false, terminating: false };
    let mut endpoint = Endpoint::new(addr, conditions);
    let mut hints = Hints::default();
    for word in words {
        match word.split_once('=') {
            Some(("zone", zone)) => hints.zones.push(zone.into()),
            Some(("node", node)) => hints.nodes.push(node.into()),
            None if word == "local" => endpoint.node = Some(HERE.into()),
            None => {
                endpoint.conditions = match word {
                    "ready" => Conditions { ready: true, serving: true, terminating: false },
                    "unready" => conditions,
                    "draining" => Conditions { serving: true, terminating: true, ..conditions },
                    other => panic!("{other}"),
                }
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    endpoint.hints = (hints != Hints::default()).then(|| Arc::new(hints));
    endpoint
}

/// A case: its name; `itp`, `etp`, `np` as far as they hold, the node and zone; the endpoints; the
/// last octets wanted with the policies Cluster and Local, and of both together.
type Case<'a> = (&'a str, &'a str, &'a [&'a str], [&'a str; 3]);

fn check((name, facts, endpoints, wanted): &Case<'_>) {
    let all: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
    let mut candidate: Vec<Candidate<'_>> = all
        .iter()
        .map(|endpoint| Candidate { addr: SocketAddr::new(endpoint.addr, 80), endpoint })
        .collect();
    candidate.sort_by_key(|candidate| candidate.addr);
    let has = |fact: &str| facts.split_whitespace().any(|word| word == fact);
    let value = |key: &str| facts.split_whitespace().find_map(|word| word.strip_prefix(key));
    let policies = Policies {
        internal_local: has("itp"),
        external_local: has("etp"),
        externally_accessible: has("np"),
    };
    let here = Here { node: value("node=").unwrap_or(HERE), zone: value("zone=") };
    let found = categorize(&candidate, policies, here);
    let octets = |addrs: Option<&Vec<SocketAddr>>| {
        let last = |addr: &SocketAddr| addr.ip().to_string().rsplit('.').next().unwrap().to_owned();
        addrs.map_or(IGNORED.to_owned(), |all| all.iter().map(last).collect::<Vec<_>>().join(" "))
    };
    let mut both: Vec<_> = [&found.cluster, &found.local].into_iter().flatten().flatten().collect();
    both.sort();
    both.dedup();
    let both: Vec<SocketAddr> = both.into_iter().copied().collect();
    assert_eq!(
        [octets(found.cluster.as_ref()), octets(found.local.as_ref()), octets(Some(&both))],
        *wanted,
        "{name}"
    );
    let usable = all.iter().any(|e| {
        let c = e.conditions;
        c.ready || (c.serving && c.terminating)
    });
    assert_eq!(found.any, usable, "{name}");
}

const ABCA: &[&str] = &[
    "10.1.2.3 ready zone=a",
    "10.1.2.4 ready zone=b",
    "10.1.2.5 ready zone=c",
    "10.1.2.6 ready zone=a",
];
const TWO_LOCAL: &[&str] = &[
    "10.1.2.3 ready zone=a local",
    "10.1.2.4 ready zone=b local",
    "10.1.2.5 ready zone=c",
    "10.1.2.6 ready zone=a",
];
const NODES: &[&str] = &[
    "10.1.2.3 ready zone=a node=node-1",
    "10.1.2.4 ready zone=b node=node-2",
    "10.1.2.5 ready zone=c node=node-3",
    "10.1.2.6 ready zone=a node=node-4",
];
const ONE_LOCAL: &[&str] = &["10.0.0.0 ready local", "10.0.0.1 ready"];
const REMOTE: &[&str] = &["10.0.0.0 ready", "10.0.0.1 ready"];

/// D8, D9: which hints count.
#[test]
fn topology() {
    let cases: &[Case<'_>] = &[
        (
            "should use topology since all endpoints have hints, node has a zone label and and there \
          are endpoints for the node's zone",
            "zone=a",
            ABCA,
            ["3 6", IGNORED, "3 6"],
        ),
        (
            "externalTrafficPolicy: Local, topology ignored for Local endpoints",
            "etp np zone=a",
            TWO_LOCAL,
            ["3 6", "3 4", "3 4 6"],
        ),
        (
            "internalTrafficPolicy: Local, topology ignored for Local endpoints",
            "itp np zone=a",
            TWO_LOCAL,
            ["3 6", "3 4", "3 4 6"],
        ),
        // What Kubernetes has as "empty node labels" and "empty zone label" is one thing here.
        ("empty node labels", "", &["10.1.2.3 ready zone=a"], ["3", IGNORED, "3"]),
        (
            "node in different zone, no endpoint filtering",
            "zone=b",
            &["10.1.2.3 ready zone=a"],
            ["3", IGNORED, "3"],
        ),
        (
            "unready endpoint",
            "zone=a",
            &[
                "10.1.2.3 ready zone=a",
                "10.1.2.4 ready zone=b",
                "10.1.2.5 ready zone=c",
                "10.1.2.6 unready zone=a",
            ],
            ["3", IGNORED, "3"],
        ),
        (
            "only unready endpoints in same zone (should not filter)",
            "zone=a",
            &[
                "10.1.2.3 unready zone=a",
                "10.1.2.4 ready zone=b",
                "10.1.2.5 ready zone=c",
                "10.1.2.6 unready zone=a",
            ],
            ["4 5", IGNORED, "4 5"],
        ),
        (
            "missing hints, no filtering applied",
            "zone=a",
            &[
                "10.1.2.3 ready zone=a",
                "10.1.2.4 ready zone=b",
                "10.1.2.5 ready",
                "10.1.2.6 ready zone=a",
            ],
            ["3 4 5 6", IGNORED, "3 4 5 6"],
        ),
        (
            "multiple hints per endpoint, filtering includes any endpoint with zone included",
            "zone=c",
            &[
                "10.1.2.3 ready zone=a zone=b zone=c",
                "10.1.2.4 ready zone=b zone=c",
                "10.1.2.5 ready zone=b zone=d",
                "10.1.2.6 ready zone=c",
            ],
            ["3 4 6", IGNORED, "3 4 6"],
        ),
        ("PreferSameNode available", "zone=a", NODES, ["3", IGNORED, "3"]),
        (
            "PreferSameNode ignored if some endpoints unhinted",
            "zone=a",
            &[NODES[0], "10.1.2.4 ready", NODES[2], NODES[3]],
            ["3 4 5 6", IGNORED, "3 4 5 6"],
        ),
        (
            "PreferSameNode falls back to PreferSameZone if no endpoint for node",
            "zone=a node=node-0",
            NODES,
            ["3 6", IGNORED, "3 6"],
        ),
        (
            "conflicting topology and localness require merging allEndpoints",
            "etp np zone=a",
            &[
                "10.0.0.0 ready zone=a local",
                "10.0.0.1 ready zone=b local",
                "10.0.0.2 ready zone=a",
                "10.0.0.3 ready zone=b",
            ],
            ["0 2", "0 1", "0 1 2"],
        ),
    ];
    cases.iter().for_each(check);
}

/// D1-D7, D10: what each policy uses.
#[test]
fn policies() {
    let cases: &[Case<'_>] = &[
        ("internalTrafficPolicy: Local, with empty endpoints", "itp", &[], [IGNORED, "", ""]),
        (
            "internalTrafficPolicy: Local, but all endpoints are remote",
            "itp",
            REMOTE,
            [IGNORED, "", ""],
        ),
        (
            "internalTrafficPolicy: Local, all endpoints are local",
            "itp",
            &["10.0.0.0 ready local", "10.0.0.1 ready local"],
            [IGNORED, "0 1", "0 1"],
        ),
        (
            "internalTrafficPolicy: Local, some endpoints are local",
            "itp",
            ONE_LOCAL,
            [IGNORED, "0", "0"],
        ),
        (
            "Cluster traffic policy, endpoints not Ready",
            "",
            &["10.0.0.0 unready", "10.0.0.1 unready"],
            ["", IGNORED, ""],
        ),
        (
            "Cluster traffic policy, some endpoints are Ready",
            "",
            &["10.0.0.0 unready", "10.0.0.1 ready"],
            ["1", IGNORED, "1"],
        ),
        (
            "Cluster traffic policy, all endpoints are terminating",
            "",
            &["10.0.0.0 draining local", "10.0.0.1 draining"],
            ["0 1", IGNORED, "0 1"],
        ),
        (
            "iTP: Local, eTP: Cluster, some endpoints local",
            "itp np",
            ONE_LOCAL,
            ["0 1", "0", "0 1"],
        ),
        (
            "iTP: Cluster, eTP: Local, some endpoints local",
            "etp np",
            ONE_LOCAL,
            ["0 1", "0", "0 1"],
        ),
        (
            "iTP: Local, eTP: Local, some endpoints local",
            "itp etp np",
            ONE_LOCAL,
            ["0 1", "0", "0 1"],
        ),
        ("iTP: Local, eTP: Local, all endpoints remote", "itp etp np", REMOTE, ["0 1", "", "0 1"]),
        (
            "iTP: Local, eTP: Local, all endpoints remote and terminating",
            "itp etp np",
            &["10.0.0.0 draining", "10.0.0.1 draining"],
            ["0 1", "", "0 1"],
        ),
        (
            "iTP: Cluster, eTP: Local, with terminating endpoints",
            "etp np",
            &[
                "10.0.0.0 ready",
                "10.0.0.1 unready local",
                "10.0.0.2 draining local",
                "10.0.0.3 draining",
            ],
            ["0", "2", "0 2"],
        ),
        (
            "externalTrafficPolicy ignored if not externally accessible",
            "etp",
            &["10.0.0.0 ready", "10.0.0.1 ready local"],
            ["0 1", IGNORED, "0 1"],
        ),
        (
            "no cluster endpoints for iTP:Local internal-only service",
            "itp",
            &["10.0.0.0 ready", "10.0.0.1 ready local"],
            [IGNORED, "1", "1"],
        ),
        ("empty endpoints when no service endpoints exist", "", &[], ["", IGNORED, ""]),
        (
            "single endpoint not ready, not serving, not terminating",
            "zone=a",
            &["10.0.0.0 unready"],
            ["", IGNORED, ""],
        ),
    ];
    cases.iter().for_each(check);
}

#[test]
fn each_node_has_its_own_share() {
    let mut all = ["10.0.0.1 ready", "10.0.0.2 draining", "10.0.0.3 draining", "10.0.0.4 unready"]
        .map(endpoint);
    for (endpoint, node) in all.iter_mut().zip(["a", "a", "b", "c"]) {
        endpoint.node = Some(node.into());
    }
    let candidate = all
        .each_ref()
        .map(|endpoint| Candidate { addr: SocketAddr::new(endpoint.addr, 80), endpoint });
    let shares: Vec<_> = by_node(&candidate).into_iter().collect();
    assert_eq!(shares, [("a", vec![candidate[0].addr]), ("b", vec![candidate[2].addr])]);
}
