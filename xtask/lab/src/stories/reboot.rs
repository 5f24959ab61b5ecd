//! `reboot`: the plug of a node is pulled. Its cgroups, its pins and its agent are gone; they come
//! back by themselves, and the agent needs no Service for that.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tools::exec::say;

use super::{
    Stage,
    load::web,
    stage::{AGENT, soon},
};
use crate::image::pods::AGNHOST;

const BURIED: Duration = Duration::from_secs(20);
const COMES_BACK: Duration = Duration::from_secs(300);
const REQUESTS: usize = 30;

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    let node = stage.cluster.nodes().last().context("the cluster has no node")?.name().to_owned();
    stage.apply(&web(4).to_string())?;
    stage.apply(&client(&node).to_string())?;
    stage.rolled_out("deployment/web")?;
    stage.pod_ready("client")?;
    served(stage)?;
    let booted_before = containers(stage, &node)?;
    let agent = stage.agent_container(&node)?;
    let before = agent.processes(AGENT);
    ensure!(!before.is_empty(), "no agent runs on {node}");

    stage.note(format!("{node} loses power"));
    stage.cluster.kill_node(&node)?;
    // What is dead is seen until the kernel has buried it.
    soon("the agent to go with its node", BURIED, || {
        let left = agent.processes(AGENT);
        if left.is_empty() { Ok(()) } else { Err(format!("processes: {left:?}")) }
    })?;
    stage.cluster.start_node(&node)?;
    let start = Instant::now();
    stage.note(format!("{node} starts"));
    let mut host = String::new();
    soon("an agent to run", COMES_BACK, || {
        let process = agent.processes(AGENT).first().copied().ok_or("there is none")?;
        host = api_server(process).ok_or(format!("process {process} has no API server"))?;
        Ok(())
    })?;
    stage.note("its agent runs");
    is_no_service(stage, &host)?;
    soon("the agent to be ready", COMES_BACK, || {
        let curl = ["curl", "--silent", "--show-error", "--max-time", "5", "--fail-with-body"];
        let words = [&curl[..], &["http://127.0.0.1:10256/readyz"]].concat();
        stage.on_node(&node, &words).map(drop).map_err(|error| format!("{error:#}"))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    stage.note(format!("it is ready, {seconds:.1} s after the start"));
    // Until then the API server has them as they were, with addresses that may be others' now.
    soon("the pods of that node to run anew", COMES_BACK, || {
        let now = containers(stage, &node).map_err(|error| format!("{error:#}"))?;
        let left: Vec<_> = now.intersection(&booted_before).cloned().collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    })?;
    stage.cluster.mend()?;
    stage.rolled_out("deployment/web")?;
    served(stage)?;
    stage.note("its pods reach Services");
    // Once they do, they do.
    requests(stage)
}

/// The address that a process was given. For a moment it has its name already, and no environment.
fn api_server(process: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
    let environment = String::from_utf8_lossy(&environment);
    let mut entries = environment.split('\0');
    let host = entries.find_map(|entry| entry.strip_prefix("KUBERNETES_SERVICE_HOST="));
    host.map(ToOwned::to_owned)
}

/// It is none that the agent translates itself.
fn is_no_service(stage: &Stage<'_>, host: &str) -> Result<()> {
    let output = "--output=jsonpath={.items[*].spec.clusterIPs}";
    let services = stage.kubectl_everywhere(&["get", "services", "--all-namespaces", output])?;
    let is_service = services.contains(&format!("\"{host}\""));
    ensure!(!is_service, "the agent asks {host}, which is a Service");
    say!("   the agent asks the API server at {host}, which is no Service");
    Ok(())
}

/// All that run on a node, as the API server has it: `POD:CONTAINER`.
fn containers(stage: &Stage<'_>, node: &str) -> Result<BTreeSet<String>> {
    let on_node = format!("--field-selector=spec.nodeName={node},status.phase=Running");
    let output = "--output=jsonpath={range .items[*]}{.metadata.name}:\
                  {.status.containerStatuses[*].containerID}{\"\\n\"}{end}";
    let words = ["get", "pods", "--all-namespaces", &on_node, output];
    Ok(stage.kubectl_everywhere(&words)?.lines().map(ToOwned::to_owned).collect())
}

/// Waits until a pod of that node gets all of its answers.
fn served(stage: &Stage<'_>) -> Result<()> {
    soon("a pod of that node to get its answers", COMES_BACK, || {
        requests(stage).map_err(|error| format!("{error:#}"))
    })
}

/// The name of the Service, resolved and connected to by a pod of the node that was down.
fn requests(stage: &Stage<'_>) -> Result<()> {
    let script = format!(
        "for i in $(seq {REQUESTS}); do curl --silent --show-error --fail --max-time 3 http://web/ \
         || exit 1; done"
    );
    stage.kubectl(&["exec", "client", "--", "sh", "-c", &script]).map(drop)
}

fn client(node: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "client" },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "client",
                "image": AGNHOST,
                "imagePullPolicy": "IfNotPresent",
                "args": ["pause"],
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_has_been_given_an_api_server_or_not() {
        let mut sleep = Command::new("sleep");
        sleep.arg("60").env_clear().envs([("A", "b"), ("KUBERNETES_SERVICE_HOST", "172.30.0.1")]);
        let mut child = sleep.spawn().unwrap();
        let mut host = String::new();
        soon("the environment", BURIED, || {
            host = api_server(child.id()).ok_or("none")?;
            Ok(())
        })
        .unwrap();
        assert_eq!(host, "172.30.0.1");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(api_server(child.id()), None);
    }
}
