//! Two nodes, each with an agent: what a client gets at each of them, by the traffic policy and by where
//! the endpoints are. The other node's endpoint is one of its host's own network.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use nix::mount::MsFlags;

use super::{
    agent::Agent,
    lane::{Answer, Lane, PATIENCE, SILENCE, Speech, ask_by, client, endpoint, node, serve},
    packets::{Web, put_all, text, web},
    world::{PORT, World, mount_bpffs},
    yaml,
};

/// What strangers get: numbers of endpoints, or why none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Gets {
    One(&'static [u8]),
    Refused,
    Silence,
}
use Gets::{One, Refused};

/// Endpoints, and whether they are ready or end; what strangers get by the policy Cluster at either
/// node, and by Local at this node and at the other. Endpoint 1 is here, 3 there.
type Row = (&'static [(u8, bool)], Gets, [Gets; 2]);
const ROWS: [Row; 8] = [
    (&[(1, true), (3, true)], One(&[1, 3]), [One(&[1]), One(&[3])]),
    (&[(1, true)], One(&[1]), [One(&[1]), Gets::Silence]),
    (&[(3, true)], One(&[3]), [Gets::Silence, One(&[3])]),
    (&[], Refused, [Refused, Refused]),
    (&[(1, false)], One(&[1]), [One(&[1]), Gets::Silence]),
    (&[(3, false)], One(&[3]), [Gets::Silence, One(&[3])]),
    (&[(1, false), (3, true)], One(&[3]), [One(&[1]), One(&[3])]),
    (&[(1, true), (3, false)], One(&[1]), [One(&[1]), One(&[3])]),
];

/// A Service for each row and policy.
fn services() -> Vec<(Web, Row)> {
    let all = ROWS.into_iter().flat_map(|row| [false, true].map(|local| (local, row)));
    let all = (1..).zip(all).map(|(number, (local, row))| {
        (Web { number, external: true, local, endpoints: row.0.to_vec(), ..web(&[]) }, row)
    });
    all.collect()
}

/// An agent of a node of this name, where the thread is.
fn agent(world: &World, name: &str) -> Command {
    let (bpffs, cgroup) = (world.dir().join(name), world.cgroup().join(name));
    fs::create_dir(&bpffs).unwrap();
    fs::create_dir(&cgroup).unwrap();
    mount_bpffs(&bpffs, MsFlags::empty());
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command.arg("--source").arg(format!("dir:{}", yaml::objects(world).display()));
    command.arg("--bpffs").arg(bpffs).arg("--cgroup").arg(cgroup);
    command.args([&format!("--node-name={name}"), "--log=info", "--packets=external"]);
    command.args(["--max-services=1024", "--max-backends=4096"]);
    command
}

/// Who the endpoint sees that answers at a node.
fn seen(at_other: bool, local: bool, name: &str, ipv4: bool) -> IpAddr {
    match (at_other, name) {
        _ if local => client(ipv4),
        // Not masqueraded: it is the node itself, and answers itself.
        (true, "endpoint-3") => client(ipv4),
        (true, _) => endpoint(3, ipv4),
        (false, "endpoint-3") => node(ipv4),
        (false, _) if ipv4 => [10, 60, 1, 1].into(),
        (false, _) => "fd60:1::1".parse().unwrap(),
    }
}

#[test]
fn each_serves_by_policy_and_by_where_the_endpoints_are() {
    World::run(|world| {
        let lane = Lane::new();
        lane.elsewhere.run(super::lane::forward);
        let services = services();
        let objects: Vec<_> = services.iter().map(|(web, _)| text(web)).collect();
        put_all(world, &objects.join("---\n"));
        let here = Agent::spawn(agent(world, "test"));
        let other = agent(world, "other");
        let there = lane.elsewhere.run(move || Agent::spawn(other));
        for agent in [&here, &there] {
            agent.wait_for_start("in sync");
        }
        for at_other in [false, true] {
            if at_other {
                lane.router.ip("route replace 192.0.2.0/24 via 10.50.3.2");
                lane.router.ip("route replace 2001:db8::/64 via fd50:3::2");
            }
            let mut cells = Vec::new();
            for (web, (_, cluster, local)) in &services {
                let gets = if web.local { local[usize::from(at_other)] } else { *cluster };
                for ipv4 in [true, false] {
                    let at = if at_other { endpoint(3, ipv4) } else { node(ipv4) };
                    let at = SocketAddr::new(at, web.node_port());
                    for to in [at, web.vip(ipv4), web.external(ipv4)] {
                        cells.extend(Speech::BOTH.map(|speech| (web, gets, (speech, to))));
                    }
                }
            }
            let ask = |gets: fn(&Gets) -> bool, patience| {
                let cells: Vec<_> = cells.iter().filter(|(_, of, _)| gets(of)).collect();
                let all: Vec<_> = cells.iter().map(|(.., cell)| *cell).collect();
                let answers = lane.ask_all(&all, patience);
                cells.into_iter().zip(answers).collect::<Vec<_>>()
            };
            let which = |web: &Web, cell: (Speech, SocketAddr)| {
                format!("{cell:?} {:?} {} at the other: {at_other}", web.endpoints, web.local)
            };
            for ((web, _, cell), answer) in ask(|of| *of == Gets::Silence, SILENCE) {
                assert_eq!(answer, Answer::Silence, "{}", which(web, *cell));
            }
            for ((web, _, cell), answer) in ask(|of| *of == Refused, PATIENCE) {
                assert_eq!(answer, Answer::Refused, "{}", which(web, *cell));
            }
            let mut names: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
            for _ in 0..4 {
                for ((web, _, cell), answer) in ask(|of| matches!(of, One(_)), PATIENCE) {
                    let which = which(web, *cell);
                    let Answer::From { name, seen: by } = answer else {
                        panic!("{which}: {answer:?}")
                    };
                    let expected = seen(at_other, web.local, &name, cell.1.is_ipv4());
                    assert_eq!(by, expected, "{which}: {name}");
                    names.entry(web.number).or_default().insert(name);
                }
            }
            for (web, gets, _) in cells {
                let One(endpoints) = gets else { continue };
                let all = endpoints.iter().map(|n| format!("endpoint-{n}")).collect();
                assert_eq!(names[&web.number], all, "{:?} at the other: {at_other}", web.endpoints);
            }
        }
        ports_of_nodes_are_others_ports_too(&lane, &services);
    });
}

/// Whoever asks from a port that is also a port of nodes is answered: a stranger, and the node itself,
/// where strangers are served, rejected or dropped.
fn ports_of_nodes_are_others_ports_too(lane: &Lane, services: &[(Web, Row)]) {
    for ipv4 in [true, false] {
        let addr = SocketAddr::new(client(ipv4), PORT);
        lane.client.run(move || serve("client", addr));
        let [(both, _), ..] = services else { panic!() };
        let from = SocketAddr::new(client(ipv4), both.node_port());
        for speech in Speech::BOTH {
            let to = SocketAddr::new(node(ipv4), both.node_port());
            let answer = lane.ask_by(from, speech, to);
            assert!(matches!(answer, Answer::From { .. }), "{speech:?} {to}: {answer:?}");
            for (web, _) in services {
                let from = SocketAddr::new(node(ipv4), web.node_port());
                let answer = ask_by(from, speech, addr, PATIENCE);
                let expected = Answer::From { name: "client".into(), seen: node(ipv4) };
                assert_eq!(answer, expected, "{speech:?} from {from}");
            }
        }
    }
}
