//! The agent, its maps and real connections, against a real API server.
//!
//! Needs root and `SOCKLB_KUBE_BIN`, a directory with kube-apiserver, kube-controller-manager and
//! etcd; `cargo xtask kube` builds it, `cargo xtask test` does so by itself.
//!
//! One control plane serves all steps, because starting it takes longer than they do. Each step has
//! a node with an agent of its own, and a namespace and Service addresses that no other step uses; a
//! step that fails does not stop the next one.

mod lab;

use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use lab::{
    api::Cluster,
    control_plane::{ADDRESS, ControlPlane, ENDPOINT, GUEST, KUBERNETES, write_kubeconfig},
    node::{Agent, Node},
    objects::{grant, namespace, node, pod, pod_status, reader, selecting_service, service, slice},
    sandbox::Sandbox,
    sockets::Backends,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A CA certificate whose key nobody has; it signed nothing.
const OTHER_CA: &str = include_str!("lab/other-ca.pem");
/// Where pods are. All of the prefix is local, so that every address in it can be listened on.
const PODS: &str = "10.1.0.1/16";
const PODS_V6: &str = "fd00:10:1::1/128";

/// What it shows, in the namespace that it is given.
type Step = fn(&mut World, &str);

const STEPS: &[(&str, Step)] = &[
    ("objects", objects_come_change_and_go),
    ("pods", slices_are_made_from_pods),
    ("growth", sets_change_while_connections_flow),
    ("outage", the_api_server_is_killed),
    ("relist", what_happened_before_a_compaction_is_noticed),
    ("restart", what_happened_while_the_agent_was_dead_is_noticed),
    ("crash", what_happened_after_a_crash_is_noticed),
    ("rights", nothing_is_written_while_half_is_unknown),
    ("authority", a_server_that_another_ca_signed_is_not_believed),
    ("invalid", slices_that_make_no_sense_harm_nobody),
];

#[test]
fn the_agent_follows_a_real_api_server() {
    let started = Instant::now();
    let mut world = World::new();
    eprintln!("control plane: {:.1?}", started.elapsed());
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            world.control_plane.ensure_apiserver();
            world.cluster.apply(&namespace(name));
            step(&mut world, name);
        }));
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        eprintln!("step {name}: {verdict}, {:.1?}", started.elapsed());
        if outcome.is_err() {
            failed.push(name);
        }
    }
    // What the control plane said is of interest only if it did not come up.
    drop(world);
    assert!(failed.is_empty(), "of {} steps these failed: {failed:?}", STEPS.len());
}

/// What all steps share.
struct World {
    cluster: Cluster,
    control_plane: ControlPlane,
    // The last to be dropped.
    sandbox: Sandbox,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::enter(&[&format!("{ADDRESS}/32"), PODS, PODS_V6]);
        let control_plane = ControlPlane::start(sandbox.directory());
        Self { cluster: control_plane.client(), control_plane, sandbox }
    }

    fn node(&self, name: &str) -> Node {
        Node::new(&self.sandbox, name)
    }

    fn agent(&self, node: &Node) -> Agent {
        node.agent(&self.control_plane.kubeconfig())
    }
}

/// Addresses `10.1.NET.FIRST` to `10.1.NET.LAST`.
fn pods(net: u8, first: u8, last: u8) -> Vec<String> {
    (first..=last).map(|host| format!("10.1.{net}.{host}")).collect()
}

/// The same with the port that backends listen on here.
fn at_port(addresses: &[String]) -> Vec<String> {
    addresses.iter().map(|address| format!("{address}:8080")).collect()
}

