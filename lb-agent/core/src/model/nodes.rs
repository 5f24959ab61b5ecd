//! What is known of nodes: which zone and which addresses this one has, and at which addresses of the
//! others there are NodePorts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{Node, NodeAddr, Settings};

/// All Nodes, seen from one of them.
#[derive(Debug, Default)]
pub struct Nodes {
    settings: Settings,
    by_name: BTreeMap<Arc<str>, Node>,
    /// Of this node. Outlives its Node object (D11).
    zone: Option<Arc<str>>,
    /// Of this node, as its status said last; outlive it too (J2).
    own: Vec<IpAddr>,
    /// Of this machine's interfaces.
    local: BTreeSet<IpAddr>,
    revision: u64,
}

/// The Services that depend on what changed about a node.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Affected {
    None,
    /// Those that lead to each node's own endpoints.
    ByNode,
    All,
}

impl Nodes {
    /// No nodes, seen from the one that the settings name.
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// What was set.
    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The names of all.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    /// Takes in what is said of a node.
    pub(super) fn put(&mut self, name: Arc<str>, node: Option<Node>) -> Affected {
        let before = self.by_name.get(&name);
        if before == node.as_ref() {
            return Affected::None;
        }
        let addresses = |node: Option<&Node>| node.map(|n| n.addresses.clone()).unwrap_or_default();
        let is_own = self.is_own(&name);
        let moved = if is_own {
            let own = kept(&self.own, &addresses(node.as_ref()));
            own != std::mem::replace(&mut self.own, own.clone())
        } else {
            addresses(before) != addresses(node.as_ref())
        };
        if moved {
            self.revision += 1;
        }
        let affected = if is_own {
            // A Node that is deleted takes its zone along only when a new one says so (D11).
            let zone = node.as_ref().map_or_else(|| self.zone.clone(), |node| node.zone.clone());
            let all = moved || zone != self.zone;
            self.zone = zone;
            if all { Affected::All } else { Affected::None }
        } else if moved {
            Affected::ByNode
        } else {
            Affected::None
        };
        match node {
            Some(node) => self.by_name.insert(name, node),
            None => self.by_name.remove(&name),
        };
        affected
    }

    /// Takes in the addresses of this machine's interfaces.
    pub(super) fn put_local(&mut self, addresses: BTreeSet<IpAddr>) -> Affected {
        let changed: BTreeSet<_> = self.local.symmetric_difference(&addresses).collect();
        if changed.is_empty() {
            return Affected::None;
        }
        self.revision += 1;
        // An address that another node has too is no longer that node's, or is again.
        let mut others = self.by_name.values().flat_map(|node| &node.addresses);
        let shared = others.any(|ip| changed.contains(ip));
        self.local = addresses;
        if shared { Affected::ByNode } else { Affected::None }
    }

    /// Whether that is this node's name (B7).
    pub fn is_own(&self, name: &str) -> bool {
        !name.is_empty() && *self.settings.node_name == *name
    }

    /// This node's Node, as long as there is one.
    pub fn own(&self) -> Option<&Node> {
        self.by_name.get(&self.settings.node_name).filter(|_| !self.settings.node_name.is_empty())
    }

    /// This node's address of a family (J2).
    pub fn own_primary(&self, ipv4: bool) -> Option<IpAddr> {
        self.own.iter().copied().find(|ip| ip.is_ipv4() == ipv4)
    }

    /// Where health check node ports listen (K1): on all addresses of a family, or on those of this
    /// machine's that `--nodeport-addresses` names, be they loopback ones.
    pub fn health_addresses(&self) -> BTreeSet<IpAddr> {
        let Settings { nodeport_addresses: list, families, .. } = &self.settings;
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        // Nobody can listen on an address of all links without saying on which.
        let is_of_link = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let named = self.local.iter().copied().filter(|ip| {
            let is_named = list.include(*ip, self.own_primary(ip.is_ipv4()));
            is_named && !list.are_all(ip.is_ipv4()) && !is_of_link(*ip)
        });
        let all = any.into_iter().filter(|ip| list.are_all(ip.is_ipv4()));
        all.chain(named).filter(|ip| families.have(*ip)).collect()
    }

