//! Random histories against what they should come to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::{
    Choice, Edit, Element, Group, MemoryTable, PacketEngine, Table, TableError, TableMirror, dump,
};
use crate::{
    claims::Claims,
    engine::{Engine, EngineReport, NodeAddresses, Wanted},
    model::{Cidr, Frontend, NodeAddr, ObjectRef, PortRef, Protocol, Scope},
    policy::{Empty, FrontendKind, OutsideFrontend, OutsidePort, Sender, Served, TrafficPolicy},
};

const FRONTENDS: u8 = 8;
const SERVICES: usize = 3;

/// A table that fails when it is told to.
#[derive(Default)]
struct Faulty {
    table: MemoryTable,
    /// What the next transactions meet, last one first.
    failures: Vec<Option<TableError>>,
    /// The most that one transaction had.
    longest: usize,
    /// How often all was said to be written.
    settled: usize,
}

impl Table for Faulty {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        if let Some(error) = self.failures.pop().flatten() {
            return Err(error);
        }
        self.longest = self.longest.max(edits.len());
        self.table.write(edits)
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        self.table.read(take)
    }

    fn settle(&mut self) -> Result<(), TableError> {
        self.settled += 1;
        self.failures.pop().flatten().map_or(Ok(()), Err)
    }
}

fn name(of: usize) -> ObjectRef {
    ObjectRef::new("default", format!("s{of}"))
}

fn frontend(n: u8) -> Frontend {
    match n {
        0 => Frontend {
            scope: Scope::OwnNode,
            ..Frontend::new("0.0.0.0:30080".parse().unwrap(), Protocol::Tcp)
        },
        1 => Frontend {
            scope: Scope::OwnNode,
            ..Frontend::new("0.0.0.0:30080".parse().unwrap(), Protocol::Udp)
        },
        n => Frontend::new(SocketAddr::from(([203, 0, 113, n], 80)), Protocol::Tcp),
    }
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8080))
}

fn ranges() -> impl Strategy<Value = Vec<Cidr>> {
    let all = ["10.0.0.0/8", "172.16.0.0/12", "192.0.2.0/24", "203.0.113.7/32"];
    subsequence(all.map(|text| text.parse().unwrap()).to_vec(), 0..=4)
}

fn endpoints() -> impl Strategy<Value = Vec<SocketAddr>> {
    subsequence((1..=12).map(endpoint).collect::<Vec<_>>(), 0..=12)
}

