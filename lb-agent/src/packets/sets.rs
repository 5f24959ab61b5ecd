//! The sets of a table: what their keys and values are, and who is looked up in which.

use super::nft::{Attributes, Family};

/// Who asks for a frontend, and how it is found.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    /// An address: every endpoint of the cluster.
    Cluster,
    /// An address with the policy Local: this node's endpoints, for strangers.
    Local,
    /// A node port.
    ClusterPort,
    /// A node port with the policy Local.
    LocalPort,
}

impl Kind {
    pub(super) const ALL: [Self; 4] =
        [Self::Cluster, Self::Local, Self::ClusterPort, Self::LocalPort];

    pub(super) const fn chain(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
            Self::ClusterPort => "cluster-port",
            Self::LocalPort => "local-port",
        }
    }

    pub(super) const fn frontends(self) -> Set {
        match self {
            Self::Cluster => Set::Frontends,
            Self::Local => Set::LocalFrontends,
            Self::ClusterPort => Set::Ports,
            Self::LocalPort => Set::LocalPorts,
        }
    }

    pub(super) const fn endpoints(self) -> Set {
        match self {
            Self::Cluster => Set::Endpoints,
            Self::Local => Set::LocalEndpoints,
            Self::ClusterPort => Set::PortEndpoints,
            Self::LocalPort => Set::LocalPortEndpoints,
        }
    }

    pub(super) const fn is_port(self) -> bool {
        matches!(self, Self::ClusterPort | Self::LocalPort)
    }
}

/// The sets. Their keys and values, each field in 4 bytes or a multiple of that:
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Set {
    /// Addresses at which node ports are served.
    Nodes,
    /// An endpoint's address, twice: it may ask for its own Service.
    Hairpin,
    /// Ranges of senders that a frontend is for: address, protocol, port, range.
    Ranges,
    /// Frontends that have ranges: address, protocol, port.
    Restricted,
    /// Address, protocol, port, slot → address, port.
    Endpoints,
    /// The same for strangers, where the policy is Local.
    LocalEndpoints,
    /// Protocol, port, slot → address, port.
    PortEndpoints,
    /// The same for strangers, where the policy is Local.
    LocalPortEndpoints,
    /// Address, protocol, port → slots.
    Frontends,
    /// The same for strangers, where the policy is Local.
    LocalFrontends,
    /// Protocol, port → slots.
    Ports,
    /// The same for strangers, where the policy is Local.
    LocalPorts,
}

impl Set {
    pub(super) const ALL: [Self; 12] = [
        Self::Nodes,
        Self::Hairpin,
        Self::Ranges,
        Self::Restricted,
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::PortEndpoints,
        Self::LocalPortEndpoints,
        Self::Frontends,
        Self::LocalFrontends,
        Self::Ports,
        Self::LocalPorts,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Hairpin => "hairpin",
            Self::Ranges => "ranges",
            Self::Restricted => "restricted",
            Self::Endpoints => "endpoints",
            Self::LocalEndpoints => "local-endpoints",
            Self::PortEndpoints => "port-endpoints",
            Self::LocalPortEndpoints => "local-port-endpoints",
            Self::Frontends => "frontends",
            Self::LocalFrontends => "local-frontends",
            Self::Ports => "ports",
            Self::LocalPorts => "local-ports",
        }
    }

    fn key(self) -> &'static [Field] {
        use Field::{Address, Number, Port, Protocol};
        match self {
            Self::Nodes => &[Address],
            Self::Hairpin => &[Address, Address],
            Self::Ranges => &[Address, Protocol, Port, Address],
            Self::Restricted | Self::Frontends | Self::LocalFrontends => &[Address, Protocol, Port],
            Self::Endpoints | Self::LocalEndpoints => &[Address, Protocol, Port, Number],
            Self::PortEndpoints | Self::LocalPortEndpoints => &[Protocol, Port, Number],
            Self::Ports | Self::LocalPorts => &[Protocol, Port],
        }
    }

    fn value(self) -> &'static [Field] {
        match self {
            Self::Nodes | Self::Hairpin | Self::Ranges | Self::Restricted => &[],
            Self::Endpoints
            | Self::LocalEndpoints
            | Self::PortEndpoints
            | Self::LocalPortEndpoints => &[Field::Address, Field::Port],
            Self::Frontends | Self::LocalFrontends | Self::Ports | Self::LocalPorts => {
                &[Field::Number]
            }
        }
    }

    const fn is_interval(self) -> bool {
        matches!(self, Self::Ranges)
    }
}

/// A field of a key or a value, as nft knows types.
#[derive(Clone, Copy)]
enum Field {
    Address,
    Protocol,
    Port,
    /// In the processor's order, as the kernel draws it. nft calls a number of that kind a mark.
    Number,
}

impl Field {
    /// `TYPE_*` of nft's datatype.h, and the length in bytes.
    const fn of(self, family: Family) -> (u32, u32) {
        match (self, family) {
            (Self::Address, Family::Ip) => (7, 4),
            (Self::Address, Family::Ip6) => (8, 16),
            (Self::Protocol, _) => (12, 1),
            (Self::Port, _) => (13, 2),
            (Self::Number, _) => (19, 4),
        }
    }

    /// nft's number of a type of several fields, and the length in registers.
    fn all(fields: &[Self], family: Family) -> (u32, u32) {
        fields.iter().fold((0, 0), |(kind, len), field| {
            let (one, bytes) = field.of(family);
            (kind << 6 | one, len + bytes.next_multiple_of(4))
        })
    }
}

impl Set {
    /// What the kernel is to know of a set in a table.
    pub(super) fn attributes(self, table: &str, family: Family, id: u32) -> Attributes {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const CONCAT: u32 = 0x80;
        let (key, key_len) = Field::all(self.key(), family);
        let (value, value_len) = Field::all(self.value(), family);
        let map = if self.value().is_empty() { 0 } else { MAP };
        let interval = if self.is_interval() { INTERVAL | CONCAT } else { 0 };
        let mut body = Attributes::default()
            .name(1, table)
            .name(2, self.name())
            .number(3, map | interval)
            .number(4, key)
            .number(5, key_len);
        if map != 0 {
            body = body.number(6, value).number(7, value_len);
        }
        if self.is_interval() {
            let fields =
                self.key().iter().map(|field| Attributes::default().number(1, field.of(family).1));
            body = body.nest(9, &Attributes::default().list(2, fields));
        }
        body.number(10, id)
    }
}