fn objects_come_change_and_go(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let node = world.node(ns);
    let _agent = world.agent(&node);
    let kubernetes = node.await_backends(KUBERNETES, [&ENDPOINT.to_owned()]);
    let name = (kubernetes.namespace.as_str(), kubernetes.name.as_str(), kubernetes.port.as_str());
    assert_eq!((name, kubernetes.protocol.as_str()), (("default", "kubernetes", "https"), "TCP"));

    let (two, three) = (pods(1, 1, 2), pods(1, 3, 5));
    let _backends = Backends::listen(&at_port(&pods(1, 1, 9)));
    let web = service(ns, "web", "10.96.1.1", 80);
    cluster.apply(&web);
    node.await_backends("10.96.1.1:80", &[]);
    let refused = node.ask("10.96.1.1:80").expect_err("a Service without endpoints");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");

    let first = slice(ns, "web-1", "web", &two, 8080);
    cluster.apply(&first);
    let frontend = node.await_backends("10.96.1.1:80", &at_port(&two));
    assert_eq!(frontend.count, 2);
    assert!(node.spread("10.96.1.1:80", 50).iter().eq(&at_port(&two)));

    // Another slice of the same Service adds to it.
    let second = slice(ns, "web-2", "web", &three, 8080);
    cluster.apply(&second);
    node.await_backends("10.96.1.1:80", &at_port(&pods(1, 1, 5)));
    cluster.delete(&first);
    node.await_backends("10.96.1.1:80", &at_port(&three));
    let mut not_ready = slice(ns, "web-2", "web", &three, 8080);
    not_ready["endpoints"][1]["conditions"]["ready"] = json!(false);
    cluster.apply(&not_ready);
    let ready = [three[0].clone(), three[2].clone()];
    node.await_backends("10.96.1.1:80", &at_port(&ready));
    assert!(node.spread("10.96.1.1:80", 50).iter().eq(&at_port(&ready)));

    // The port of a Service and the port of its pods change.
    cluster.apply(&service(ns, "web", "10.96.1.1", 81));
    let moved = node.await_backends("10.96.1.1:81", &at_port(&ready));
    node.await_absence("10.96.1.1:80");
    assert_eq!(moved.id, frontend.id, "the same service port has another id");
    cluster.apply(&slice(ns, "web-2", "web", &three, 9090));
    let other_port: Vec<_> = three.iter().map(|address| format!("{address}:9090")).collect();
    node.await_backends("10.96.1.1:81", &other_port);

    // Ports are told apart by their names, not by their numbers.
    let mut both = service(ns, "both", "10.96.1.2", 80);
    both["spec"]["ports"] =
        json!([{ "name": "http", "port": 80 }, { "name": "admin", "port": 9000 }]);
    let mut both_slice = slice(ns, "both-1", "both", &two, 0);
    both_slice["ports"] =
        json!([{ "name": "admin", "port": 8080 }, { "name": "http", "port": 8081 }]);
    cluster.apply(&both);
    cluster.apply(&both_slice);
    let http: Vec<_> = two.iter().map(|address| format!("{address}:8081")).collect();
    let http = node.await_backends("10.96.1.2:80", &http);
    let admin = node.await_backends("10.96.1.2:9000", &at_port(&two));
    assert_eq!((http.port.as_str(), admin.port.as_str()), ("http", "admin"));
    assert_ne!(http.id, admin.id);

    let mut v6 = service(ns, "six", "fd00:96::1:1", 80);
    v6["spec"]["ipFamilies"] = json!(["IPv6"]);
    let mut v6_slice = slice(ns, "six-1", "six", &["fd00:10:1::1"], 8080);
    v6_slice["addressType"] = json!("IPv6");
    cluster.apply(&v6);
    cluster.apply(&v6_slice);
    let backend = ["[fd00:10:1::1]:8080".to_owned()];
    let _backend = Backends::listen(&backend);
    node.await_backends("[fd00:96::1:1]:80", &backend);
    assert!(node.spread("[fd00:96::1:1]:80", 3).iter().eq(&backend));

    cluster.delete(&second);
    node.await_backends("10.96.1.1:81", &[]);
    cluster.delete(&web);
    node.await_absence("10.96.1.1:81");
    // Nobody translates it any more, and the sandbox has no route to it.
    let unknown = node.ask("10.96.1.1:81").expect_err("no Service");
    assert_eq!(unknown.kind(), ErrorKind::NetworkUnreachable, "{unknown}");
}

fn slices_are_made_from_pods(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let addresses = pods(2, 1, 2);
    let backends = at_port(&addresses);
    let _backends = Backends::listen(&backends);
    cluster.apply(&node("n1"));
    cluster.apply(&selecting_service(ns, "web", "10.96.2.1", 80));
    for (name, ip) in ["a", "b"].iter().zip(&addresses) {
        cluster.apply(&pod(ns, name, "web", "n1", 8080));
        cluster.apply_status(&pod_status(ns, name, ip, true));
    }
    let node = world.node(ns);
    let _agent = world.agent(&node);
    node.await_backends("10.96.2.1:80", &backends);
    assert!(node.spread("10.96.2.1:80", 50).iter().eq(&backends));

    cluster.apply_status(&pod_status(ns, "a", &addresses[0], false));
    node.await_backends("10.96.2.1:80", &backends[1..]);
    cluster.apply_status(&pod_status(ns, "a", &addresses[0], true));
    node.await_backends("10.96.2.1:80", &backends);
    cluster.delete(&pod(ns, "b", "web", "n1", 8080));
    node.await_backends("10.96.2.1:80", &backends[..1]);
    assert!(node.spread("10.96.2.1:80", 20).iter().eq(&backends[..1]));
    cluster.delete(&selecting_service(ns, "web", "10.96.2.1", 80));
    node.await_absence("10.96.2.1:80");
}