/// One port of a Service that has some of the frontends.
fn port() -> impl Strategy<Value = OutsidePort> {
    let kinds = [
        FrontendKind::LoadBalancer,
        FrontendKind::ExternalIp,
        FrontendKind::NodePort,
        FrontendKind::ClusterIp,
    ];
    let policies = [TrafficPolicy::Cluster, TrafficPolicy::Local];
    let frontends = vec((0..FRONTENDS, 0..4usize, 0..2usize), 0..4);
    let empty = prop_oneof![Just(Empty::Refuse), Just(Empty::Unreachable)];
    let affinity = (0..3u32).prop_map(NonZeroU32::new);
    (frontends, endpoints(), endpoints(), (empty, affinity), ranges()).prop_map(
        move |(frontends, cluster, local, (empty, affinity), source_ranges)| {
            let frontends: BTreeMap<u8, (usize, usize)> =
                frontends.into_iter().map(|(n, kind, policy)| (n, (kind, policy))).collect();
            let frontends = frontends.into_iter().map(|(n, (kind, policy))| OutsideFrontend {
                frontend: frontend(n),
                kind: kinds[kind],
                policy: policies[policy],
            });
            OutsidePort {
                port: PortRef { service: name(0), port: "".into(), protocol: Protocol::Tcp },
                ipv4: true,
                frontends: frontends.collect(),
                here: cluster.iter().step_by(3).copied().collect(),
                cluster,
                local,
                kept: vec![],
                others: vec![],
                empty,
                affinity,
                source_ranges,
            }
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    /// The Service is this now.
    Want(usize, Vec<OutsidePort>),
    Nodes(BTreeSet<IpAddr>),
    /// A sync, with what its transactions meet.
    Sync(Vec<Option<TableError>>),
    /// Somebody deletes and adds elements, and the engine looks.
    Tamper(Vec<usize>, Vec<(u8, u32, u8)>),
    /// Another agent goes on.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let nodes = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap());
    let failure = prop_oneof![
        2 => Just(None),
        1 => Just(Some(TableError::Refused("refused".to_owned()))),
        1 => Just(Some(TableError::Unusable("unusable".to_owned()))),
    ];
    prop_oneof![
        6 => (0..SERVICES, vec(port(), 0..3)).prop_map(|(of, ports)| Step::Want(of, ports)),
        1 => subsequence(nodes.to_vec(), 0..=3).prop_map(|n| Step::Nodes(n.into_iter().collect())),
        2 => vec(failure, 0..4).prop_map(Step::Sync),
        1 => (vec(any::<usize>(), 0..4), vec((0..FRONTENDS, 0..40u32, 1..20u8), 0..4))
            .prop_map(|(deleted, added)| Step::Tamper(deleted, added)),
        1 => Just(Step::Restart),
    ]
}

/// All that is said, and what the table should come to.
#[derive(Default)]
struct Model {
    services: BTreeMap<usize, Vec<OutsidePort>>,
    nodes: BTreeSet<IpAddr>,
}

impl Model {
    /// As the claims have it: each frontend is the first Service's, in its first port.
    fn awarded(&self) -> BTreeMap<usize, Vec<OutsidePort>> {
        let mut taken = BTreeSet::new();
        let mut services = self.services.clone();
        for (of, ports) in &mut services {
            for (n, port) in ports.iter_mut().enumerate() {
                port.port = PortRef {
                    service: name(*of),
                    port: format!("p{n}").into(),
                    ..port.port.clone()
                };
                port.frontends.retain(|of| taken.insert(of.frontend));
            }
            ports.retain(|port| !port.frontends.is_empty());
        }
        services
    }

    fn wanted(&self, services: &BTreeMap<usize, Vec<OutsidePort>>, is_whole: bool) -> Wanted {
        let served = |ports: &Vec<OutsidePort>| {
            Arc::new(Served { outside: ports.clone(), ..Served::default() })
        };
        let own = self.nodes.iter().map(|ip| (*ip, NodeAddr::Own));
        let foreign = ("192.0.2.9".parse().unwrap(), NodeAddr::Other);
        let loopback = ("127.0.0.1".parse().unwrap(), NodeAddr::OwnLoopback);
        Wanted {
            services: services.iter().map(|(of, ports)| (name(*of), served(ports))).collect(),
            is_whole,
            addresses: Some(NodeAddresses {
                of: own.chain([foreign, loopback]).collect(),
                own: self.nodes.iter().copied().collect(),
                loopback_net: true,
            }),
        }
    }

    /// What the table must say, but for the numbers of groups and the slots.
    fn check(&self, elements: &BTreeSet<Element>) {
        let mirror: TableMirror = elements.iter().copied().collect();
        let (mut wanted, mut beside) = (BTreeMap::new(), BTreeSet::new());
        let mut ports = BTreeSet::new();
        for port in self.awarded().into_values().flatten() {
            let is_served = |of: &&OutsideFrontend| of.kind != FrontendKind::ClusterIp;
            let mut numbers = BTreeSet::new();
            for of in port.frontends.iter().filter(is_served) {
                let frontend = of.frontend;
                let senders =
                    [Sender::Node, Sender::Stranger].map(|sender| of.route(sender).policy);
                for policy in senders {
                    let all = port.endpoints(policy);
                    let value = match (all.len(), port.empty) {
                        (0, Empty::Refuse) => Choice::Reject,
                        (0, Empty::Unreachable) => Choice::Drop,
                        (n, _) => {
                            let n = u32::try_from(n).unwrap();
                            Choice::Slots([1, 2, 4, 8, 16].into_iter().find(|s| *s >= n).unwrap())
                        }
                    };
                    let affinity = port.affinity.filter(|_| !all.is_empty());
                    wanted.insert((frontend, policy), (value, all.to_vec(), affinity));
                    let group = mirror.group(frontend, policy).unwrap();
                    numbers.insert(group.port());
                    assert_eq!(group, Group::of(true, group.port(), policy));
                }
                if of.kind == FrontendKind::LoadBalancer && !port.source_ranges.is_empty() {
                    beside.insert(Element::Restricted(frontend));
                    beside.extend(
                        port.source_ranges.iter().map(|r| Element::Range { frontend, range: *r }),
                    );
                }
            }
            if let Some(number) = numbers.pop_first() {
                assert!(numbers.is_empty() && ports.insert(number), "a number for each port");
                beside.extend(port.here.iter().map(|addr| Element::Hairpin(addr.ip())));
                let all = [&port.cluster, &port.local].into_iter().flatten();
                beside.extend(all.copied().map(Element::Server));
            }
        }
        let nodes = self.nodes.iter().filter(|ip| ip.is_ipv4());
        beside.extend(nodes.copied().map(Element::Node));
        let found = elements.iter().filter_map(|element| match *element {
            Element::Frontend { policy, frontend, group } => {
                let endpoints = mirror.endpoints(group).map(|at| at.expect("slots are dense"));
                let mut endpoints: Vec<_> = endpoints.collect();
                check_affinity(&mirror, group, &endpoints);
                endpoints.sort();
                let affinity = mirror.affinity(group).and_then(|of| of.seconds);
                let choice = mirror.choice(group).unwrap();
                Some(((frontend, policy), (choice, endpoints, affinity)))
            }
            _ => None,
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), wanted);
        assert!(mirror.groups().all(|group| mirror.is_led_to(group)), "{elements:?}");
        let is_beside = |element: &&Element| {
            matches!(
                element,
                Element::Restricted(_)
                    | Element::Range { .. }
                    | Element::Hairpin(_)
                    | Element::Server(_)
                    | Element::Node(_)
            )
        };
        assert_eq!(elements.iter().filter(is_beside).copied().collect::<BTreeSet<_>>(), beside);
    }
}

/// Where senders stay, each slot leads to its endpoint by a number, which is the same in both groups.
fn check_affinity(mirror: &TableMirror, group: Group, endpoints: &[SocketAddr]) {
    let Some(affinity) = mirror.affinity(group) else { return };
    let by_number: Vec<_> =
        affinity.numbers.values().map(|number| affinity.numbered[number]).collect();
    assert_eq!(by_number, endpoints);
    assert_eq!(affinity.numbered.len(), endpoints.len());
    let sibling = mirror.affinity(Group { number: group.number ^ 1, ..group });
    for (number, addr) in sibling.iter().flat_map(|of| &of.numbered) {
        let here = affinity.numbered.get(number);
        assert!(here.is_none_or(|here| here == addr), "{group} {number}");
        assert!(here.is_some() || !endpoints.contains(addr), "{group} {addr}");
    }
}

/// The fewest edits from what the table has to this, by another way than the planner's: who is in a slot
/// that remains, and stays, need not be touched; all else must.
fn fewest(before: &TableMirror, after: &TableMirror) -> usize {
    let of = |mirror: &TableMirror| -> BTreeSet<Element> { mirror.elements().collect() };
    let (before, after) = (of(before), of(after));
    let kept = |element: &&Element| match **element {
        Element::Endpoint { group, slot, addr } => {
            let remains = after.iter().any(|e| {
                matches!(e, Element::Endpoint { group: g, slot: s, .. } if (*g, *s) == (group, slot))
            });
            let stays = after.iter().any(|e| {
                matches!(e, Element::Endpoint { group: g, addr: a, .. } if (*g, *a) == (group, addr))
            });
            remains && stays
        }
        element => after.contains(&element),
    };
    // Somebody may have put an endpoint into two slots: one of them is to be touched.
    let without_slot = |element: &Element| match *element {
        Element::Endpoint { group, addr, .. } => Element::Endpoint { group, slot: 0, addr },
        element => element,
    };
    let kept = before.iter().filter(kept).map(without_slot).collect::<BTreeSet<_>>().len();
    before.len() + after.len() - 2 * kept
}

struct World {
    engine: PacketEngine<Faulty>,
    model: Model,
    /// As awarded when the engine was told last.
    told: BTreeMap<usize, Vec<OutsidePort>>,
}

impl World {
    fn new() -> Self {
        let mut engine = PacketEngine::new(Faulty::default(), true);
        engine.adopt().unwrap();
        Self { engine, model: Model::default(), told: BTreeMap::new() }
    }

    /// Tells the engine what changed, as a decider does.
    fn tell(&mut self) {
        let mut awarded = self.model.awarded();
        let wanted = if self.engine.lacks_all() {
            self.model.wanted(&awarded, true)
        } else {
            let changed = (0..SERVICES).filter(|of| awarded.get(of) != self.told.get(of));
            let of = |of| (of, awarded.get(&of).cloned().unwrap_or_default());
            self.model.wanted(&changed.map(of).collect(), false)
        };
        self.told = std::mem::take(&mut awarded);
        self.engine.want(&wanted);
    }

    fn sync(&mut self) -> (EngineReport, Vec<String>) {
        self.tell();
        let mut shown = Vec::new();
        let outcome =
            self.engine.sync(&Claims::default(), &mut |edit| shown.push(edit.to_string()));
        (outcome, shown)
    }

    /// A sync in which nothing fails.
    fn settle(&mut self) {
        self.engine.table_mut().failures.clear();
        let before = self.engine.mirror().clone();
        let (outcome, shown) = self.sync();
        assert_eq!((outcome.failed, outcome.beside), (BTreeMap::new(), vec![]));
        let found = self.engine.table().table.elements();
        self.model.check(found);
        assert_eq!(outcome.entries, found.len());
        let after = found.iter().copied().collect::<TableMirror>();
        assert_eq!(*self.engine.mirror(), after, "the mirror");
        assert_eq!(outcome.ops, fewest(&before, &after), "{shown:#?}");
        assert_eq!(shown.len(), outcome.ops);
        assert!(!self.engine.is_dirty());
        assert!(!dump::text(self.engine.mirror()).contains("damaged"));
        assert_eq!(self.sync().0.ops, 0, "it is settled");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_table_says_what_is_wanted(steps in vec(step(), 1..30)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Want(of, ports) => {
                    world.model.services.insert(of, ports);
                }
                Step::Nodes(nodes) => world.model.nodes = nodes,
                Step::Sync(failures) => {
                    let fails = failures.iter().any(Option::is_some);
                    world.engine.table_mut().failures = failures;
                    let (outcome, _) = world.sync();
                    let table = world.engine.table().table.elements();
                    prop_assert_eq!(world.engine.mirror(), &table.iter().copied().collect());
                    if !fails {
                        world.settle();
                    }
                    if !outcome.failed.is_empty() || !outcome.beside.is_empty() {
                        prop_assert!(world.engine.is_dirty());
                    }
                }
                Step::Tamper(deleted, added) => {
                    let elements = world.engine.table_mut().table.elements_mut();
                    for nth in deleted {
                        let some = elements.iter().copied().nth(nth % elements.len().max(1));
                        some.map(|element| elements.remove(&element));
                    }
                    for (of, slot, addr) in added {
                        let group = Group { ipv4: true, number: of.into() };
                        let stray = [
                            Element::Endpoint { group, slot, addr: endpoint(addr) },
                            Element::Numbered { group, number: slot, addr: endpoint(addr) },
                            Element::Frontend {
                                policy: TrafficPolicy::Cluster,
                                frontend: frontend(of),
                                group: Group { number: slot, ..group },
                            },
                        ];
                        for element in stray {
                            // If nothing is there by that key.
                            let _ = MemoryTable::put(elements, element);
                        }
                    }
                    world.engine.adopt().unwrap();
                }
                Step::Restart => {
                    let table = std::mem::take(world.engine.table_mut());
                    world.engine = PacketEngine::new(table, true);
                    world.engine.adopt().unwrap();
                }
            }
        }
        world.settle();
        // Nothing is written by an agent that finds all as it should be.
        let table = std::mem::take(world.engine.table_mut());
        world.engine = PacketEngine::new(table, true);
        world.engine.adopt().unwrap();
        prop_assert_eq!(world.sync().0.ops, 0);
        // And nothing is left of what nobody wants.
        world.model = Model::default();
        world.model.services = (0..SERVICES).map(|of| (of, vec![])).collect();
        world.settle();
        prop_assert!(world.engine.table().table.elements().is_empty());
    }
}

fn of_endpoints(n: u8, endpoints: Vec<SocketAddr>) -> OutsidePort {
    OutsidePort {
        port: PortRef { service: name(0), port: "".into(), protocol: Protocol::Tcp },
        ipv4: true,
        frontends: vec![OutsideFrontend {
            frontend: frontend(n),
            kind: FrontendKind::ExternalIp,
            policy: TrafficPolicy::Cluster,
        }],
        cluster: endpoints,
        local: vec![],
        here: vec![],
        kept: vec![],
        others: vec![],
        empty: Empty::Refuse,
        affinity: None,
        source_ranges: vec![],
    }
}

#[test]
fn one_endpoint_is_few_edits() {
    let mut world = World::new();
    let mut ops = |endpoints: &[u8]| {
        let port = of_endpoints(2, endpoints.iter().copied().map(endpoint).collect());
        world.model.services.insert(0, vec![port]);
        let (outcome, shown) = world.sync();
        assert_eq!(outcome.ops, shown.len());
        shown
    };
    assert_eq!(ops(&[1, 2, 3]).len(), 8);
    let added =
        ["add server 10.0.0.4:8080".to_owned(), "add endpoint v4:0 3 10.0.0.4:8080".to_owned()];
    assert_eq!(ops(&[1, 2, 3, 4]), added);
    let replaced = [
        "add server 10.0.0.5:8080".to_owned(),
        "delete endpoint v4:0 1 10.0.0.2:8080".to_owned(),
        "add endpoint v4:0 1 10.0.0.5:8080".to_owned(),
        "delete server 10.0.0.2:8080".to_owned(),
    ];
    assert_eq!(ops(&[1, 3, 4, 5]), replaced);
    let moved = [
        "delete endpoint v4:0 0 10.0.0.1:8080".to_owned(),
        "add endpoint v4:0 0 10.0.0.4:8080".to_owned(),
        "delete endpoint v4:0 3 10.0.0.4:8080".to_owned(),
        "delete server 10.0.0.1:8080".to_owned(),
    ];
    assert_eq!(ops(&[3, 4, 5]), moved);
    let last = [
        "add choice v4:0 slots 2".to_owned(),
        "delete choice v4:0 slots 4".to_owned(),
        "delete endpoint v4:0 2 10.0.0.3:8080".to_owned(),
        "delete server 10.0.0.3:8080".to_owned(),
    ];
    let mut found = ops(&[4, 5]);
    found.sort();
    assert_eq!(found, last);
}

/// A bond leads to a number: who serves keeps its own, whoever comes and goes.
#[test]
fn an_endpoint_keeps_its_number_and_a_new_one_takes_a_free_one() {
    let mut world = World::new();
    let mut numbers = |endpoints: &[u8]| {
        let affinity = NonZeroU32::new(60);
        let all = endpoints.iter().copied().map(endpoint).collect();
        let port = OutsidePort { affinity, ..of_endpoints(2, all) };
        world.model.services.insert(0, vec![port]);
        world.sync();
        world.model.check(world.engine.table().table.elements());
        let elements = world.engine.table().table.elements().iter();
        elements
            .filter_map(|element| match *element {
                Element::Numbered { number, addr, .. } => Some((number, addr)),
                _ => None,
            })
            .collect::<BTreeMap<_, _>>()
    };
    let all = |of: &[(u32, u8)]| of.iter().map(|(number, n)| (*number, endpoint(*n))).collect();
    assert_eq!(numbers(&[1, 2, 3]), all(&[(0, 1), (1, 2), (2, 3)]));
    assert_eq!(numbers(&[3]), all(&[(2, 3)]), "its slot is another one");
    assert_eq!(numbers(&[3, 4]), all(&[(0, 4), (2, 3)]));
    assert_eq!(numbers(&[1, 2, 3, 4]), all(&[(0, 4), (1, 1), (2, 3), (3, 2)]));
    assert_eq!(numbers(&[]), all(&[]));
    let shown = dump::text(world.engine.mirror());
    assert!(!shown.contains("affinity"), "{shown}");
}

/// A table in which both write, as no kernel has one, shows what an engine lets alone.
#[test]
fn the_other_family_is_another_engines() {
    let mut world = World::new();
    world.model.services.insert(0, vec![of_endpoints(2, vec![endpoint(1)])]);
    world.model.nodes = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
    world.settle();
    let of_ipv4 = world.engine.table().table.elements().clone();
    let table = std::mem::take(world.engine.table_mut());
    let mut other = PacketEngine::new(table, false);
    assert_ne!(other.name(), world.engine.name());
    other.adopt().unwrap();
    let awarded = world.model.awarded();
    other.want(&world.model.wanted(&awarded, true));
    let report = other.sync(&Claims::default(), &mut |_| {});
    assert_eq!((report.ops, report.entries), (1, 1), "its node");
    let both = other.table().table.elements();
    assert!(both.is_superset(&of_ipv4) && both.len() == of_ipv4.len() + 1);
}

/// There may be bonds to it.
#[test]
fn a_number_that_was_given_back_is_not_given_again_soon() {
    let mut world = World::new();
    let mut number = |of: usize| {
        world.model.services = (0..SERVICES).map(|of| (of, vec![])).collect();
        world.model.services.insert(of, vec![of_endpoints(2, vec![endpoint(1)])]);
        world.settle();
        let elements = world.engine.table().table.elements();
        elements.iter().find_map(|element| match element {
            Element::Choice { group, .. } => Some(group.port()),
            _ => None,
        })
    };
    assert_eq!([0, 1, 0, 0].map(&mut number), [0, 1, 2, 2].map(Some));
}

/// What does not fit stays as it was, is named, and keeps nobody else out.
#[test]
fn a_table_that_is_full() {
    let mut world = World::new();
    world.engine.table_mut().table.limit = 19;
    let all = |range: std::ops::RangeInclusive<u8>| range.map(endpoint).collect::<Vec<_>>();
    world.model.services.insert(0, vec![of_endpoints(2, all(1..=2))]);
    world.model.services.insert(1, vec![of_endpoints(3, all(1..=9))]);
    world.model.services.insert(2, vec![of_endpoints(4, all(1..=3))]);
    let (outcome, _) = world.sync();
    let failed: Vec<_> = outcome.failed.into_iter().collect();
    assert_eq!(failed, [(name(1), "the table is full".to_owned())]);
    let there = ["203.0.113.2:80/tcp", "203.0.113.4:80/tcp"];
    let found: Vec<_> =
        dump::entries(world.engine.mirror()).map(|e| e.frontend.to_string()).collect();
    assert_eq!(found, there);
    assert!(world.engine.is_dirty());
    // Somebody gives room.
    world.model.services.insert(0, vec![]);
    world.engine.table_mut().table.limit = 25;
    assert!(world.sync().0.failed.is_empty() && !world.engine.is_dirty());
}

/// The table has rules for each timeout.
#[test]
fn of_too_many_timeouts_some_last_longer_and_stay_so() {
    let mut world = World::new();
    let service = |of: u8, seconds: u32| {
        let port = of_endpoints(of, vec![endpoint(1)]);
        vec![OutsidePort { affinity: NonZeroU32::new(seconds), ..port }]
    };
    for of in 2..=66 {
        world.model.services.insert(usize::from(of), service(of, 1_000 + u32::from(of)));
    }
    let seconds = |world: &World| -> BTreeSet<u32> {
        let all = world.engine.mirror().timeouts().into_iter();
        all.map(NonZeroU32::get).collect()
    };
    assert_eq!(world.sync().0.longer, [name(66)].into());
    assert!(seconds(&world).contains(&2_048) && seconds(&world).len() == 65);
    // An agent that goes on from that leaves it.
    world.model.services.remove(&2);
    world.sync();
    world.model.services.insert(1, service(67, 1));
    world.sync();
    let before = seconds(&world);
    world.engine.adopt().unwrap();
    let (report, _) = world.sync();
    assert_eq!((report.ops, seconds(&world)), (0, before));
}

/// L7: an endpoint on its way out has connections, which strays would end.
#[test]
fn servers_are_those_that_get_no_new_connections_too() {
    let mut world = World::new();
    let mut servers = |others: Vec<SocketAddr>| {
        let port = OutsidePort { others, ..of_endpoints(2, vec![endpoint(1)]) };
        world.model.services.insert(0, vec![port]);
        world.sync();
        world.engine.mirror().servers().collect::<Vec<_>>()
    };
    assert_eq!(servers(vec![endpoint(2)]), [endpoint(1), endpoint(2)]);
    assert_eq!(servers(vec![]), [endpoint(1)]);
}

/// L7: connection tracking may not be there before the rules that ask it.
#[test]
fn connection_tracking_becomes_liberal_once_the_table_was_read() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let mut world = World::new();
    let engine = PacketEngine::new(Faulty::default(), true);
    world.engine = engine.liberal(|| CALLS.fetch_add(1, Ordering::Relaxed) > 0);
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    for is_liberal in [false, true] {
        world.model.services.insert(0, vec![of_endpoints(2, vec![endpoint(1)])]);
        world.engine.adopt().unwrap();
        world.sync();
        assert_eq!(world.engine.mirror().servers().len() == 0, is_liberal);
    }
}

