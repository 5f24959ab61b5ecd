//! Mistakes: socklb is told, or set up, as if it did not know a rule. Who judges it well finds each of
//! them. They stand in [`super::mistakes`].

use std::{collections::BTreeMap, net::SocketAddr};

use k8s_openapi::api::{
    core::v1::{Node, Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointConditions, EndpointSlice},
};

use super::{
    case::{Case, Config, Key, Kind, Object, Op, label},
    flows::Carried,
    objects::{OWN, SERVICE_NAME},
    outcome::{Outcome, Packet},
    outside::Handled,
};

pub(crate) struct Mutation {
    /// The rule of docs/kube-proxy.md.
    pub(crate) rule: &'static str,
    pub(crate) mistake: &'static str,
    how: How,
}

/// What becomes of that which socklb is told.
pub(super) enum How {
    Config(fn(&mut Config)),
    Service(fn(&mut Service)),
    Spec(fn(&mut ServiceSpec)),
    Slice(fn(&mut EndpointSlice)),
    Endpoint(fn(&mut Endpoint)),
    Node(fn(&mut Node)),
    /// It remembers something else of a UDP flow.
    Carried(fn(&mut Carried)),
    /// It lets a UDP flow go on, or not.
    Stays(fn(bool) -> bool),
    /// It forgets, or not, where a packet's flow went that leads to an address; with what new packets get.
    IsOver(fn(&Packet, SocketAddr, &Outcome, bool) -> bool),
    /// It handles a packet otherwise whose socket no program sees, by the flags of the case.
    Handled(fn(&Config, &Packet, &mut Handled)),
    /// It answers a socket otherwise.
    Outcome(fn(&Config, &Packet, &mut Outcome)),
    /// It takes a packet for another one.
    Packet(fn(&mut Packet)),
    /// With the objects that were there before the step.
    Ops(fn(&Live, &[Op]) -> Vec<Op>),
}

pub(super) type Live = BTreeMap<Key, Object>;

pub(super) const fn rule(rule: &'static str, mistake: &'static str, how: How) -> Mutation {
    Mutation { rule, mistake, how }
}

impl Mutation {
    pub(crate) fn config(&self, config: &Config) -> Config {
        let mut config = config.clone();
        if let How::Config(how) = self.how {
            how(&mut config);
        }
        config
    }

    /// What socklb is told, with the objects that were there before.
    pub(crate) fn ops(&self, live: &Live, ops: &[Op]) -> Vec<Op> {
        if let How::Ops(how) = self.how {
            return how(live, ops);
        }
        let mut ops = ops.to_vec();
        ops.iter_mut().flat_map(Op::objects_mut).for_each(|object| self.object(object));
        ops
    }

    /// What is stored for the sockets of a UDP flow.
    pub(crate) fn carried(&self, mut carried: Carried) -> Carried {
        if let How::Carried(how) = self.how {
            how(&mut carried);
        }
        carried
    }

    /// Whether a UDP flow goes on that does so, or not.
    pub(crate) fn stays(&self, stays: bool) -> bool {
        if let How::Stays(how) = self.how { how(stays) } else { stays }
    }

    /// Whether a flow of packets is over that leads to an address.
    pub(crate) fn is_over(
        &self,
        packet: &Packet,
        end: SocketAddr,
        now: &Outcome,
        is_over: bool,
    ) -> bool {
        if let How::IsOver(how) = self.how { how(packet, end, now, is_over) } else { is_over }
    }

    /// What becomes of a packet whose socket no program sees.
    pub(crate) fn handle(&self, config: &Config, packet: &Packet, handled: &mut Handled) {
        if let How::Handled(how) = self.how {
            how(config, packet, handled);
        }
    }

    /// What a socket's packet gets.
    pub(crate) fn outcome(&self, config: &Config, packet: &Packet, outcome: &mut Outcome) {
        if let How::Outcome(how) = self.how {
            how(config, packet, outcome);
        }
    }

    /// The packet that socklb is asked about.
    pub(crate) fn packet(&self, mut packet: Packet) -> Packet {
        if let How::Packet(how) = self.how {
            how(&mut packet);
        }
        packet
    }

