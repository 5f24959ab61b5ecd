//! What a packet gets that comes to this node for a Service: from a machine elsewhere, or from a
//! sender here whose socket the programs do not see (the kernel's NFS client, a virtual machine).
//!
//! It is table E' of `docs/kube-proxy.md`. A port has two sets of endpoints, one for each traffic
//! policy, which all of its frontends share.

use std::{fmt, net::SocketAddr, num::NonZeroU32};

use super::{
    Empty,
    port_view::{FrontendKind, PortView},
};
use crate::model::{Cidr, Frontend, PortRef};

/// One port of a Service in one family, as packets are to find it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutsidePort {
    /// The port.
    pub port: PortRef,
    /// Its family.
    pub ipv4: bool,
    /// The addresses that packets are sent to, sorted. A node port's is the unspecified one with the
    /// scope [`OwnNode`](crate::model::Scope::OwnNode): it stands for each of the node's addresses at
    /// which node ports are served, loopback ones excepted.
    pub frontends: Vec<OutsideFrontend>,
    /// The endpoints of the policy Cluster, sorted; none if no frontend can lead to them. Topology
    /// hints are heeded already (D8), and terminating endpoints are here only as a last resort (D4).
    pub cluster: Vec<SocketAddr>,
    /// The endpoints of the policy Local, sorted (D6); none if no frontend can lead to them.
    pub local: Vec<SocketAddr>,
    /// Those of `cluster` and `local` that may be on this node, sorted: it is their node, or nobody
    /// says which is. Such a one may be the sender itself (E8).
    pub here: Vec<SocketAddr>,
    /// UDP only: other endpoints that serve, to which flows that are there already may stay (L2).
    /// Sorted.
    pub kept: Vec<SocketAddr>,
    /// TCP only: the other endpoints, ready or not, which may have connections still (L7); none if packets
    /// reach cluster IPs alone. Sorted.
    pub others: Vec<SocketAddr>,
    /// What happens at a frontend that leads to a set without endpoints: packets are rejected with
    /// [`Empty::Refuse`], dropped with [`Empty::Unreachable`].
    pub empty: Empty,
    /// How long a sender stays with its endpoint, in seconds, at whatever frontend (H1, H2).
    pub affinity: Option<NonZeroU32>,
    /// The senders for which the frontends that are a load balancer's are: ranges of the family, of
    /// which none is part of another, sorted; empty: any (G). Asked before anything else, also where
    /// there are no endpoints (G5).
    pub source_ranges: Vec<Cidr>,
}

/// An address that packets are sent to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct OutsideFrontend {
    /// The address.
    pub frontend: Frontend,
    /// Which field of the Service says it.
    pub kind: FrontendKind,
    /// The traffic policy that it follows: the internal one for a cluster IP, else the external one.
    pub policy: TrafficPolicy,
}

/// Which endpoints a frontend leads to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TrafficPolicy {
    /// Those of the whole cluster.
    #[default]
    Cluster,
    /// This node's.
    Local,
}

/// Whose packet it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sender {
    /// A pod of this node.
    Pod,
    /// This node: the source is one of its own addresses.
    Node,
    /// Anybody else.
    Stranger,
}

/// How a packet goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// The set that its endpoint is chosen from.
    pub policy: TrafficPolicy,
    /// Whether its source is replaced by this node's address, so that the answer comes back here.
    pub masquerade: bool,
}

/// What a packet gets, after the source ranges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PacketVerdict<'a> {
    /// One of these endpoints, at random.
    Forward(&'a [SocketAddr]),
    /// An ICMP error or a reset: there are no endpoints anywhere (F1).
    Reject,
    /// Nothing: there are some, but the traffic policy allows none of them here (F2).
    Drop,
}

impl OutsideFrontend {
    /// How a packet to it goes on. The rows of table E', with pods that the node can tell from
    /// strangers.
    pub const fn route(&self, sender: Sender) -> Route {
        let Self { kind, policy, .. } = *self;
        match (kind, policy, sender) {
            (FrontendKind::ClusterIp, _, Sender::Pod) => Route { policy, masquerade: false },
            (FrontendKind::ClusterIp, _, Sender::Node | Sender::Stranger)
            | (_, TrafficPolicy::Cluster, _) => Route { policy, masquerade: true },
            (_, TrafficPolicy::Local, Sender::Stranger) => Route { policy, masquerade: false },
            // As if it had gone to the load balancer and come back (E3).
            (_, TrafficPolicy::Local, Sender::Pod) => {
                Route { policy: TrafficPolicy::Cluster, masquerade: false }
            }
            (_, TrafficPolicy::Local, Sender::Node) => {
                Route { policy: TrafficPolicy::Cluster, masquerade: true }
            }
        }
    }
}

