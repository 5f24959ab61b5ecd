//! The agent, its maps and real connections, against a real API server.
//!
//! Needs root, `nft` and `SOCKLB_KUBE_BIN`, a directory with kube-apiserver,
//! kube-controller-manager, kube-proxy and etcd; `cargo xtask kube` builds it, `cargo xtask test`
//! does so by itself.
//!
//! One control plane serves all steps, because starting it takes longer than they do. Each step has
//! a node with an agent of its own, and a namespace and Service addresses that no other step uses; a
//! step that fails does not stop the next one. With `SOCKLB_STEP=NAME` it is the only one.

mod lab;

mod apiserver {
    pub(crate) mod beside;
    pub(crate) mod changes;
    mod counted;
    pub(crate) mod gaps;
    pub(crate) mod troubles;
}

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use apiserver::{beside, changes, gaps, troubles};
use lab::{
    api::Cluster,
    control_plane::{ADDRESS, ControlPlane},
    node::{Agent, Node},
    objects::namespace,
    sandbox::Sandbox,
};

/// Where pods are. All of the prefix is local, so that every address in it can be listened on.
const PODS: &str = "10.1.0.1/16";
const PODS_V6: &str = "fd00:10:1::1/128";

/// What it shows, in the namespace that it is given.
type Step = fn(&mut World, &str);

const STEPS: &[(&str, Step)] = &[
    ("objects", changes::objects_come_change_and_go),
    ("pods", changes::slices_are_made_from_pods),
    ("growth", changes::sets_change_while_connections_flow),
    ("outage", gaps::the_api_server_is_killed),
    ("relist", gaps::what_happened_before_a_compaction_is_noticed),
    ("restart", gaps::what_happened_while_the_agent_was_dead_is_noticed),
    ("crash", gaps::what_happened_after_a_crash_is_noticed),
    ("nodes", troubles::nodes_that_nobody_shows_are_not_waited_for),
    ("rights", troubles::nothing_is_written_while_half_is_unknown),
    ("authority", troubles::a_server_that_another_ca_signed_is_not_believed),
    ("invalid", troubles::slices_that_make_no_sense_harm_nobody),
    ("beside", beside::a_kube_proxy_says_the_same),
];

#[test]
fn the_agent_follows_a_real_api_server() {
    let started = Instant::now();
    let mut world = World::new();
    eprintln!("control plane: {:.1?}", started.elapsed());
    let mut failed = Vec::new();
    let only = env::var("SOCKLB_STEP").ok();
    for (name, step) in STEPS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            world.control_plane.ensure_apiserver();
            world.cluster.apply(&namespace(name));
            step(&mut world, name);
        }));
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        eprintln!("step {name}: {verdict}, {:.1?}", started.elapsed());
        if outcome.is_err() {
            failed.push(name);
        }
    }
    // What the control plane said is of interest only if it did not come up.
    drop(world);
    assert!(failed.is_empty(), "of {} steps these failed: {failed:?}", STEPS.len());
}

/// What all steps share.
struct World {
    cluster: Cluster,
    control_plane: ControlPlane,
    // The last to be dropped.
    sandbox: Sandbox,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::enter(&[&format!("{ADDRESS}/32"), PODS, PODS_V6]);
        let control_plane = ControlPlane::start(sandbox.directory());
        Self { cluster: control_plane.client(), control_plane, sandbox }
    }

    fn node(&self, name: &str) -> Node {
        Node::new(&self.sandbox, name)
    }

    fn agent(&self, node: &Node) -> Agent {
        node.agent(&self.control_plane.kubeconfig())
    }
}

/// Addresses `10.1.NET.FIRST` to `10.1.NET.LAST`.
fn pods(net: u8, first: u8, last: u8) -> Vec<String> {
    (first..=last).map(|host| format!("10.1.{net}.{host}")).collect()
}

/// The same with the port that backends listen on here.
fn at_port(addresses: &[String]) -> Vec<String> {
    addresses.iter().map(|address| format!("{address}:8080")).collect()
}
