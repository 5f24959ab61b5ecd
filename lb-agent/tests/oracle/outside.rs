//! What packets get whose sockets no program sees: of strangers, of pods of other nodes, and of senders
//! here (table E').
//!
//! An engine that is told what is wanted, like those that carry it out, and that is asked instead.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
};

use lb_core::{
    claims::Claims,
    engine::{Engine, EngineReport, NodeAddresses, Wanted},
    model::{NodeAddr, ObjectRef, Protocol, Scope},
    policy::{Empty, FrontendKind, OutsideFrontend, OutsidePort, Sender, Served},
};

use super::{
    case::{Config, Key, Object, endpoints_at},
    claims::Claims as Claimed,
    deviations::{Applied, Deviation, count},
    outcome::{Fate, Packet},
    program::{Answer, Verdict},
};

/// What an engine was told, kept by it and by who asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Outside(Rc<RefCell<Told>>);

#[derive(Debug, Default)]
struct Told {
    services: BTreeMap<ObjectRef, Arc<Served>>,
    nodes: NodeAddresses,
    has_all: bool,
}

impl Engine for Outside {
    type Report = EngineReport;

    fn name(&self) -> &'static str {
        "outside"
    }

    fn adopt(&mut self) -> Result<(), String> {
        self.0.borrow_mut().has_all = false;
        Ok(())
    }

    fn lacks_all(&self) -> bool {
        !self.0.borrow().has_all
    }

    fn want(&mut self, wanted: &Wanted) {
        let mut told = self.0.borrow_mut();
        if wanted.is_whole {
            told.services.clear();
            told.has_all = true;
        }
        let services = wanted.services.iter();
        told.services.extend(services.map(|(name, served)| (name.clone(), Arc::clone(served))));
        if let Some(nodes) = &wanted.addresses {
            told.nodes = nodes.clone();
        }
    }

    fn is_dirty(&self) -> bool {
        false
    }

    fn sync(&mut self, _: &Claims, _: &mut dyn FnMut(&dyn fmt::Display)) -> EngineReport {
        EngineReport::default()
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Handled {
    /// [`Fate::Unreachable`]: it is dropped by a policy; [`Fate::Denied`]: by source ranges.
    pub(crate) fate: Fate,
    /// Where it may go, and whether the endpoint sees the node's address.
    pub(crate) endpoints: BTreeMap<SocketAddr, bool>,
    /// In seconds; 0 without.
    pub(crate) affinity: u32,
}

impl From<Fate> for Handled {
    fn from(fate: Fate) -> Self {
        Self { fate, ..Self::default() }
    }
}

impl fmt::Display for Handled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fate {
            Fate::Forwarded => {
                for (endpoint, is_masqueraded) in &self.endpoints {
                    let how = if *is_masqueraded { " (masqueraded)" } else { "" };
                    write!(f, "{endpoint}{how} ")?;
                }
                write!(f, "affinity {} s", self.affinity)
            }
            fate => write!(f, "{fate:?}"),
        }
    }
}

impl Outside {
    /// What is to become of the packet.
    pub(super) fn handles(&self, packet: &Packet, sender: Sender) -> Handled {
        let told = self.0.borrow();
        let Some((port, frontend)) = told.port_at(packet) else { return Handled::default() };
        let is_balancer = frontend.kind == FrontendKind::LoadBalancer;
        if is_balancer
            && !port.source_ranges.is_empty()
            && !port.source_ranges.iter().any(|range| range.contains(packet.source))
        {
            return Fate::Denied.into();
        }
        let route = frontend.route(sender);
        let endpoints = port.endpoints(route.policy);
        if endpoints.is_empty() {
            return match port.empty {
                Empty::Refuse => Fate::Refused.into(),
                Empty::Unreachable => Fate::Unreachable.into(),
            };
        }
        let is_itself =
            |endpoint: &SocketAddr| endpoint.ip() == packet.source && port.here.contains(endpoint);
        Handled {
            fate: Fate::Forwarded,
            endpoints: endpoints
                .iter()
                .map(|it| (*it, route.masquerade || is_itself(it)))
                .collect(),
            affinity: port.affinity.map_or(0, NonZeroU32::get),
        }
    }
}

