//! Random histories: objects come, change in one field or in all, and go, in any order.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::{
    bool::weighted,
    collection::vec,
    option::weighted as weighted_option,
    prelude::*,
    sample::{select, subsequence},
};

use super::{
    case::{CLUSTER_CIDR, Case, Config, Key, Kind, Object, Op},
    duplicates::settle,
    objects::{OWN, OWN_INTERFACES, node},
    services::service,
    slices::{Style, slice},
};

#[derive(Clone, Debug)]
enum Edit {
    Apply(Object),
    /// One field of an object that is there, taken from another object.
    Service(usize, u8, Box<Service>),
    Slice(usize, u8, Box<EndpointSlice>),
    Delete(usize),
    /// Nothing goes on from a Node that is gone but what outlives it.
    DeleteOwnNode,
    Interfaces(Vec<String>),
}

fn edit(style: Option<Style>) -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => service().prop_map(|it| Edit::Apply(Object::Service(it.into()))),
        6 => slice(style).prop_map(|it| Edit::Apply(Object::Slice(it.into()))),
        2 => node().prop_map(|it| Edit::Apply(Object::Node(it.into()))),
        4 => (any::<usize>(), 0..10u8, service())
            .prop_map(|(which, field, it)| Edit::Service(which, field, it.into())),
        4 => (any::<usize>(), 0..4u8, slice(style))
            .prop_map(|(which, field, it)| Edit::Slice(which, field, it.into())),
        3 => any::<usize>().prop_map(Edit::Delete),
        2 => Just(Edit::DeleteOwnNode),
        2 => interfaces().prop_map(Edit::Interfaces),
    ]
}

/// How both sides hear of a step.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// Each change by itself.
    Events,
    /// The watches were lost: a list of each kind of which something changed.
    Lists,
    /// They were away, and start anew.
    Start,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let told = prop_oneof![
        8 => Just(Told::Events),
        2 => Just(Told::Lists),
        1 => Just(Told::Start),
    ];
    // Half of the time one controller writes all hints, as real ones do.
    let style = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Style::Zones)),
        1 => Just(Some(Style::Nodes)),
    ];
    style.prop_flat_map(move |style| cases(style, told.clone()))
}

fn cases(style: Option<Style>, told: impl Strategy<Value = Told>) -> impl Strategy<Value = Case> {
    let rest = vec((told, vec(edit(style), 0..4)), 0..5);
    (config(), any::<bool>(), first(style), rest).prop_map(|(config, late, first, rest)| {
        let mut live = BTreeMap::new();
        let mut ops = step(&mut live, first);
        // They find it all when they start, or hear of it later, in any order.
        if late {
            ops.insert(0, Op::Start { objects: Vec::new() });
        } else {
            ops = vec![start(&live)];
        }
        let mut steps = vec![ops];
        for (told, edits) in rest {
            let ops = step(&mut live, edits);
            steps.push(match told {
                Told::Events => ops,
                Told::Lists => machine(&ops).chain(lists(&live, &ops)).collect(),
                Told::Start => machine(&ops).chain([start(&live)]).collect(),
            });
        }
        steps.retain(|step| !step.is_empty());
        Case { config, steps }
    })
}

fn start(live: &Live) -> Op {
    Op::Start { objects: live.values().cloned().collect() }
}

/// What the machine says itself.
fn machine(ops: &[Op]) -> impl Iterator<Item = Op> + use<> {
    let ops = ops.iter().filter(|op| matches!(op, Op::Interfaces { .. })).cloned();
    ops.collect::<Vec<_>>().into_iter()
}

fn lists(live: &Live, missed: &[Op]) -> Vec<Op> {
    let kinds: BTreeSet<Kind> =
        missed.iter().flat_map(Op::objects).map(|object| object.key().0).collect();
    let list = |kind| {
        let all = live.iter().filter(|(key, _)| key.0 == kind).map(|(_, object)| object.clone());
        Op::List { kind, objects: all.collect() }
    };
    kinds.into_iter().map(list).collect()
}

