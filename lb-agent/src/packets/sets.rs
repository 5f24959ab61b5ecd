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

    pub(super) const fn is_port(self) -> bool {
        matches!(self, Self::ClusterPort | Self::LocalPort)
    }
}

/// In the place of the moduli where packets are rejected: there are no endpoints anywhere (F1).
pub(super) const REJECT: u32 = 0;
/// In their place where packets are dropped: there are none here (F2).
pub(super) const DROP: u32 = u32::MAX;

/// Of the digits of a slot.
pub(super) const BASE: u32 = 32;
/// A slot has so many digits, the lowest one first.
pub(super) const DIGITS: usize = 3;
/// Where in a number of 32 bits the byte of each digit begins.
pub(super) const BYTES: [u32; DIGITS] = [0, 8, 16];

/// The sets. Their keys and values, each field in 4 bytes or a multiple of that. A frontend is address,
/// protocol and port, or for a node port the last two of these.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Set {
    /// Addresses at which node ports are served.
    Nodes,
    /// An endpoint's address, twice: it may ask for its own Service.
    Hairpin,
    /// Endpoints of TCP whose stray packets are dropped: address, protocol, port.
    Servers,
    /// Ranges of senders that a frontend is for: address, protocol, port, range.
    Ranges,
    /// Frontends that have ranges: address, protocol, port.
    Restricted,
    /// Frontend → group.
    Frontends(Kind),
    /// Group → the moduli of the digits of a slot, each a byte.
    Choices,
    /// Modulus, number → the remainder. Always the same.
    Remainders,
    /// Group, digits of a slot → address, port.
    Endpoints,
    /// Group → seconds, where senders stay with their endpoint.
    Affinity,
    /// Group, digits of a slot → number, where senders stay.
    Numbers,
    /// Group, number → address, port.
    Numbered,
    /// The first group of a port, sender → number: which endpoint a sender stays with. The rules write it.
    Bonds,
}

impl Set {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Self::Nodes, Self::Hairpin, Self::Servers, Self::Ranges, Self::Restricted]
            .into_iter()
            .chain(Kind::ALL.into_iter().map(Self::Frontends))
            .chain([Self::Choices, Self::Remainders, Self::Endpoints, Self::Affinity])
            .chain([Self::Numbers, Self::Numbered, Self::Bonds])
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Hairpin => "hairpin",
            Self::Servers => "servers",
            Self::Ranges => "ranges",
            Self::Restricted => "restricted",
            Self::Frontends(Kind::Cluster) => "frontends",
            Self::Frontends(Kind::Local) => "local-frontends",
            Self::Frontends(Kind::ClusterPort) => "ports",
            Self::Frontends(Kind::LocalPort) => "local-ports",
            Self::Choices => "choices",
            Self::Remainders => "remainders",
            Self::Endpoints => "endpoints",
            Self::Affinity => "affinity",
            Self::Numbers => "numbers",
            Self::Numbered => "numbered",
            Self::Bonds => "bonds",
        }
    }

    pub(super) fn key(self) -> Vec<Field> {
        use Field::{Address, Number, Port, Protocol};
        let frontend = |kind: Kind| {
            if kind.is_port() { vec![Protocol, Port] } else { vec![Address, Protocol, Port] }
        };
        match self {
            Self::Nodes => vec![Address],
            Self::Hairpin => vec![Address, Address],
            Self::Ranges => [frontend(Kind::Cluster), vec![Address]].concat(),
            Self::Restricted | Self::Servers => frontend(Kind::Cluster),
            Self::Frontends(kind) => frontend(kind),
            Self::Choices | Self::Affinity => vec![Number],
            Self::Remainders | Self::Numbered => vec![Number, Number],
            Self::Endpoints | Self::Numbers => vec![Number; 1 + DIGITS],
            Self::Bonds => vec![Number, Address],
        }
    }

    pub(super) const fn value(self) -> &'static [Field] {
        match self {
            Self::Nodes | Self::Hairpin | Self::Servers | Self::Ranges | Self::Restricted => &[],
            Self::Endpoints | Self::Numbered => &[Field::Address, Field::Port],
            Self::Frontends(_)
            | Self::Choices
            | Self::Remainders
            | Self::Affinity
            | Self::Numbers
            | Self::Bonds => &[Field::Number],
        }
    }

    const fn is_interval(self) -> bool {
        matches!(self, Self::Ranges)
    }

    /// Whether the rules write it, and nobody else.
    const fn is_dynamic(self) -> bool {
        matches!(self, Self::Bonds)
    }

    /// Whether its elements say what is wanted.
    pub(super) const fn has_wanted(self) -> bool {
        !matches!(self, Self::Bonds | Self::Remainders)
    }
}

/// A field of a key or a value, as nft knows types.
#[derive(Clone, Copy)]
pub(super) enum Field {
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
    pub(super) fn all(fields: &[Self], family: Family) -> (u32, u32) {
        fields.iter().fold((0, 0), |(kind, len), field| {
            let (one, bytes) = field.of(family);
            (kind << 6 | one, len + bytes.next_multiple_of(4))
        })
    }
}

impl Set {
    /// What the kernel is to know of a set in a table. One that rules write holds so many `bonds`.
    pub(super) fn attributes(
        self,
        table: &str,
        family: Family,
        (id, bonds): (u32, u32),
    ) -> Attributes {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        const CONCAT: u32 = 0x80;
        let (key, key_len) = Field::all(&self.key(), family);
        let (value, value_len) = Field::all(self.value(), family);
        let map = if self.value().is_empty() { 0 } else { MAP };
        let interval = if self.is_interval() { INTERVAL | CONCAT } else { 0 };
        let dynamic = if self.is_dynamic() { TIMEOUT | EVAL } else { 0 };
        let mut body = Attributes::default()
            .name(1, table)
            .name(2, self.name())
            .number(3, map | interval | dynamic)
            .number(4, key)
            .number(5, key_len);
        if map != 0 {
            body = body.number(6, value).number(7, value_len);
        }
        // Whoever lists it is told in which order the bytes of a number are: `struct nft_set_udata`,
        // NFTNL_UDATA_SET_KEYBYTEORDER and DATABYTEORDER, the processor's.
        let order = |of: u8| [&[of, 4], &1u32.to_ne_bytes()[..]].concat();
        let key_order = matches!(self.key()[..], [Field::Number]).then(|| order(0));
        let value_order = matches!(self.value(), [Field::Number]).then(|| order(1));
        let orders: Vec<u8> = key_order.into_iter().chain(value_order).flatten().collect();
        if !orders.is_empty() {
            body = body.bytes(13, &orders);
        }
        if self.is_interval() {
            let key = self.key();
            let fields =
                key.iter().map(|field| Attributes::default().number(1, field.of(family).1));
            body = body.nest(9, &Attributes::default().list(2, fields));
        }
        if self.is_dynamic() {
            body = body.nest(9, &Attributes::default().number(1, bonds));
        }
        body.number(10, id)
    }
}
