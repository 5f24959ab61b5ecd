//! A cluster that is there: what the commands and the tests do with it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    cgroups::Cgroups,
    control, dns,
    machine::{Machine, PATH, answer},
    network::{self, Addresses},
    node,
    place::{home, kubeconfig},
    plan::{Plan, Proxy, Shape},
    proxy,
};
use crate::{
    kube_demo::Kubectl,
    wait::{Not, until},
};

const READY: Duration = Duration::from_secs(300);
/// Nodes that were down are Ready when kubelet has said so again, and their pods take a while.
const MENDED: Duration = Duration::from_secs(300);

/// As many as topology hints are made for.
const ZONES: u8 = 3;

pub(crate) struct Cluster {
    plan: Plan,
    cgroups: Cgroups,
    control: Machine,
    nodes: Vec<Node>,
}

pub(crate) struct Node {
    number: u8,
    machine: Machine,
    zones: bool,
}

impl Node {
    /// n1, n2, …: of the box, of the Node and of the host.
    pub(crate) fn name(&self) -> &str {
        &self.machine.name
    }

    pub(super) fn addresses(&self) -> Addresses {
        Addresses::of(self.number)
    }

    pub(crate) fn zone(&self) -> Option<String> {
        self.zones.then(|| format!("z{}", (self.number - 1) % ZONES + 1))
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Cluster {
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let zones = plan.shape.zones;
        let node = |number| Node { number, machine: Machine::new(format!("n{number}")), zones };
        let nodes = (1..=plan.shape.nodes).map(node).collect();
        let control = Machine::new(control::NAME);
        Ok(Self { plan, cgroups: Cgroups::find()?, control, nodes })
    }

    /// The one that is there; an error if there is none. Only root can use it.
    pub(crate) fn open() -> Result<Self> {
        let plan = Plan::load()?.context("no cluster is up: `cargo xtask cluster up`")?;
        Self::new(plan)
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| {
            let names: Vec<_> = self.nodes.iter().map(Node::name).collect();
            format!("there is no node {name}: the nodes are {}", names.join(", "))
        })
    }

    /// A box by its name: a node, or `control`.
    pub(super) fn machine(&self, name: &str) -> Result<&Machine> {
        if name == control::NAME { Ok(&self.control) } else { Ok(self.node(name)?.machine()) }
    }