fn sets_change_while_connections_flow(world: &mut World, ns: &str) {
    let _backends = Backends::listen(&at_port(&pods(3, 1, 60)));
    let node = world.node(ns);
    let _agent = world.agent(&node);
    world.cluster.apply(&service(ns, "web", "10.96.3.1", 80));
    let mut old = pods(3, 1, 1);
    world.cluster.apply(&slice(ns, "web-1", "web", &old, 8080));
    node.await_backends("10.96.3.1:80", &at_port(&old));
    // It grows, shrinks, and is replaced as a whole.
    for (first, last) in [(1, 2), (1, 5), (1, 50), (1, 3), (4, 9), (51, 60), (1, 1), (2, 2)] {
        let new = pods(3, first, last);
        let flow = node.flow("10.96.3.1:80");
        thread::sleep(Duration::from_millis(50));
        world.cluster.apply(&slice(ns, "web-1", "web", &new, 8080));
        node.await_backends("10.96.3.1:80", &at_port(&new));
        thread::sleep(Duration::from_millis(50));
        flow.stop().assert_unbroken(&at_port(&[&old[..], &new[..]].concat()));
        let spread = node.spread("10.96.3.1:80", 20);
        assert!(spread.iter().all(|name| at_port(&new).contains(name)), "{spread:?}, not {new:?}");
        old = new;
    }
}

fn the_api_server_is_killed(world: &mut World, ns: &str) {
    let backends = at_port(&pods(4, 1, 4));
    let _backends = Backends::listen(&backends);
    let node = world.node(ns);
    let agent = world.agent(&node);
    world.cluster.apply(&service(ns, "web", "10.96.4.1", 80));
    world.cluster.apply(&slice(ns, "web-1", "web", &pods(4, 1, 3), 8080));
    node.await_backends("10.96.4.1:80", &backends[..3]);
    let before = node.services().expect("services");

    let flow = node.flow("10.96.4.1:80");
    world.control_plane.kill_apiserver();
    // Both watches are seen to fail before it is looked at what that did.
    for kind in ["Service", "EndpointSlice"] {
        agent.await_line(&["ERROR", &format!("kind=\"{kind}\"")]);
    }
    thread::sleep(Duration::from_secs(1));
    assert_eq!(node.services().expect("services"), before, "an outage changed the maps");
    flow.stop().assert_unbroken(&backends[..3]);

    // An agent that starts now knows nothing but what is pinned, and keeps to it.
    let flow = node.flow("10.96.4.1:80");
    agent.stop(Signal::SIGKILL);
    let agent = world.agent(&node);
    for kind in ["Service", "EndpointSlice"] {
        agent.await_line(&["ERROR", &format!("kind=\"{kind}\"")]);
    }
    assert_eq!(node.services().expect("services"), before, "a start in an outage changed the maps");
    world.control_plane.start_apiserver();
    world.cluster.apply(&service(ns, "new", "10.96.4.2", 80));
    world.cluster.apply(&slice(ns, "new-1", "new", &pods(4, 4, 4), 8080));
    world.cluster.apply(&slice(ns, "web-1", "web", &pods(4, 2, 4), 8080));
    node.await_backends("10.96.4.2:80", &backends[3..]);
    node.await_backends("10.96.4.1:80", &backends[1..]);
    flow.stop().assert_unbroken(&backends);
    assert!(node.spread("10.96.4.2:80", 3).iter().eq(&backends[3..]));
}

