//! `outside`: what a machine gets that is no node and has no pod: at NodePorts and at the addresses of
//! load balancers, by both families.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Stage,
    stage::{PODS, soon},
};
use crate::{
    cluster::{Node, OUTSIDE, OUTSIDE_V4, OUTSIDE_V6},
    image::pods::AGNHOST,
};

/// Most time until a change is in force.
const SOON: Duration = Duration::from_secs(60);
/// How many requests show that a client stays with one endpoint, or does not.
const REQUESTS: u32 = 20;
const CURL: &str = "curl --silent --show-error --fail --max-time";
const SERVICE: &str = "service/server";

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    let [first, second, ..] = stage.cluster.nodes() else {
        anyhow::bail!("this story needs two nodes");
    };
    start(stage, "a", first)?;
    start(stage, "b", second)?;
    stage.apply(&service().to_string())?;
    stage.pod_ready("a")?;
    stage.pod_ready("b")?;

    let port = port(stage, "{.spec.ports[0].nodePort}")?;
    let balanced = balanced(stage)?;
    let balanced: Vec<_> = balanced.iter().map(|address| SocketAddr::new(*address, 80)).collect();
    let node_ports = |node: &Node| node.ips().map(|address| SocketAddr::new(address, port));
    let everywhere: Vec<_> =
        [first, second].into_iter().flat_map(node_ports).chain(balanced.clone()).collect();
    for address in &everywhere {
        answered_by(stage, *address, &["a", "b"])?;
    }
    stage.note("both pods answer at each node and at the load balancer's addresses");

    change(stage, &json!({ "sessionAffinity": "ClientIP" }))?;
    for address in &everywhere {
        soon(&format!("one pod to answer at {address}"), SOON, || {
            let names = names(stage, *address)?;
            if names.len() == 1 { Ok(()) } else { Err(format!("these answer: {names:?}")) }
        })?;
    }
    change(stage, &json!({ "sessionAffinity": "None" }))?;
    stage.note("with session affinity, one does");

    change(stage, &json!({ "externalTrafficPolicy": "Local" }))?;
    let health = self::port(stage, "{.spec.healthCheckNodePort}")?;
    for (gone, (there, name), other) in [("b", (first, "a"), second), ("a", (second, "b"), first)] {
        stage.kubectl(&["delete", "pod", gone, "--now"])?;
        for (node, wanted) in [(there, "200"), (other, "503")] {
            for address in node.ips() {
                health_is(stage, SocketAddr::new(address, health), wanted)?;
            }
        }
        for address in node_ports(there).into_iter().chain(balanced.clone()) {
            answered_by(stage, address, &[name])?;
            sees_us(stage, address)?;
        }
        for address in node_ports(other) {
            unanswered(stage, address)?;
        }
        stage.note(format!("with externalTrafficPolicy: Local, {name} does, on {}", there.name()));
        if gone == "b" {
            start(stage, "b", second)?;
            stage.pod_ready("b")?;
        }
    }

    change(stage, &json!({ "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8::/64"] }))?;
    for address in &balanced {
        unanswered(stage, *address)?;
    }
    for address in node_ports(second) {
        answered_by(stage, address, &["b"])?;
    }
    let own = [format!("{OUTSIDE_V4}/32"), format!("{OUTSIDE_V6}/128")];
    change(stage, &json!({ "loadBalancerSourceRanges": own }))?;
    for address in &balanced {
        answered_by(stage, *address, &["b"])?;
    }
    stage.note("source ranges hold at the load balancer's addresses");

    stage.kubectl(&["delete", SERVICE, "--timeout=60s"])?;
    for address in node_ports(second).into_iter().chain(balanced) {
        unanswered(stage, address)?;
    }
    Ok(())
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "server" },
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": "server" },
            "ports": [{ "port": 80, "targetPort": 8080 }],
        },
    })
}

