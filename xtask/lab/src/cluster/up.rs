//! From nothing to a cluster that works, as much as possible at the same time.

use std::{
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use anyhow::{Error, Result, anyhow, bail, ensure};
use tools::exec::say;

use super::{
    dns,
    live::{Cluster, Node, TESTS},
    network, place,
    plan::{Plan, Proxy},
    secrets,
    sweep::sweep,
};

pub(crate) fn run(plan: &Plan) -> Result<()> {
    let _turn = place::turn()?;
    if is_up(plan)? {
        say!("The cluster is up already: {}.", plan.shape);
        say!(
            "It has what it was made of; for what is built now, `cargo xtask cluster down` first."
        );
        show_ways(plan);
        return Ok(());
    }
    if sweep()? {
        say!("Removed what an earlier cluster had left.");
    }
    let start = Instant::now();
    make(plan, start).map_err(|error| {
        anyhow!(
            "{error:#}\nThe cluster did not come up. `cargo xtask cluster status` and `logs` show what is \
             there, `down` takes it away."
        )
    })?;
    say!("The cluster is up, after {:.1} s.", start.elapsed().as_secs_f64());
    show_ways(plan);
    Ok(())
}

fn make(plan: &Plan, start: Instant) -> Result<()> {
    let shape = &plan.shape;
    let plural = if shape.nodes == 1 { "" } else { "s" };
    say!(
        "A control plane, {} node{plural} and a machine outside, in namespaces of their own with no way \
         out; proxy: {}.",
        shape.nodes,
        shape.proxy
    );
    if matches!(shape.proxy, Proxy::KubeProxy(_)) {
        network::filter_bridges()?;
    }
    let said = |what: &str| say!("{:5.1} s  {what}", start.elapsed().as_secs_f64());
    place::make()?;
    plan.save()?;
    let cluster = Cluster::new(plan.clone())?;
    boot(&cluster)?;
    said("The boxes are booted.");
    thread::scope(|scope| {
        let nodes: Vec<_> =
            cluster.nodes().iter().map(|node| scope.spawn(|| supply(&cluster, node))).collect();
        cluster.start_control_plane()?;
        said("The API server is ready.");
        cluster.make_dns()?;
        if shape.proxy == Proxy::Socklb {
            cluster.install_socklb()?;
        }
        nodes.into_iter().try_for_each(joined)?;
        let start = |node| {
            cluster.start_kubelet(node)?;
            cluster.start_proxy(node)
        };
        let nodes: Vec<_> =
            cluster.nodes().iter().map(|node| scope.spawn(move || start(node))).collect();
        nodes.into_iter().try_for_each(joined)
    })?;
    thread::scope(|scope| {
        let (cluster, archives) = (&cluster, &plan.supply.archives);
        let import = |node| scope.spawn(move || import(cluster, node, archives));
        let nodes: Vec<_> = cluster.nodes().iter().map(import).collect();
        cluster.await_nodes()?;
        said("The nodes are Ready.");
        cluster.await_rollout(dns::WORKLOAD)?;
        said("CoreDNS is ready.");
        cluster.await_proxy()?;
        if shape.proxy != Proxy::None {
            said(&format!("{} serves.", shape.proxy));
        }
        nodes.into_iter().try_for_each(joined)?;
        said("The nodes have the images of the tests.");
        Ok::<_, Error>(())
    })?;
    Plan::complete()
}

/// Is the cluster there that is asked for? Fails if it is another one, or a part of it has ended.
fn is_up(plan: &Plan) -> Result<bool> {
    let Some(there) = Plan::load()?.filter(|_| Plan::is_complete()) else { return Ok(false) };
    let (shape, of_tests) = (there.shape.clone(), there.of_tests);
    let cluster = Cluster::new(there)?;
    let dead = cluster.dead();
    if cluster.control().init(cluster.cgroups()).is_none() {
        // The machine was restarted.
        return Ok(false);
    }
    if !dead.is_empty() {
        bail!(
            "a cluster is up, but not all of it: {} ended. `cargo xtask cluster down` first",
            dead.join(", ")
        );
    }
    ensure!(
        of_tests == plan.of_tests,
        "a cluster is up, made by {}. `cargo xtask cluster down` first",
        if of_tests { TESTS } else { "somebody" }
    );
    ensure!(
        shape == plan.shape,
        "another cluster is up: {shape}; this one would be {}. `cargo xtask cluster down` first",
        plan.shape
    );
    Ok(true)
}

fn boot(cluster: &Cluster) -> Result<()> {
    let names: Vec<_> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    thread::scope(|scope| {
        let secrets = scope.spawn(|| secrets::make(&names));
        let control = scope.spawn(|| cluster.boot_control());
        let outside = scope.spawn(|| cluster.boot_outside());
        let nodes: Vec<_> =
            cluster.nodes().iter().map(|node| scope.spawn(|| cluster.boot_node(node))).collect();
        joined(secrets)?;
        joined(control)?;
        joined(outside)?;
        nodes.into_iter().try_for_each(joined)
    })?;
    cluster.connect_outside()?;
    cluster.nodes().iter().try_for_each(|node| cluster.connect(node))
}

/// What a node can have before there is an API server.
fn supply(cluster: &Cluster, node: &Node) -> Result<()> {
    cluster.start_containerd(node)?;
    import(cluster, node, &cluster.plan().supply.first)
}

fn import(cluster: &Cluster, node: &Node, archives: &[PathBuf]) -> Result<()> {
    archives.iter().try_for_each(|archive| cluster.import(node, archive))
}

fn joined(handle: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    handle.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// What to do with it.
fn show_ways(plan: &Plan) {
    let node = format!("n{}", plan.shape.nodes);
    let ways = [
        ("kubectl get pods -A -o wide".to_owned(), "any kubectl command"),
        (format!("in {node} ip route"), "any command on a node, or in a box beside them"),
        (format!("logs {node} kubelet"), "what a part says"),
        ("status".to_owned(), "what is there"),
        ("down".to_owned(), "take it away"),
    ];
    say!("");
    for (words, what) in ways {
        say!("   cargo xtask cluster {words:30}# {what}");
    }
}
