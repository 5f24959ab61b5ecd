//! What of a cluster works, and waiting until all of it does.

use std::{iter::once, path::Path, time::Duration};

use anyhow::Result;
use serde_json::Value;
use tools::wait::{Not, until};

use super::{
    control, dns,
    live::{Cluster, Node},
    node,
    plan::Proxy,
    proxy,
};

pub(crate) const READY: Duration = Duration::from_secs(300);
/// Nodes that were down are Ready when kubelet has said so again, and their pods take a while.
const MENDED: Duration = Duration::from_secs(300);

impl Cluster {
    /// Waits until the nodes are Ready. One that has been away for less than a minute has been so all
    /// along, to the API server.
    pub(crate) fn await_nodes(&self) -> Result<()> {
        let names: Vec<_> = self.nodes().iter().map(Node::name).collect();
        let logs: Vec<_> = self.nodes().iter().map(|node| node.machine().log("kubelet")).collect();
        let logs: Vec<&Path> = logs.iter().map(AsRef::as_ref).collect();
        until(&format!("{} to be Ready", names.join(", ")), READY, &logs, || {
            let answer = self.ask(&["get", "nodes", "--output=json"]).map_err(Not::Yet)?;
            let lacking = not_ready(&answer, &names);
            for node in self.nodes() {
                if !node.machine().runs(self.cgroups(), "kubelet") {
                    return Err(Not::Ever(format!("kubelet on {} has ended", node.name())));
                }
            }
            if lacking.is_empty() { Ok(()) } else { Err(Not::Yet(lacking.join(", "))) }
        })
    }

    /// Waits until a workload of kube-system has as many ready pods as it wants.
    pub(crate) fn await_rollout(&self, workload: &str) -> Result<()> {
        until(workload, READY, &[], || {
            let output = "--output=json";
            let answer = self.ask(&["-n", "kube-system", "get", workload, output]);
            let answer = answer.map_err(Not::Yet)?;
            if is_rolled_out(&answer) {
                return Ok(());
            }
            let pods = self.ask(&["-n", "kube-system", "get", "pods", "--output=wide"]);
            Err(Not::Yet(format!("it is not ready\n{}", pods.unwrap_or_else(|error| error))))
        })
    }

    pub(super) fn await_proxy(&self) -> Result<()> {
        match self.proxy() {
            Proxy::KubeProxy(mode) => {
                self.nodes().iter().try_for_each(|node| self.await_kube_proxy(node, mode))
            }
            Proxy::Socklb => self.await_rollout(proxy::SOCKLB),
            Proxy::None => Ok(()),
        }
    }

    /// What of the cluster has died, or has not come up.
    pub(super) fn dead(&self) -> Vec<String> {
        let mut dead = Vec::new();
        let kube_proxy = matches!(self.proxy(), Proxy::KubeProxy(_));
        let proxy = kube_proxy.then_some(proxy::KUBE_PROXY);
        let nodes = self.nodes().iter().map(|node| (node.machine(), node::PARTS, proxy));
        let others = [(self.control(), control::PARTS, None), (self.outside(), &[][..], None)];
        for (machine, parts, more) in others.into_iter().chain(nodes) {
            if machine.init(self.cgroups()).is_none() {
                dead.push(format!("the box {}", machine.name));
                continue;
            }
            for part in parts.iter().copied().chain(more) {
                if !machine.runs(self.cgroups(), part) {
                    dead.push(format!("{part} on {}", machine.name));
                }
            }
        }
        dead
    }

    /// What does not work.
    pub(crate) fn faults(&self) -> Vec<String> {
        let dead = self.dead();
        if dead.is_empty() { self.unready() } else { dead }
    }

    /// Starts what of the cluster was stopped, and waits until all of it works.
    pub(crate) fn mend(&self) -> Result<()> {
        if self.control().runs(self.cgroups(), control::API) {
            self.start_leaders()?;
        } else {
            self.start_apiserver()?;
        }
        for node in self.nodes() {
            if node.machine().init(self.cgroups()).is_none() {
                self.start_node(node.name())?;
            }
        }
        until("the cluster to work", MENDED, &[], || {
            let faults = self.faults();
            if faults.is_empty() { Ok(()) } else { Err(Not::Yet(faults.join(", "))) }
        })
    }