/// L2: whatever serves keeps its flows, be it chosen or not; where nothing is left, none stays.
#[test]
fn flows_that_may_stay() {
    let mut world = World::new();
    let mut flows = |ports: Vec<OutsidePort>| {
        world.model.services.insert(0, ports);
        let flows = world.sync().0.flows.into_iter();
        flows.map(|(frontend, all)| (frontend, all.into_iter().collect())).collect::<Vec<_>>()
    };
    let port = |cluster: &[u8], kept: &[u8]| {
        let all = |of: &[u8]| of.iter().copied().map(endpoint).collect();
        OutsidePort { kept: all(kept), ..of_endpoints(1, all(cluster)) }
    };
    let serving = |all: &[u8]| (frontend(1), all.iter().copied().map(endpoint).collect::<Vec<_>>());
    assert_eq!(flows(vec![port(&[1, 3], &[2])]), [serving(&[1, 2, 3])]);
    assert_eq!(flows(vec![port(&[1, 3], &[2])]), [], "nobody looked");
    // The table does not change with what is kept.
    assert_eq!(flows(vec![port(&[1, 3], &[])]), [serving(&[1, 3])]);
    assert_eq!(flows(vec![port(&[1], &[3])]), [], "the same serve");
    assert_eq!(flows(vec![port(&[1, 3], &[])]), []);
    assert_eq!(flows(vec![]), [serving(&[])]);
    let tcp = of_endpoints(2, vec![endpoint(1)]);
    assert_eq!(flows(vec![tcp]), []);
}

