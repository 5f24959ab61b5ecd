//! Random histories of few names and few addresses: they collide, move, go and come back.

use std::{collections::BTreeSet, net::IpAddr};

use lb_agent::model::{
    Conditions, Endpoint, ObjectRef, Protocol, Service, ServicePort, Slice, SlicePort, Trigger,
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
    Sync {
        faults: u64,
        grace_fails: bool,
    },
    Reclaim {
        fails: bool,
    },
    /// What is said of one thing before the lists, and which of them comes first.
    Restart(Option<Edit>, bool),
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

prop_compose! {
    fn service()(
        created in 0..3i64,
        v4 in prop::option::weighted(0.9, one_of(vec![ip("10.96.0.1"), ip("10.96.0.2"), ip("10.96.0.3")])),
        v6 in prop::option::weighted(0.4, one_of(vec![ip("fd00::1"), ip("fd00::2")])),
        ports in vec((port_name(), protocol(), one_of(vec![80u16, 81])), 0..4),
    ) -> Service {
        // The sources let no frontend through twice.
        let mut seen = BTreeSet::new();
        let ports = ports
            .into_iter()
            .filter(|(_, protocol, number)| seen.insert((*protocol, *number)))
            .map(|(name, protocol, number)| ServicePort::new(name, protocol, number))
            .collect();
        Service {
            created,
            cluster_ips: v4.into_iter().chain(v6).collect(),
            ports,
            ..Service::default()
        }
    }
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let addrs = vec!["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "fd01::1", "fd01::2"];
    (one_of(addrs), conditions()).prop_map(|(addr, conditions)| Endpoint::new(ip(addr), conditions))
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
            .prop_map(|(name, service)| Edit::Service(name, service)),
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
        6 => (faults(), prop::bool::weighted(0.1))
            .prop_map(|(faults, grace_fails)| Step::Sync { faults, grace_fails }),
        1 => prop::bool::weighted(0.2).prop_map(|fails| Step::Reclaim { fails }),
        1 => (prop::option::of(edit()), any::<bool>())
            .prop_map(|(early, order)| Step::Restart(early, order)),
    ]
}