impl OutsidePort {
    pub(super) fn of(view: &PortView<'_>) -> Self {
        let policy =
            |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let [internal, external] =
            [view.service.internal_local, view.service.external_local].map(policy);
        let frontends = view.frontends().into_iter().map(|(frontend, kind)| {
            let policy = if kind == FrontendKind::ClusterIp { internal } else { external };
            OutsideFrontend { frontend, kind, policy }
        });
        let mut frontends: Vec<_> = frontends.collect();
        frontends.sort_unstable();
        let (cluster, local) = (view.cluster_endpoints(), view.local_endpoints());
        let is_chosen =
            |addr: &SocketAddr| [cluster, local].iter().any(|of| of.binary_search(addr).is_ok());
        let may_be_here =
            |node: Option<&str>| node.is_none_or(|node| view.cluster.nodes().is_own(node));
        let here = view.endpoints.iter().filter(|candidate| may_be_here(candidate.node()));
        Self {
            port: view.port_ref(),
            ipv4: view.is_ipv4(),
            here: here.map(|candidate| candidate.addr).filter(is_chosen).collect(),
            kept: view.kept(is_chosen),
            others: if frontends.iter().any(|of| of.kind != FrontendKind::ClusterIp) {
                view.others(is_chosen)
            } else {
                Vec::new()
            },
            empty: view.empty(),
            affinity: view.service.affinity,
            source_ranges: if frontends.iter().any(|of| of.kind == FrontendKind::LoadBalancer) {
                view.source_ranges()
            } else {
                Vec::new()
            },
            frontends,
            cluster: cluster.to_vec(),
            local: local.to_vec(),
        }
    }

    /// The endpoints of a traffic policy.
    pub fn endpoints(&self, policy: TrafficPolicy) -> &[SocketAddr] {
        match policy {
            TrafficPolicy::Cluster => &self.cluster,
            TrafficPolicy::Local => &self.local,
        }
    }

    /// What a packet gets that goes on by the policy.
    pub fn verdict(&self, policy: TrafficPolicy) -> PacketVerdict<'_> {
        match (self.endpoints(policy), self.empty) {
            ([], Empty::Refuse) => PacketVerdict::Reject,
            ([], Empty::Unreachable) => PacketVerdict::Drop,
            (endpoints, _) => PacketVerdict::Forward(endpoints),
        }
    }
}

/// A line for each frontend: what strangers get there, and what senders on this node get if that is
/// something else: `default/web own-node-ipv4:30080/tcp node-port -> drop, from here 10.0.0.1:8080`.
impl fmt::Display for OutsidePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for frontend in &self.frontends {
            let [stranger, pod] =
                [Sender::Stranger, Sender::Pod].map(|sender| frontend.route(sender));
            write!(f, "{} {} {}", self.port, frontend.frontend, frontend.kind)?;
            let [to_stranger, to_pod] = [stranger, pod].map(|route| self.verdict(route.policy));
            if stranger.masquerade && matches!(to_stranger, PacketVerdict::Forward(_)) {
                f.write_str(" masquerade")?;
            }
            if let Some(affinity) = self.affinity {
                write!(f, " affinity={affinity}")?;
            }
            if frontend.kind == FrontendKind::LoadBalancer && !self.source_ranges.is_empty() {
                for (i, range) in self.source_ranges.iter().enumerate() {
                    write!(f, "{}{range}", if i == 0 { " source-ranges=" } else { "," })?;
                }
            }
            write!(f, " ->{to_stranger}")?;
            if to_pod != to_stranger {
                write!(f, ", from here{to_pod}")?;
            }
            for (i, kept) in self.kept.iter().enumerate() {
                write!(f, "{} {kept}", if i == 0 { ", kept" } else { "" })?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Begins with a space.
impl fmt::Display for PacketVerdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(endpoints) => {
                endpoints.iter().try_for_each(|endpoint| write!(f, " {endpoint}"))
            }
            Self::Reject => f.write_str(" reject"),
            Self::Drop => f.write_str(" drop"),
        }
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "cluster-ip",
            Self::LoadBalancer => "load-balancer",
            Self::ExternalIp => "external-ip",
            Self::NodePort => "node-port",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn routes(kind: FrontendKind, policy: TrafficPolicy) -> [(TrafficPolicy, bool); 3] {
        let addr = "192.0.2.1:80".parse().unwrap();
        let frontend =
            OutsideFrontend { frontend: Frontend::new(addr, Protocol::Tcp), kind, policy };
        [Sender::Pod, Sender::Node, Sender::Stranger].map(|sender| {
            let Route { policy, masquerade } = frontend.route(sender);
            (policy, masquerade)
        })
    }

    /// Table E', row by row: kube-proxy's `TestInternalExternalMasquerade`.
    #[test]
    fn pods_nodes_and_strangers_go_on_as_kube_proxy_has_it() {
        use TrafficPolicy::{Cluster, Local};
        let cluster_ip = |policy| routes(FrontendKind::ClusterIp, policy);
        assert_eq!(cluster_ip(Cluster), [(Cluster, false), (Cluster, true), (Cluster, true)]);
        assert_eq!(cluster_ip(Local), [(Local, false), (Local, true), (Local, true)]);
        for kind in [FrontendKind::LoadBalancer, FrontendKind::ExternalIp, FrontendKind::NodePort] {
            assert_eq!(routes(kind, Cluster), [(Cluster, true); 3]);
            let short_circuit = [(Cluster, false), (Cluster, true), (Local, false)];
            assert_eq!(routes(kind, Local), short_circuit);
        }
    }
}
