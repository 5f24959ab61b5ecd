//! Packets from outside: NodePorts, load balancers' addresses and external ones, by the real agent with
//! `--packets external`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    agent::{self, Agent, SIZES},
    lane::{Answer, Lane, PATIENCE, SILENCE, Speech, ask, ask_all, client, endpoint, node},
    lbctl, packets_table,
    world::{PORT, World, soon},
    yaml,
};

const NODE_PORT: u16 = 30080;

/// A Service at a load balancer's address, with a node port, in both families.
#[derive(Clone)]
pub(crate) struct Web {
    /// Tells it from others: its addresses and its port of nodes go with it.
    pub(crate) number: u8,
    /// Whether it has external addresses as well.
    pub(crate) external: bool,
    pub(crate) local: bool,
    pub(crate) ranges: Vec<String>,
    /// Number, and whether it is ready, or ends and still serves; pods 1 and 2 are here, 3 is elsewhere.
    pub(crate) endpoints: Vec<(u8, bool)>,
    /// How long clients stay with their endpoint, in seconds.
    pub(crate) affinity: Option<u32>,
}

pub(crate) fn web(endpoints: &[u8]) -> Web {
    let endpoints = endpoints.iter().map(|n| (*n, true)).collect();
    Web { number: 0, external: false, local: false, ranges: Vec::new(), endpoints, affinity: None }
}

impl Web {
    /// At its load balancer's address.
    pub(crate) fn vip(&self, ipv4: bool) -> SocketAddr {
        (routed(ipv4, 80 + self.number), 80).into()
    }

    /// At its external address.
    pub(crate) fn external(&self, ipv4: bool) -> SocketAddr {
        (routed(ipv4, 160 + self.number), 80).into()
    }

    pub(crate) fn node_port(&self) -> u16 {
        NODE_PORT + u16::from(self.number)
    }

    /// At the node's port.
    pub(crate) fn at_node(&self, ipv4: bool) -> SocketAddr {
        (node(ipv4), self.node_port()).into()
    }
}

/// One of the addresses that the router sends to the node.
pub(crate) fn routed(ipv4: bool, n: u8) -> IpAddr {
    if ipv4 { [192, 0, 2, n].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()].into() }
}

pub(crate) fn vip(ipv4: bool) -> SocketAddr {
    web(&[]).vip(ipv4)
}

pub(crate) fn node_port(ipv4: bool) -> SocketAddr {
    (node(ipv4), NODE_PORT).into()
}

/// Writes it as the only object; the file appears whole.
pub(crate) fn put(world: &World, web: &Web) {
    put_all(world, &text(web));
}

/// Writes these as the only objects.
pub(crate) fn put_all(world: &World, text: &str) {
    let fresh = world.dir().join("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, yaml::objects(world).join("web.yaml")).unwrap();
}

/// Its objects.
pub(crate) fn text(web: &Web) -> String {
    let number = web.number;
    let name = if number == 0 { "web".to_owned() } else { format!("web-{number}") };
    let ip = 10 + number;
    let external = if web.external {
        format!("  externalIPs: [{}, '{}']\n", web.external(true).ip(), web.external(false).ip())
    } else {
        String::new()
    };
    let policy = if web.local { "Local" } else { "Cluster" };
    let affinity = web.affinity.map_or_else(String::new, |seconds| {
        format!(
            "  sessionAffinity: ClientIP
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n"
        )
    });
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.{ip}
  clusterIPs: [10.96.0.{ip}, 'fd96::{ip}']
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: {policy}
  loadBalancerSourceRanges: [{}]
{affinity}{external}  ports:
  - {{name: tcp, protocol: TCP, port: 80, nodePort: {port}}}
  - {{name: udp, protocol: UDP, port: 80, nodePort: {port}}}
status:
  loadBalancer: {{ingress: [{{ip: {}}}, {{ip: '{}'}}]}}
",
        web.ranges.join(", "),
        web.vip(true).ip(),
        web.vip(false).ip(),
        port = web.node_port(),
    );
    for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
        let mut endpoints = String::new();
        for (n, is_ready) in &web.endpoints {
            let place = if *n == 3 { "other" } else { "test" };
            let (ip, end) = (endpoint(*n, ipv4), !is_ready);
            write!(
                endpoints,
                "\n- {{addresses: ['{ip}'], nodeName: {place}, conditions: {{ready: {is_ready}, \
                 serving: true, terminating: {end}}}}}"
            )
            .unwrap();
        }
        if endpoints.is_empty() {
            endpoints.push_str(" []");
        }
        write!(
            text,
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{ipv4}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {family}
ports:
- {{name: tcp, protocol: TCP, port: 8080}}
- {{name: udp, protocol: UDP, port: 8080}}
endpoints:{endpoints}
"
        )
        .unwrap();
    }
    text
}

