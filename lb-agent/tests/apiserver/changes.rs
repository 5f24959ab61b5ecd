//! What is created, changed and deleted while the agent watches.

use std::io::ErrorKind;

use serde_json::json;

use crate::{
    World, at_port,
    lab::{
        control_plane::{ENDPOINT, KUBERNETES},
        objects::{node, pod, pod_status, selecting_service, service, slice},
        sockets::Backends,
    },
    pods,
};

pub(crate) fn objects_come_change_and_go(world: &mut World, ns: &str) {
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

pub(crate) fn slices_are_made_from_pods(world: &mut World, ns: &str) {
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

pub(crate) fn sets_change_while_connections_flow(world: &mut World, ns: &str) {
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
        flow.await_more();
        world.cluster.apply(&slice(ns, "web-1", "web", &new, 8080));
        node.await_backends("10.96.3.1:80", &at_port(&new));
        flow.await_more();
        flow.stop().assert_unbroken(&at_port(&[&old[..], &new[..]].concat()));
        let spread = node.spread("10.96.3.1:80", 20);
        assert!(spread.iter().all(|name| at_port(&new).contains(name)), "{spread:?}, not {new:?}");
        old = new;
    }
}