    fn object(&self, object: &mut Object) {
        match (&self.how, object) {
            (How::Service(how), Object::Service(service)) => how(service),
            (How::Spec(how), Object::Service(service)) => {
                service.spec.iter_mut().for_each(how);
            }
            (How::Slice(how), Object::Slice(slice)) => how(slice),
            (How::Endpoint(how), Object::Slice(slice)) => {
                slice.endpoints.iter_mut().flatten().for_each(how);
            }
            (How::Node(how), Object::Node(node)) => how(node),
            _ => {}
        }
    }

    /// Whether the case may be told otherwise at all.
    pub(crate) fn concerns(&self, case: &Case) -> bool {
        let is_other = |before: &Object| {
            let mut object = before.clone();
            self.object(&mut object);
            object != *before
        };
        match self.how {
            How::Config(_) => self.config(&case.config) != case.config,
            How::Service(_) | How::Spec(_) | How::Slice(_) | How::Endpoint(_) | How::Node(_) => {
                case.steps.iter().flatten().flat_map(Op::objects).any(is_other)
            }
            _ => true,
        }
    }
}

pub(super) fn unlabel(service: &mut Service, label: &str) {
    service.metadata.labels.iter_mut().for_each(|labels| drop(labels.remove(label)));
}

pub(super) fn drop_label(slice: &mut EndpointSlice, label: &str) {
    slice.metadata.labels.iter_mut().for_each(|labels| drop(labels.remove(label)));
}

pub(super) fn conditions(endpoint: &mut Endpoint) -> &mut EndpointConditions {
    endpoint.conditions.get_or_insert_default()
}

pub(super) fn ingress(
    service: &mut Service,
) -> impl Iterator<Item = &mut k8s_openapi::api::core::v1::LoadBalancerIngress> {
    let status = service.status.iter_mut().flat_map(|status| &mut status.load_balancer);
    status.flat_map(|balancer| &mut balancer.ingress).flatten()
}

pub(super) fn apply(object: Object) -> Op {
    Op::Apply { object }
}

fn is(object: &Object, kind: Kind) -> bool {
    object.key().0 == kind
}

pub(super) fn first_services(live: &Live, ops: &[Op]) -> Vec<Op> {
    let known = |object: &Object| is(object, Kind::Service) && live.contains_key(&object.key());
    let ops = ops.iter().filter(|op| !matches!(op, Op::Apply { object } if known(object)));
    ops.cloned().collect()
}

/// Only slices that end in -1, -6 or -f.
pub(super) fn first_slices(_: &Live, ops: &[Op]) -> Vec<Op> {
    let mut ops = ops.to_vec();
    for object in ops.iter_mut().flat_map(Op::objects_mut) {
        if let Object::Slice(slice) = object
            && matches!(slice.metadata.name.as_deref(), Some("a-2" | "a-3" | "a-66"))
        {
            slice.endpoints = None;
        }
    }
    ops
}

pub(super) fn all_slices_go(live: &Live, ops: &[Op]) -> Vec<Op> {
    let mut told = Vec::new();
    for op in ops {
        if let Op::Delete { object } = op
            && is(object, Kind::EndpointSlice)
        {
            let slices = live.values().filter(|object| is(object, Kind::EndpointSlice));
            told.extend(slices.cloned().map(|object| Op::Delete { object }));
        }
        told.push(op.clone());
    }
    told
}

fn own_node(object: &Object) -> Option<&Node> {
    match object {
        Object::Node(node) if node.metadata.name.as_deref() == Some(OWN) => Some(node),
        _ => None,
    }
}

/// Before each deletion of the own Node, what `change` makes of it.
fn before_deletion(ops: &[Op], change: fn(&mut Node)) -> Vec<Op> {
    let mut told = Vec::new();
    for op in ops {
        if let Op::Delete { object } = op
            && let Some(node) = own_node(object)
        {
            let mut node = node.clone();
            change(&mut node);
            told.push(apply(Object::Node(node.into())));
        }
        told.push(op.clone());
    }
    told
}

pub(super) fn zone_goes(_: &Live, ops: &[Op]) -> Vec<Op> {
    before_deletion(ops, |node| node.metadata.labels = None)
}

/// The status says another address, since socklb keeps the last one.
pub(super) fn addresses_go(_: &Live, ops: &[Op]) -> Vec<Op> {
    before_deletion(ops, |node| {
        let addresses = node.status.iter_mut().flat_map(|status| &mut status.addresses).flatten();
        for address in addresses {
            address.address =
                if address.address.contains(':') { "2001:db8:f::1" } else { "192.0.2.77" }.into();
        }
    })
}

