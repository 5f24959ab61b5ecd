//! From what is wanted of a frontend to the edits that make the table say so. As few as can be: an
//! endpoint keeps its slot as long as it serves and the slot is one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU32,
};

use super::{
    element::{Choice, Edit, Element},
    mirror::{AffinityMirror, TableMirror},
};
use crate::{
    model::{Cidr, Frontend},
    policy::{FrontendKind, OutsideFrontend, OutsidePort, PacketVerdict, TrafficPolicy},
};

/// What is wanted of a frontend.
#[derive(Clone, Copy, Debug)]
pub(super) struct WantedFrontend<'a> {
    /// What everybody gets, or senders of this node, where strangers get something else.
    cluster: PacketVerdict<'a>,
    /// What strangers get, where that is something else by policy.
    local: Option<PacketVerdict<'a>>,
    /// The senders that may; empty: all.
    ranges: &'a [Cidr],
    /// How long senders stay with their endpoint, in seconds.
    affinity: Option<NonZeroU32>,
}

impl<'a> WantedFrontend<'a> {
    /// Nothing for a frontend that is not for packets.
    pub(super) fn of(port: &'a OutsidePort, frontend: &OutsideFrontend) -> Option<Self> {
        let ranges = match frontend.kind {
            FrontendKind::ClusterIp => return None,
            FrontendKind::LoadBalancer => &port.source_ranges[..],
            FrontendKind::ExternalIp | FrontendKind::NodePort => &[],
        };
        let local = match frontend.policy {
            TrafficPolicy::Cluster => None,
            TrafficPolicy::Local => Some(port.verdict(TrafficPolicy::Local)),
        };
        let affinity = port.affinity;
        Some(Self { cluster: port.verdict(TrafficPolicy::Cluster), local, ranges, affinity })
    }

    /// The same, with the timeout of session affinity that is in force.
    pub(super) fn with_timeout(self, in_force: impl Fn(NonZeroU32) -> NonZeroU32) -> Self {
        Self { affinity: self.affinity.map(in_force), ..self }
    }
}

/// The edits of one frontend, to be carried out together; none if it is as it should be. In an order
/// in which, as far as one can, what is looked up first comes last: endpoints before who leads to them,
/// ranges before who asks for them.
pub(super) fn plan(
    mirror: &TableMirror,
    frontend: Frontend,
    wanted: Option<WantedFrontend<'_>>,
) -> Vec<Edit> {
    let mut edits = Vec::new();
    let (cluster, local, ranges) =
        wanted.map_or((None, None, &[][..]), |of| (Some(of.cluster), of.local, of.ranges));
    let there: Vec<Cidr> = mirror.ranges(frontend).collect();
    let range = |range: &Cidr| Element::Range { frontend, range: *range };
    // Both are sorted.
    let lacks = |ranges: &[Cidr], range: &Cidr| ranges.binary_search(range).is_err();
    let superfluous = there.iter().filter(|of| lacks(ranges, of)).map(range).map(Edit::Delete);
    let missing = ranges.iter().filter(|of| lacks(&there, of)).map(range).map(Edit::Add);
    let is_restricted = mirror.is_restricted(frontend);
    if !ranges.is_empty() {
        // No two that overlap are ever there at once.
        edits.extend(superfluous.clone());
        edits.extend(missing);
        edits.extend((!is_restricted).then_some(Edit::Add(Element::Restricted(frontend))));
    }
    let mut freed = Vec::new();
    for (policy, answer) in [(TrafficPolicy::Cluster, cluster), (TrafficPolicy::Local, local)] {
        let endpoints =
            if let Some(PacketVerdict::Forward(endpoints)) = answer { endpoints } else { &[] };
        let value = answer.map(|answer| match answer {
            PacketVerdict::Forward(all) => Choice::of(u32::try_from(all.len()).unwrap_or(u32::MAX)),
            PacketVerdict::Reject => Choice::Reject,
            PacketVerdict::Drop => Choice::Drop,
        });
        let there: Vec<_> = mirror.endpoints(frontend, policy).collect();
        let endpoint =
            |slot: u32, addr: SocketAddr| Element::Endpoint { policy, frontend, slot, addr };
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
        let seconds = wanted.and_then(|of| of.affinity);
        edits.extend(plan_affinity(mirror, (frontend, policy), seconds, &slots));
        let choice = |value| Element::Choice { policy, frontend, value };
        let before = mirror.choice(frontend, policy);
        if before != value {
            edits.extend(before.map(choice).map(Edit::Delete));
            edits.extend(value.map(choice).map(Edit::Add));
        }
    }
    edits.append(&mut freed);
    if ranges.is_empty() {
        edits.extend(is_restricted.then_some(Edit::Delete(Element::Restricted(frontend))));
        edits.extend(superfluous);
    }
    edits
}

/// The edits that make senders stay with the endpoints in these slots. An endpoint keeps its number as
/// long as it serves; a new one gets the lowest that is free.
fn plan_affinity(
    mirror: &TableMirror,
    (frontend, policy): (Frontend, TrafficPolicy),
    seconds: Option<NonZeroU32>,
    slots: &[SocketAddr],
) -> Vec<Edit> {
    let nothing = AffinityMirror::default();
    let there = mirror.affinity(frontend, policy).unwrap_or(&nothing);
    let wanted = match seconds.filter(|_| !slots.is_empty()) {
        None => AffinityMirror::default(),
        seconds => {
            let mut rest: BTreeSet<SocketAddr> = slots.iter().copied().collect();
            let numbered = there.numbered.iter();
            let kept: BTreeMap<u32, SocketAddr> = numbered
                .filter(|(_, addr)| rest.remove(addr))
                .map(|(number, addr)| (*number, *addr))
                .collect();
            let free = (0..).filter(|number| !kept.contains_key(number));
            let numbered: BTreeMap<_, _> = free.zip(rest).chain(kept.clone()).collect();
            let numbers: BTreeMap<_, _> =
                numbered.iter().map(|(number, addr)| (addr, number)).collect();
            let numbers =
                (0..).zip(slots).filter_map(|(slot, addr)| Some((slot, **numbers.get(addr)?)));
            AffinityMirror { seconds, numbers: numbers.collect(), numbered }
        }
    };
    let all = |of: &AffinityMirror| of.elements(frontend, policy).collect::<BTreeSet<_>>();
    let (there, wanted) = (all(there), all(&wanted));
    let gone = there.difference(&wanted).copied().map(Edit::Delete);
    gone.chain(wanted.difference(&there).copied().map(Edit::Add)).collect()
}

/// Which endpoint is to be in which slot. Who is in one of them stays; the others fill the rest.
fn slots(there: &[Option<SocketAddr>], wanted: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut rest: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
    let mut of = |slot| Option::<SocketAddr>::clone(there.get(slot)?).filter(|it| rest.remove(it));
    let kept: Vec<_> = (0..wanted.len()).map(&mut of).collect();
    let mut rest = rest.into_iter();
    kept.into_iter().filter_map(|kept| kept.or_else(|| rest.next())).collect()
}
