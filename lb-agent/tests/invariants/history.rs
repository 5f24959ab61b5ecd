//! Random histories of few names and few addresses: they collide, move, go and come back.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use lb_core::model::{
    Cidr, Conditions, Endpoint, Node, ObjectRef, Protocol, Service, ServicePort, Slice, SlicePort,
    Trigger,
};
use proptest::{collection::vec, prelude::*, sample::select as one_of};

use super::truth::Edit;

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The source says so.
    Edit(Edit),
    /// The source says so only with its next list.
    Missed(Edit),
    /// Something there changes a little.
    Tweak(usize, Tweak),
    ListServices,
    ListSlices,
    ListNodes,
    Sync {
        faults: u64,
        grace_fails: bool,
    },
    Reclaim {
        fails: bool,
    },
    /// What is said of one thing before the lists, and which of them comes first.
    Restart(Option<Edit>, bool),
    /// The maps are thrown away, and made anew by another agent.
    MadeAnew(bool),
}

#[derive(Clone, Debug)]
pub(super) enum Tweak {
    Age(i64),
    /// The addresses of two Services.
    Swap(usize),
    PortName(&'static str),
    PortNumber(u16),
    PortProtocol(Protocol),
    NoPort,
    Endpoint(Endpoint),
    NoEndpoint,
    Conditions(Conditions),
    TargetPort(u16),
    Owner(ObjectRef),
    /// `internalTrafficPolicy` and `externalTrafficPolicy`: Local?
    Local(bool, bool),
    Affinity(Option<NonZeroU32>),
    Sources(Vec<Cidr>),
    NodePorts(bool),
}

pub(super) fn ip(text: &'static str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn service_name() -> impl Strategy<Value = ObjectRef> {
    let names = vec![
        ("default", "a"),
        ("default", "b"),
        ("default", "c"),
        ("default", "kubernetes"),
        ("other", "a"),
    ];
    one_of(names).prop_map(|(namespace, name)| ObjectRef::new(namespace, name))
}

pub(super) fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)]
}

pub(super) fn port_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("http"), 1 => Just(""), 1 => Just("x")]
}

fn affinity() -> impl Strategy<Value = Option<NonZeroU32>> {
    prop::option::weighted(0.3, one_of(vec![10, 10_800]).prop_map(|n| NonZeroU32::new(n).unwrap()))
}

pub(super) fn range() -> impl Strategy<Value = Cidr> {
    let ranges = ["10.0.0.0/8", "192.0.2.0/24", "192.0.2.1/32", "2001:db8::/32", "0.0.0.0/0"];
    one_of(ranges.map(|range| range.parse().unwrap()).to_vec())
}

fn some(ips: &[&'static str]) -> impl Strategy<Value = Vec<IpAddr>> + use<> {
    let ips = one_of(ips.iter().map(|text| ip(text)).collect::<Vec<_>>());
    prop_oneof![1 => Just(vec![]), 1 => vec(ips, 1..3)]
}

prop_compose! {
    /// What a Service has besides its cluster IPs and ports.
    fn extras()(
        external_ips in some(&["198.51.100.7", "10.96.0.1", "2001:db8::7"]),
        load_balancer_ips in some(&["203.0.113.1", "203.0.113.2", "10.96.0.2", "2001:db8::8"]),
        local in any::<(bool, bool)>(),
        affinity in affinity(),
        source_ranges in prop_oneof![1 => Just(vec![]), 2 => vec(range(), 1..4)],
    ) -> Service {
        Service {
            external_ips,
            load_balancer_ips,
            internal_local: local.0,
            external_local: local.1,
            affinity,
            source_ranges,
            ..Service::default()
        }
    }
}

prop_compose! {
    fn service()(
        created in 0..3i64,
        v4 in prop::option::weighted(0.9, one_of(vec![ip("10.96.0.1"), ip("10.96.0.2"), ip("10.96.0.3")])),
        v6 in prop::option::weighted(0.4, one_of(vec![ip("fd00::1"), ip("fd00::2")])),
        ports in vec((port_name(), protocol(), one_of(vec![80u16, 81]), prop::bool::weighted(0.3)), 0..4),
        extras in prop_oneof![1 => Just(Service::default()), 1 => extras()],
    ) -> Service {
        // The sources let no frontend through twice.
        let mut seen = BTreeSet::new();
        let ports = ports
            .into_iter()
            .filter(|(_, protocol, number, _)| seen.insert((*protocol, *number)))
            .map(|(name, protocol, number, on_nodes)| ServicePort {
                node_port: on_nodes.then(|| node_port(number)),
                ..ServicePort::new(name, protocol, number)
            })
            .collect();
        Service { created, cluster_ips: v4.into_iter().chain(v6).collect(), ports, ..extras }
    }
}

pub(super) fn node_port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(30_000 + number).unwrap()
}