    /// This node's zone (D11).
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The node addresses at which NodePorts are served, and what each is to this node (I1-I4, E5).
    pub fn nodeport_addresses(&self) -> BTreeMap<IpAddr, NodeAddr> {
        let Settings { nodeport_addresses, localhost_nodeports, families, .. } = &self.settings;
        let mut all = BTreeMap::new();
        for name in self.by_name.keys().filter(|name| !self.is_own(name)) {
            all.extend(self.nodeport_addresses_of(name).map(|ip| (ip, NodeAddr::Other)));
        }
        for ip in self.local.iter().chain(&self.own).copied() {
            let primary = self.own_primary(ip.is_ipv4());
            if self.serves_at(ip) && nodeport_addresses.include(ip, primary) {
                all.insert(ip, NodeAddr::Own);
            }
        }
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            // "Primary" says which of the addresses that others can see.
            if *localhost_nodeports && families.have(ip) && nodeport_addresses.include(ip, Some(ip))
            {
                all.insert(ip, NodeAddr::OwnLoopback);
            }
        }
        all
    }

    /// All addresses of this machine, by its interfaces and its status.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.local.iter().chain(&self.own).copied().collect()
    }

    /// Whether NodePorts are served at all of `127.0.0.0/8`, and not only at 127.0.0.1 (I4).
    pub fn serves_loopback_net(&self) -> bool {
        let Settings { nodeport_addresses, localhost_nodeports, families, .. } = &self.settings;
        *localhost_nodeports && families.ipv4 && nodeport_addresses.include_loopback_net()
    }

    /// Another number whenever [`Nodes::nodeport_addresses`] or [`Nodes::own_addresses`] may be
    /// different.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The addresses of another node at which NodePorts are served. What is this node's too is not
    /// among them.
    pub fn nodeport_addresses_of(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        let node = self.by_name.get(node);
        let addresses = node.map_or(&[][..], |node| &node.addresses).iter().copied();
        addresses.filter(move |ip| {
            let primary = node.and_then(|node| node.primary(ip.is_ipv4()));
            let own = self.local.contains(ip) || self.own.contains(ip);
            !own && self.serves_at(*ip) && self.settings.nodeport_addresses.include(*ip, primary)
        })
    }

    /// Whether a node's address can be dialled by others (I3).
    fn serves_at(&self, ip: IpAddr) -> bool {
        self.settings.families.have(ip)
            && !ip.is_loopback()
            && !ip.is_unspecified()
            && !ip.is_multicast()
    }
}

/// The addresses of this node: of a family of which its status says none, those from `before`. The
/// machine has its addresses, whatever becomes of its Node (J2).
fn kept(before: &[IpAddr], now: &[IpAddr]) -> Vec<IpAddr> {
    let family = |of: &[IpAddr], ipv4: bool| -> Vec<IpAddr> {
        of.iter().copied().filter(|ip| ip.is_ipv4() == ipv4).collect()
    };
    let known = |ipv4| Some(family(now, ipv4)).filter(|now| !now.is_empty());
    let either = |ipv4| known(ipv4).unwrap_or_else(|| family(before, ipv4));
    [either(true), either(false)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodePortAddresses;

    /// J2, I1: kube-proxy asks for its node's addresses once.
    #[test]
    fn the_addresses_of_this_node_outlive_its_node() {
        let nodeport_addresses = NodePortAddresses::Primary;
        let settings =
            Settings { node_name: "a".into(), nodeport_addresses, ..Settings::default() };
        let mut nodes = Nodes::new(settings);
        let node = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            Some(Node { addresses, ..Node::default() })
        };
        let mut put = |node: Option<Node>| {
            let affected = nodes.put("a".into(), node);
            let all: Vec<_> = nodes.nodeport_addresses().keys().map(ToString::to_string).collect();
            (affected != Affected::None, all.join(" "))
        };
        let both = "192.0.2.1 2001:db8::1";
        assert_eq!(put(None), (false, String::new()));
        assert_eq!(put(node(&["192.0.2.1", "2001:db8::1"])), (true, both.into()));
        assert_eq!(put(None), (false, both.into()), "deleted");
        assert_eq!(put(node(&[])), (false, both.into()), "made anew, and not filled in yet");
        assert_eq!(put(node(&["192.0.2.1"])), (false, both.into()), "one family of two");
        let moved = "192.0.2.7 2001:db8::1";
        assert_eq!(put(node(&["192.0.2.7"])), (true, moved.into()), "another one");
        assert_eq!(nodes.own_primary(true), Some("192.0.2.7".parse().unwrap()));
    }
}