/// An agent whose programs see no socket of the test: its cgroup is empty.
pub(crate) fn start(world: &World) -> Agent {
    start_with(world, &[])
}

/// The same with more flags.
pub(crate) fn start_with(world: &World, more: &[&str]) -> Agent {
    let agent = Agent::spawn(command(world, more));
    agent.wait_for_start("in sync");
    agent
}

/// Its command.
pub(crate) fn command(world: &World, more: &[&str]) -> Command {
    command_of_size(world, &SIZES, more)
}

/// The same of one that has room for more.
pub(crate) fn command_of_size(world: &World, sizes: &[&str], more: &[&str]) -> Command {
    let cgroup = world.cgroup().join("nobody");
    fs::create_dir_all(&cgroup).unwrap();
    let cgroup = format!("--cgroup={}", cgroup.display());
    agent::command(world, &[sizes, &[&cgroup, "--packets=external"], more].concat())
}

/// Every family, protocol and kind of address.
pub(crate) fn cells() -> Vec<(bool, Speech, SocketAddr)> {
    let families = [true, false].into_iter();
    let speeches = families.flat_map(|ipv4| Speech::BOTH.map(|speech| (ipv4, speech)));
    speeches
        .flat_map(|(ipv4, speech)| [vip(ipv4), node_port(ipv4)].map(|to| (ipv4, speech, to)))
        .collect()
}

/// Every address, whatever the family.
fn addresses() -> Vec<(Speech, SocketAddr)> {
    cells().into_iter().map(|(_, speech, to)| (speech, to)).collect()
}

/// Waits until the client gets this at every address.
fn becomes(lane: &Lane, what: impl Fn(&Answer) -> bool) {
    let all = addresses();
    assert!(
        soon(|| lane.ask_all(&all, SILENCE).iter().all(&what)),
        "{:?}",
        lane.ask_all(&all, SILENCE)
    );
}

/// Who answers when asked often: of two, 30 times leave one out once in 10^9.
fn spread(lane: &Lane, speech: Speech, to: SocketAddr) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut all: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for _ in 0..30 {
        let Answer::From { name, seen } = lane.ask(speech, to) else { panic!("{speech:?} {to}") };
        all.entry(name).or_default().insert(seen);
    }
    all
}

pub(crate) fn nft(words: &str) -> String {
    let (fine, text) = packets_table::nft(words);
    assert!(fine, "nft {words}: {text}");
    text
}

#[test]
fn strangers_reach_endpoints_here_and_elsewhere() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1, 3]));
        let _agent = start(world);
        for (ipv4, speech, to) in cells() {
            let all = spread(&lane, speech, to);
            let names: Vec<_> = all.keys().map(String::as_str).collect();
            assert_eq!(names, ["endpoint-1", "endpoint-3"], "{speech:?} {to}");
            // The answer has to come back here. A pod sees the node's address on its side.
            let beside: IpAddr =
                if ipv4 { [10, 60, 1, 1].into() } else { "fd60:1::1".parse().unwrap() };
            assert_eq!(all["endpoint-1"], [beside].into(), "{speech:?} {to}");
            assert_eq!(all["endpoint-3"], [node(ipv4)].into(), "{speech:?} {to}");
        }
        // Other tools can read what is there.
        assert!(nft("list ruleset").contains("table ip6 socklb"));
        assert!(nft("-j list ruleset").contains("socklb"));
    });
}

