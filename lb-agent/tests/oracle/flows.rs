//! UDP flows that are there already, asked again after each step (L).
//!
//! A flow begins with a first packet that both sides let through. kube-proxy's own clean-up says from then
//! on whether its entry of connection tracking is still there. In socklb there are two sockets that may be
//! its own: a connected one, which the agent ends or not, and an unconnected one, which asks the maps with
//! what it remembers. Packets of strangers, and these if no program saw their sockets, leave an entry in
//! connection tracking: whether it is to go is judged as the agent does, by what the engine for packets
//! reports of its frontends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{Prior, abi::Translation};

use super::{
    deviations::{Applied, Deviation, count},
    mutations::Mutation,
    outcome::{Fate, Outcome, Packet},
    program::{Answer, Begin, Lasting, Verdict},
    socklb::Socklb,
};

/// What is stored for the two sockets of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried {
    /// Of the unconnected one; of a flow that leads to no Service, [`Prior::NONE`].
    pub(crate) prior: Prior,
    /// Of the connected one.
    pub(crate) translation: Option<Translation>,
    /// Whether it is in the cgroup of the programs.
    pub(crate) inside: bool,
}

#[derive(Debug)]
struct Flow {
    packet: Packet,
    /// The node that decided about it; empty: the client's.
    node: String,
    /// Where it leads: to an endpoint, or where it was sent.
    end: SocketAddr,
    /// None: no program sees its socket.
    carried: Option<Carried>,
}

impl Flow {
    fn is_translated(&self) -> bool {
        self.end != self.packet.to || self.carried.is_some_and(|it| it.translation.is_some())
    }
}

/// What of a flow may go on or end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Connected,
    Unconnected,
    Packets,
}

/// By their source ports.
#[derive(Debug, Default)]
pub(super) struct Flows {
    all: BTreeMap<u16, Flow>,
    begun: u16,
}

/// How often flows were asked about again, and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Again {
    pub(crate) asked: usize,
    /// Of those that led to an endpoint.
    pub(crate) stayed: usize,
    pub(crate) ended: usize,
    /// Of those that led to no Service.
    pub(crate) healed: usize,
    /// The same of those that the engine for packets would have.
    pub(crate) packets_stayed: usize,
    pub(crate) packets_ended: usize,
    pub(crate) packets_healed: usize,
}

impl Again {
    fn note(&mut self, flow: &Flow, new: &New, has_ended: bool, stays: bool) {
        let is_translated = flow.is_translated();
        let counts =
            [is_translated && stays, is_translated && has_ended, !is_translated && has_ended];
        let add = |to: [&mut usize; 3]| {
            to.into_iter().zip(counts).for_each(|(sum, is)| *sum += usize::from(is));
        };
        if flow.carried.is_some() {
            add([&mut self.stayed, &mut self.ended, &mut self.healed]);
        }
        if new.is_for_packets && flow.node.is_empty() {
            add([&mut self.packets_stayed, &mut self.packets_ended, &mut self.packets_healed]);
        }
    }
}

/// What a new packet of the same kind gets now; none: several Services want its frontend.
pub(super) type Now = BTreeMap<Packet, Option<New>>;

pub(super) struct New {
    /// By kube-proxy.
    pub(super) answer: Answer,
    pub(super) outcome: Outcome,
    /// Whether its frontend would be the packets' engine's, too: it has no cluster IPs yet.
    pub(super) is_for_packets: bool,
}

impl Flows {
    /// Where flows to Services go.
    pub(super) fn targets(&self) -> impl Iterator<Item = (SocketAddr, &'static str)> {
        let translated = self.all.values().filter(|flow| flow.is_translated());
        translated.map(|flow| (flow.packet.to, flow.packet.protocol))
    }

    /// Asks each flow again; endpoints that are `idle` were ready in the course of the step, and did not
    /// serve. Says where the two sides differ; of those that ended nothing is kept.
    pub(super) fn again(
        &mut self,
        (lasting, now, idle): (&[Lasting], &Now, &BTreeSet<IpAddr>),
        socklb: &Socklb,
        mutation: Option<&Mutation>,
        (seen, applied): (&mut Again, &mut Applied),
        lines: &mut Vec<String>,
    ) {
        let lasting: BTreeMap<u16, &Lasting> =
            lasting.iter().map(|it| (it.source_port, it)).collect();
        self.all.retain(|port, flow| {
            let Some(Some(new)) = now.get(&flow.packet) else { return false };
            let New { answer, outcome, .. } = new;
            if answer.node != flow.node {
                // Another machine decides: what it knows of the flow is not asked.
                return false;
            }
            seen.asked += 1;
            let entry = lasting.get(port).copied();
            let mut stays = true;
            for (part, kept) in flow.parts(socklb, mutation, new) {
                stays &= kept && entry.is_some();
                match agreement(entry, kept, (flow, part), (answer, outcome), idle) {
                    Agreement::Same => {}
                    Agreement::By(deviation) => count(applied, deviation),
                    Agreement::No => lines.push(format!(
                        "{} {}, which lead to {}\n  kube-proxy: {}\n  socklb:     {}",
                        match part {
                            Part::Connected => "datagrams of a connected socket",
                            Part::Unconnected => "datagrams of an unconnected socket",
                            Part::Packets => "datagrams of no socket that a program sees",
                        },
                        flow.packet,
                        if flow.is_translated() { flow.end.to_string() } else { "nobody".into() },
                        match entry {
                            None => "the flow ends",
                            Some(Lasting { stale: true, .. }) => "the flow is stale",
                            Some(_) => "the flow stays",
                        },
                        if kept { "the flow stays" } else { "the flow ends" },
                    )),
                }
            }
            seen.note(flow, new, entry.is_none(), stays);
            stays
        });
    }

