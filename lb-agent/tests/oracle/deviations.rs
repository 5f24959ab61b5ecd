//! Where socklb differs from kube-proxy on purpose, and why. Nothing else may differ.
//!
//! Three more stand where they act: what several slices say of one address ([`super::duplicates`]),
//! who gets a contested frontend ([`super::outcome::FrontendText`]), and whose topology counts at
//! another node's address (`elsewhere` in `oracle/proxier.go`). That `default/kubernetes` keeps its
//! last endpoints is decided later than what is compared here.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_agent::policy::is_connectable;

use super::{
    case::{Case, Object, Op, Verb, label},
    objects::SERVICE_NAME,
    program::Empty,
};

/// A rule that says what kube-proxy is asked otherwise, or what else is expected than it answers.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Deviation {
    /// SCTP ports are not served: no hook sees an SCTP socket. All that is counted of them is.
    Sctp,
    /// An external address that is unspecified, multicast, loopback or link-local is read as one that
    /// is none: to the first two no socket is ever connected, and the others are every machine's own.
    /// kube-proxy programs them; the API has come to forbid them.
    Unconnectable,
    /// Spaces around an external address do not matter. kube-proxy says so of ranges only, and skips
    /// the address; the API lets none through, but files do.
    Spaces,
    /// Where kube-proxy drops packets (F2), the caller gets EHOSTUNREACH: a hook decides about the
    /// socket, not about packets, and the prompt error says what the timeout would have said.
    Unreachable,
    /// A Service without `ipFamilies` or `clusterIPs` is read as the API server would fill them in.
    /// socklb reads files too, which nobody filled in; kube-proxy serves less of such a Service.
    FilledIn,
    /// A slice that moves to another Service leaves the first one. kube-proxy takes it in under its
    /// new Service and never out of the old one, until it restarts: it is asked as if the slice had
    /// been deleted in between.
    MovedSlice,
}

/// How often each one made a difference.
pub(crate) type Applied = BTreeMap<Deviation, usize>;

fn count(applied: &mut Applied, deviation: Deviation) {
    *applied.entry(deviation).or_default() += 1;
}

type Rewrite = fn(Object) -> Object;

/// Those that show kube-proxy another object.
const REWRITES: &[(Deviation, Rewrite)] = &[
    (Deviation::Spaces, trimmed),
    (Deviation::Unconnectable, connectable),
    (Deviation::FilledIn, filled_in),
];

/// The case as kube-proxy is asked it.
pub(crate) fn asked(case: &Case, applied: &mut Applied) -> Case {
    let mut slices = BTreeMap::new();
    let mut ask = |op: &Op| {
        let mut object = op.object.clone();
        for (deviation, rewrite) in REWRITES {
            let rewritten = rewrite(object.clone());
            if rewritten != object {
                count(applied, *deviation);
                object = rewritten;
            }
        }
        let mut ops = Vec::new();
        if let Object::Slice(slice) = &object {
            let before = match op.op {
                Verb::Apply => slices.insert(object.key(), slice.clone()),
                Verb::Delete => slices.remove(&object.key()),
            };
            if let Some(before) = before.filter(|before| owner(before) != owner(slice)) {
                count(applied, Deviation::MovedSlice);
                ops.push(Op { op: Verb::Delete, object: Object::Slice(before) });
            }
        }
        ops.push(Op { op: op.op, object });
        ops
    };
    let steps = case.steps.iter().map(|step| step.iter().flat_map(&mut ask).collect()).collect();
    Case { node: case.node.clone(), steps }
}

fn owner(slice: &EndpointSlice) -> Option<&str> {
    label(&slice.metadata, SERVICE_NAME)
}

fn connectable(mut object: Object) -> Object {
    let nobodys = |ip: &&mut String| match ip.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || !is_connectable(ip.into()),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unicast_link_local() || !is_connectable(ip.into())
        }
        Err(_) => false,
    };
    external(&mut object).filter(nobodys).for_each(String::clear);
    object
}

fn trimmed(mut object: Object) -> Object {
    external(&mut object).for_each(|ip| *ip = ip.trim().to_owned());
    object
}

/// The addresses that a Service has from outside.
fn external(object: &mut Object) -> impl Iterator<Item = &mut String> {
    let service = match object {
        Object::Service(service) => Some(service),
        Object::Slice(_) | Object::Node(_) => None,
    };
    service.into_iter().flat_map(|service| {
        let ips = service.spec.iter_mut().flat_map(|spec| &mut spec.external_ips).flatten();
        let balancers = service.status.iter_mut().flat_map(|status| &mut status.load_balancer);
        let ingress = balancers.flat_map(|balancer| &mut balancer.ingress).flatten();
        ips.chain(ingress.flat_map(|ingress| &mut ingress.ip))
    })
}

/// As the API server does on creation, for a Service that has a cluster IP.
fn filled_in(mut object: Object) -> Object {
    if let Object::Service(service) = &mut object
        && let Some(spec) = &mut service.spec
        && let Some(first) = spec.cluster_ip.clone().filter(|ip| !matches!(&**ip, "" | "None"))
    {
        let ips = spec.cluster_ips.get_or_insert_with(|| vec![first]);
        let family = |ip: &String| if ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned();
        spec.ip_families.get_or_insert_with(|| ips.iter().map(family).collect());
    }
    object
}

/// Whether socklb has a frontend of the protocol.
pub(crate) fn is_served(protocol: &str, applied: &mut Applied) -> bool {
    let served = protocol != "SCTP";
    if !served {
        count(applied, Deviation::Sctp);
    }
    served
}

/// What an empty set of endpoints means to the caller.
pub(crate) fn empty(kube_proxy: Option<Empty>, applied: &mut Applied) -> &'static str {
    match kube_proxy {
        None => "",
        Some(Empty::Refuse) => "refuse",
        Some(Empty::Drop) => {
            count(applied, Deviation::Unreachable);
            "unreachable"
        }
    }
}