/// A frontend of its own at a node's address goes before a node port.
#[test]
fn flows_at_node_ports_have_the_nodes_addresses() {
    let mut world = World::new();
    world.model.nodes =
        ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
    world.tell();
    let all = |all: [&str; 1]| all.map(|text| text.parse().unwrap()).into();
    let mut external = of_endpoints(2, vec![endpoint(1)]);
    let at = "192.0.2.2:30080".parse().unwrap();
    external.frontends[0].frontend = Frontend::new(at, Protocol::Udp);
    world.model.services.insert(1, vec![external]);
    world.sync();
    world.model.services.insert(0, vec![of_endpoints(1, vec![endpoint(1)])]);
    let report = world.sync().0;
    assert_eq!(report.node_ports, all(["192.0.2.1:30080"]));
    assert_eq!(report.flows.len(), 1);
}

/// What was sent to an address before it came to the node has begun flows that are over.
#[test]
fn flows_at_an_address_that_comes() {
    let mut world = World::new();
    let ports = |world: &mut World, nodes: &[&str]| {
        world.model.nodes = nodes.iter().map(|ip| ip.parse().unwrap()).collect();
        world.tell();
        world.sync().0.flows
    };
    let service = of_endpoints(1, vec![endpoint(1)]);
    let node_port = service.frontends[0].frontend;
    world.model.services.insert(0, vec![service]);
    let serving: BTreeMap<_, BTreeSet<_>> = [(node_port, [endpoint(1)].into())].into();
    assert_eq!(ports(&mut world, &["192.0.2.1"]), serving);
    assert_eq!(ports(&mut world, &["192.0.2.1"]), [].into(), "nothing new");
    assert_eq!(ports(&mut world, &["192.0.2.1", "192.0.2.2"]), serving);
    assert_eq!(ports(&mut world, &["192.0.2.2"]), [].into(), "one has left");
    world.model.services.clear();
    assert_eq!(ports(&mut world, &["192.0.2.2"]).len(), 1);
    assert_eq!(ports(&mut world, &["192.0.2.3"]), [].into(), "nobody has it any more");
}

