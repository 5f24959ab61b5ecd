//! Our side: objects, as the sources translate them, into the model and through the policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use lb_agent::{
    model::{Change, Cluster, NodeAddr, ObjectRef, Scope, Settings, shared},
    policy::{BackendSet, Empty, HealthCheck, NoLocal, PerFamily, Served, serve},
    sources::translate,
};

use super::{
    case::{Case, Object, Op, Verb},
    outcome::{Outcome, Outcomes, text},
    program::Kind,
};

/// What socklb does after each step.
pub(crate) fn socklb(case: &Case) -> Vec<Outcomes> {
    let node_name: Arc<str> = shared(&case.node);
    let mut cluster = Cluster::new(Settings { node_name, ..Settings::default() });
    cluster.apply(Change::ListedServices(BTreeMap::new()));
    cluster.apply(Change::ListedSlices(BTreeMap::new()));
    cluster.apply(Change::ListedNodes(BTreeMap::new()));
    // As the agent does: only what a change touches is looked at again.
    let mut all = BTreeMap::new();
    let mut outcomes = Vec::with_capacity(case.steps.len());
    for step in &case.steps {
        let touched: BTreeSet<_> = step.iter().flat_map(|op| cluster.apply(change(op))).collect();
        for name in touched {
            let served = serve(&cluster, &name);
            all.insert(name, served);
        }
        outcomes.push(look(&cluster, &all));
    }
    outcomes
}

/// An op as the sources say it.
fn change(op: &Op) -> Change {
    let is_there = op.op == Verb::Apply;
    match &op.object {
        Object::Service(object) => {
            // The sources look at the name: this is the proxy that was given none (A1).
            let is_ours = translate::proxy_name(object).is_none();
            let model = translate::service(object).0.filter(|_| is_there && is_ours);
            Change::Service(translate::object_ref(&object.metadata), model)
        }
        Object::Slice(object) => {
            let model = translate::slice(object).0;
            Change::Slice(translate::object_ref(&object.metadata), model.filter(|_| is_there))
        }
        Object::Node(object) => {
            let model = translate::node(object).0;
            let name = object.metadata.name.as_deref().unwrap_or_default();
            Change::Node(shared(name), model.filter(|_| is_there))
        }
    }
}

fn look(cluster: &Cluster, all: &BTreeMap<ObjectRef, Served>) -> Outcomes {
    let addresses = cluster.node_addresses().into_iter();
    let nodes: Vec<IpAddr> =
        addresses.filter(|(_, of)| *of == NodeAddr::Other).map(|(ip, _)| ip).collect();
    let mut outcomes = Outcomes::default();
    for (name, served) in all {
        for set in &served.sets {
            for frontend in &set.frontends {
                let kind = match frontend.scope {
                    Scope::Any => Kind::Address,
                    Scope::OwnNode => Kind::OwnNode,
                    Scope::OtherNodes | Scope::Node => continue,
                };
                add(&mut outcomes, set, kind, frontend.addr);
            }
            others(&mut outcomes, set, &served.sets, &nodes);
        }
        if let Some(HealthCheck { port, local }) = served.health_check {
            for (family, local) in [("IPv4", local.ipv4), ("IPv6", local.ipv6)] {
                let local = local.map(|local| (format!("{name}:{port} ({family})"), local));
                outcomes.health.extend(local);
            }
        }
        let PerFamily { ipv4, ipv6 } = served.no_local;
        for (family, NoLocal { internal, external }) in [("IPv4", ipv4), ("IPv6", ipv6)] {
            outcomes.count_no_local(&name.to_string(), family, (internal, external));
        }
    }
    outcomes
}

/// What a client gets that dials a node port at the address of another node.
fn others(outcomes: &mut Outcomes, set: &BackendSet, sets: &[BackendSet], nodes: &[IpAddr]) {
    for all in set.frontends.iter().filter(|it| it.scope == Scope::OtherNodes) {
        let family = nodes.iter().filter(|ip| ip.is_ipv4() == all.addr.is_ipv4());
        for ip in family {
            let addr = SocketAddr::new(*ip, all.addr.port());
            // That address alone goes before all other nodes.
            let own = sets.iter().find(|set| {
                set.port.protocol == all.protocol
                    && set.frontends.iter().any(|it| it.scope == Scope::Node && it.addr == addr)
            });
            add(outcomes, own.unwrap_or(set), Kind::OtherNode, addr);
        }
    }
}

fn add(outcomes: &mut Outcomes, set: &BackendSet, kind: Kind, addr: SocketAddr) {
    let outcome = Outcome {
        backends: set.backends.iter().copied().collect(),
        empty: match set.empty {
            _ if !set.backends.is_empty() => "",
            Empty::Refuse => "refuse",
            Empty::Unreachable => "unreachable",
        },
        affinity: set.affinity.map_or(0, NonZeroU32::get),
        sources: set.sources.iter().map(ToString::to_string).collect(),
    };
    let text = text(&set.port.to_string(), kind, addr, set.port.protocol.name());
    let twice = outcomes.frontends.insert(text.clone(), outcome).is_some();
    assert!(!twice, "{text} stands in two sets");
}