/// Addresses that may be moved to the machine: a load balancer's, as those without one of the cloud's
/// give to nodes, external ones, another node's, and cluster IPs.
const MOVED: &[&str] =
    &["198.51.100.1", "192.0.2.2", "10.0.0.2", "10.96.0.2", "2001:db8::2", "fd00::2", "fd00:96::2"];

/// The addresses of the machine's interfaces.
fn interfaces() -> impl Strategy<Value = Vec<String>> {
    let own = (weighted_option(0.85, Just("10.0.0.100")), weighted_option(0.85, Just("fd00::100")));
    (own, subsequence(MOVED, 0..3)).prop_map(|((v4, v6), moved)| {
        v4.into_iter().chain(v6).chain(moved).map(str::to_owned).collect()
    })
}

prop_compose! {
    fn config()(
        interfaces in prop_oneof![
            2 => Just(OWN_INTERFACES.map(str::to_owned).to_vec()),
            1 => interfaces(),
        ],
        families in prop_oneof![
            8 => Just(vec!["IPv4", "IPv6"]),
            1 => Just(vec!["IPv4"]),
            1 => Just(vec!["IPv6"]),
        ],
        node_port_addresses in prop_oneof![
            8 => Just(vec![]),
            1 => Just(vec!["primary"]),
            1 => Just(vec!["10.0.0.0/24"]),
            1 => Just(vec!["fd00::100/128", "203.0.113.0/24"]),
            1 => Just(vec!["0.0.0.0/0", "fd00::/64"]),
            1 => Just(vec!["10.0.0.1/32", "10.0.0.2/32", "2001:db8::/32"]),
        ],
        detect_local in select(vec![
            CLUSTER_CIDR,
            "NodeCIDR",
            "BridgeInterface",
            "InterfaceNamePrefix",
        ]),
        cluster_cidrs in prop_oneof![
            3 => Just(vec!["10.1.0.0/16", "fd00:1::/48"]),
            1 => Just(vec!["10.1.0.0/16"]),
            2 => Just(vec![]),
        ],
        masquerade_all in weighted(0.2),
        localhost_nodeports in weighted(0.3),
        external_ips in weighted(0.85),
        refuse_unknown_ports in weighted(0.85),
        pause in select(vec![0, 1, 10_000, 90_000]),
        proxy_name in weighted_option(0.05, Just("another".to_owned())),
    ) -> Config {
        let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        Config {
            node: OWN.to_owned(),
            interfaces,
            families: owned(families),
            node_port_addresses: owned(node_port_addresses),
            detect_local: detect_local.to_owned(),
            pod_cidrs: owned(vec!["10.1.0.0/17", "fd00:1::/64"]),
            cluster_cidrs: owned(if detect_local == CLUSTER_CIDR { cluster_cidrs } else { vec![] }),
            masquerade_all,
            localhost_nodeports,
            external_ips,
            refuse_unknown_ports,
            proxy_name,
            pause,
        }
    }
}

/// What a proxy finds when it starts: something of everything, in any order.
fn first(style: Option<Style>) -> impl Strategy<Value = Vec<Edit>> {
    let place = any::<u8>();
    let services = vec((place, service().prop_map(|it| Object::Service(it.into()))), 1..3);
    let slices = vec((place, slice(style).prop_map(|it| Object::Slice(it.into()))), 1..9);
    let nodes = vec((place, node().prop_map(|it| Object::Node(it.into()))), 0..4);
    (services, slices, nodes).prop_map(|(services, slices, nodes)| {
        let mut all = [services, slices, nodes].concat();
        all.sort_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, object)| Edit::Apply(object)).collect()
    })
}

type Live = BTreeMap<Key, Object>;