/// A table that waits to be replaced must not serve for ever what nobody wants any more.
#[test]
fn a_table_is_settled_when_all_is_known_also_where_nothing_is_wanted() {
    let mut engine = PacketEngine::new(Faulty::default(), true);
    engine.adopt().unwrap();
    engine.sync(&Claims::default(), &mut |_| {});
    assert_eq!(engine.table().settled, 0, "nobody has said what is wanted");
    engine.want(&Wanted { is_whole: true, ..Wanted::default() });
    let failure = TableError::Refused("refused".to_owned());
    engine.table_mut().failures.push(Some(failure));
    assert_eq!(engine.sync(&Claims::default(), &mut |_| {}).beside, ["refused"]);
    assert!(engine.is_dirty());
    for _ in 0..2 {
        assert!(engine.sync(&Claims::default(), &mut |_| {}).beside.is_empty());
        assert!(!engine.is_dirty());
    }
    assert_eq!((engine.table().settled, engine.table().table.transactions), (2, 0));
}

/// The kernel holds its lock for as long as a transaction takes.
#[test]
fn many_services_are_written_in_bounded_transactions() {
    let mut world = World::new();
    let service = |of: u16| {
        let [a, b] = of.to_be_bytes();
        let mut port = of_endpoints(2, (1..=10).map(endpoint).collect());
        port.frontends[0].frontend.addr.set_ip([203, 1, a, b].into());
        port.port.service = name(of.into());
        (name(of.into()), port)
    };
    let served = |port| Arc::new(Served { outside: vec![port], ..Served::default() });
    let services = (0..2000).map(service).map(|(name, port)| (name, served(port))).collect();
    world.engine.want(&Wanted { services, is_whole: true, addresses: None });
    let outcome = world.engine.sync(&Claims::default(), &mut |_| {});
    assert_eq!((outcome.ops, outcome.failed.len()), (24_010, 0));
    let Faulty { longest, table, .. } = world.engine.table();
    assert!(*longest <= 4096 && table.transactions == 7, "{longest} {}", table.transactions);
}