fn what_happened_before_a_compaction_is_noticed(world: &mut World, ns: &str) {
    let backends = at_port(&pods(5, 1, 4));
    let _backends = Backends::listen(&backends);
    let node = world.node(ns);
    let agent = world.agent(&node);
    let cluster = &world.cluster;
    for (name, ip) in [("stays", "10.96.5.1"), ("changes", "10.96.5.2"), ("goes", "10.96.5.3")] {
        cluster.apply(&service(ns, name, ip, 80));
        cluster.apply(&slice(ns, name, name, &pods(5, 1, 3), 8080));
    }
    cluster.apply(&slice(ns, "changes", "changes", &pods(5, 2, 3), 8080));
    let goes = slice(ns, "changes-2", "changes", &pods(5, 1, 1), 8080);
    cluster.apply(&goes);
    let stays = node.await_backends("10.96.5.1:80", &backends[..3]);
    node.await_backends("10.96.5.2:80", &backends[..3]);
    node.await_backends("10.96.5.3:80", &backends[..3]);

    // The agent sleeps. Its watches are broken before anything happens, so that nothing waits in its
    // sockets: it has to ask for what it missed, and by then that is forgotten.
    agent.suspend();
    let seen = cluster.revision();
    let flow = node.flow("10.96.5.1:80");
    world.control_plane.kill_apiserver();
    world.control_plane.start_apiserver();
    cluster.delete(&service(ns, "goes", "10.96.5.3", 80));
    cluster.delete(&slice(ns, "goes", "goes", &pods(5, 1, 3), 8080));
    cluster.delete(&goes);
    cluster.apply(&slice(ns, "changes", "changes", &pods(5, 2, 4), 8080));
    cluster.apply(&service(ns, "comes", "10.96.5.4", 80));
    cluster.apply(&slice(ns, "comes", "comes", &pods(5, 4, 4), 8080));
    world.control_plane.compact();
    world.control_plane.kill_apiserver();
    world.control_plane.start_apiserver();
    assert_eq!(world.cluster.refused_watch(&seen), Some(410), "nothing was forgotten");
    assert!(node.services().expect("services").contains_key("10.96.5.3:80"));
    agent.resume();

    node.await_absence("10.96.5.3:80");
    node.await_backends("10.96.5.2:80", &backends[1..]);
    node.await_backends("10.96.5.4:80", &backends[3..]);
    assert_eq!(node.await_backends("10.96.5.1:80", &backends[..3]), stays, "it was written anew");
    flow.stop().assert_unbroken(&backends[..3]);
    // And from then on, changes are seen again.
    world.cluster.apply(&slice(ns, "changes", "changes", &pods(5, 1, 1), 8080));
    node.await_backends("10.96.5.2:80", &backends[..1]);
}

fn what_happened_while_the_agent_was_dead_is_noticed(world: &mut World, ns: &str) {
    a_restart(world, ns, 6, Signal::SIGTERM);
}

fn what_happened_after_a_crash_is_noticed(world: &mut World, ns: &str) {
    a_restart(world, ns, 7, Signal::SIGKILL);
}

/// Both ways to end it are the same for connections and for what is found afterwards.
fn a_restart(world: &mut World, ns: &str, net: u8, end: Signal) {
    let cluster = &world.cluster;
    let backends = at_port(&pods(net, 1, 4));
    let _backends = Backends::listen(&backends);
    let node = world.node(ns);
    let agent = world.agent(&node);
    let ip = |host| format!("10.96.{net}.{host}");
    let frontend = |host| format!("10.96.{net}.{host}:80");
    for (name, host) in [("stays", 1), ("shrinks", 2), ("goes", 3)] {
        cluster.apply(&service(ns, name, &ip(host), 80));
        cluster.apply(&slice(ns, name, name, &pods(net, 1, 3), 8080));
        node.await_backends(&frontend(host), &backends[..3]);
    }
    let before = node.services().expect("services");
    let flow = node.flow(&frontend(1));
    let status = agent.stop(end);
    assert_eq!(status.success(), end == Signal::SIGTERM, "{status}");

    cluster.apply(&slice(ns, "shrinks", "shrinks", &pods(net, 2, 3), 8080));
    cluster.delete(&service(ns, "goes", &ip(3), 80));
    cluster.delete(&slice(ns, "goes", "goes", &pods(net, 1, 3), 8080));
    cluster.apply(&service(ns, "comes", &ip(4), 80));
    cluster.apply(&slice(ns, "comes", "comes", &pods(net, 4, 4), 8080));
    assert_eq!(node.services().expect("services"), before, "without an agent the maps changed");
    assert!(node.spread(&frontend(2), 50).iter().eq(&backends[..3]));

    let _agent = world.agent(&node);
    let shrunk = node.await_backends(&frontend(2), &backends[1..3]);
    node.await_absence(&frontend(3));
    let come = node.await_backends(&frontend(4), &backends[3..]);
    flow.stop().assert_unbroken(&backends[..3]);
    let stays = node.await_backends(&frontend(1), &backends[..3]);
    assert_eq!(stays, before[&frontend(1)], "what did not change was written anew");
    assert_eq!(shrunk.id, before[&frontend(2)].id, "the same service port has another id");
    let taken: Vec<_> = before.values().map(|frontend| frontend.id).collect();
    assert!(!taken.contains(&come.id) || come.id == before[&frontend(3)].id, "{come:?}");
    assert_eq!(node.spread(&frontend(2), 50).iter().cloned().collect::<Vec<_>>(), backends[1..3]);
}

