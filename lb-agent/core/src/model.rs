//! The cluster in our words: no Kubernetes type, no map.
//!
//! [`Cluster`] is the index of all that the sources have said so far. It answers two questions: which
//! Services does a change touch, and what is known of a Service.

mod address;
mod cluster;
mod node;
mod nodes;
mod shared;
mod trigger;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

pub use self::{
    address::{Cidr, parse_ip},
    cluster::Cluster,
    node::{Families, Node, NodeAddr, NodePortAddresses, Settings},
    nodes::Nodes,
    trigger::Trigger,
};

/// Namespace and name of an object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectRef {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// From its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol of a port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: for packets only, no hook sees its sockets.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Whether its sockets can be served.
    pub const fn has_sockets(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    /// The inverse of [`Protocol::number`], of those whose sockets are served: no other is in the maps.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// As Kubernetes writes it: `TCP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Service that asks for load balancing: one with a cluster IP.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// Creation time, seconds since 1970; 0 if unknown. The older of two claimants keeps an address.
    pub created: i64,
    /// The cluster IPs, at most one of each family. Without one, a family is not served at all (A5).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The load balancer's addresses whose connections need not pass through it (E11).
    pub load_balancer_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`, in a type of Service that has external traffic (D1).
    pub external_local: bool,
    /// How long a client stays with its backend, in seconds (H2).
    pub affinity: Option<NonZeroU32>,
    /// `loadBalancerSourceRanges`, of both families (G4).
    pub source_ranges: Vec<Cidr>,
    /// Where to answer how many local endpoints there are (K1).
    pub health_check_node_port: Option<NonZeroU16>,
}

/// One port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Its name: what ties it to ports of EndpointSlices. Empty if the Service has one port only.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that clients dial.
    pub number: u16,
    /// The port that clients dial at a node's address.
    pub node_port: Option<NonZeroU16>,
}

impl ServicePort {
    /// A port without a node port.
    pub fn new(name: impl Into<Arc<str>>, protocol: Protocol, number: u16) -> Self {
        Self { name: name.into(), protocol, number, node_port: None }
    }
}

/// One EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ObjectRef,
    /// The ports that each endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
    /// Why it is as it is now.
    pub trigger: Trigger,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    /// The name of the Service's port it stands for.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that the endpoint listens on.
    pub number: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// From where it would like to be used.
    pub hints: Option<Arc<Hints>>,
}

impl Endpoint {
    /// An endpoint of which no more is known.
    pub const fn new(addr: IpAddr, conditions: Conditions) -> Self {
        Self { addr, conditions, node: None, hints: None }
    }
}

/// From where an endpoint would like to be used (B12).
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Hints {
    /// Zones.
    pub zones: Vec<Arc<str>>,
    /// Nodes.
    pub nodes: Vec<Arc<str>>,
}

/// What is said of an endpoint's state; `nil` taken as kube-proxy B6 does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Conditions {
    /// May take new connections.
    pub ready: bool,
    /// Answers, though perhaps not for long.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
}

/// What a source says. `Listed*` is the whole of a list: what it lacks is gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service appeared, changed or (`None`) went, or no longer asks for load balancing.
    Service(ObjectRef, Option<Service>),
    /// An EndpointSlice appeared, changed or went.
    Slice(ObjectRef, Option<Slice>),
    /// A Node appeared, changed or went.
    Node(Arc<str>, Option<Node>),
    /// All Services there are.
    ListedServices(BTreeMap<ObjectRef, Service>),
    /// All EndpointSlices there are.
    ListedSlices(BTreeMap<ObjectRef, Slice>),
    /// All Nodes there are.
    ListedNodes(BTreeMap<Arc<str>, Node>),
    /// All addresses of this machine's interfaces.
    LocalAddresses(BTreeSet<IpAddr>),
}

/// One port of one Service: what an id in the maps stands for. Sorts by Service first.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortRef {
    /// The Service.
    pub service: ObjectRef,
    /// Name of the port; may be empty.
    pub port: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// What the address of a [`Frontend`] stands for.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// For itself.
    #[default]
    Any,
    /// For every address of this node; it is the unspecified one of its family.
    OwnNode,
    /// For every address of every other node; it is the unspecified one of its family.
    OtherNodes,
    /// For itself, an address of another node; goes before `OtherNodes`.
    Node,
}

/// An address that clients dial.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Frontend {
    /// Address and port.
    pub addr: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// What the address stands for.
    pub scope: Scope,
}

impl Frontend {
    /// An address that stands for itself.
    pub const fn new(addr: SocketAddr, protocol: Protocol) -> Self {
        Self { addr, protocol, scope: Scope::Any }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name().to_ascii_lowercase();
        let (addr, port) = (self.addr, self.addr.port());
        let family = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
        match self.scope {
            Scope::Any => write!(f, "{addr}/{protocol}"),
            Scope::OwnNode => write!(f, "own-node-{family}:{port}/{protocol}"),
            Scope::OtherNodes => write!(f, "other-nodes-{family}:{port}/{protocol}"),
            Scope::Node => write!(f, "node {addr}/{protocol}"),
        }
    }
}
