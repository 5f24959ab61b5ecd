//! `proxy`: a Service answers, whoever serves it. The nodes have the rules of a kube-proxy if there is
//! one, and none if there is none; those of kubelet and of the CNI remain in any case.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tools::exec::say;

use super::{
    Stage,
    load::{Load, web},
    rolling::{names, order},
    stage::{PODS, soon},
};
use crate::{
    cluster::{Mode, OUTSIDE, Proxy},
    image::pods::AGNHOST,
};

/// What kubelet makes itself, on any node: to see whether somebody flushes its rules, to say which
/// iptables is in use, and to drop what pretends to be local.
const OF_KUBELET: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL"];
/// What the CNI makes where a pod has a port of its node.
const OF_CNI: &str = "CNI-HOSTPORT-DNAT";
const HOST_PORT: u16 = 18_080;
/// All that programs a kube-proxy: its own tables, and those of iptables in either form.
const RULES: [&[&str]; 3] = [&["nft", "list", "ruleset"], &["iptables-save"], &["ip6tables-save"]];

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    stage.apply(&web(2).to_string())?;
    stage.rolled_out("deployment/web")?;
    let load = Load::start(stage, &order("request"))?;
    let pods = names(stage)?;
    ensure!(pods.len() == 2, "{} pods are there, and not 2", pods.len());
    load.answered_by(&pods)?;
    load.flawless()?;
    host_ports(stage)?;
    for node in stage.cluster.nodes() {
        let node = node.name();
        let mut rules = String::new();
        for words in RULES {
            rules.push_str(&stage.on_node(node, words)?);
        }
        let found = of_kube_proxy(&rules);
        say!(
            "   {node}: {} lines of rules, {} of a kube-proxy",
            rules.lines().count(),
            found.len()
        );
        let lacking = lacking(&rules, stage.cluster.proxy());
        ensure!(lacking.is_empty(), "{node} has no {}:\n{rules}", lacking.join(", "));
        let (is_there, what) = match stage.cluster.proxy() {
            Proxy::KubeProxy(Mode::Nftables) => (rules.contains("table ip kube-proxy "), true),
            Proxy::KubeProxy(Mode::Iptables) => (rules.contains("KUBE-SERVICES"), true),
            Proxy::Socklb | Proxy::None => (!found.is_empty(), false),
        };
        match (is_there, what) {
            (true, false) => bail!("{node} has rules of a kube-proxy: {}", found.join("\n")),
            (false, true) => bail!("{node} has no rules of its kube-proxy:\n{rules}"),
            (true, true) | (false, false) => {}
        }
    }
    Ok(())
}

/// On each node a pod with a port of the node, which a machine outside can reach.
fn host_ports(stage: &Stage<'_>) -> Result<()> {
    for node in stage.cluster.nodes() {
        let name = format!("host-port-{}", node.name());
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "nodeName": node.name(),
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "server",
                    "image": AGNHOST,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["netexec", "--http-port=8080"],
                    "ports": [{ "containerPort": 8080, "hostPort": HOST_PORT }],
                }],
            },
        });
        stage.apply(&pod.to_string())?;
    }
    for node in stage.cluster.nodes() {
        let name = format!("host-port-{}", node.name());
        stage.pod_ready(&name)?;
        let url = format!("http://{}:{HOST_PORT}/hostname", node.ips()[0]);
        soon(&format!("{url} to be answered"), PODS, || {
            let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url];
            let answer = stage.on_node(OUTSIDE, &curl).map_err(|error| format!("{error:#}"))?;
            if answer.trim() == name { Ok(()) } else { Err(format!("the answer is {answer}")) }
        })?;
    }
    Ok(())
}

/// Which of the tables and chains that must be there are not.
fn lacking(rules: &str, proxy: Proxy) -> Vec<&'static str> {
    let own: &[&str] = match proxy {
        Proxy::Socklb => &["table ip socklb ", "table ip6 socklb "],
        Proxy::KubeProxy(_) | Proxy::None => &[],
    };
    let all = OF_KUBELET.iter().chain([&OF_CNI]).chain(own);
    all.copied().filter(|name| !rules.contains(name)).collect()
}

/// Lines of rule sets that are of a kube-proxy.
fn of_kube_proxy(rules: &str) -> Vec<&str> {
    let is_ours = |word: &str| {
        word.contains("kube-proxy") || (word.starts_with("KUBE-") && !OF_KUBELET.contains(&word))
    };
    let words =
        |line: &str| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(is_ours);
    rules.lines().filter(|line| words(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubelet_makes_is_not_of_a_kube_proxy() {
        let rules = "table ip mangle {\n\tchain KUBE-KUBELET-CANARY {\n:KUBE-FIREWALL - [0:0]\n\
                     table ip kube-proxy {\n:KUBE-SERVICES - [0:0]\n\tjump KUBE-SVC-1 x\n";
        assert_eq!(
            of_kube_proxy(rules),
            ["table ip kube-proxy {", ":KUBE-SERVICES - [0:0]", "\tjump KUBE-SVC-1 x"]
        );
    }

    #[test]
    fn what_others_made_is_missed() {
        let rules = "\tchain KUBE-KUBELET-CANARY {\n\tchain KUBE-IPTABLES-HINT {\n\
                     \tchain KUBE-FIREWALL {\ntable ip socklb {\n";
        assert_eq!(lacking(rules, Proxy::Socklb), ["CNI-HOSTPORT-DNAT", "table ip6 socklb "]);
        assert_eq!(lacking("", Proxy::None).len(), 4);
    }
}