    /// What runs, and is not as it should be.
    pub(super) fn unready(&self) -> Vec<String> {
        let names: Vec<_> = self.nodes().iter().map(Node::name).collect();
        let mut unready = match self.ask(&["get", "nodes", "--output=json"]) {
            Ok(answer) => not_ready(&answer, &names),
            Err(error) => return vec![error],
        };
        let socklb = (self.proxy() == Proxy::Socklb).then_some(proxy::SOCKLB);
        for workload in once(dns::WORKLOAD).chain(socklb) {
            let answer = self.ask(&["-n", "kube-system", "get", workload, "--output=json"]);
            if !answer.is_ok_and(|answer| is_rolled_out(&answer)) {
                unready.push(format!("{workload} is not ready"));
            }
        }
        unready
    }
}

/// Those of the nodes that are not Ready yet, each with the reason.
fn not_ready(answer: &str, names: &[&str]) -> Vec<String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    let state = |name: &&str| {
        let Some(node) = items.iter().find(|item| item["metadata"]["name"] == **name) else {
            return Some(format!("{name} is not registered"));
        };
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let Some(ready) = conditions.iter().find(|condition| condition["type"] == "Ready") else {
            return Some(format!("{name} has no condition Ready"));
        };
        let why = ready["message"].as_str().unwrap_or("no message");
        (ready["status"] != "True").then(|| format!("{name} is not: {why}"))
    };
    names.iter().filter_map(state).collect()
}

/// Has a Deployment or a DaemonSet all its pods, of this generation, and ready?
fn is_rolled_out(answer: &str) -> bool {
    let object: Value = serde_json::from_str(answer).unwrap_or_default();
    let status = &object["status"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (wanted, updated, ready) = if object["kind"] == "DaemonSet" {
        (
            &status["desiredNumberScheduled"],
            &status["updatedNumberScheduled"],
            &status["numberReady"],
        )
    } else {
        (&object["spec"]["replicas"], &status["updatedReplicas"], &status["readyReplicas"])
    };
    let wanted = number(wanted);
    status["observedGeneration"] == object["metadata"]["generation"]
        && wanted > 0
        && number(updated) == wanted
        && number(ready) == wanted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_ready_when_it_says_so() {
        let node = |name: &str, ready: &str| {
            json!({ "metadata": { "name": name }, "status": { "conditions": [
                { "type": "MemoryPressure", "status": "False" },
                { "type": "Ready", "status": ready, "message": "cni plugin not initialized" },
            ]}})
        };
        let list = json!({ "items": [node("n1", "True"), node("n2", "False")] }).to_string();
        assert_eq!(
            not_ready(&list, &["n1", "n2", "n3"]),
            ["n2 is not: cni plugin not initialized", "n3 is not registered"]
        );
        assert_eq!(not_ready("", &["n1"]), ["n1 is not registered"]);
    }

    #[test]
    fn a_rollout_is_over_when_every_pod_is_of_the_new_generation() {
        let daemons = |generation: u64, updated: u64| {
            json!({ "kind": "DaemonSet", "metadata": { "generation": generation }, "status": {
                "observedGeneration": 2, "desiredNumberScheduled": 2, "numberReady": 2,
                "updatedNumberScheduled": updated } })
            .to_string()
        };
        assert!(is_rolled_out(&daemons(2, 2)));
        assert!(!is_rolled_out(&daemons(3, 2)) && !is_rolled_out(&daemons(2, 1)));
        let deployment = json!({ "kind": "Deployment", "metadata": { "generation": 1 },
            "spec": { "replicas": 2 },
            "status": { "observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 2 } });
        assert!(is_rolled_out(&deployment.to_string()));
        assert!(!is_rolled_out("{}"));
    }
}
