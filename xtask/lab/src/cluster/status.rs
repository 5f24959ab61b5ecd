//! What is there: boxes and their parts, nodes, pods, and what is left when something died.

use anyhow::Result;
use tools::exec::say;

use super::{
    control,
    live::{Cluster, TESTS},
    machine::Machine,
    node,
    plan::{Plan, Proxy},
    proxy,
    sweep::leftovers,
};

/// Prints it; false unless there is a cluster and all of it works.
pub(crate) fn run() -> Result<bool> {
    let Some(plan) = Plan::load()? else {
        let left = leftovers()?;
        say!("No cluster is up.");
        if !left.is_empty() {
            say!("But there is (`cargo xtask cluster down` takes it away):");
            show(&left);
        }
        return Ok(false);
    };
    let cluster = Cluster::new(plan)?;
    let shape = &cluster.plan().shape;
    say!("Asked for: {shape}");
    if cluster.plan().of_tests {
        say!("By {TESTS}, and its own: what an interrupted one has left, the next takes away.");
    }
    let complete = Plan::is_complete();
    if !complete {
        say!("`up` did not come to its end, or is still at work.");
    }
    say!("\n{:9}{:9}{:11}PARTS", "BOX", "INIT", "PROCESSES");
    let proxy = matches!(shape.proxy, Proxy::KubeProxy(_)).then_some(proxy::KUBE_PROXY);
    show_machine(&cluster, cluster.control(), control::PARTS, None);
    show_machine(&cluster, cluster.outside(), &[], None);
    for node in cluster.nodes() {
        show_machine(&cluster, node.machine(), node::PARTS, proxy);
    }
    let dead = cluster.dead();
    let api = !dead.iter().any(|part| part.ends_with("on control") || part == "the box control");
    if api {
        for words in [
            &["get", "nodes", "--output=wide"][..],
            &["-n", "kube-system", "get", "deployments,daemonsets,pods", "--output=wide"],
        ] {
            match cluster.ask(words) {
                Ok(answer) => say!("\n{}", answer.trim_end()),
                Err(error) => say!("\n{error}"),
            }
        }
    }
    if !dead.is_empty() {
        say!("\nNot running: {}.", dead.join(", "));
        say!("`cargo xtask cluster logs BOX PART` says why; `down` takes away what is left.");
    }
    let unready = if api { cluster.unready() } else { Vec::new() };
    if !unready.is_empty() {
        say!("\nNot well: {}.", unready.join(", "));
    }
    Ok(complete && dead.is_empty() && unready.is_empty())
}

fn show_machine(cluster: &Cluster, machine: &Machine, parts: &[&str], more: Option<&str>) {
    let init = machine.init(cluster.cgroups());
    let parts = parts.iter().copied().chain(more).map(|part| {
        if machine.runs(cluster.cgroups(), part) {
            part.to_owned()
        } else {
            format!("{part} (not running)")
        }
    });
    let parts: Vec<_> = parts.collect();
    let init = init.map_or("down".to_owned(), |init| init.to_string());
    let processes = cluster.cgroups().processes(&machine.name);
    say!("{:9}{init:9}{processes:<11}{}", machine.name, parts.join(", "));
}

fn show(lines: &[String]) {
    const MOST: usize = 20;
    for line in lines.iter().take(MOST) {
        say!("   {line}");
    }
    if lines.len() > MOST {
        say!("   and {} more", lines.len() - MOST);
    }
}
