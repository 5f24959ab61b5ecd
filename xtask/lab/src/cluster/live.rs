//! A cluster that is there: what the commands and the tests do with it.

use std::{
    net::IpAddr,
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    cgroups::Cgroups,
    machine::{Machine, PATH, answer, keep},
    network::{self, Addresses},
    place::{home, kubeconfig},
    plan::{Plan, Proxy, Shape},
};
use crate::kubectl::Kubectl;

/// The name of the box of the control plane.
pub(crate) const CONTROL: &str = "control";
/// The name of the box that is no part of the cluster: neither a pod nor a proxy runs in it.
pub(crate) const OUTSIDE: &str = "outside";

/// Who makes clusters for themselves.
pub(super) const TESTS: &str = "`cargo xtask cluster test --all`";

/// As many as topology hints are made for.
const ZONES: u8 = 3;

pub(crate) struct Cluster {
    plan: Plan,
    cgroups: Cgroups,
    control: Machine,
    outside: Machine,
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

    /// One of each family.
    pub(crate) fn ips(&self) -> [IpAddr; 2] {
        [self.addresses().v4().into(), self.addresses().v6().into()]
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
        let (control, outside) = (Machine::new(CONTROL), Machine::new(OUTSIDE));
        Ok(Self { plan, cgroups: Cgroups::find()?, control, outside, nodes })
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

    /// A box by its name: a node, `control`, or `outside`.
    pub(crate) fn machine(&self, name: &str) -> Result<&Machine> {
        match name {
            CONTROL => Ok(&self.control),
            OUTSIDE => Ok(&self.outside),
            node => Ok(self.node(node)?.machine()),
        }
    }

    pub(super) fn control(&self) -> &Machine {
        &self.control
    }

    pub(super) fn outside(&self) -> &Machine {
        &self.outside
    }

    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.plan.shape
    }

    /// Who serves Services.
    pub(crate) fn proxy(&self) -> Proxy {
        self.plan.shape.proxy
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
        self.as_admin(&self.control, program)
    }

    /// The same with the network of the box outside.
    pub(crate) fn in_outside(&self, program: &Path) -> Result<Command> {
        self.as_admin(&self.outside, program)
    }

    fn as_admin(&self, machine: &Machine, program: &Path) -> Result<Command> {
        let mut command = machine.in_network(&self.cgroups, [program])?;
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

    /// A command that runs in a box: n1, n2, …, control, outside.
    pub(crate) fn exec_in(&self, machine: &str, words: &[&str]) -> Result<Command> {
        self.machine(machine)?.inside(&self.cgroups, words)
    }

    /// The box of the control plane, with the bridge.
    pub(super) fn boot_control(&self) -> Result<()> {
        self.control.boot(&self.cgroups, &self.plan.supply.programs)?;
        network::ip(self.init(&self.control)?, &network::bridge())
    }

    /// The box outside, without a network.
    pub(super) fn boot_outside(&self) -> Result<()> {
        self.outside.boot(&self.cgroups, &self.plan.supply.programs)
    }

    /// Links the box outside with the control box, which is its way to everything.
    pub(super) fn connect_outside(&self) -> Result<()> {
        let (control, outside) = (self.init(&self.control)?, self.init(&self.outside)?);
        network::ip(control, &network::way_out(outside))?;
        network::ip(outside, &network::outside())
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

    pub(super) fn init(&self, machine: &Machine) -> Result<u32> {
        machine.init(&self.cgroups).with_context(|| format!("the box {} is down", machine.name))
    }

    /// This process ends with the cluster: what it still had to do is not to be done to the next one.
    pub(crate) fn belong(&self) -> Result<()> {
        keep(&self.cgroups, process::id())
    }
}