/// A pod of the Service on a node.
fn start(stage: &Stage<'_>, name: &str, node: &Node) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "server" } },
        "spec": {
            "nodeName": node.name(),
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "server",
                "image": AGNHOST,
                "imagePullPolicy": "IfNotPresent",
                "args": ["netexec", "--http-port=8080"],
                "readinessProbe": {
                    "httpGet": { "path": "/healthz", "port": 8080 },
                    "periodSeconds": 1,
                    "timeoutSeconds": 5,
                },
            }],
        },
    });
    stage.apply(&pod.to_string())
}

fn change(stage: &Stage<'_>, spec: &Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    stage.kubectl(&["patch", SERVICE, "--type=merge", "--patch", &patch]).map(drop)
}

fn port(stage: &Stage<'_>, path: &str) -> Result<u16> {
    let port = stage.field(SERVICE, path)?;
    port.parse().with_context(|| format!("the Service has no {path}, but {port:?}"))
}

/// The addresses in its status, one of each family.
fn balanced(stage: &Stage<'_>) -> Result<Vec<IpAddr>> {
    let mut balanced = Vec::<IpAddr>::new();
    soon("the load balancer's addresses", SOON, || {
        let told = stage.field(SERVICE, "{.status.loadBalancer.ingress[*].ip}");
        let told = told.map_err(|error| format!("{error:#}"))?;
        balanced = told.split(' ').filter_map(|address| address.parse().ok()).collect();
        if balanced.len() == 2 { Ok(()) } else { Err(format!("the status has {told:?}")) }
    })?;
    ensure!(balanced[0].is_ipv4() != balanced[1].is_ipv4(), "both are of one family: {balanced:?}");
    Ok(balanced)
}

/// Waits until these pods answer there, and no others.
fn answered_by(stage: &Stage<'_>, address: SocketAddr, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<_> = wanted.iter().map(ToString::to_string).collect();
    soon(&format!("answers at {address}"), PODS, || {
        let names = names(stage, address)?;
        if names == wanted { Ok(()) } else { Err(format!("these answer: {names:?}")) }
    })
}

/// Who answers there. Fails if nobody does, once.
fn names(stage: &Stage<'_>, address: SocketAddr) -> Result<BTreeSet<String>, String> {
    let one = format!("{CURL} 5 http://{address}/hostname || exit; echo");
    let all = format!("for i in $(seq {REQUESTS}); do {one}; done");
    let names = outside(stage, &all)?;
    Ok(names.lines().map(ToOwned::to_owned).collect())
}

/// The endpoint is to see the address of the machine outside.
fn sees_us(stage: &Stage<'_>, address: SocketAddr) -> Result<()> {
    let seen = outside(stage, &format!("{CURL} 5 http://{address}/clientip"));
    let seen = seen.map_err(anyhow::Error::msg)?;
    let seen: SocketAddr = seen.trim().parse().with_context(|| format!("it saw {seen:?}"))?;
    let own = if address.is_ipv4() { IpAddr::from(OUTSIDE_V4) } else { OUTSIDE_V6.into() };
    ensure!(seen.ip().to_canonical() == own, "at {address}, the endpoint saw {seen}, not {own}");
    Ok(())
}

/// Waits until nobody answers there.
fn unanswered(stage: &Stage<'_>, address: SocketAddr) -> Result<()> {
    soon(&format!("no answer at {address}"), SOON, || {
        match outside(stage, &format!("{CURL} 2 http://{address}/hostname")) {
            Ok(name) => Err(format!("{name} answers")),
            Err(_) => Ok(()),
        }
    })
}

/// Waits until this is the status of a health check.
fn health_is(stage: &Stage<'_>, address: SocketAddr, wanted: &str) -> Result<()> {
    let curl = "curl --silent --output /dev/null --write-out '%{http_code}' --max-time 5";
    soon(&format!("{wanted} at {address}"), SOON, || {
        let status = outside(stage, &format!("{curl} http://{address}/healthz"))?;
        if status == wanted { Ok(()) } else { Err(format!("the status is {status}")) }
    })
}

fn outside(stage: &Stage<'_>, line: &str) -> Result<String, String> {
    stage.on_node(OUTSIDE, &["sh", "-c", line]).map_err(|error| format!("{error:#}"))
}