#[test]
fn a_local_policy_keeps_the_source_and_the_node_goes_everywhere() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &Web { local: true, ..web(&[1, 3]) });
        let _agent = start(world);
        for (ipv4, speech, to) in cells() {
            let all = spread(&lane, speech, to);
            assert_eq!(
                all,
                [("endpoint-1".to_owned(), [client(ipv4)].into())].into(),
                "{speech:?} {to}"
            );
            let here: BTreeSet<String> =
                (0..30).map(|_| ask(speech, to, PATIENCE).name().to_owned()).collect();
            assert_eq!(here.len(), 2, "{speech:?} {to}: {here:?}");
        }
        // Nobody here: strangers get nothing, the node what is elsewhere.
        put(world, &Web { local: true, ..web(&[3]) });
        becomes(&lane, |answer| *answer == Answer::Silence);
        for (speech, to) in addresses() {
            assert_eq!(ask(speech, to, PATIENCE).name(), "endpoint-3", "{speech:?} {to}");
        }
        // One on its way out is better than none.
        put(
            world,
            &Web { endpoints: vec![(1, false), (3, true)], ..Web { local: true, ..web(&[]) } },
        );
        becomes(
            &lane,
            |answer| matches!(answer, Answer::From { name, .. } if name == "endpoint-1"),
        );
    });
}

#[test]
fn where_there_are_no_endpoints_packets_are_rejected() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[]));
        let _agent = start(world);
        for (_, speech, to) in cells() {
            assert_eq!(lane.ask(speech, to), Answer::Refused, "{speech:?} {to}");
            let here = match speech {
                Speech::Tcp => Answer::Refused,
                Speech::Udp => Answer::Forbidden,
            };
            assert_eq!(ask(speech, to, PATIENCE), here, "{speech:?} {to}, from the node");
            // Another port of the same address is nobody's business of ours.
            let other = SocketAddr::new(to.ip(), 81);
            if to.port() == NODE_PORT {
                assert_eq!(lane.ask(speech, other), Answer::Refused, "the kernel's own");
            }
        }
        put(world, &web(&[2]));
        becomes(
            &lane,
            |answer| matches!(answer, Answer::From { name, .. } if name == "endpoint-2"),
        );
    });
}

#[test]
fn source_ranges_are_for_the_load_balancers_address() {
    World::run(|world| {
        let lane = Lane::new();
        let ranges = |all: &[&str]| Web {
            ranges: all.iter().map(|range| format!("'{range}'")).collect(),
            ..web(&[1])
        };
        put(world, &ranges(&["10.99.0.0/16", "fd99::/16", "fd99:1::/32"]));
        let _agent = start(world);
        let (vips, node_ports): (Vec<_>, Vec<_>) =
            addresses().into_iter().partition(|(_, to)| to.port() != NODE_PORT);
        assert_eq!(lane.ask_all(&vips, SILENCE), [const { Answer::Silence }; 4]);
        for ((speech, to), answer) in vips.iter().zip(ask_all(&vips, SILENCE)) {
            let here = match speech {
                Speech::Tcp => Answer::Silence,
                Speech::Udp => Answer::Forbidden,
            };
            assert_eq!(answer, here, "{speech:?} {to}, from the node");
        }
        for (speech, to) in node_ports {
            assert_eq!(lane.ask(speech, to).name(), "endpoint-1");
        }
        put(world, &ranges(&["10.50.1.0/24", "fd50:1::/32", "10.99.0.0/16", "fd99::/16"]));
        becomes(&lane, |answer| matches!(answer, Answer::From { .. }));
        put(world, &ranges(&[]));
        becomes(&lane, |answer| matches!(answer, Answer::From { .. }));
        assert!(soon(|| !nft("list set ip socklb ranges").contains("elements")));
    });
}

#[test]
fn lbctl_says_what_strangers_get() {
    World::run(|world| {
        let lane = Lane::new();
        let ranges = vec!["10.50.0.0/16".to_owned(), "'fd50::/16'".to_owned()];
        put(world, &Web { local: true, ranges, affinity: Some(60), ..web(&[1, 3]) });
        let _agent = start(world);
        for ipv4 in [true, false] {
            let (pod, stranger) = (SocketAddr::new(endpoint(1, ipv4), PORT), client(ipv4));
            let explain = |to: SocketAddr, from: IpAddr| {
                lbctl::ask(world, &format!("explain {to} --from {from}")).1
            };
            let words = format!("goes to {pod}; a sender stays");
            for to in [vip(ipv4), node_port(ipv4)] {
                let said = explain(to, stranger);
                assert!(said.contains(&words), "{said}");
                assert_eq!(lane.ask(Speech::Tcp, to).name(), "endpoint-1");
            }
            let said = explain(vip(ipv4), if ipv4 { [10, 9, 9, 9].into() } else { [9; 16].into() });
            assert!(said.contains("is in none of the source ranges"), "{said}");
        }
        let (_, status, _) = lbctl::ask(world, "status");
        assert!(status.contains("packets: external (in nftables: 8 frontends"), "{status}");
        // Under Local, one endpoint is here; all of them are the node's own sockets'.
        let (_, rows, _) = lbctl::ask(world, "get services -o wide");
        let row = rows.lines().find(|row| row.contains(&format!("{}/tcp", vip(true)))).unwrap();
        assert!(row.ends_with(" 1"), "{rows}");
    });
}

