//! The endpoints of a Service's port, and which of them each traffic policy chooses.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::model::{Cluster, Endpoint, ObjectRef, PortRef, Protocol, SlicePort};

/// An endpoint and the port it listens on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) addr: SocketAddr,
    pub(super) endpoint: &'a Endpoint,
}

impl Candidate<'_> {
    /// Takes new connections; also on its way out (D13).
    pub(super) fn ready(&self) -> bool {
        self.endpoint.conditions.ready
    }

    /// Takes new connections if nobody else does (D4).
    fn draining(&self) -> bool {
        let conditions = self.endpoint.conditions;
        !conditions.ready && conditions.serving && conditions.terminating
    }

    /// Answers those that know it (L2).
    pub(super) fn serves(&self) -> bool {
        self.endpoint.conditions.ready || self.endpoint.conditions.serving
    }

    pub(super) fn node(&self) -> Option<&str> {
        self.endpoint.node.as_deref()
    }
}

/// The endpoints of a Service's port in one family, sorted: the union over its slices (B8), matched
/// by name and protocol (B5). Where slices disagree, a terminating endpoint never hides one that is
/// not: the address was given to a new pod while the old one was on its way out.
pub(super) fn union<'a>(
    cluster: &'a Cluster,
    service: &'a ObjectRef,
    (name, protocol): (&str, Protocol),
    ipv4: bool,
) -> Vec<Candidate<'a>> {
    let mut union: Vec<Candidate<'a>> = Vec::new();
    for slice in cluster.slices(service) {
        let ports = slice.ports.iter().filter(|p| p.protocol == protocol && *p.name == *name);
        for port in ports {
            let endpoints = slice.endpoints.iter().filter(|e| e.addr.is_ipv4() == ipv4);
            union.extend(endpoints.map(|endpoint| Candidate {
                addr: SocketAddr::new(endpoint.addr, port.number),
                endpoint,
            }));
        }
    }
    // Stable: of several, the later one is the one of the later slice.
    union.sort_by_key(|candidate| candidate.addr);
    union.dedup_by(|later, first| {
        let same = later.addr == first.addr;
        if same && !later.endpoint.conditions.terminating {
            first.endpoint = later.endpoint;
        }
        same
    });
    union
}

/// One endpoint of [`union`]; or of a port that is being renamed, which the Service calls otherwise
/// than its slices for as long as one of the two has not been changed.
pub(super) fn find<'a>(
    cluster: &'a Cluster,
    port: &'a PortRef,
    addr: SocketAddr,
) -> Option<Candidate<'a>> {
    let PortRef { service, port: name, protocol } = port;
    let ports = || {
        let all = cluster.slices(service).flat_map(|slice| &slice.ports);
        all.filter(|p| p.protocol == *protocol)
    };
    let is_orphaned = !ports().any(|p| p.name == *name);
    let of_service = |of: &SlicePort| {
        let ports = cluster.service(service).map_or(&[][..], |service| &service.ports);
        ports.iter().any(|p| p.name == of.name && p.protocol == *protocol)
    };
    let named = |p: &SlicePort| if is_orphaned { !of_service(p) } else { p.name == *name };
    let slices = cluster.slices(service).filter(|slice| {
        let mut ports = slice.ports.iter();
        ports.any(|p| p.protocol == *protocol && p.number == addr.port() && named(p))
    });
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().filter(|e| e.addr == addr.ip()));
    let endpoint = endpoints
        .reduce(|first, later| if later.conditions.terminating { first } else { later })?;
    Some(Candidate { addr, endpoint })
}

/// What of a ServicePort decides which endpoints it uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Policies {
    pub(super) internal_local: bool,
    pub(super) external_local: bool,
    /// It has a node port, a load balancer's address or an external one in this family (D1).
    pub(super) externally_accessible: bool,
}

impl Policies {
    /// D2. Also with `externalTrafficPolicy: Local`: a connection that begins on this node uses them.
    const fn use_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    const fn use_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// Where the choice is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    /// The node; empty if unknown.
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
}