    pub(super) fn control(&self) -> &Machine {
        &self.control
    }

    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.plan.shape
    }

    /// Where kubectl is, and the others.
    fn programs(&self) -> &Path {
        &self.plan.supply.programs
    }

    /// A kubectl that may do everything, with the network of the control box and the files of the
    /// machine.
    pub(crate) fn kubectl(&self) -> Result<Command> {
        let mut kubectl = self.in_control(&self.plan.supply.programs.join("kubectl"))?;
        kubectl.arg("--kubeconfig").arg(kubeconfig()).arg("--cache-dir").arg(home("cache"));
        Ok(kubectl)
    }

    /// A program of the machine that speaks to the API server. The cluster's own kubectl is on its PATH,
    /// also where the machine has none or another one. What it keeps for the next time, as
    /// kubectl and helm do, goes with the cluster.
    pub(crate) fn in_control(&self, program: &Path) -> Result<Command> {
        let mut command = self.control.in_network(&self.cgroups, [program])?;
        command.env("KUBECONFIG", kubeconfig()).env("HOME", home("user"));
        let mut path = self.programs().as_os_str().to_owned();
        path.push(":");
        path.push(PATH);
        command.env("PATH", path);
        Ok(command)
    }

    /// What kubectl answers, or why it does not.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<String, String> {
        let answer = self.kubectl().and_then(|mut kubectl| {
            answer(kubectl.arg("--request-timeout=15s").args(words).stdin(Stdio::null()))
        });
        answer.map_err(|error| format!("{error:#}"))
    }

    /// Makes objects, or changes them: one, or a `List`.
    pub(crate) fn apply(&self, objects: &Value) -> Result<()> {
        Kubectl::like(self.kubectl()?.arg("--request-timeout=30s")).apply(&objects.to_string())
    }

    /// A command that runs in a box: n1, n2, …, control.
    pub(crate) fn exec_in(&self, machine: &str, words: &[&str]) -> Result<Command> {
        self.machine(machine)?.inside(&self.cgroups, words)
    }

    /// Pulls the plug of a node: processes, cgroups, BPF programs and pins are gone at once.
    pub(crate) fn kill_node(&self, name: &str) -> Result<()> {
        self.node(name)?.machine.kill(&self.cgroups)
    }

    /// Starts a node that was killed: it finds its disk as it was. Does not wait until it is Ready.
    pub(crate) fn start_node(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.boot_node(node)?;
        self.connect(node)?;
        self.start_containerd(node)?;
        self.start_kubelet(node)?;
        self.start_proxy(node)
    }

    /// The box of the control plane, with the bridge.
    pub(super) fn boot_control(&self) -> Result<()> {
        self.control.boot(&self.cgroups, &self.plan.supply.programs)?;
        network::ip(self.init(&self.control)?, &network::bridge())
    }

    /// The box of a node. Without a network it has nothing to say to the others.
    pub(super) fn boot_node(&self, node: &Node) -> Result<()> {
        node.machine.boot(&self.cgroups, &self.plan.supply.programs)?;
        node::configure(node)
    }

    /// Links a node with the bridge.
    pub(super) fn connect(&self, node: &Node) -> Result<()> {
        let (control, own) = (self.init(&self.control)?, self.init(&node.machine)?);
        // The link of a node that died may not be gone yet.
        drop(network::ip(control, &format!("link delete ve{}\n", node.number)));
        network::ip(control, &network::link(node.number, own))?;
        network::ip(own, &network::node(node.number)?)?;
        network::ip(control, &network::routes([node.number].into_iter())?)?;
        let others = self.nodes.iter().map(|other| other.number).filter(|n| *n != node.number);
        network::ip(own, &network::routes(others)?)
    }

    fn init(&self, machine: &Machine) -> Result<u32> {
        machine.init(&self.cgroups).with_context(|| format!("the box {} is down", machine.name))
    }

    /// Waits until the nodes are Ready. One that has been away for less than a minute has been so all
    /// along, to the API server.
    pub(crate) fn await_nodes(&self) -> Result<()> {
        let names: Vec<_> = self.nodes.iter().map(Node::name).collect();
        let logs: Vec<_> = self.nodes.iter().map(|node| node.machine.log("kubelet")).collect();
        let logs: Vec<&Path> = logs.iter().map(AsRef::as_ref).collect();
        until(&format!("{} to be Ready", names.join(", ")), READY, &logs, || {
            let answer = self.ask(&["get", "nodes", "--output=json"]).map_err(Not::Yet)?;
            let lacking = not_ready(&answer, &names);
            for node in &self.nodes {
                if !node.machine.runs(&self.cgroups, "kubelet") {
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

    pub(super) fn make_dns(&self) -> Result<()> {
        self.apply(&dns::objects())
    }

    /// Starts what runs on each node for the proxy that was asked for.
    pub(super) fn start_proxy(&self, node: &Node) -> Result<()> {
        match self.plan.shape.proxy {
            Proxy::KubeProxy(mode) => self.start_kube_proxy(node, mode),
            // Pods come back by themselves.
            Proxy::Socklb | Proxy::None => Ok(()),
        }
    }

    pub(super) fn await_proxy(&self) -> Result<()> {
        match self.plan.shape.proxy {
            Proxy::KubeProxy(mode) => {
                self.nodes.iter().try_for_each(|node| self.await_kube_proxy(node, mode))
            }
            Proxy::Socklb => self.await_rollout(proxy::SOCKLB),
            Proxy::None => Ok(()),
        }
    }

    /// What of the cluster has died, or has not come up.
    pub(super) fn dead(&self) -> Vec<String> {
        let mut dead = Vec::new();
        let kube_proxy = matches!(self.plan.shape.proxy, Proxy::KubeProxy(_));
        let proxy = kube_proxy.then_some(proxy::KUBE_PROXY);
        let nodes = self.nodes.iter().map(|node| (&node.machine, node::PARTS, proxy));
        for (machine, parts, more) in
            std::iter::once((&self.control, control::PARTS, None)).chain(nodes)
        {
            if machine.init(&self.cgroups).is_none() {
                dead.push(format!("the box {}", machine.name));
                continue;
            }
            for part in parts.iter().copied().chain(more) {
                if !machine.runs(&self.cgroups, part) {
                    dead.push(format!("{part} on {}", machine.name));
                }
            }
        }
        dead
    }
}

impl Cluster {
    /// Who serves Services.
    pub(crate) fn proxy(&self) -> Proxy {
        self.plan.shape.proxy
    }

    /// Gives every node the images of an archive.
    pub(crate) fn import_everywhere(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| self.import(node, archive))
    }

    /// What does not work.
    pub(crate) fn faults(&self) -> Vec<String> {
        let dead = self.dead();
        if dead.is_empty() { self.unready() } else { dead }
    }

    /// Starts what of the cluster was stopped, and waits until all of it works.
    pub(crate) fn mend(&self) -> Result<()> {
        if self.control.runs(&self.cgroups, control::API) {
            self.start_leaders()?;
        } else {
            self.start_apiserver()?;
        }
        for node in &self.nodes {
            if node.machine.init(&self.cgroups).is_none() {
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
        let names: Vec<_> = self.nodes.iter().map(Node::name).collect();
        let mut unready = match self.ask(&["get", "nodes", "--output=json"]) {
            Ok(answer) => not_ready(&answer, &names),
            Err(error) => return vec![error],
        };
        let socklb = (self.plan.shape.proxy == Proxy::Socklb).then_some(proxy::SOCKLB);
        for workload in std::iter::once(dns::WORKLOAD).chain(socklb) {
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

/// Is the cluster there that is asked for? Fails if it is another one, or a part of it has ended.
pub(super) fn is_up(plan: &Plan) -> Result<bool> {
    let Some(there) = Plan::load()?.filter(|_| Plan::is_complete()) else { return Ok(false) };
    let shape = there.shape.clone();
    let cluster = Cluster::new(there)?;
    let dead = cluster.dead();
    if cluster.control.init(&cluster.cgroups).is_none() {
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
        shape == plan.shape,
        "another cluster is up: {shape}; this one would be {}. `cargo xtask cluster down` first",
        plan.shape
    );
    Ok(true)
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
