//! What is there: boxes and their parts, nodes, pods, and what is left when something died.

use anyhow::Result;

use super::{
    control,
    live::Cluster,
    machine::Machine,
    node,
    plan::{Plan, Proxy},
    proxy,
    sweep::leftovers,
};

/// Prints it; false unless there is a cluster and all of it works.
pub(super) fn run() -> Result<bool> {
    let Some(plan) = Plan::load()? else {
        let left = leftovers()?;
        println!("No cluster is up.");
        if !left.is_empty() {
            println!("But there is (`cargo xtask cluster down` takes it away):");
            show(&left);
        }
        return Ok(false);
    };
    let cluster = Cluster::new(plan)?;
    let shape = &cluster.plan().shape;
    println!("Asked for: {shape}");
    let complete = Plan::is_complete();
    if !complete {
        println!("`up` did not come to its end, or is still at work.");
    }
    println!("\n{:9}{:9}PARTS", "BOX", "INIT");
    let proxy = matches!(shape.proxy, Proxy::KubeProxy(_)).then_some(proxy::KUBE_PROXY);
    show_machine(&cluster, cluster.control(), control::PARTS, None);
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
                Ok(answer) => println!("\n{}", answer.trim_end()),
                Err(error) => println!("\n{error}"),
            }
        }
    }
    if !dead.is_empty() {
        println!("\nNot running: {}. What is left of the cluster:", dead.join(", "));
        show(&leftovers()?);
        println!("`cargo xtask cluster logs BOX PART` says why; `down` takes it all away.");
    }
    Ok(complete && dead.is_empty())
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
    println!("{:9}{init:9}{}", machine.name, parts.join(", "));
}

fn show(lines: &[String]) {
    const MOST: usize = 20;
    for line in lines.iter().take(MOST) {
        println!("   {line}");
    }
    if lines.len() > MOST {
        println!("   and {} more", lines.len() - MOST);
    }
}