pub(super) fn own_addresses_go(_: &Live, ops: &[Op]) -> Vec<Op> {
    let mut ops = ops.to_vec();
    for object in ops.iter_mut().flat_map(Op::objects_mut) {
        if own_node(object).is_some()
            && let Object::Node(node) = object
        {
            node.status = None;
        }
    }
    ops
}

pub(super) fn interfaces_stay(_: &Live, ops: &[Op]) -> Vec<Op> {
    ops.iter().filter(|op| !matches!(op, Op::Interfaces { .. })).cloned().collect()
}

/// Interfaces without what is a cluster IP by now.
pub(super) fn cluster_ips_are_foreign(live: &Live, ops: &[Op]) -> Vec<Op> {
    let all = with_shown(live, ops);
    let services = all.values().filter_map(|object| match object {
        Object::Service(service) => service.spec.as_ref(),
        Object::Slice(_) | Object::Node(_) => None,
    });
    let ips: Vec<_> = services.flat_map(|spec| spec.cluster_ips.iter().flatten()).collect();
    let mut ops = ops.to_vec();
    for op in &mut ops {
        if let Op::Interfaces { addresses } = op {
            addresses.retain(|ip| !ips.contains(&ip));
        }
    }
    ops
}

/// Those that serve beside one that is ready.
pub(super) fn terminating_ones_die(slice: &mut EndpointSlice) {
    let is_ready = |it: &Endpoint| it.conditions.as_ref().is_none_or(|it| it.ready != Some(false));
    if slice.endpoints.iter().flatten().any(is_ready) {
        let others = slice.endpoints.iter_mut().flatten().filter(|it| !is_ready(it));
        others.for_each(|it| conditions(it).serving = Some(false));
    }
}

/// The Service of a slice.
fn service_of<'a>(live: &'a Live, slice: &EndpointSlice) -> Option<&'a ServiceSpec> {
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    let name = label(&slice.metadata, SERVICE_NAME)?.to_owned();
    match live.get(&(Kind::Service, namespace, name))? {
        Object::Service(service) => service.spec.as_ref(),
        Object::Slice(_) | Object::Node(_) => None,
    }
}

/// The objects before the step, and those that it shows.
fn with_shown(live: &Live, ops: &[Op]) -> Live {
    let shown = ops.iter().flat_map(Op::objects).map(|object| (object.key(), object.clone()));
    live.clone().into_iter().chain(shown).collect()
}

pub(super) fn no_others_if_external_is_local(live: &Live, ops: &[Op]) -> Vec<Op> {
    no_others(live, ops, |spec| spec.external_traffic_policy.as_deref())
}

pub(super) fn no_others_if_internal_is_local(live: &Live, ops: &[Op]) -> Vec<Op> {
    no_others(live, ops, |spec| spec.internal_traffic_policy.as_deref())
}

/// Without the endpoints of other nodes, where the Service has that policy Local.
fn no_others(live: &Live, ops: &[Op], policy: fn(&ServiceSpec) -> Option<&str>) -> Vec<Op> {
    let all = with_shown(live, ops);
    let mut ops = ops.to_vec();
    for object in ops.iter_mut().flat_map(Op::objects_mut) {
        let Object::Slice(slice) = object else { continue };
        if service_of(&all, slice).and_then(policy) == Some("Local") {
            let endpoints = slice.endpoints.iter_mut();
            endpoints.for_each(|all| all.retain(|it| it.node_name.as_deref() == Some(OWN)));
        }
    }
    ops
}

pub(super) fn open_without_slices(live: &Live, ops: &[Op]) -> Vec<Op> {
    let all = with_shown(live, ops);
    let has_slice = |service: &Service| {
        all.values().any(|object| match object {
            Object::Slice(slice) => {
                label(&slice.metadata, SERVICE_NAME) == service.metadata.name.as_deref()
            }
            Object::Service(_) | Object::Node(_) => false,
        })
    };
    let mut ops = ops.to_vec();
    for object in ops.iter_mut().flat_map(Op::objects_mut) {
        if let Object::Service(service) = object
            && !has_slice(service)
            && let Some(spec) = &mut service.spec
        {
            spec.load_balancer_source_ranges = None;
        }
    }
    ops
}
