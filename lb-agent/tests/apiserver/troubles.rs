//! What is wrong with the access or with an object: it is said, and nothing else suffers.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    World, at_port,
    lab::{
        control_plane::{ENDPOINT, GUEST, write_kubeconfig},
        eventually,
        objects::{grant, node, node_status, reader, service, slice},
        sockets::Backends,
    },
    pods,
};

/// A CA certificate whose key nobody has; it signed nothing.
const OTHER_CA: &str = include_str!("../lab/other-ca.pem");

/// So many Services with session affinity.
const STICKY: u8 = 16;

pub(crate) fn nothing_is_written_while_half_is_unknown(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let backends = at_port(&pods(8, 1, 3));
    let _backends = Backends::listen(&backends);
    let node = world.node(ns);
    cluster.apply(&service(ns, "web", "10.96.8.1", 80));
    cluster.apply(&slice(ns, "web-1", "web", &pods(8, 1, 2), 8080));
    let sticky = |n: u8| format!("10.96.8.{}", 100 + n);
    for n in 0..STICKY {
        let name = format!("sticky-{n}");
        let mut bound = service(ns, &name, &sticky(n), 80);
        bound["spec"]["sessionAffinity"] = json!("ClientIP");
        cluster.apply(&bound);
        cluster.apply(&slice(ns, &name, &name, &pods(8, 1, 2), 8080));
    }
    let agent = world.agent(&node);
    node.await_backends("10.96.8.1:80", &backends[..2]);
    for n in 0..STICKY {
        node.await_backends(&format!("{}:80", sticky(n)), &backends[..2]);
    }
    // A client stays with its backend. That each of them is chosen by chance makes it no chance.
    let bonds = || -> Vec<_> {
        let ask = |n| node.ask(&format!("{}:80", sticky(n))).expect("an answer");
        (0..STICKY).map(ask).collect()
    };
    let bound = bonds();
    let before = node.services().expect("services");
    agent.stop(Signal::SIGTERM);

    // It may read Services and Nodes, and they have changed; what endpoints they have it may not.
    cluster.apply(&reader("nodes", "", "nodes"));
    cluster.apply(&grant("nodes", GUEST));
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
    // It has looked at what is due more than once by then.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(bonds(), bound, "clients were sent elsewhere");

    cluster.apply(&reader("slices", "discovery.k8s.io", "endpointslices"));
    cluster.apply(&grant("slices", GUEST));
    node.await_backends("10.96.8.1:80", &backends[1..]);
    node.await_backends("10.96.8.2:80", &[]);
    assert_eq!(bonds(), bound, "clients were sent elsewhere");
}

/// For how long nobody may read Nodes, and longer.
const WITHOUT_NODES: Duration = Duration::from_secs(90);

/// It may read all but Nodes. What needs them is left out in the end, and the rest is written; it is
/// all there when it may read them.
pub(crate) fn nodes_that_nobody_shows_are_not_waited_for(world: &mut World, ns: &str) {
    let cluster = &world.cluster;
    let kinds = [("services", ""), ("endpointslices", "discovery.k8s.io"), ("nodes", "")];
    let allow = |(resource, group): (&str, &str)| {
        let name = format!("{ns}-{resource}");
        let right = [reader(&name, group, resource), grant(&name, GUEST)];
        for object in &right {
            cluster.apply(object);
        }
        right
    };
    let mut granted = Vec::new();
    granted.extend(kinds[..2].iter().flat_map(|kind| allow(*kind)));

    let backends = at_port(&pods(11, 1, 2));
    let _backends = Backends::listen(&backends);
    cluster.apply(&node(ns));
    cluster.apply_status(&node_status(ns, &["192.0.2.77", "192.0.2.78"]));
    let mut web = service(ns, "web", "10.96.11.1", 80);
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["ports"][0]["nodePort"] = json!(32177);
    cluster.apply(&web);
    cluster.apply(&slice(ns, "web-1", "web", &pods(11, 1, 2), 8080));
    let own = world.node(ns);
    let agent = own.agent(&world.control_plane.guest_kubeconfig());
    agent.await_line(&["ERROR", "Node", "nodes", "forbidden"]);
    for kind in ["Service", "EndpointSlice"] {
        agent.await_line(&["INFO", &format!("kind=\"{kind}\""), "listed"]);
    }
    // Until it says that it waits no longer, it has written nothing.
    let waits_no_longer = "no list of Nodes after 30 s";
    eventually(WITHOUT_NODES, || {
        let written = own.services()?;
        let log = agent.log();
        if !log.contains(waits_no_longer) {
            assert!(written.is_empty(), "written on partial knowledge: {written:?}\n{log}");
            return Err(format!("it waits still:\n{log}"));
        }
        Ok(())
    });
    agent.await_line(&["ERROR", waits_no_longer, "grant list and watch on nodes"]);
    own.await_backends("10.96.11.1:80", &backends);
    assert!(own.spread("10.96.11.1:80", 50).iter().eq(&backends));
    assert!(own.ask("192.0.2.77:32177").is_err(), "nobody knows that this is a node");

    granted.extend(allow(kinds[2]));
    eventually(WITHOUT_NODES, || own.ask("192.0.2.77:32177").map_err(|error| error.to_string()));
    // What is not there any more, other steps cannot rely on.
    drop(agent);
    for object in &granted {
        cluster.delete(object);
    }
    cluster.delete(&node(ns));
}

pub(crate) fn a_server_that_another_ca_signed_is_not_believed(world: &mut World, ns: &str) {
    let node = world.node(ns);
    let kubeconfig = world.sandbox.directory().join("other-ca.kubeconfig");
    write_kubeconfig(&kubeconfig, OTHER_CA.as_bytes(), "any");
    let agent = node.agent(&kubeconfig);
    agent.await_line(&["ERROR", "certificate"]);
    agent.await_line(&[ENDPOINT]);
}

pub(crate) fn slices_that_make_no_sense_harm_nobody(world: &mut World, ns: &str) {
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
    assert!(node.spread("10.96.9.1:80", 50).iter().eq(&backends));
    // Its name may be longer than that of a Service.
    let name = "long".repeat(30);
    cluster.apply(&slice(ns, &name, "web", &pods(9, 3, 3), 8080));
    node.await_backends("10.96.9.1:80", &at_port(&pods(9, 1, 3)));
    cluster.delete(&slice(ns, &name, "web", &pods(9, 3, 3), 8080));
    // What is corrected counts.
    cluster.apply(&slice(ns, "portless", "web", &pods(9, 9, 9), 8080));
    node.await_backends("10.96.9.1:80", &at_port(&[pods(9, 1, 2), pods(9, 9, 9)].concat()));
}
