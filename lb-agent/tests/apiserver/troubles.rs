//! What is wrong with the access or with an object: it is said, and nothing else suffers.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    World, at_port,
    lab::{
        control_plane::{ENDPOINT, GUEST, write_kubeconfig},
        objects::{grant, reader, service, slice},
        sockets::Backends,
    },
    pods,
};

/// A CA certificate whose key nobody has; it signed nothing.
const OTHER_CA: &str = include_str!("../lab/other-ca.pem");

pub(crate) fn nothing_is_written_while_half_is_unknown(world: &mut World, ns: &str) {
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

    cluster.apply(&reader("slices", "discovery.k8s.io", "endpointslices"));
    cluster.apply(&grant("slices", GUEST));
    node.await_backends("10.96.8.1:80", &backends[1..]);
    node.await_backends("10.96.8.2:80", &[]);
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