    /// Has a flow begin for each way that has none, to each endpoint that it may get. Returns what
    /// kube-proxy is to be told.
    pub(super) fn begin(&mut self, now: &Now, socklb: &Socklb) -> Vec<Begin> {
        let ways: BTreeSet<Packet> = self.all.values().map(|flow| flow.packet).collect();
        let mut begun = Vec::new();
        for (packet, now) in now.iter().filter(|(packet, _)| !ways.contains(packet)) {
            let Some(New { answer, outcome, .. }) = now else { continue };
            let is_let_through = |endpoint: &SocketAddr| {
                let mut reached = answer.reached.iter();
                !reached.any(|it| it.endpoint == *endpoint && !it.then.is_empty())
            };
            let ends: Vec<Option<SocketAddr>> = match answer.verdict {
                Verdict::None => vec![None],
                Verdict::Forward => {
                    outcome.backends.iter().copied().filter(is_let_through).map(Some).collect()
                }
                Verdict::Reject | Verdict::Drop => continue,
            };
            for endpoint in ends {
                let unknown = Carried { prior: Prior::NONE, translation: None, inside: true };
                let carried = || endpoint.map_or(unknown, |it| socklb.carried(packet, it));
                self.begun += 1;
                begun.push(Begin {
                    source: packet.source,
                    source_port: self.begun,
                    to: packet.to.ip(),
                    port: packet.to.port(),
                    node: answer.node.clone(),
                    endpoint: endpoint.map_or_else(String::new, |it| it.to_string()),
                });
                let flow = Flow {
                    packet: *packet,
                    node: answer.node.clone(),
                    end: endpoint.unwrap_or(packet.to),
                    carried: packet.is_seen().then(carried),
                };
                self.all.insert(self.begun, flow);
            }
        }
        begun
    }
}

impl Flow {
    /// Whether it goes on by socklb: all that there is of it.
    fn parts(
        &mut self,
        socklb: &Socklb,
        mutation: Option<&Mutation>,
        new: &New,
    ) -> Vec<(Part, bool)> {
        let Self { packet, node, end, carried } = self;
        let mut parts = Vec::new();
        if let Some(carried) = carried {
            let sockets = mutation.map_or(*carried, |it| it.carried(*carried));
            parts.push((Part::Connected, socklb.keeps(packet, &sockets)));
            let unconnected = socklb.goes_on(packet, &sockets, &mut carried.prior);
            parts.extend(unconnected.map(|kept| (Part::Unconnected, kept)));
        }
        if new.is_for_packets && node.is_empty() {
            let is_over = socklb.is_over(packet, *end);
            let over = |it: &Mutation| it.is_over(packet, *end, &new.outcome, is_over);
            parts.push((Part::Packets, !mutation.map_or(is_over, over)));
        }
        if let Some(mutation) = mutation {
            for (_, kept) in &mut parts {
                *kept = mutation.stays(*kept);
            }
        }
        parts
    }
}

enum Agreement {
    Same,
    By(Deviation),
    No,
}

/// Whether the two sides say the same of a flow, or differ by a rule.
fn agreement(
    entry: Option<&Lasting>,
    kept: bool,
    (flow, part): (&Flow, Part),
    (answer, outcome): (&Answer, &Outcome),
    idle: &BTreeSet<IpAddr>,
) -> Agreement {
    match (entry, kept) {
        (Some(Lasting { stale: false, .. }), true) | (None, false) => Agreement::Same,
        (Some(Lasting { stale: true, .. }), false) => Agreement::By(Deviation::Sooner),
        (Some(Lasting { orphan: true, .. }), false) => Agreement::By(Deviation::Orphan),
        (Some(_), false)
            if part == Part::Unconnected
                && matches!(outcome.fate, Fate::Untouched | Fate::UnknownPort) =>
        {
            Agreement::By(Deviation::GivenUp)
        }
        (Some(_), false) if part == Part::Unconnected && outcome.fate == Fate::Denied => {
            Agreement::By(Deviation::Ranges)
        }
        (None | Some(Lasting { stale: true, .. }), true)
            if part == Part::Packets
                && matches!(outcome.fate, Fate::Untouched | Fate::UnknownPort) =>
        {
            Agreement::By(Deviation::ByNumber)
        }
        (None | Some(Lasting { stale: true, .. }), true)
            if part != Part::Packets
                && !flow.is_translated()
                && answer.verdict != Verdict::Forward =>
        {
            Agreement::By(Deviation::Unrefused)
        }
        (None | Some(Lasting { stale: true, .. }), true) if idle.contains(&flow.end.ip()) => {
            Agreement::By(Deviation::Ready)
        }
        _ => Agreement::No,
    }
}
