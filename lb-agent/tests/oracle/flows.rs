//! UDP flows that are there already, asked again after each step (L).
//!
//! A flow begins with a first packet that both sides let through. kube-proxy's own clean-up says from then
//! on whether its entry of connection tracking is still there. In socklb there are two sockets that may be
//! its own: a connected one, which the agent ends or not, and an unconnected one, which asks the maps with
//! what it remembers.

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
    carried: Carried,
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
}

/// What a new packet of the same kind gets now, by kube-proxy; none: several Services want its frontend.
pub(super) type Now = BTreeMap<Packet, Option<(Answer, Outcome)>>;

impl Flows {
    /// Where flows to Services go.
    pub(super) fn targets(&self) -> impl Iterator<Item = (SocketAddr, &'static str)> {
        let translated = self.all.values().filter(|flow| flow.carried.translation.is_some());
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
            let Some(Some((answer, outcome))) = now.get(&flow.packet) else { return false };
            if answer.node != flow.node {
                // Another machine decides: what it knows of the flow is not asked.
                return false;
            }
            seen.asked += 1;
            let entry = lasting.get(port).copied();
            let carried = mutation.map_or(flow.carried, |it| it.carried(flow.carried));
            let mut stays = true;
            let connected = socklb.keeps(&flow.packet, &carried);
            for (what, kept) in [
                ("connected", Some(connected)),
                ("unconnected", socklb.goes_on(&flow.packet, &carried, &mut flow.carried.prior)),
            ] {
                let Some(kept) = kept else { continue };
                let kept = mutation.map_or(kept, |it| it.stays(kept));
                stays &= kept && entry.is_some();
                let is_connected = what == "connected";
                let why = agreement(entry, kept, &carried, is_connected, (answer, outcome), idle);
                match why {
                    Agreement::Same => {}
                    Agreement::By(deviation) => count(applied, deviation),
                    Agreement::No => lines.push(format!(
                        "a {what} UDP socket that has sent {} to {}\n  kube-proxy: {}\n  \
                         socklb:     {}",
                        flow.packet,
                        carried.translation.map_or_else(
                            || "nobody".to_owned(),
                            |it| SocketAddr::from(it.backend).to_string()
                        ),
                        match entry {
                            None => "the flow ends",
                            Some(Lasting { stale: true, .. }) => "the flow is stale",
                            Some(_) => "the flow stays",
                        },
                        if kept { "the flow stays" } else { "the flow ends" },
                    )),
                }
            }
            let is_translated = carried.translation.is_some();
            seen.stayed += usize::from(is_translated && stays);
            seen.ended += usize::from(is_translated && entry.is_none());
            seen.healed += usize::from(!is_translated && entry.is_none());
            stays
        });
    }

    /// Has a flow begin for each way that has none, to each endpoint that it may get. Returns what
    /// kube-proxy is to be told.
    pub(super) fn begin(&mut self, now: &Now, socklb: &Socklb) -> Vec<Begin> {
        let ways: BTreeSet<Packet> = self.all.values().map(|flow| flow.packet).collect();
        let mut begun = Vec::new();
        for (packet, now) in now.iter().filter(|(packet, _)| !ways.contains(packet)) {
            let Some((answer, outcome)) = now else { continue };
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
                let carried = endpoint.map_or(unknown, |it| socklb.carried(packet, it));
                self.begun += 1;
                begun.push(Begin {
                    source: packet.source,
                    source_port: self.begun,
                    to: packet.to.ip(),
                    port: packet.to.port(),
                    node: answer.node.clone(),
                    endpoint: endpoint.map_or_else(String::new, |it| it.to_string()),
                });
                let flow = Flow { packet: *packet, node: answer.node.clone(), carried };
                self.all.insert(self.begun, flow);
            }
        }
        begun
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
    carried: &Carried,
    is_connected: bool,
    (answer, outcome): (&Answer, &Outcome),
    idle: &BTreeSet<IpAddr>,
) -> Agreement {
    let backend = carried.translation.map(|it| SocketAddr::from(it.backend).ip());
    match (entry, kept) {
        (Some(Lasting { stale: false, .. }), true) | (None, false) => Agreement::Same,
        (Some(Lasting { stale: true, .. }), false) => Agreement::By(Deviation::Sooner),
        (Some(Lasting { orphan: true, .. }), false) => Agreement::By(Deviation::Orphan),
        (Some(_), false)
            if !is_connected && matches!(outcome.fate, Fate::Untouched | Fate::UnknownPort) =>
        {
            Agreement::By(Deviation::GivenUp)
        }
        (Some(_), false) if !is_connected && outcome.fate == Fate::Denied => {
            Agreement::By(Deviation::Ranges)
        }
        (None | Some(Lasting { stale: true, .. }), true)
            if carried.translation.is_none() && answer.verdict != Verdict::Forward =>
        {
            Agreement::By(Deviation::Unrefused)
        }
        (None | Some(Lasting { stale: true, .. }), true)
            if backend.is_some_and(|ip| idle.contains(&ip)) =>
        {
            Agreement::By(Deviation::Ready)
        }
        _ => Agreement::No,
    }
}
