//! From what is wanted of a port of a Service to the edits that make the table say so. As few as can be:
//! an endpoint keeps its slot as long as it serves and the slot is one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU32,
};

use super::{
    element::{Choice, Edit, Element, Group},
    mirror::{AffinityMirror, TableMirror},
};
use crate::{
    model::{Cidr, Frontend},
    policy::{FrontendKind, OutsideFrontend, OutsidePort, PacketVerdict, TrafficPolicy},
};

/// What is wanted of a port of a Service.
#[derive(Clone, Copy, Debug)]
pub(super) struct WantedPort<'a> {
    /// The port. Packets find it at least at one frontend.
    pub(super) port: &'a OutsidePort,
    /// The number of its groups.
    pub(super) number: u32,
    /// How long senders stay with their endpoint, in seconds.
    pub(super) affinity: Option<NonZeroU32>,
}

/// The frontends of a port that packets are to find.
pub(super) fn packet_frontends(port: &OutsidePort) -> impl Iterator<Item = &OutsideFrontend> {
    port.frontends.iter().filter(|of| of.kind != FrontendKind::ClusterIp)
}

/// The edits of a port, to be carried out together; none if it is as it should be. In an order in
/// which, as far as one can, what is looked up first comes last: endpoints before who leads to them,
/// ranges before who asks for them.
pub(super) fn plan(mirror: &TableMirror, wanted: &WantedPort<'_>) -> Vec<Edit> {
    let WantedPort { port, number, affinity } = *wanted;
    let group = |policy| Group::of(port.ipv4, number, policy);
    let is_local = packet_frontends(port).any(|of| of.policy == TrafficPolicy::Local);
    let (mut edits, mut freed) = (Vec::new(), Vec::new());
    for of in packet_frontends(port) {
        plan_ranges(mirror, of.frontend, ranges(port, of), &mut edits, &mut freed);
    }
    let verdicts = [
        (group(TrafficPolicy::Cluster), Some(port.verdict(TrafficPolicy::Cluster))),
        (group(TrafficPolicy::Local), is_local.then(|| port.verdict(TrafficPolicy::Local))),
    ];
    let numbers = affinity.map_or_else(BTreeMap::new, |_| numbers(mirror, &verdicts));
    for (group, verdict) in verdicts {
        let affinity = affinity.map(|seconds| (seconds, &numbers));
        plan_group(mirror, group, verdict, affinity, &mut edits, &mut freed);
    }
    for of in packet_frontends(port) {
        let to_local = of.policy == TrafficPolicy::Local;
        let leads = [(TrafficPolicy::Cluster, true), (TrafficPolicy::Local, to_local)];
        for (policy, is_wanted) in leads {
            lead(mirror, (of.frontend, policy), is_wanted.then(|| group(policy)), &mut edits);
        }
    }
    edits.append(&mut freed);
    edits
}

/// The edits that leave nothing of a frontend that nobody wants any more.
pub(super) fn release_frontend(mirror: &TableMirror, frontend: Frontend) -> Vec<Edit> {
    let (mut edits, mut freed) = (Vec::new(), Vec::new());
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        lead(mirror, (frontend, policy), None, &mut edits);
    }
    plan_ranges(mirror, frontend, &[], &mut edits, &mut freed);
    edits.append(&mut freed);
    edits
}

/// The edits that leave nothing of a group to which no frontend leads.
pub(super) fn release_group(mirror: &TableMirror, group: Group) -> Vec<Edit> {
    let (mut edits, mut freed) = (Vec::new(), Vec::new());
    plan_group(mirror, group, None, None, &mut edits, &mut freed);
    edits.append(&mut freed);
    edits
}

/// The senders that may; empty: all.
fn ranges<'a>(port: &'a OutsidePort, of: &OutsideFrontend) -> &'a [Cidr] {
    match of.kind {
        FrontendKind::LoadBalancer => &port.source_ranges,
        FrontendKind::ClusterIp | FrontendKind::ExternalIp | FrontendKind::NodePort => &[],
    }
}

/// `freed`: what comes last.
fn plan_ranges(
    mirror: &TableMirror,
    frontend: Frontend,
    wanted: &[Cidr],
    edits: &mut Vec<Edit>,
    freed: &mut Vec<Edit>,
) {
    let there: Vec<Cidr> = mirror.ranges(frontend).collect();
    let range = |range: &Cidr| Element::Range { frontend, range: *range };
    // Both are sorted.
    let lacks = |ranges: &[Cidr], range: &Cidr| ranges.binary_search(range).is_err();
    let superfluous = there.iter().filter(|of| lacks(wanted, of)).map(range).map(Edit::Delete);
    let missing = wanted.iter().filter(|of| lacks(&there, of)).map(range).map(Edit::Add);
    let is_restricted = mirror.is_restricted(frontend);
    if wanted.is_empty() {
        freed.extend(is_restricted.then_some(Edit::Delete(Element::Restricted(frontend))));
        freed.extend(superfluous);
    } else {
        // No two that overlap are ever there at once.
        edits.extend(superfluous);
        edits.extend(missing);
        edits.extend((!is_restricted).then_some(Edit::Add(Element::Restricted(frontend))));
    }
}

