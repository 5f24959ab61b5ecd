//! What happens while the agent cannot see it: it changes nothing then, and finds out afterwards.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    World, at_port,
    lab::{
        objects::{service, slice},
        sockets::Backends,
    },
    pods,
};

pub(crate) fn the_api_server_is_killed(world: &mut World, ns: &str) {
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

pub(crate) fn what_happened_before_a_compaction_is_noticed(world: &mut World, ns: &str) {
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

pub(crate) fn what_happened_while_the_agent_was_dead_is_noticed(world: &mut World, ns: &str) {
    a_restart(world, ns, 6, Signal::SIGTERM);
}

pub(crate) fn what_happened_after_a_crash_is_noticed(world: &mut World, ns: &str) {
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
    assert!(node.spread(&frontend(2), 70).iter().eq(&backends[..3]));

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
