//! Random histories: objects come, change in one field or in all, and go, in any order.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::{collection::vec, prelude::*};

use super::{
    case::{Case, Key, Object, Op, Verb},
    duplicates::settle,
    objects::{OWN, node},
    services::service,
    slices::slice,
};

#[derive(Clone, Debug)]
enum Edit {
    Apply(Object),
    /// One field of an object that is there, taken from another object.
    Service(usize, u8, Box<Service>),
    Slice(usize, u8, Box<EndpointSlice>),
    Delete(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => service().prop_map(|it| Edit::Apply(Object::Service(it.into()))),
        6 => slice().prop_map(|it| Edit::Apply(Object::Slice(it.into()))),
        2 => node().prop_map(|it| Edit::Apply(Object::Node(it.into()))),
        4 => (any::<usize>(), 0..10u8, service())
            .prop_map(|(which, field, it)| Edit::Service(which, field, it.into())),
        4 => (any::<usize>(), 0..4u8, slice())
            .prop_map(|(which, field, it)| Edit::Slice(which, field, it.into())),
        2 => any::<usize>().prop_map(Edit::Delete),
    ]
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (first(), vec(vec(edit(), 0..4), 0..5)).prop_map(|(first, mut rest)| {
        rest.insert(0, first);
        let mut live = BTreeMap::new();
        let steps = rest.into_iter().map(|edits| step(&mut live, edits));
        let steps = steps.filter(|step| !step.is_empty()).collect();
        Case { node: OWN.to_owned(), steps }
    })
}

/// What a proxy finds when it starts: something of everything, in any order.
fn first() -> impl Strategy<Value = Vec<Edit>> {
    let place = any::<u8>();
    let services = vec((place, service().prop_map(|it| Object::Service(it.into()))), 1..3);
    let slices = vec((place, slice().prop_map(|it| Object::Slice(it.into()))), 1..9);
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
        let (op, object) = match edit {
            Edit::Apply(object) => (Verb::Apply, object),
            Edit::Delete(which) => match pick(live, which, |object| Some(object.clone())) {
                Some(object) => (Verb::Delete, object),
                None => continue,
            },
            Edit::Service(which, field, from) => match pick(live, which, as_service) {
                Some(service) => {
                    (Verb::Apply, Object::Service(Box::new(graft_service(service, field, *from))))
                }
                None => continue,
            },
            Edit::Slice(which, field, from) => match pick(live, which, as_slice) {
                Some(slice) => {
                    let slice = graft_slice(slice, field, *from);
                    (Verb::Apply, Object::Slice(Box::new(slice)))
                }
                None => continue,
            },
        };
        let key = object.key();
        if op == Verb::Delete {
            live.remove(&key);
            changed.remove(&key);
        } else {
            live.insert(key.clone(), object.clone());
            changed.insert(key);
        }
        ops.push(Op { op, object });
    }
    settle(live, &changed);
    // What counts after the step is the last that was said of each object.
    for op in ops.iter_mut().rev() {
        if op.op == Verb::Apply
            && let key = op.object.key()
            && changed.remove(&key)
        {
            op.object = live[&key].clone();
        }
    }
    ops
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
