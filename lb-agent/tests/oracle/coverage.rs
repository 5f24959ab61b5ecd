//! Which fields occur, and which of them matter: a field that is never set, or never makes a
//! difference, is a rule that nobody has judged.
//!
//! A field makes a difference to a case if kube-proxy answers any of its packets otherwise once the
//! field is left out everywhere.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use super::{
    case::{Case, Kind, Object, Op},
    objects::OWN_INTERFACES,
    services::NODES,
};

/// A field of an object; below `*` each element of a list. Names are separated by `|`.
type Path = &'static str;

pub(crate) const FIELDS: &[(Kind, Path)] = &[
    (Kind::Service, "metadata|creationTimestamp"),
    (Kind::Service, "metadata|labels|service.kubernetes.io/service-proxy-name"),
    (Kind::Service, "spec|type"),
    (Kind::Service, "spec|clusterIP"),
    (Kind::Service, "spec|clusterIPs"),
    (Kind::Service, "spec|ipFamilies"),
    (Kind::Service, "spec|ports"),
    (Kind::Service, "spec|ports|*|name"),
    (Kind::Service, "spec|ports|*|protocol"),
    (Kind::Service, "spec|ports|*|nodePort"),
    (Kind::Service, "spec|externalIPs"),
    (Kind::Service, "spec|internalTrafficPolicy"),
    (Kind::Service, "spec|externalTrafficPolicy"),
    (Kind::Service, "spec|sessionAffinity"),
    (Kind::Service, "spec|sessionAffinityConfig"),
    (Kind::Service, "spec|loadBalancerSourceRanges"),
    (Kind::Service, "spec|healthCheckNodePort"),
    (Kind::Service, "spec|publishNotReadyAddresses"),
    (Kind::Service, "spec|trafficDistribution"),
    (Kind::Service, "status|loadBalancer|ingress"),
    (Kind::Service, "status|loadBalancer|ingress|*|ipMode"),
    (Kind::Service, "status|loadBalancer|ingress|*|hostname"),
    (Kind::EndpointSlice, "metadata|labels|kubernetes.io/service-name"),
    (Kind::EndpointSlice, "metadata|labels|service.kubernetes.io/headless"),
    (Kind::EndpointSlice, "ports|*|name"),
    (Kind::EndpointSlice, "ports|*|protocol"),
    (Kind::EndpointSlice, "ports|*|port"),
    (Kind::EndpointSlice, "endpoints"),
    (Kind::EndpointSlice, "endpoints|*|conditions"),
    (Kind::EndpointSlice, "endpoints|*|conditions|ready"),
    (Kind::EndpointSlice, "endpoints|*|conditions|serving"),
    (Kind::EndpointSlice, "endpoints|*|conditions|terminating"),
    (Kind::EndpointSlice, "endpoints|*|nodeName"),
    (Kind::EndpointSlice, "endpoints|*|zone"),
    (Kind::EndpointSlice, "endpoints|*|hints|forZones"),
    (Kind::EndpointSlice, "endpoints|*|hints|forNodes"),
    (Kind::Node, "metadata|labels|topology.kubernetes.io/zone"),
    (Kind::Node, "status|addresses"),
];

type Without = fn(&mut Case);

/// The flags and the machine, each with what leaves it out.
pub(crate) const FLAGS: &[(&str, Without)] = &[
    ("families: one", |it| it.config.families = vec!["IPv4".into(), "IPv6".into()]),
    ("interfaces: somebody else's address", only_own_addresses),
    ("interfaces: other addresses in its course", fixed_interfaces),
    ("a cluster IP that is a node's address", other_cluster_ips),
    ("a port of SCTP", without_sctp),
    ("--nodeport-addresses", |it| it.config.node_port_addresses.clear()),
    ("--localhost-nodeports", |it| it.config.localhost_nodeports = false),
    ("--external-ips=false", |it| it.config.external_ips = true),
    ("--unknown-port=pass", |it| it.config.refuse_unknown_ports = true),
    ("--service-proxy-name", |it| it.config.proxy_name = None),
    ("--detect-local-mode", |it| {
        it.config.detect_local = "NodeCIDR".into();
        it.config.cluster_cidrs.clear();
    }),
    ("--cluster-cidr", |it| it.config.cluster_cidrs.clear()),
    ("--masquerade-all", |it| it.config.masquerade_all = false),
];

fn without_sctp(case: &mut Case) {
    let is_sctp = |protocol: &Option<String>| protocol.as_deref() == Some("SCTP");
    for object in case.steps.iter_mut().flatten().flat_map(Op::objects_mut) {
        if let Object::Service(service) = object {
            let ports = service.spec.iter_mut().filter_map(|spec| spec.ports.as_mut());
            ports.for_each(|ports| ports.retain(|port| !is_sctp(&port.protocol)));
        }
    }
}

fn only_own_addresses(case: &mut Case) {
    let is_own = |text: &String| OWN_INTERFACES.contains(&&**text);
    case.config.interfaces.retain(is_own);
    for op in case.steps.iter_mut().flatten() {
        if let Op::Interfaces { addresses } = op {
            addresses.retain(is_own);
        }
    }
}

