//! `proxy`: a Service answers, whoever serves it, and the nodes have the rules of a kube-proxy if
//! there is one, and none if there is none.

use anyhow::{Result, bail, ensure};
use tools::exec::say;

use super::{
    Stage,
    load::{Load, web},
    rolling::{names, order},
};
use crate::cluster::{Mode, Proxy};

/// What kubelet makes itself, on any node: to see whether somebody flushes its rules, to say which
/// iptables is in use, and to drop what pretends to be local.
const OF_KUBELET: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL"];
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
}