fn step(live: &mut Live, edits: Vec<Edit>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut changed = BTreeSet::new();
    for edit in edits {
        let object = match edit {
            Edit::Apply(object) => Some(object),
            Edit::Delete(which) => {
                let object = pick(live, which, |object| Some(object.clone()));
                ops.extend(object.map(|object| delete(live, &mut changed, object)));
                None
            }
            Edit::DeleteOwnNode => {
                let own = live.get(&(Kind::Node, String::new(), OWN.to_owned())).cloned();
                ops.extend(own.map(|object| delete(live, &mut changed, object)));
                None
            }
            Edit::Service(which, field, from) => pick(live, which, as_service)
                .map(|service| Object::Service(Box::new(graft_service(service, field, *from)))),
            Edit::Interfaces(addresses) => {
                ops.push(Op::Interfaces { addresses });
                None
            }
            Edit::Slice(which, field, from) => pick(live, which, as_slice)
                .map(|slice| Object::Slice(Box::new(graft_slice(slice, field, *from)))),
        };
        if let Some(object) = object {
            live.insert(object.key(), object.clone());
            changed.insert(object.key());
            ops.push(Op::Apply { object });
        }
    }
    settle(live, &changed);
    // What counts after the step is the last that was said of each object.
    for op in ops.iter_mut().rev() {
        if let Op::Apply { object } = op
            && let key = object.key()
            && changed.remove(&key)
        {
            *object = live[&key].clone();
        }
    }
    ops
}

fn delete(live: &mut Live, changed: &mut BTreeSet<Key>, object: Object) -> Op {
    live.remove(&object.key());
    changed.remove(&object.key());
    Op::Delete { object }
}

fn pick<T>(live: &Live, which: usize, of: fn(&Object) -> Option<T>) -> Option<T> {
    let mut all: Vec<T> = live.values().filter_map(of).collect();
    if all.is_empty() {
        return None;
    }
    let which = which % all.len();
    Some(all.swap_remove(which))
}

fn as_service(object: &Object) -> Option<Service> {
    match object {
        Object::Service(service) => Some((**service).clone()),
        Object::Slice(_) | Object::Node(_) => None,
    }
}

fn as_slice(object: &Object) -> Option<EndpointSlice> {
    match object {
        Object::Slice(slice) => Some((**slice).clone()),
        Object::Service(_) | Object::Node(_) => None,
    }
}

fn graft_service(mut service: Service, field: u8, from: Service) -> Service {
    let (spec, other) = (service.spec.get_or_insert_default(), from.spec.unwrap_or_default());
    match field {
        0 => service.metadata.labels = from.metadata.labels,
        1 => spec.type_ = other.type_,
        2 => {
            spec.cluster_ip = other.cluster_ip;
            spec.cluster_ips = other.cluster_ips;
            spec.ip_families = other.ip_families;
        }
        3 => spec.ports = other.ports,
        4 => spec.external_ips = other.external_ips,
        5 => service.status = from.status,
        6 => spec.internal_traffic_policy = other.internal_traffic_policy,
        7 => spec.external_traffic_policy = other.external_traffic_policy,
        8 => {
            spec.session_affinity = other.session_affinity;
            spec.session_affinity_config = other.session_affinity_config;
        }
        _ => spec.load_balancer_source_ranges = other.load_balancer_source_ranges,
    }
    service
}

fn graft_slice(mut slice: EndpointSlice, field: u8, from: EndpointSlice) -> EndpointSlice {
    match field {
        0 => slice.metadata.labels = from.metadata.labels,
        1 => slice.ports = from.ports,
        2 if slice.address_type == from.address_type => slice.endpoints = from.endpoints,
        _ => {
            let (all, others) = (slice.endpoints.iter_mut(), from.endpoints.unwrap_or_default());
            for (endpoint, other) in all.flatten().zip(others) {
                endpoint.conditions = other.conditions;
            }
        }
    }
    slice
}
