//! Where a story is played: a namespace in the cluster, and what one does there.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tools::{
    exec::say,
    wait::{Not, until},
};

use super::{Args, clock::unix};
use crate::{
    cluster::{Cluster, Container, SOCKLB},
    kubectl::Kubectl,
};

/// Most time that pods get to come or to go.
pub(crate) const PODS: Duration = Duration::from_secs(300);
/// Seconds that a kubectl may take which has no limit of its own, such as `exec`: more than any that
/// has one.
const LIMIT: u32 = 600;
/// What an agent is called among the processes.
pub(crate) const AGENT: &str = "lb-agent";
/// How much of an agent's log is shown.
const TAIL: &str = "--tail=25";

pub(crate) struct Stage<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) args: &'a Args,
    /// The story's own.
    pub(crate) namespace: String,
    /// For the whole cluster, and for the namespace.
    everywhere: Kubectl,
    here: Kubectl,
    start: Instant,
    notes: Mutex<Vec<(f64, String)>>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(cluster: &'a Cluster, args: &'a Args, story: &str) -> Result<Self> {
        let namespace = format!("story-{story}");
        let everywhere = Kubectl::like(&cluster.kubectl()?).at_most(LIMIT);
        let here = everywhere.within(&namespace);
        let (start, notes) = (Instant::now(), Mutex::default());
        Ok(Self { cluster, args, namespace, everywhere, here, start, notes })
    }

    /// What kubectl says in the namespace of the story.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.here.answer(words)
    }

    /// What kubectl says, without a namespace.
    pub(crate) fn kubectl_everywhere(&self, words: &[&str]) -> Result<String> {
        self.everywhere.answer(words)
    }

    /// For what is not done with answers; without a namespace.
    pub(crate) fn everywhere(&self) -> &Kubectl {
        &self.everywhere
    }

    /// Makes objects in the namespace, or changes them: YAML, or JSON.
    pub(crate) fn apply(&self, objects: &str) -> Result<()> {
        self.here.apply(objects)
    }

    /// A field of an object; empty if it is not there.
    pub(crate) fn field(&self, object: &str, path: &str) -> Result<String> {
        self.kubectl(&["get", object, &format!("--output=jsonpath={path}")])
    }

    /// Says what happens now, and remembers when.
    pub(crate) fn note(&self, what: impl Into<String>) {
        let what = what.into();
        say!("   {:6.1} s  {what}", self.start.elapsed().as_secs_f64());
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((unix(), what));
    }

    /// What had happened last before then, by the time of day.
    pub(crate) fn before(&self, then: f64) -> String {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.iter().rev().find(|(at, _)| *at <= then).map_or_else(
            || "before anything".to_owned(),
            |(at, what)| format!("{:.3} s after: {what}", then - at),
        )
    }

    /// Waits until a workload of the namespace has all its pods, and they are ready.
    pub(crate) fn rolled_out(&self, workload: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PODS.as_secs());
        self.kubectl(&["rollout", "status", workload, &limit]).map(drop)
    }

    /// Waits until a pod of the namespace is ready.
    pub(crate) fn pod_ready(&self, pod: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PODS.as_secs());
        let pod = format!("pod/{pod}");
        self.kubectl(&["wait", "--for=condition=Ready", &pod, &limit]).map(drop)
    }

    /// Waits until every node has an agent that is ready.
    pub(crate) fn agents_ready(&self) -> Result<()> {
        self.cluster.await_rollout(SOCKLB)
    }

    /// The pod of the agent on a node that is not about to go.
    pub(crate) fn agent(&self, node: &str) -> Result<String> {
        let on_node = format!("--field-selector=spec.nodeName={node}");
        let of_socklb = "--selector=app.kubernetes.io/name=socklb";
        let words = ["-n", "kube-system", "get", "pods", of_socklb, &on_node, "--output=json"];
        let list: Value = serde_json::from_str(&self.kubectl_everywhere(&words)?)?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let stays = pods.iter().find(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
        let name = stays.and_then(|pod| pod["metadata"]["name"].as_str());
        name.map(ToOwned::to_owned).with_context(|| format!("no agent runs on {node}"))
    }

    /// The container of that pod.
    pub(crate) fn agent_container(&self, node: &str) -> Result<Container> {
        self.cluster.container("kube-system", &self.agent(node)?, "agent")
    }

    /// What a command says on a node.
    pub(crate) fn on_node(&self, node: &str, words: &[&str]) -> Result<String> {
        let mut command = self.cluster.exec_in(node, words)?;
        let output = command.output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` on {node}: {}: {}", words.join(" "), output.status, error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(super) fn open(&self) -> Result<()> {
        self.cluster.apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": self.namespace },
        }))?;
        // Pods cannot be made without it.
        soon("the namespace to be usable", PODS, || {
            let account = self.kubectl(&["get", "serviceaccount", "default"]);
            account.map(drop).map_err(|error| format!("{error:#}"))
        })
    }

    pub(super) fn sweep(&self) -> Result<()> {
        let limit = format!("--timeout={}s", PODS.as_secs());
        // Who deletes a namespace guesses how long its pods may take, and looks again only then.
        let all = "deployments,daemonsets,statefulsets,jobs,pods";
        self.kubectl(&["delete", all, "--all", "--now", &limit])?;
        let words = ["delete", "namespace", &self.namespace, "--ignore-not-found", &limit];
        self.kubectl_everywhere(&words).map(drop)
    }

    /// The cluster may say why.
    pub(super) fn show_troubles(&self) {
        let events = "--field-selector=type!=Normal";
        let here: [&[&str]; 2] =
            [&["get", "pods,services", "--output=wide"], &["get", "events", events]];
        for words in here {
            show(&self.cluster_words(words));
        }
        for node in self.cluster.nodes() {
            let Ok(agent) = self.agent(node.name()) else { continue };
            let words = ["-n", "kube-system", "logs", &agent, TAIL];
            say!("   | {agent} on {}:", node.name());
            show(&self.cluster.ask(&words).unwrap_or_else(|error| error));
        }
    }

    /// With a limit on time: the API server may be away.
    fn cluster_words(&self, words: &[&str]) -> String {
        let here = ["--namespace", &self.namespace];
        self.cluster.ask(&[&here, words].concat()).unwrap_or_else(|error| error)
    }
}

/// Waits until it is so; or says what was seen at last.
pub(crate) fn soon(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<(), String>,
) -> Result<()> {
    until(what, limit, &[], || check().map_err(Not::Yet))
}

fn show(text: &str) {
    for line in text.lines() {
        say!("   | {line}");
    }
}