#[test]
fn a_pod_may_ask_for_itself() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &Web { local: true, ..web(&[1]) });
        let _agent = start(world);
        for (_, speech, to) in cells() {
            let answer = lane.pods[0].run(move || ask(speech, to, PATIENCE));
            assert_eq!(answer.name(), "endpoint-1", "{speech:?} {to}");
        }
    });
}

/// Asks once; over UDP again if the answer is lost: that of an endpoint which leaves may not find its
/// flow any more.
fn ask_again(speech: Speech, to: SocketAddr) -> Answer {
    match ask(speech, to, if speech == Speech::Udp { SILENCE } else { PATIENCE }) {
        Answer::Silence if speech == Speech::Udp => ask(speech, to, PATIENCE),
        answer => answer,
    }
}

#[test]
fn an_endpoint_leaves_and_comes_back_and_nobody_is_refused() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1, 2, 3]));
        let _agent = start(world);
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = cells()
            .into_iter()
            .map(|(_, speech, to)| {
                let stop = Arc::clone(&stop);
                lane.client.run(move || {
                    thread::spawn(move || {
                        let mut asked = 0;
                        while !stop.load(Ordering::Relaxed) {
                            let answer = ask_again(speech, to);
                            assert!(
                                matches!(answer, Answer::From { .. }),
                                "{speech:?} {to}: {answer:?}"
                            );
                            asked += 1;
                            // Others have something to do, too.
                            thread::sleep(Duration::from_millis(5));
                        }
                        asked
                    })
                })
            })
            .collect();
        for round in 0..4 {
            let (without, with): (&[u8], u8) =
                if round % 2 == 0 { (&[1, 3], 2) } else { (&[2, 3], 1) };
            put(world, &web(without));
            // Once nobody is sent there any more, nobody is: all slots have been written.
            let gone = format!("{}", endpoint(with, true));
            assert!(soon(|| !nft("list map ip socklb endpoints").contains(&gone)));
            for (_, speech, to) in cells().into_iter().take(2) {
                assert!(!spread(&lane, speech, to).contains_key(&format!("endpoint-{with}")));
            }
            put(world, &web(&[1, 2, 3]));
            assert!(soon(|| nft("list map ip socklb endpoints").contains(&gone)));
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
}

#[test]
fn what_is_there_is_taken_over_and_what_was_removed_comes_back() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1, 3]));
        let agent = start(world);
        // With the kernel's numbers of tables and rules: a rule that is written anew has another one.
        let before = nft("-a list ruleset");
        agent.kill();
        becomes(&lane, |answer| matches!(answer, Answer::From { .. }));
        let agent = start(world);
        let (now, before) = (nft("-a list ruleset"), before.replace("# progname lb-agent", ""));
        assert_eq!(now.replace("# progname lb-agent", ""), before);
        // Without an owner, before Linux 6.9, that takes all away, until the agent notices.
        let status = || lbctl::ask(world, "status").1;
        assert!(!status().contains(", repaired "), "{}", status());
        nft("flush ruleset");
        becomes(&lane, |answer| matches!(answer, Answer::From { .. }));
        if !packets_table::is_owned() {
            assert!(soon(|| status().contains(", repaired 2")), "{}", status());
        }
        drop(agent);
        nft("delete table ip socklb");
        let agent = start(world);
        becomes(&lane, |answer| matches!(answer, Answer::From { .. }));
        drop(agent);
        let (success, text) = agent::output(agent::command(world, &["--cleanup"]));
        assert!(success && text.contains("removed table ip6 socklb"), "{text}");
        assert_eq!(nft("list ruleset"), "");
    });
}
