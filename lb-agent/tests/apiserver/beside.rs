//! A real kube-proxy and the agent on the same objects: what both say of their health, of Services'
//! health check node ports, and in their metrics.

use std::{net::SocketAddr, thread, time::Duration};

use serde_json::{Value, json};

use super::counted;
use crate::{
    World,
    lab::{
        api::Cluster,
        control_plane::PROXY,
        eventually,
        http::{Answer, get},
        kube_proxy::{ADDRESSES, KubeProxy},
        objects::{grant, node, node_status, reader, service, slice},
    },
};

const NODE: &str = "n2";
const TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// kube-proxy syncs once in a second, and asks the API server again after a while.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
const HEALTH: u16 = 10256;
pub(super) const METRICS: u16 = 10249;
/// Where load balancers ask about `web`.
const CHECK: u16 = 32110;

pub(crate) fn a_kube_proxy_says_the_same(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let kubeconfig = world.control_plane.proxy_kubeconfig();
    allow(cluster, "nodes", "");
    cluster.apply(&node(NODE));
    cluster.apply_status(&node_status(NODE, &ADDRESSES));
    objects(cluster, ns);
    let program = world.control_plane.program("kube-proxy");
    let kube_proxy = KubeProxy::start(&program, world.sandbox.directory(), &kubeconfig, NODE);
    let own = world.node(ns);
    let _agent = own.agent_called(NODE, &kubeconfig);
    let both = Both { kube_proxy: &kube_proxy };

    before_the_first_sync(&both);
    allow(cluster, "services", "");
    allow(cluster, "endpointslices", "discovery.k8s.io");
    allow(cluster, "servicecidrs", "networking.k8s.io");
    both.agree(HEALTH, "/healthz", |answer| {
        answer.status == 200 && answer.body.contains("IPv4") && answer.body.contains("IPv6")
    });
    both.agree(HEALTH, "/livez", |answer| answer.status == 200);

    let before = counted::settled(&both);
    health_check_node_port(&both, cluster, ns);
    eligibility(&both, cluster);
    counted::the_same(&both, &before);
}

fn allow(cluster: &Cluster, resource: &str, group: &str) {
    let name = format!("proxy-{resource}");
    cluster.apply(&reader(&name, group, resource));
    cluster.apply(&grant(&name, PROXY));
}

/// The same question to both.
pub(super) struct Both<'a> {
    kube_proxy: &'a KubeProxy,
}