impl Told {
    fn port_at(&self, packet: &Packet) -> Option<(&OutsidePort, &OutsideFrontend)> {
        let protocol = match packet.protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        let ports = || self.services.values().flat_map(|served| &served.outside);
        let find = |is: &dyn Fn(&SocketAddr, Scope) -> bool| {
            let all = ports().flat_map(|port| port.frontends.iter().map(move |it| (port, it)));
            let mut those = all.filter(|(_, it)| {
                it.frontend.protocol == protocol && is(&it.frontend.addr, it.frontend.scope)
            });
            let found = those.next();
            assert!(those.next().is_none(), "{packet}: two Services have it");
            found
        };
        let to = packet.to;
        let is_node_port = self.nodes.of.get(&to.ip()) == Some(&NodeAddr::Own);
        find(&|addr, scope| scope == Scope::Any && *addr == to).or_else(|| {
            find(&|addr, scope| {
                is_node_port
                    && scope == Scope::OwnNode
                    && (addr.port(), addr.is_ipv4()) == (to.port(), to.is_ipv4())
            })
        })
    }
}

/// A packet whose socket no program sees.
pub(super) struct Unseen<'a>(pub(super) &'a Packet);

impl fmt::Display for Unseen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a packet {}", self.0)
    }
}

/// What is to become of a packet of which kube-proxy says this.
pub(super) fn wanted(
    packet: &Packet,
    answer: &Answer,
    found: &Handled,
    (config, claims, live): (&Config, &Claimed, &BTreeMap<Key, Object>),
    applied: &mut Applied,
) -> Handled {
    let is_cluster_ip = claims.is_cluster_ip(packet.to, packet.protocol);
    match answer.verdict {
        // Another node has decided.
        _ if !answer.node.is_empty() => Handled::default(),
        Verdict::None => Handled::default(),
        // Which ports a cluster IP lacks is not a port's to say.
        Verdict::Reject if answer.by == "cluster-ips-check" => Handled::default(),
        Verdict::Reject => Fate::Refused.into(),
        Verdict::Drop if answer.by.starts_with("firewall-") => Fate::Denied.into(),
        Verdict::Drop => Fate::Unreachable.into(),
        Verdict::Forward => {
            let endpoints = answer.reached.iter().map(|it| {
                let mut masquerade = it.masquerade;
                if it.by_address && !is_cluster_ip {
                    count(applied, Deviation::ByAddress);
                    masquerade = false;
                } else if it.by_address
                    && config.masquerade_all
                    && config.sender(packet) == Sender::Pod
                {
                    count(applied, Deviation::MasqueradeAll);
                    masquerade = false;
                } else if is_cluster_ip && !masquerade && !config.tells_pods(packet.source) {
                    count(applied, Deviation::Untold);
                    masquerade = true;
                }
                // Slices may contradict each other.
                let is_hairpin = found.endpoints.get(&it.endpoint) == Some(&true)
                    && !masquerade
                    && it.endpoint.ip() == packet.source
                    && has_no_node(live, packet.source);
                // Of one port it is elsewhere, of another one here: kube-proxy asks for the address alone.
                let is_elsewhere = found.endpoints.get(&it.endpoint) == Some(&false)
                    && masquerade
                    && it.endpoint.ip() == packet.source
                    && is_on_two_nodes(live, packet.source);
                if is_hairpin || is_elsewhere {
                    count(applied, Deviation::Hairpin);
                }
                (it.endpoint, (masquerade || is_hairpin) && !is_elsewhere)
            });
            Handled {
                fate: Fate::Forwarded,
                endpoints: endpoints.collect(),
                affinity: answer.timeout,
            }
        }
    }
}

/// Whether slices say of the address that it is on more than one node.
fn is_on_two_nodes(live: &BTreeMap<Key, Object>, ip: IpAddr) -> bool {
    let nodes: BTreeSet<_> = endpoints_at(live, ip).map(|endpoint| &endpoint.node_name).collect();
    nodes.len() > 1
}

/// Whether a slice has the address and says not on which node it is.
fn has_no_node(live: &BTreeMap<Key, Object>, ip: IpAddr) -> bool {
    endpoints_at(live, ip).any(|endpoint| endpoint.node_name.is_none())
}
