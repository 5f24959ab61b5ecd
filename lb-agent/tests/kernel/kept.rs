//! What an agent cannot know when it starts, it leaves as the one before knew it: where clients are
//! bound to, and where they are. And what it must know before others ask, it finds out before.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream},
    thread,
};

use lb_agent::{
    datapath::Datapath,
    maps::{Access, Pinned},
};
use lb_common::abi::{ClientKey, Counter};
use nix::errno::Errno;

use super::{
    affinity::of_each,
    agent::{Agent, SIZES, command},
    clients::cookie,
    control::{counted, pinned},
    echo::PATIENCE,
    flips::{Load, udp_backend},
    node_ports::fails,
    restart::{Stop, a_while},
    world::{PORT, World, backend4, soon},
    yaml,
};

/// In no Service.
const UNKNOWN: &str = "10.96.0.10:99";
const VIP: &str = "203.0.113.5:80";

fn put(world: &World, name: &str, text: &str) {
    let fresh = world.dir().join("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, yaml::objects(world).join(format!("{name}.yaml"))).unwrap();
}

fn endpoints(ports: &str) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports:
{ports}endpoints:
"
    );
    for n in 1..=8 {
        writeln!(text, "- {{addresses: [{}]}}", backend4(n)).unwrap();
    }
    text
}

/// With bonds of 16 ports, as [`super::affinity::of_ports`].
fn sticky() -> String {
    let (mut of_service, mut of_slice) = (String::new(), String::new());
    for n in 1..=16 {
        writeln!(of_service, "  - {{name: p{n}, protocol: UDP, port: {n}}}").unwrap();
        writeln!(of_slice, "- {{name: p{n}, protocol: UDP, port: {PORT}}}").unwrap();
    }
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: 10.96.0.10
  sessionAffinity: ClientIP
  ports:
{of_service}---
{}",
        endpoints(&of_slice)
    )
}

/// At [`VIP`] for clients in these ranges.
fn ranges(ranges: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  loadBalancerSourceRanges: [{ranges}]
  ports:
  - {{name: p, protocol: UDP, port: 80}}
status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.5}}]}}}}
---
{}",
        endpoints(&format!("- {{name: p, protocol: UDP, port: {PORT}}}\n"))
    )
}

/// This node, at an address that is not the first one of its interfaces.
const NODE: &str = "apiVersion: v1
kind: Node
metadata: {name: test}
status: {addresses: [{type: InternalIP, address: 10.2.0.1}]}
";

/// An agent that starts while a file is broken: nobody knows what the cluster is.
fn start_without_lists(world: &World) -> Agent {
    put(world, "broken", "}");
    let agent = Agent::spawn(command(world, &SIZES));
    agent.wait_for_start("nothing is done before all files were read");
    agent
}

/// Lets the agent look twice what is due; whatever it began the first time has had a second.
fn two_looks(world: &World) {
    const TOLD: &str = "socklb_datapath_events_total{event=\"refused\"} ";
    for _ in 0..2 {
        fails(UNKNOWN, Errno::ECONNREFUSED);
        // The canary is refused as well.
        let count = counted(world, Counter::Refused);
        let told = |line: &str| line.strip_prefix(TOLD)?.parse::<u64>().ok();
        let seen = || metrics().lines().find_map(told).is_some_and(|seen| seen >= count);
        assert!(soon(seen), "not {count} in\n{}", metrics());
    }
}

fn metrics() -> String {
    let Ok(mut stream) = TcpStream::connect("127.0.0.1:10249") else { return String::new() };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn clients(world: &World) -> Pinned {
    Pinned::open(&world.pins().maps().unwrap().unwrap(), Access::Read).unwrap()
}

/// Which backend it is, of each port, is chance; that it is the same one is none.
#[test]
fn bonds_outlive_a_start_without_lists() {
    World::run(|world| {
        put(world, "web", &sticky());
        let agent = Agent::start(world);
        let before = of_each(16);
        agent.kill();
        let agent = start_without_lists(world);
        two_looks(world);
        assert_eq!(of_each(16), before);
        // The lists are there.
        fs::remove_file(yaml::objects(world).join("broken.yaml")).unwrap();
        agent.wait_for("in sync");
        two_looks(world);
        assert_eq!(of_each(16), before);
    });
}

/// Without the Node, this machine would take another address for its own.
#[test]
fn clients_outlive_a_start_without_lists() {
    World::run(|world| {
        put(world, "node", NODE);
        put(world, "web", &ranges("10.2.0.0/16"));
        let agent = Agent::start(world);
        assert!(udp_backend(VIP).is_ok());
        agent.kill();
        let agent = start_without_lists(world);
        two_looks(world);
        udp_backend(VIP).unwrap();
        fs::remove_file(yaml::objects(world).join("broken.yaml")).unwrap();
        agent.wait_for("in sync");
        two_looks(world);
        udp_backend(VIP).unwrap();
    });
}

/// Nor does anybody have to be found anew because the maps have another size.
#[test]
fn clients_outlive_a_resize() {
    World::run(|world| {
        put(world, "node", NODE);
        put(world, "web", &ranges("10.2.0.0/16"));
        Agent::start(world).kill();
        let before = clients(world).clients().unwrap();
        let node = "10.2.0.1".parse::<IpAddr>().unwrap().into();
        assert_eq!(before[&ClientKey::general(cookie(), node)].addr, node);
        let sizes = lb_agent::datapath::Sizes { services: 100, backends: 100, affinity: 64 };
        let (mut datapath, _maps) = Datapath::load(&world.pins(), sizes).unwrap();
        datapath.attach(world.cgroup()).unwrap();
        assert_eq!(pinned(world).max_services, 100);
        assert_eq!(clients(world).clients().unwrap(), before);
        udp_backend(VIP).unwrap();
    });
}

/// The first ranges that a Service has shut out nobody who is in them, not even for the moment that it
/// takes to find out who is.
#[test]
fn clients_are_known_before_the_first_range() {
    World::run(|world| {
        put(world, "web", &ranges(""));
        let agent = Agent::start(world);
        let all: Vec<_> = (1..=8).map(backend4).collect();
        let load = Load::default();
        thread::scope(|scope| {
            scope.spawn(|| load.run(u32::MAX, &all, || udp_backend(VIP)));
            let _stop = Stop(&load);
            a_while(&load);
            put(world, "web", &ranges("10.1.0.0/16"));
            let limited = soon(|| !pinned(world).source_ranges.is_empty());
            a_while(&load);
            assert!(limited, "{}", agent.log());
        });
        load.verdict();
        // Somebody is shut out by now.
        put(world, "web", &ranges("10.3.0.0/16"));
        assert!(soon(|| udp_backend(VIP).is_err_and(|e| e.raw_os_error() == Some(libc::EACCES))));
    });
}