/// Which endpoints each policy chooses (D1-D13); sorted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Categories {
    /// With the policy Cluster; none if nothing uses it.
    pub(super) cluster: Option<Vec<SocketAddr>>,
    /// With the policy Local; none if nothing uses it.
    pub(super) local: Option<Vec<SocketAddr>>,
    /// Whether there is a usable one anywhere.
    pub(super) any: bool,
}

/// kube-proxy's `CategorizeEndpoints`.
pub(super) fn categorize(all: &[Candidate<'_>], policies: Policies, here: Here<'_>) -> Categories {
    let chosen = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<SocketAddr> {
        all.iter().filter(|candidate| wanted(candidate)).map(|candidate| candidate.addr).collect()
    };
    let is_local =
        |candidate: &Candidate<'_>| !here.node.is_empty() && candidate.node() == Some(here.node);
    let ready_else_draining = |wanted: &dyn Fn(&Candidate<'_>) -> bool| {
        let ready = chosen(&|candidate| candidate.ready() && wanted(candidate));
        if ready.is_empty() {
            chosen(&|candidate| candidate.draining() && wanted(candidate))
        } else {
            ready
        }
    };
    let cluster = policies.use_cluster().then(|| match mode(all, here) {
        Mode::SameNode => chosen(&|candidate| candidate.ready() && hinted_node(candidate, here)),
        Mode::SameZone => chosen(&|candidate| candidate.ready() && hinted_zone(candidate, here)),
        // Only here there may be no ready one, and then topology does not matter (D4).
        Mode::Any => ready_else_draining(&|_| true),
    });
    // Topology has no say in what is local (D6).
    let local = policies.use_local().then(|| ready_else_draining(&is_local));
    Categories {
        any: all.iter().any(|candidate| candidate.ready() || candidate.draining()),
        cluster,
        local,
    }
}

/// Which hints count (D8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    SameNode,
    SameZone,
    Any,
}

fn mode(all: &[Candidate<'_>], here: Here<'_>) -> Mode {
    // A level counts if each ready endpoint has a hint, and one of them is for us.
    let (mut nodes, mut zones) = (true, true);
    let (mut node, mut zone) = (false, false);
    for candidate in all.iter().filter(|candidate| candidate.ready()) {
        let hints = candidate.endpoint.hints.as_deref();
        nodes &= hints.is_some_and(|hints| !hints.nodes.is_empty());
        zones &= hints.is_some_and(|hints| !hints.zones.is_empty());
        if !nodes && !zones {
            return Mode::Any;
        }
        node = node || hinted_node(candidate, here);
        zone = zone || hinted_zone(candidate, here);
    }
    if nodes && node {
        Mode::SameNode
    } else if zones && zone {
        Mode::SameZone
    } else {
        Mode::Any
    }
}

fn hinted_node(candidate: &Candidate<'_>, here: Here<'_>) -> bool {
    let hints = candidate.endpoint.hints.as_ref();
    hints.is_some_and(|hints| hints.nodes.iter().any(|node| **node == *here.node))
}

fn hinted_zone(candidate: &Candidate<'_>, here: Here<'_>) -> bool {
    let hints = candidate.endpoint.hints.as_ref();
    hints.is_some_and(|hints| hints.zones.iter().any(|zone| Some(&**zone) == here.zone))
}

/// The endpoints that each node's own share of the Service consists of (D6, seen from that node).
pub(super) fn by_node<'a>(all: &[Candidate<'a>]) -> BTreeMap<&'a str, Vec<SocketAddr>> {
    let mut nodes: BTreeMap<&str, (Vec<SocketAddr>, Vec<SocketAddr>)> = BTreeMap::new();
    for candidate in all {
        let Some(node) = candidate.endpoint.node.as_deref() else { continue };
        if candidate.ready() {
            nodes.entry(node).or_default().0.push(candidate.addr);
        } else if candidate.draining() {
            nodes.entry(node).or_default().1.push(candidate.addr);
        }
    }
    let share =
        |(ready, draining): (Vec<_>, Vec<_>)| if ready.is_empty() { draining } else { ready };
    nodes.into_iter().map(|(node, both)| (node, share(both))).collect()
}

#[cfg(test)]
mod tests;