/// The API server's Service has no more than a cluster IP: for the others of its frontends, its last
/// endpoints stay only together.
fn fit(name: &ObjectRef, mut service: Service) -> Service {
    if *name == ObjectRef::new("default", "kubernetes") {
        service.ports.iter_mut().for_each(|port| port.node_port = None);
        let Service { created, cluster_ips, ports, .. } = service;
        service = Service { created, cluster_ips, ports, ..Service::default() };
    }
    service
}

fn node_name() -> impl Strategy<Value = &'static str> {
    one_of(vec!["n1", "n2", "n3"])
}

fn node() -> impl Strategy<Value = Node> {
    let ips = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "10.96.0.1"];
    let addresses = vec(one_of(ips.map(ip).to_vec()), 0..3);
    addresses.prop_map(|addresses| Node { addresses, ..Node::default() })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let addrs = vec!["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "fd01::1", "fd01::2"];
    (one_of(addrs), conditions(), prop::option::weighted(0.8, node_name())).prop_map(
        |(addr, conditions, node)| Endpoint {
            node: node.map(Into::into),
            ..Endpoint::new(ip(addr), conditions)
        },
    )
}

fn conditions() -> impl Strategy<Value = Conditions> {
    prop_oneof![6 => Just((true, true, false)), 1 => any::<(bool, bool, bool)>()]
        .prop_map(|(ready, serving, terminating)| Conditions { ready, serving, terminating })
}

fn tweak() -> impl Strategy<Value = Tweak> {
    prop_oneof![
        (0..3i64).prop_map(Tweak::Age),
        any::<usize>().prop_map(Tweak::Swap),
        port_name().prop_map(Tweak::PortName),
        one_of(vec![80, 81]).prop_map(Tweak::PortNumber),
        protocol().prop_map(Tweak::PortProtocol),
        Just(Tweak::NoPort),
        endpoint().prop_map(Tweak::Endpoint),
        Just(Tweak::NoEndpoint),
        conditions().prop_map(Tweak::Conditions),
        one_of(vec![8080, 9090]).prop_map(Tweak::TargetPort),
        service_name().prop_map(Tweak::Owner),
        any::<(bool, bool)>().prop_map(|(internal, external)| Tweak::Local(internal, external)),
        affinity().prop_map(Tweak::Affinity),
        vec(range(), 0..3).prop_map(Tweak::Sources),
        any::<bool>().prop_map(Tweak::NodePorts),
    ]
}

prop_compose! {
    fn slice()(
        service in service_name(),
        ports in vec((port_name(), protocol(), one_of(vec![8080u16, 9090])), 0..3),
        endpoints in vec(endpoint(), 0..5),
    ) -> Slice {
        let ports = ports
            .into_iter()
            .map(|(name, protocol, number)| SlicePort { name: name.into(), protocol, number })
            .collect();
        Slice { service, ports, endpoints, trigger: Trigger::default() }
    }
}

pub(super) fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (service_name(), prop::option::weighted(0.8, service()))
            .prop_map(|(name, service)| {
                let service = service.map(|service| fit(&name, service));
                Edit::Service(name, service)
            }),
        1 => (node_name(), prop::option::weighted(0.8, node()))
            .prop_map(|(name, node)| Edit::Node(name.into(), node)),
        4 => (one_of(vec!["s", "t", "u", "v"]), slice(), prop::bool::weighted(0.85))
            .prop_map(|(name, slice, there)| {
                // A slice lies beside its Service.
                let namespace = slice.service.namespace.clone();
                Edit::Slice(ObjectRef::new(namespace, name), there.then_some(slice))
            }),
    ]
}

fn faults() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(0),
        1 => any::<(u64, u64, u64)>().prop_map(|(a, b, c)| a & b & c),
        1 => (0..8).prop_map(|good| u64::MAX << good),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => edit().prop_map(Step::Edit),
        2 => edit().prop_map(Step::Missed),
        8 => (any::<usize>(), tweak()).prop_map(|(which, tweak)| Step::Tweak(which, tweak)),
        1 => Just(Step::ListServices),
        1 => Just(Step::ListSlices),
        1 => Just(Step::ListNodes),
        6 => (faults(), prop::bool::weighted(0.1))
            .prop_map(|(faults, grace_fails)| Step::Sync { faults, grace_fails }),
        1 => prop::bool::weighted(0.2).prop_map(|fails| Step::Reclaim { fails }),
        1 => (prop::option::of(edit()), any::<bool>())
            .prop_map(|(early, order)| Step::Restart(early, order)),
        1 => any::<bool>().prop_map(Step::MadeAnew),
    ]
}