/// `affinity`: the timeout in seconds, and the number of each endpoint. `freed`: what comes last.
fn plan_group(
    mirror: &TableMirror,
    group: Group,
    verdict: Option<PacketVerdict<'_>>,
    affinity: Option<(NonZeroU32, &BTreeMap<SocketAddr, u32>)>,
    edits: &mut Vec<Edit>,
    freed: &mut Vec<Edit>,
) {
    let endpoints =
        if let Some(PacketVerdict::Forward(endpoints)) = verdict { endpoints } else { &[] };
    let value = verdict.map(|verdict| match verdict {
        PacketVerdict::Forward(all) => Choice::of(u32::try_from(all.len()).unwrap_or(u32::MAX)),
        PacketVerdict::Reject => Choice::Reject,
        PacketVerdict::Drop => Choice::Drop,
    });
    let there: Vec<_> = mirror.endpoints(group).collect();
    let endpoint = |slot: u32, addr: SocketAddr| Element::Endpoint { group, slot, addr };
    let slots = slots(&there, endpoints);
    for (slot, addr) in (0..).zip(&slots) {
        let before = there.get(usize::try_from(slot).unwrap_or(usize::MAX)).copied().flatten();
        if before != Some(*addr) {
            edits.extend(before.map(|before| Edit::Delete(endpoint(slot, before))));
            edits.push(Edit::Add(endpoint(slot, *addr)));
        }
    }
    let rest = (0..).zip(&there).skip(slots.len());
    freed.extend(rest.filter_map(|(slot, addr)| Some(Edit::Delete(endpoint(slot, (*addr)?)))));
    plan_affinity(mirror, group, affinity, &slots, edits);
    let choice = |value| Element::Choice { group, value };
    let before = mirror.choice(group);
    if before != value {
        edits.extend(before.map(choice).map(Edit::Delete));
        edits.extend(value.map(choice).map(Edit::Add));
    }
}

/// The edit that has a frontend lead to a group, or to none.
fn lead(
    mirror: &TableMirror,
    (frontend, policy): (Frontend, TrafficPolicy),
    wanted: Option<Group>,
    edits: &mut Vec<Edit>,
) {
    let element = |group| Element::Frontend { policy, frontend, group };
    let before = mirror.group(frontend, policy);
    if before != wanted {
        edits.extend(before.map(element).map(Edit::Delete));
        edits.extend(wanted.map(element).map(Edit::Add));
    }
}

/// The numbers of the endpoints of a port, the same in both of its groups. An endpoint keeps its number
/// as long as it serves; a new one gets the lowest that is free.
fn numbers(
    mirror: &TableMirror,
    verdicts: &[(Group, Option<PacketVerdict<'_>>)],
) -> BTreeMap<SocketAddr, u32> {
    let forward = verdicts.iter().filter_map(|(_, verdict)| match verdict {
        Some(PacketVerdict::Forward(endpoints)) => Some(*endpoints),
        _ => None,
    });
    let mut rest: BTreeSet<SocketAddr> = forward.flatten().copied().collect();
    let mut taken = BTreeSet::new();
    let mut all = BTreeMap::new();
    let there = verdicts.iter().filter_map(|(group, _)| mirror.affinity(*group));
    for (number, addr) in there.flat_map(|of| &of.numbered) {
        if rest.contains(addr) && taken.insert(*number) {
            rest.remove(addr);
            all.insert(*addr, *number);
        }
    }
    let free = (0..).filter(|number| !taken.contains(number));
    all.extend(rest.into_iter().zip(free));
    all
}

/// The edits that make senders stay with the endpoints in these slots.
fn plan_affinity(
    mirror: &TableMirror,
    group: Group,
    affinity: Option<(NonZeroU32, &BTreeMap<SocketAddr, u32>)>,
    slots: &[SocketAddr],
    edits: &mut Vec<Edit>,
) {
    let affinity = affinity.filter(|_| !slots.is_empty());
    if affinity.is_none() && mirror.affinity(group).is_none() {
        return;
    }
    let wanted = match affinity {
        None => AffinityMirror::default(),
        Some((seconds, all)) => {
            let number = |addr| all.get(addr).copied();
            let numbers = (0..).zip(slots).filter_map(|(slot, addr)| Some((slot, number(addr)?)));
            let numbered = slots.iter().filter_map(|addr| Some((number(addr)?, *addr)));
            AffinityMirror {
                seconds: Some(seconds),
                numbers: numbers.collect(),
                numbered: numbered.collect(),
            }
        }
    };
    let nothing = AffinityMirror::default();
    let there = mirror.affinity(group).unwrap_or(&nothing);
    let all = |of: &AffinityMirror| of.elements(group).collect::<BTreeSet<_>>();
    let (there, wanted) = (all(there), all(&wanted));
    edits.extend(there.difference(&wanted).copied().map(Edit::Delete));
    edits.extend(wanted.difference(&there).copied().map(Edit::Add));
}

/// Which endpoint is to be in which slot. Who is in one of them stays; the others fill the rest.
fn slots(there: &[Option<SocketAddr>], wanted: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut rest: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
    let mut of = |slot| Option::<SocketAddr>::clone(there.get(slot)?).filter(|it| rest.remove(it));
    let kept: Vec<_> = (0..wanted.len()).map(&mut of).collect();
    let mut rest = rest.into_iter();
    kept.into_iter().filter_map(|kept| kept.or_else(|| rest.next())).collect()
}
