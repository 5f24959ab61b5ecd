//! Nodes, and what this one is told about itself.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
    sync::Arc,
    time::SystemTime,
};

use super::Cidr;

/// A Node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    /// The label `topology.kubernetes.io/zone`, if it is there and not empty.
    pub zone: Option<Arc<str>>,
    /// InternalIPs, then ExternalIPs, each in the order in which they are listed.
    pub addresses: Vec<IpAddr>,
    /// It is being deleted, or the cluster autoscaler is about to (kube-proxy K6).
    pub leaving: bool,
}

impl Node {
    /// The address it is known by in a family: the first one (J2).
    pub fn primary(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == ipv4)
    }
}

/// What the address of a node is to this one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum NodeAddr {
    /// An address of this node.
    Own,
    /// A loopback address: this node's, for sockets of its own network namespace only.
    OwnLoopback,
    /// An address of another node.
    Other,
}

/// What does not come from the API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// This node's name, trimmed and in lower case (B7); empty: unknown, then nothing is local.
    pub node_name: Arc<str>,
    /// Whether `spec.externalIPs` are served (E10).
    pub external_ips: bool,
    /// The node addresses at which NodePorts are served.
    pub nodeport_addresses: NodePortAddresses,
    /// Whether they are served at loopback addresses too.
    pub localhost_nodeports: bool,
    /// The families that are served.
    pub families: Families,
    /// Whether it is decided what packets from outside get: it costs memory.
    pub outside: bool,
    /// When whoever looks at the cluster began to: what happened before says nothing of him.
    pub started: SystemTime,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: Arc::default(),
            external_ips: true,
            nodeport_addresses: NodePortAddresses::All,
            localhost_nodeports: false,
            families: Families::default(),
            outside: true,
            started: SystemTime::UNIX_EPOCH,
        }
    }
}

/// The families that the kernel has (J3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Families {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

impl Default for Families {
    fn default() -> Self {
        Self { ipv4: true, ipv6: true }
    }
}

impl Families {
    /// Whether the address is of one of them.
    pub const fn have(self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

/// The value of `--nodeport-addresses` (I1, I2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum NodePortAddresses {
    /// Every address of a node.
    #[default]
    All,
    /// The first one of each family in the Node's status.
    Primary,
    /// Those in one of these ranges. A family without a range has all of its addresses.
    In(Vec<Cidr>),
}

impl NodePortAddresses {
    /// Whether they are all addresses of a family (I2).
    pub fn are_all(&self, ipv4: bool) -> bool {
        match self {
            Self::All => true,
            Self::Primary => false,
            Self::In(ranges) => {
                let mut family = ranges.iter().filter(|range| range.addr.is_ipv4() == ipv4);
                let mut all = family.clone().map(|range| range.prefix);
                family.next().is_none() || all.any(|prefix| prefix == 0)
            }
        }
    }

    /// Whether NodePorts are served at the address `ip` of a node whose primary one is `primary`.
    pub fn include(&self, ip: IpAddr, primary: Option<IpAddr>) -> bool {
        match self {
            Self::All => true,
            Self::Primary => primary == Some(ip),
            Self::In(ranges) => {
                let mut family =
                    ranges.iter().filter(|range| range.addr.is_ipv4() == ip.is_ipv4()).peekable();
                family.peek().is_none() || family.any(|range| range.contains(ip))
            }
        }
    }
}

impl NodePortAddresses {
    /// Whether all of `127.0.0.0/8` is among them: none of it is excluded.
    pub fn include_loopback_net(&self) -> bool {
        let ends = [Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(127, 255, 255, 255)].map(IpAddr::V4);
        match self {
            Self::All | Self::Primary => true,
            Self::In(ranges) => {
                let mut ipv4 = ranges.iter().filter(|range| range.addr.is_ipv4()).peekable();
                let all = |range: &Cidr| ends.iter().all(|end| range.contains(*end));
                ipv4.peek().is_none() || ipv4.any(all)
            }
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
        match &parts[..] {
            [] => Ok(Self::All),
            ["primary"] => Ok(Self::Primary),
            parts if parts.contains(&"primary") => {
                Err("`primary` stands alone: no ranges beside it".to_owned())
            }
            parts => parts.iter().map(|part| part.parse()).collect::<Result<_, _>>().map(Self::In),
        }
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Primary => f.write_str("primary"),
            Self::In(ranges) => {
                let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
                f.write_str(&ranges.join(","))
            }
        }
    }
}
