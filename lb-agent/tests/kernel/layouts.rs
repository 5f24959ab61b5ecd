//! From one layout of the maps to another, and back: what sockets and clients have stays theirs. The other
//! layout is this one under another name.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
};

use lb_agent::{datapath::Datapath, pins::PROGRAMS};
use lb_common::abi::Counter;

use super::{
    agent::{Agent, SIZES},
    connect::V4,
    control::{self, counted, pinned},
    echo::PATIENCE,
    flips::udp_backend,
    pods::Pods,
    raw::{dial, udp_socket},
    restart::{a_while, links, under_load},
    world::{World, backend4},
    yaml,
};

/// A new choice for each of them, among eight backends, is the old one once in 8^16 = 10^14 times.
const PORTS: u16 = 16;

/// A Service with session affinity, and so many UDP ports.
fn sticky(world: &World) {
    let mut ports = String::new();
    for n in 1..=PORTS {
        write!(ports, "{{name: p{n}, protocol: UDP, port: {n}}}, ").unwrap();
    }
    let mut endpoints = String::new();
    for n in 1..=8 {
        write!(endpoints, "{{addresses: [{}], conditions: {{ready: true}}}}, ", backend4(n))
            .unwrap();
    }
    let text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: sticky, namespace: default}}
spec:
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20]
  ipFamilies: [IPv4]
  sessionAffinity: ClientIP
  ports: [{ports}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: sticky-1, namespace: default, labels: {{kubernetes.io/service-name: sticky}}}}
addressType: IPv4
ports: [{ports}]
endpoints: [{endpoints}]
"
    );
    let fresh = world.dir().join("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, yaml::objects(world).join("sticky.yaml")).unwrap();
}

/// Where the client stays, at each of those ports.
fn bonds() -> Vec<IpAddr> {
    (1..=PORTS).map(|n| udp_backend(&format!("10.96.0.20:{n}")).unwrap().ip()).collect()
}

/// All that is pinned is another layout's from now on.
fn becomes_another(world: &World) {
    fs::rename(world.pins().root(), world.pins().home().join("v0")).unwrap();
}

/// The links are those that were there, and their programs are others.
fn passed_on(world: &World, before: &[(u32, u32)]) {
    for ((link, program), (link_before, program_before)) in links(world).iter().zip(before) {
        assert_eq!(link, link_before, "the link stays");
        assert_ne!(program, program_before, "the program is the new agent's");
    }
    assert!(!world.pins().home().join("v0").exists());
}

#[test]
fn nothing_that_sockets_and_clients_have_is_lost() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        yaml::put(world, "empty", "10.96.0.11", &[]);
        sticky(world);
        let pods = Pods::start(1..=2);
        let mut agent = Agent::start(world);
        let to: SocketAddr = V4.parse().unwrap();
        let (stays, names) = (bonds(), pinned(world).names);
        let connected = udp_socket(true);
        dial(&connected, to).unwrap();
        let asking = udp_socket(true);
        asking.set_read_timeout(Some(PATIENCE)).unwrap();
        // A datagram is refused, and counted.
        assert!(udp_socket(true).send_to(b"who?", "10.96.0.11:80").is_err());
        let refused = counted(world, Counter::Refused);
        assert!(refused > 0);
        under_load(|load| {
            let mut given = pinned(world);
            for sizes in [&SIZES[..], &SIZES, &["--max-services=70", "--max-affinity=2000"], &SIZES]
            {
                asking.send_to(b"who?", to).unwrap();
                let question = pods.take();
                let before = links(world);
                agent.kill();
                becomes_another(world);
                a_while(load);
                agent = Agent::start_with(world, sizes);
                agent.wait_for("INFO attached");
                passed_on(world, &before);
                a_while(load);

                assert_eq!(bonds(), stays);
                assert_eq!(connected.peer_addr().unwrap(), to);
                pods.answer(&question);
                let mut bytes = [0; 16];
                assert_eq!(asking.recv_from(&mut bytes).unwrap().1, to, "the answer's label");
                let now = pinned(world);
                assert_eq!(now.names, names, "service ports keep their ids");
                for (key, service) in &now.services {
                    let is_old = |before: &&_| **before == service.generation;
                    let mut all = given.services.values().map(|service| &service.generation);
                    assert_eq!(all.find(is_old), None, "{key:?}: a generation is given twice");
                }
                // The canary is refused, too.
                assert!(counted(world, Counter::Refused) >= refused, "counts go on");
                given = now;
            }
        });
    });
}

/// The agent ended when some of the links had passed to its programs.
#[test]
fn half_of_the_links() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        sticky(world);
        let agent = Agent::start(world);
        let stays = bonds();
        under_load(|load| {
            agent.kill();
            for half in [0, PROGRAMS.len() / 2] {
                let before = links(world);
                becomes_another(world);
                let agent = Agent::start(world);
                agent.wait_for("INFO attached");
                agent.kill();
                let theirs = world.pins().home().join("v0/links");
                fs::create_dir_all(&theirs).unwrap();
                for name in PROGRAMS.iter().skip(half).take(PROGRAMS.len() / 2) {
                    fs::rename(world.pins().link(name), theirs.join(name)).unwrap();
                }
                a_while(load);
                let agent = Agent::start(world);
                agent.wait_for("INFO attached");
                passed_on(world, &before);
                assert_eq!(bonds(), stays);
                a_while(load);
                agent.kill();
            }
        });
    });
}

/// Who looks at maps of another layout, and does not live to attach programs, has changed nothing.
#[test]
fn an_attempt_that_is_given_up() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        sticky(world);
        Agent::start(world).kill();
        let stays = bonds();
        let before = links(world);
        becomes_another(world);
        for _ in 0..2 {
            drop(Datapath::load(&world.pins(), control::SIZES).unwrap());
        }
        assert_eq!(bonds(), stays);
        let agent = Agent::start(world);
        agent.wait_for("INFO attached");
        passed_on(world, &before);
        assert_eq!(bonds(), stays);
    });
}