impl Both<'_> {
    /// Ours, then kube-proxy's.
    pub(super) fn at(&self, port: u16, ipv4: bool) -> [SocketAddr; 2] {
        let ours = if ipv4 { "127.0.0.1" } else { "::1" };
        let ours = SocketAddr::new(ours.parse().expect("an address"), port);
        [ours, self.kube_proxy.at(port, ipv4)]
    }

    fn ask(&self, port: u16, ipv4: bool, path: &str) -> Result<[Answer; 2], String> {
        let [ours, theirs] = self.at(port, ipv4);
        let ours = get(ours, path).map_err(|error| format!("socklb: {error}"))?;
        let theirs = get(theirs, path)
            .map_err(|error| format!("kube-proxy: {error}\n{}", tail(&self.kube_proxy.log())))?;
        Ok([ours, theirs])
    }

    /// Waits until kube-proxy's answer is as it should be, and ours is the same.
    fn agree(&self, port: u16, path: &str, wanted: impl Fn(&Answer) -> bool) {
        self.agree_by(port, true, path, wanted);
    }

    fn agree_by(&self, port: u16, ipv4: bool, path: &str, wanted: impl Fn(&Answer) -> bool) {
        eventually(LIMIT, || {
            let [ours, theirs] = self.ask(port, ipv4, path)?.map(without_times);
            if !wanted(&theirs) {
                Err(format!("{port}{path}: kube-proxy says {theirs:?}"))
            } else if ours != theirs {
                Err(format!("{port}{path}:\n{ours:?}, but kube-proxy says\n{theirs:?}"))
            } else {
                Ok(())
            }
        });
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// `"T"` for each time in a body. How long it is depends on the fraction, which may end with zeros.
fn without_times(mut answer: Answer) -> Answer {
    let is_time = |text: &str| {
        text.ends_with('Z') && text.contains('T') && text.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut times = 0;
    let parts = answer.body.split('"').map(|text| {
        let time = is_time(text);
        times += usize::from(time && !text.starts_with("0001"));
        if time && !text.starts_with("0001") { "T" } else { text }
    });
    let body = parts.collect::<Vec<_>>().join("\"");
    if times > 0 {
        answer.headers.remove("content-length");
    }
    answer.body = body;
    answer
}

/// Nobody may read Services yet. Of the two, only kube-proxy says that load balancers may come; both
/// say that a restart is no remedy. kube-proxy gives the time of its start for that of a sync.
fn before_the_first_sync(both: &Both<'_>) {
    let status = r#","status":{"IPv4":{"lastUpdated":"T","healthy":true},"IPv6":{"lastUpdated":"T","healthy":true}}"#;
    let times = r#""currentTime":"T""#;
    let never = "0001-01-01T00:00:00Z";
    let said = [
        (
            "/livez",
            (200, format!(r#"{{"lastUpdated":"T",{times},"healthy":true}}"#)),
            (200, format!(r#"{{"lastUpdated":"T",{times},"healthy":true{status}}}"#)),
        ),
        (
            "/healthz",
            (
                503,
                format!(
                    r#"{{"lastUpdated":"{never}",{times},"nodeEligible":true,"healthy":false,"reason":"not in sync yet"}}"#
                ),
            ),
            (
                200,
                format!(
                    r#"{{"lastUpdated":"T",{times},"nodeEligible":true,"healthy":true{status}}}"#
                ),
            ),
        ),
    ];
    for (path, ours, theirs) in said {
        eventually(LIMIT, || {
            let answers = both.ask(HEALTH, true, path)?.map(without_times);
            let said = answers.map(|answer| (answer.status, answer.body));
            if said == [ours.clone(), theirs.clone()] { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }
    assert_eq!(ready(both), (503, "not in sync yet\n".to_owned()));
    let [ours, theirs] = eventually(LIMIT, || both.ask(METRICS, true, "/healthz"));
    assert_eq!(ours.body, theirs.body);
    let [ours, theirs] = eventually(LIMIT, || both.ask(METRICS, true, "/proxyMode"));
    assert_eq!((ours.body.as_str(), theirs.body.as_str()), ("socklb", "nftables"));
    assert_eq!(
        (ours.status, &ours.headers["content-type"]),
        (200, &theirs.headers["content-type"])
    );
}

/// What only our own says.
fn ready(both: &Both<'_>) -> (u16, String) {
    let [ours, _] = both.at(HEALTH, true);
    let answer = get(ours, "/readyz").expect("an answer");
    (answer.status, answer.body)
}

/// Three Services that have a Local policy, and one whose flows may become stale.
fn objects(cluster: &Cluster, ns: &str) {
    let mut dns = service(ns, "dns", "10.96.10.4", 53);
    dns["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    dns["spec"]["ports"][0]["protocol"] = json!("UDP");
    cluster.apply(&dns);
    for (family, ip) in [("IPv4", "10.1.10.9"), ("IPv6", "fd00:10:1::9")] {
        let mut slice = endpoints(ns, "dns", family, &[(ip, "n1", "ready")]);
        slice["ports"][0]["protocol"] = json!("UDP");
        cluster.apply(&slice);
    }
    cluster.apply(&web(ns));
    let mut internal = service(ns, "internal", "10.96.10.2", 80);
    internal["spec"]["internalTrafficPolicy"] = json!("Local");
    let mut external = service(ns, "external", "10.96.10.3", 80);
    external["spec"]["type"] = json!("NodePort");
    external["spec"]["externalTrafficPolicy"] = json!("Local");
    for (name, object) in [("internal", internal), ("external", external)] {
        cluster.apply(&object);
        cluster.apply(&endpoints(ns, name, "IPv4", &[("10.1.10.9", "n1", "ready")]));
    }
}

fn web(ns: &str) -> Value {
    let mut web = service(ns, "web", "10.96.10.1", 80);
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web["spec"]["healthCheckNodePort"] = json!(CHECK);
    web["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    web
}

/// Address, node, and one word for the conditions.
fn endpoints(ns: &str, of: &str, family: &str, endpoints: &[(&str, &str, &str)]) -> Value {
    let name = format!("{of}-{}", family.to_lowercase());
    let mut slice = slice(ns, &name, of, &[] as &[&str], 8080);
    slice["addressType"] = json!(family);
    let list = endpoints.iter().map(|(ip, node, state)| {
        let (ready, serving) = (*state == "ready", *state != "gone");
        let conditions = json!({ "ready": ready, "serving": serving, "terminating": !ready });
        json!({ "addresses": [ip], "nodeName": node, "conditions": conditions })
    });
    slice["endpoints"] = list.collect();
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    slice["metadata"]["annotations"] =
        json!({ "endpoints.kubernetes.io/last-change-trigger-time": now });
    slice
}

fn health_check_node_port(both: &Both<'_>, cluster: &Cluster, ns: &str) {
    let agree = |v4: usize, v6: usize| {
        for (count, ipv4) in [(v4, true), (v6, false)] {
            let status = if count > 0 { 200 } else { 503 };
            let counted = format!("\"localEndpoints\": {count},");
            both.agree_by(CHECK, ipv4, "/any", |answer| {
                answer.status == status && answer.body.contains(&counted)
            });
        }
    };
    agree(0, 0);
    for (count, list) in [
        (1, [("10.1.10.1", NODE, "ready"), ("10.1.10.9", "n1", "ready")]),
        (2, [("10.1.10.1", NODE, "ready"), ("10.1.10.2", NODE, "ready")]),
        (1, [("10.1.10.1", NODE, "terminating"), ("10.1.10.2", NODE, "ready")]),
        (0, [("10.1.10.1", NODE, "gone"), ("10.1.10.2", NODE, "terminating")]),
        (0, [("10.1.10.8", "n1", "ready"), ("10.1.10.9", "n1", "ready")]),
    ] {
        cluster.apply(&endpoints(ns, "web", "IPv4", &list));
        agree(count, 0);
    }
    cluster.apply(&endpoints(ns, "web", "IPv6", &[("fd00:10:1::1", NODE, "ready")]));
    agree(0, 1);
    cluster.delete(&endpoints(ns, "web", "IPv6", &[]));
    agree(0, 0);
    // Nobody answers for a Service that went.
    cluster.delete(&web(ns));
    for ipv4 in [true, false] {
        for address in both.at(CHECK, ipv4) {
            eventually(LIMIT, || match get(address, "/") {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{address}: {other:?}")),
            });
        }
    }
}

/// The node leaves, comes back, and is deleted at last.
fn eligibility(both: &Both<'_>, cluster: &Cluster) {
    let agree = |status: u16| {
        both.agree(HEALTH, "/healthz", |answer| answer.status == status);
        both.agree(HEALTH, "/livez", |answer| answer.status == 200);
        // It serves the node as long as it is there.
        assert_eq!(ready(both), (200, "ok".to_owned()));
    };
    let mut tainted = node(NODE);
    tainted["spec"] = json!({ "taints": [{ "key": TAINT, "effect": "NoSchedule" }] });
    cluster.apply(&tainted);
    agree(503);
    cluster.apply(&node(NODE));
    agree(200);
    tainted["spec"] = json!({ "taints": [{ "key": "other", "effect": "NoSchedule" }] });
    cluster.apply(&tainted);
    agree(200);
    // Somebody has to clean up before it goes.
    let mut held = node(NODE);
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    cluster.apply(&held);
    cluster.delete(&held);
    agree(503);
    cluster.apply(&node(NODE));
    thread::sleep(Duration::from_secs(1));
    agree(503);
    // What goes at once, without having been about to, is forgotten by neither.
    cluster.apply(&node(NODE));
    agree(200);
    cluster.delete(&node(NODE));
    thread::sleep(Duration::from_secs(1));
    agree(200);
}