fn fixed_interfaces(case: &mut Case) {
    for step in &mut case.steps {
        step.retain(|op| !matches!(op, Op::Interfaces { .. }));
    }
}

fn other_cluster_ips(case: &mut Case) {
    for object in case.steps.iter_mut().flatten().flat_map(Op::objects_mut) {
        let Object::Service(service) = object else { continue };
        let spec = service.spec.iter_mut();
        let ips =
            spec.flat_map(|it| it.cluster_ip.iter_mut().chain(it.cluster_ips.iter_mut().flatten()));
        for ip in ips.filter(|ip| NODES.contains(&&***ip)) {
            if ip.contains(':') { "fd00:96::7" } else { "10.96.0.7" }.clone_into(ip);
        }
    }
}

/// In how many cases something is set, in how many of these it was left out for a trial, and in how many
/// of those that made a difference.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) set: usize,
    pub(crate) tried: usize,
    pub(crate) mattered: usize,
}

/// By the place in [`FIELDS`], with [`FLAGS`] behind them.
pub(crate) type Coverage = BTreeMap<usize, Count>;

/// Counts what the case sets. Returns the places.
pub(crate) fn note(case: &Case, coverage: &mut Coverage) -> Vec<usize> {
    let objects: Vec<(Kind, Value)> = case
        .steps
        .iter()
        .flatten()
        .flat_map(Op::objects)
        .map(|object| (object.key().0, value(object)))
        .collect();
    let mut set = Vec::new();
    for (i, (kind, path)) in FIELDS.iter().enumerate() {
        let has = |(of, value): &(Kind, Value)| of == kind && has(value, path);
        if objects.iter().any(has) {
            set.push(i);
        }
    }
    for (i, (_, without)) in FLAGS.iter().enumerate() {
        let mut other = case.clone();
        without(&mut other);
        if other != *case {
            set.push(FIELDS.len() + i);
        }
    }
    for i in &set {
        coverage.entry(*i).or_default().set += 1;
    }
    set
}

/// The place of a case to leave out next: the one that was tried least.
pub(crate) fn next(set: &[usize], coverage: &Coverage) -> Option<usize> {
    set.iter().copied().min_by_key(|i| coverage.get(i).map_or(0, |count| count.tried))
}

/// Counts a trial.
pub(crate) fn tried(coverage: &mut Coverage, place: usize, mattered: bool) {
    let count = coverage.entry(place).or_default();
    count.tried += 1;
    count.mattered += usize::from(mattered);
}

pub(crate) fn add(sum: &mut Coverage, other: &Coverage) {
    for (place, count) in other {
        let sum = sum.entry(*place).or_default();
        sum.set += count.set;
        sum.tried += count.tried;
        sum.mattered += count.mattered;
    }
}

/// The case without the field, or the flag.
pub(crate) fn without(case: &Case, place: usize) -> Case {
    let mut case = case.clone();
    let Some((kind, path)) = FIELDS.get(place) else {
        FLAGS[place - FIELDS.len()].1(&mut case);
        return case;
    };
    let objects = case.steps.iter_mut().flatten().flat_map(Op::objects_mut);
    for object in objects.filter(|object| object.key().0 == *kind) {
        let mut value = value(object);
        remove(&mut value, path);
        *object = serde_json::from_value(value).expect("an object without a field is one");
    }
    case
}

fn value(object: &Object) -> Value {
    serde_json::to_value(object).expect("objects are JSON")
}

fn has(value: &Value, path: &str) -> bool {
    match path.split_once('|') {
        Some(("*", rest)) => value.as_array().is_some_and(|all| all.iter().any(|it| has(it, rest))),
        Some((name, rest)) => value.get(name).is_some_and(|it| has(it, rest)),
        None => value.get(path).is_some_and(|it| !it.is_null()),
    }
}

fn remove(value: &mut Value, path: &str) {
    match path.split_once('|') {
        Some(("*", rest)) => {
            value.as_array_mut().into_iter().flatten().for_each(|it| remove(it, rest));
        }
        Some((name, rest)) => value.get_mut(name).into_iter().for_each(|it| remove(it, rest)),
        None => drop(value.as_object_mut().and_then(|object| object.remove(path))),
    }
}

/// The table, as Markdown.
pub(crate) fn table(coverage: &Coverage) -> String {
    let fields = FIELDS.iter().map(|(kind, path)| (format!("{kind:?}"), path.replace('|', ".")));
    let flags = FLAGS.iter().map(|(name, _)| ("node".to_owned(), (*name).to_owned()));
    let mut text =
        "| | field | set in | left out in | mattered in |\n|---|---|---|---|---|\n".to_owned();
    for (i, (kind, path)) in fields.chain(flags).enumerate() {
        let Count { set, tried, mattered } = coverage.get(&i).copied().unwrap_or_default();
        writeln!(text, "| {kind} | `{path}` | {set} | {tried} | {mattered} |").expect("memory");
    }
    text
}
