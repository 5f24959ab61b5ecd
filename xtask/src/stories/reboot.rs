//! `reboot`: the plug of a node is pulled. Its cgroups, its pins and its agent are gone; they come
//! back by themselves, and the agent needs no Service for that.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Stage,
    load::web,
    stage::{AGENT, soon},
};
use crate::{exec::say, image::pods::AGNHOST};

const COMES_BACK: Duration = Duration::from_secs(300);
const REQUESTS: usize = 30;

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    let node = stage.cluster.nodes().last().context("the cluster has no node")?.name().to_owned();
    stage.apply(&web(4).to_string())?;
    stage.apply(&client(&node).to_string())?;
    stage.rolled_out("deployment/web")?;
    stage.pod_ready("client")?;
    requests(stage)?;
    let agent = stage.agent_container(&node)?;
    let before = agent.processes(AGENT);
    ensure!(!before.is_empty(), "no agent runs on {node}");

    stage.note(format!("{node} loses power"));
    stage.cluster.kill_node(&node)?;
    let left = agent.processes(AGENT);
    ensure!(left.is_empty(), "the agent has outlived its node: {left:?}");
    stage.cluster.start_node(&node)?;
    let start = Instant::now();
    stage.note(format!("{node} starts"));
    let mut process = 0;
    soon("an agent to run", COMES_BACK, || {
        let found = agent.processes(AGENT).first().copied();
        found.map(|found| process = found).ok_or("there is none".to_owned())
    })?;
    stage.note("its agent runs");
    reaches_without_service(stage, process)?;
    soon("the agent to be ready", COMES_BACK, || {
        let curl = ["curl", "--silent", "--show-error", "--max-time", "5", "--fail-with-body"];
        let words = [&curl[..], &["http://127.0.0.1:10256/readyz"]].concat();
        stage.on_node(&node, &words).map(drop).map_err(|error| format!("{error:#}"))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    stage.note(format!("it is ready, {seconds:.1} s after the start"));
    stage.cluster.mend()?;
    stage.rolled_out("deployment/web")?;
    soon("a pod of that node to get an answer", COMES_BACK, || {
        requests(stage).map_err(|error| format!("{error:#}"))
    })?;
    stage.note("its pods reach Services");
    // Once they do, they do.
    requests(stage)
}

/// The address that the agent was given is none that it translates itself.
fn reaches_without_service(stage: &Stage<'_>, process: u32) -> Result<()> {
    let environment = fs::read(format!("/proc/{process}/environ"))?;
    let environment = String::from_utf8_lossy(&environment);
    let given = |name: &str| {
        let mut entries = environment.split('\0');
        entries.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).map(ToOwned::to_owned)
    };
    let host = given("KUBERNETES_SERVICE_HOST").context("the agent has no API server")?;
    let output = "--output=jsonpath={.items[*].spec.clusterIPs}";
    let services = stage.kubectl_everywhere(&["get", "services", "--all-namespaces", output])?;
    let is_service = services.contains(&format!("\"{host}\""));
    ensure!(!is_service, "the agent asks {host}, which is a Service");
    say!("   the agent asks the API server at {host}, which is no Service");
    Ok(())
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
