//! From one layout of the maps to another, and back: what sockets and clients have stays theirs. The other
//! layout is this one under another name; `cargo xtask upgrade` does the same with the agent of another
//! commit.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::atomic::Ordering::Relaxed,
};

use lb_agent::{
    datapath::Datapath,
    pins::{PROGRAMS, open_link},
};
use lb_common::abi::Counter;

use super::{
    agent::{Agent, SIZES, command, command_of},
    connect::V4,
    control::{self, counted, pinned},
    echo::PATIENCE,
    flips::udp_backend,
    pods::Pods,
    raw::{dial, udp_socket},
    restart::{a_while, under_load},
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

/// Link and program behind each pin, of whatever layout.
fn program_links(world: &World) -> Vec<(u32, u32)> {
    let mut pins = world.pins();
    if !pins.has_own_links().unwrap() {
        pins = pins.other_layouts().unwrap().remove(0);
    }
    let info = |name| open_link(&pins.link(name)).unwrap().0.info().unwrap();
    PROGRAMS.into_iter().map(info).map(|info| (info.id(), info.program_id())).collect()
}

/// The links are those that were there, their programs are others, and one layout is left.
fn passed_on(world: &World, before: &[(u32, u32)]) {
    for ((link, program), (link_before, program_before)) in program_links(world).iter().zip(before)
    {
        assert_eq!(link, link_before, "the link stays");
        assert_ne!(program, program_before, "the program is the new agent's");
    }
    let layouts = fs::read_dir(world.pins().home()).unwrap();
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    assert_eq!(layouts.map(name).filter(|name| name.starts_with('v')).count(), 1);
}

/// The agent of another layout, if there is one.
const OTHER: &str = "SOCKLB_OTHER_AGENT";

/// How many connects there are between two agents.
fn connects() -> u32 {
    if env::var_os(OTHER).is_some() { 200_000 } else { 500 }
}

/// The next agent, after one that is gone: every second time the other layout's, if there is one; else
/// this one, to which all that is pinned is another layout's.
fn next(world: &World, is_other: bool, sizes: &[&str]) -> Agent {
    let mut command = command(world, sizes);
    match env::var_os(OTHER) {
        None => becomes_another(world),
        Some(other) if is_other => command = command_of(Path::new(&other), world, sizes),
        Some(_) => {}
    }
    let agent = Agent::spawn(command);
    agent.wait_for_start("INFO attached");
    agent.wait_for_start("in sync");
    agent
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
        let mut asked = 0;
        under_load(|load| {
            let mut given = pinned(world);
            let other_sizes = ["--max-services=70", "--max-backends=300", "--max-affinity=2000"];
            let rounds = [&SIZES[..], &SIZES, &other_sizes, &SIZES];
            for (sizes, is_other) in rounds.into_iter().zip([true, false].into_iter().cycle()) {
                asking.send_to(b"who?", to).unwrap();
                let question = pods.take();
                let before = program_links(world);
                agent.kill();
                agent = next(world, is_other, sizes);
                passed_on(world, &before);

                assert_eq!(connected.peer_addr().unwrap(), to);
                pods.answer(&question);
                let mut bytes = [0; 16];
                assert_eq!(asking.recv_from(&mut bytes).unwrap().1, to, "the answer's label");
                let start = load.done.load(Relaxed);
                while load.done.load(Relaxed) < start + connects() {
                    assert_eq!(bonds(), stays);
                    asked += stays.len();
                }
                if is_other && env::var_os(OTHER).is_some() {
                    continue;
                }
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
        println!("{asked} times a client dialled again, and got the backend that it had");
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
                let before = program_links(world);
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

/// The map of the other layout's bonds has lost its pin, or is no such map: clients are bound anew.
#[test]
fn bonds_that_cannot_be_had() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        sticky(world);
        Agent::start(world).kill();
        under_load(|load| {
            for (instead, said) in [(None, "not all clients stay"), (Some("clients"), "made anew")]
            {
                let set = world.pins().maps().unwrap().unwrap();
                let affinity = set.join("affinity");
                fs::remove_file(&affinity).unwrap();
                if let Some(instead) = instead {
                    fs::hard_link(set.join(instead), affinity).unwrap();
                }
                let before = program_links(world);
                becomes_another(world);
                let agent = Agent::start(world);
                agent.wait_for(said);
                agent.wait_for("INFO attached");
                passed_on(world, &before);
                assert_eq!(bonds(), bonds());
                a_while(load);
                agent.kill();
            }
        });
    });
}

/// Without them nobody knows whose bonds there are. What is stored for sockets goes on.
#[test]
fn names_that_cannot_be_had() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        sticky(world);
        let agent = Agent::start(world);
        let to: SocketAddr = V4.parse().unwrap();
        let connected = udp_socket(true);
        dial(&connected, to).unwrap();
        under_load(|load| {
            agent.kill();
            fs::remove_file(world.pins().maps().unwrap().unwrap().join("names")).unwrap();
            let before = program_links(world);
            becomes_another(world);
            let agent = Agent::start(world);
            agent.wait_for("no client stays");
            agent.wait_for("INFO attached");
            passed_on(world, &before);
            assert_eq!(connected.peer_addr().unwrap(), to);
            assert_eq!(bonds(), bonds());
            a_while(load);
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
        let before = program_links(world);
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
