//! Where the demo is played: a cluster, by its kubectl. What is done and looked at is shown.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tools::{
    exec::say,
    telling,
    wait::{Not, until},
};

use super::{
    client,
    place::{Choices, NAMESPACE, within},
    spread::Spread,
};
use crate::kubectl::Kubectl;

/// Most time that pods get to come or to go.
pub(super) const PODS: Duration = Duration::from_secs(180);
/// Most time until what pods are there is what connections reach.
const SETTLED: Duration = Duration::from_secs(60);

pub(super) struct Stage<'a> {
    pub(super) kubectl: &'a Kubectl,
    pub(super) choices: &'a Choices,
}

/// A pod of the Deployment that is ready and not about to go.
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) address: String,
    node: String,
}

impl Stage<'_> {
    pub(super) fn scale(&self, replicas: usize) -> Result<()> {
        self.shown(&["scale", "deployment/web", &format!("--replicas={replicas}")])?;
        self.rolled_out()?;
        until(&format!("{replicas} pods"), PODS, &[], || match self.pods()?.len() {
            count if count == replicas => Ok(()),
            count => Err(Not::Yet(format!("there are {count}"))),
        })
    }

    /// A pod cannot be made in a namespace before a controller has given it this.
    pub(super) fn await_account(&self) -> Result<()> {
        until("the namespace to be usable", PODS, &[], || {
            let account = self.kubectl.answer(&within(&["get", "serviceaccount", "default"]));
            account.map(drop).map_err(|error| Not::Yet(format!("{error:#}")))
        })
    }

    pub(super) fn rolled_out(&self) -> Result<()> {
        let words = ["rollout", "status", "deployment/web", "--timeout=180s"];
        self.kubectl.answer(&within(&words)).map(drop)
    }

    /// Makes requests until those pods answer that are there, and nobody else, and shows them.
    pub(super) fn settle(&self) -> Result<usize> {
        let names = self.names()?;
        self.settle_as(|spread| spread.is_over(&names)).map(|spread| spread.total())
    }

    pub(super) fn settle_as(
        &self,
        is_so: impl Fn(&Spread) -> Result<(), String>,
    ) -> Result<Spread> {
        let spread = until("requests to go where they are to go", SETTLED, &[], || {
            let spread = client::requests(self.kubectl)?;
            match is_so(&spread) {
                Ok(()) => Ok(spread),
                Err(reason) => Err(Not::Yet(format!("{reason}\n{spread}"))),
            }
        })?;
        show_spread(&spread);
        Ok(spread)
    }

    pub(super) fn names(&self) -> Result<BTreeSet<String>> {
        Ok(self.pods()?.into_iter().map(|pod| pod.name).collect())
    }

    pub(super) fn pods(&self) -> Result<Vec<Pod>> {
        let list = self.kubectl.answer(&within(&["get", "pods", "-l", "app=web", "-o", "json"]))?;
        pods(&list)
    }

    pub(super) fn show_pods(&self) -> Result<()> {
        for Pod { name, address, node } in self.pods()? {
            say!("   {name:28} {address:16} {node}");
        }
        Ok(())
    }

    pub(super) fn text(&self, object: &str, path: &str) -> Result<String> {
        let output = format!("-o=jsonpath={path}");
        let text = self.kubectl.answer(&within(&["get", object, &output]))?;
        ensure!(!text.is_empty(), "{object} has no {path}");
        Ok(text)
    }

    /// Runs a command in the namespace, and shows it.
    pub(super) fn shown(&self, words: &[&str]) -> Result<()> {
        say!("\n   $ kubectl {}", words.join(" "));
        self.kubectl.answer(&within(words)).map(drop)
    }

    pub(super) fn explain(&self, node: &str, service: &str) -> Result<()> {
        let addresses = self.pods()?.into_iter().map(|pod| pod.address).collect::<Vec<_>>();
        let mentions: Vec<_> = addresses.iter().map(String::as_str).collect();
        self.lbctl(node, &["explain", service], 0, &mentions)
    }

    /// Shows what lbctl says on a node, with this exit code and these words in it.
    pub(super) fn lbctl(
        &self,
        node: &str,
        words: &[&str],
        code: i32,
        mentions: &[&str],
    ) -> Result<()> {
        let on_node = format!("--field-selector=spec.nodeName={node},status.phase=Running");
        let of_socklb = "app.kubernetes.io/name=socklb";
        let agents = self.choices.agents.as_str();
        let find = ["-n", agents, "get", "pods", "-l", of_socklb, &on_node, "-o", "name"];
        let found = self.kubectl.answer(&find)?;
        let agent = found.lines().next().with_context(|| {
            format!(
                "no pod with {of_socklb} runs on {node} in {agents}: is socklb installed there?"
            )
        })?;
        let (line, command) =
            (words.join(" "), [&["-n", agents, "exec", agent, "--", "lbctl"], words].concat());
        say!("\n   $ kubectl -n {agents} exec {agent} -- lbctl {line}");
        let output = self.kubectl.output(&command)?;
        telling::answer(&format!("lbctl {line}"), &output, code, mentions)
    }

    pub(super) fn sweep(&self) -> Result<()> {
        let words = ["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"];
        self.kubectl.answer(&words).map(drop)
    }

    /// The cluster may say why.
    pub(super) fn show_troubles(&self) {
        let looks: [&[&str]; 2] =
            [&["get", "pods", "-o", "wide"], &["get", "events", "--field-selector=type!=Normal"]];
        for words in looks {
            let said = self.kubectl.answer(&within(words)).unwrap_or_default();
            for line in said.lines() {
                eprintln!("   | {line}");
            }
        }
    }
}

fn pods(list: &str) -> Result<Vec<Pod>> {
    let list: Value = serde_json::from_str(list).context("kubectl printed no JSON")?;
    let items = list["items"].as_array().context("kubectl printed no list")?;
    let pod = |item: &Value| {
        let text = |pointer| item.pointer(pointer)?.as_str().map(str::to_owned);
        let ready = item
            .pointer("/status/conditions")?
            .as_array()?
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let stays = item.pointer("/metadata/deletionTimestamp").is_none();
        (ready && stays).then_some(Pod {
            name: text("/metadata/name")?,
            address: text("/status/podIP")?,
            node: text("/spec/nodeName")?,
        })
    };
    Ok(items.iter().filter_map(pod).collect())
}

/// The Service's address with its port, as lbctl takes it.
pub(super) fn frontend(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") }
}

pub(super) fn show_spread(spread: &Spread) {
    telling::requests(spread.total(), "the client", "web", spread);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_go_or_are_not_ready_do_not_count() {
        let pod = |name: &str, ready: &str, more: &str| {
            format!(
                r#"{{"metadata":{{"name":"{name}"{more}}},"spec":{{"nodeName":"n1"}},"status":{{
                "podIP":"10.0.0.1","conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#
            )
        };
        let list = format!(
            r#"{{"items":[{},{},{}]}}"#,
            pod("stays", "True", ""),
            pod("starts", "False", ""),
            pod("goes", "True", r#","deletionTimestamp":"2026-01-01T00:00:00Z""#)
        );
        let names: Vec<_> = pods(&list).unwrap().into_iter().map(|pod| pod.name).collect();
        assert_eq!(names, ["stays"]);
        assert!(pods("").is_err());
    }

    #[test]
    fn frontends_of_both_families() {
        assert_eq!(frontend("10.96.0.10"), "10.96.0.10:80");
        assert_eq!(frontend("fd00:96::a"), "[fd00:96::a]:80");
    }
}