fn nothing_is_written_while_half_is_unknown(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let backends = at_port(&pods(8, 1, 3));
    let _backends = Backends::listen(&backends);
    let node = world.node(ns);
    cluster.apply(&service(ns, "web", "10.96.8.1", 80));
    cluster.apply(&slice(ns, "web-1", "web", &pods(8, 1, 2), 8080));
    let agent = world.agent(&node);
    node.await_backends("10.96.8.1:80", &backends[..2]);
    let before = node.services().expect("services");
    agent.stop(Signal::SIGTERM);

    // It may read Services, and these have changed; what endpoints they have it may not.
    cluster.apply(&reader("services", "", "services"));
    cluster.apply(&grant("services", GUEST));
    cluster.apply(&slice(ns, "web-1", "web", &pods(8, 2, 3), 8080));
    cluster.apply(&service(ns, "new", "10.96.8.2", 80));
    let agent = node.agent(&world.control_plane.guest_kubeconfig());
    agent.await_line(&["ERROR", "EndpointSlice", "endpointslices", "forbidden"]);
    agent.await_line(&["INFO", "kind=\"Service\"", "listed"]);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(node.services().expect("services"), before, "half of it was believed");
    assert!(node.spread("10.96.8.1:80", 50).iter().eq(&backends[..2]));

    cluster.apply(&reader("slices", "discovery.k8s.io", "endpointslices"));
    cluster.apply(&grant("slices", GUEST));
    node.await_backends("10.96.8.1:80", &backends[1..]);
    node.await_backends("10.96.8.2:80", &[]);
}

fn a_server_that_another_ca_signed_is_not_believed(world: &mut World, ns: &str) {
    let node = world.node(ns);
    let kubeconfig = world.sandbox.directory().join("other-ca.kubeconfig");
    write_kubeconfig(&kubeconfig, OTHER_CA.as_bytes(), "any");
    let agent = node.agent(&kubeconfig);
    agent.await_line(&["ERROR", "certificate"]);
    agent.await_line(&[ENDPOINT]);
}

fn slices_that_make_no_sense_harm_nobody(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let backends = at_port(&pods(9, 1, 2));
    let _backends = Backends::listen(&backends);
    let mut nobodys = slice(ns, "nobodys", "web", &pods(9, 8, 8), 8080);
    nobodys["metadata"]["labels"] = json!({});
    let mut names = slice(ns, "names", "web", &["example.invalid"], 8080);
    names["addressType"] = json!("FQDN");
    let mut portless = slice(ns, "portless", "web", &pods(9, 9, 9), 8080);
    portless["ports"] = json!([{ "name": "", "protocol": "TCP" }]);
    cluster.apply(&service(ns, "web", "10.96.9.1", 80));
    for object in [&nobodys, &names, &portless, &slice(ns, "good", "web", &pods(9, 1, 1), 8080)] {
        cluster.apply(object);
    }
    let node = world.node(ns);
    let agent = world.agent(&node);
    node.await_backends("10.96.9.1:80", &backends[..1]);
    let warned = |object: &Value, field: &str| {
        let name = object["metadata"]["name"].as_str().expect("a name");
        agent.await_line(&["WARN", &format!("EndpointSlice {ns}/{name}"), field]);
    };
    warned(&nobodys, "kubernetes.io/service-name");
    warned(&names, "addressType");
    warned(&portless, "ports[0].port");
    // The same while the agent watches.
    cluster.apply(&slice(ns, "good", "web", &pods(9, 1, 2), 8080));
    let mut late = names.clone();
    late["metadata"]["name"] = json!("late");
    cluster.apply(&late);
    warned(&late, "addressType");
    node.await_backends("10.96.9.1:80", &backends);
    assert!(node.spread("10.96.9.1:80", 30).iter().eq(&backends));
    // Its name may be longer than that of a Service.
    let name = "long".repeat(30);
    cluster.apply(&slice(ns, &name, "web", &pods(9, 3, 3), 8080));
    node.await_backends("10.96.9.1:80", &at_port(&pods(9, 1, 3)));
    cluster.delete(&slice(ns, &name, "web", &pods(9, 3, 3), 8080));
    // What is corrected counts.
    cluster.apply(&slice(ns, "portless", "web", &pods(9, 9, 9), 8080));
    node.await_backends("10.96.9.1:80", &at_port(&[pods(9, 1, 2), pods(9, 9, 9)].concat()));
}
