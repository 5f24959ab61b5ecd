//! What stands in the table, element by element, and who puts it there.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use crate::{
    model::{Cidr, Frontend},
    policy::TrafficPolicy,
};

/// The endpoints of a port of a Service by one traffic policy, as the table knows them: all frontends
/// of the port lead to the same ones.
///
/// The two groups of a port differ in the lowest bit alone, which is 1 for
/// [`TrafficPolicy::Local`]: their senders stay with the same endpoint (H1).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Group {
    /// Its family. Each has groups of its own.
    pub ipv4: bool,
    /// Its number.
    pub number: u32,
}

impl Group {
    /// A group of the port with this number.
    pub const fn of(ipv4: bool, port: u32, policy: TrafficPolicy) -> Self {
        let low = match policy {
            TrafficPolicy::Cluster => 0,
            TrafficPolicy::Local => 1,
        };
        Self { ipv4, number: port << 1 | low }
    }

    /// The number of its port.
    pub const fn port(self) -> u32 {
        self.number >> 1
    }
}

/// One element of a set or a map in the table. Its key is all that stands before the last `group`, the
/// `value`, `addr`, `seconds` or the last `number`; elements without these are keys without a value.
///
/// A [`Frontend`] with the scope [`Any`](crate::model::Scope::Any) is looked up by address, protocol
/// and port; one with [`OwnNode`](crate::model::Scope::OwnNode), a node port, by protocol and port of
/// its family, at the addresses that are [`Element::Node`]. Of the two, the former goes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Element {
    /// The group that a frontend leads to.
    ///
    /// With [`TrafficPolicy::Cluster`] it is everybody's, unless there is one with
    /// [`TrafficPolicy::Local`] too: then it is for senders of this node, and the other one is for
    /// strangers (E3). Who follows the former is masqueraded, save pods of this node where there
    /// are both; who follows the latter is not, save at a cluster IP (E').
    Frontend {
        /// For whom.
        policy: TrafficPolicy,
        /// The frontend.
        frontend: Frontend,
        /// The group.
        group: Group,
    },
    /// What a packet to a frontend of the group gets.
    Choice {
        /// The group.
        group: Group,
        /// What they get.
        value: Choice,
    },
    /// An endpoint to choose. Slots are dense: with `n` endpoints, those of 0 to `n` - 1.
    Endpoint {
        /// The group.
        group: Group,
        /// The number that is drawn.
        slot: u32,
        /// The endpoint.
        addr: SocketAddr,
    },
    /// Senders stay with their endpoint for so long after their last new connection (H2). A bond leads
    /// to a number: its endpoint has it as long as it serves, whatever its slot is, in both groups of
    /// the port.
    Affinity {
        /// The group.
        group: Group,
        /// How long.
        seconds: NonZeroU32,
    },
    /// The number of the endpoint in a slot, where senders stay.
    Number {
        /// The group.
        group: Group,
        /// The slot.
        slot: u32,
        /// The number.
        number: u32,
    },
    /// The endpoint of a number, where senders stay.
    Numbered {
        /// The group.
        group: Group,
        /// The number.
        number: u32,
        /// The endpoint.
        addr: SocketAddr,
    },
    /// The frontend is for the senders of its [`Element::Range`]s alone; asked before anything else.
    Restricted(Frontend),
    /// Some of those senders. No range of a frontend is part of another one.
    Range {
        /// The frontend.
        frontend: Frontend,
        /// The range, of the frontend's family.
        range: Cidr,
    },
    /// A packet from this address that was translated to this address is masqueraded: an endpoint that
    /// reached itself (E8).
    Hairpin(IpAddr),
    /// An address of this node at which node ports are served (I).
    Node(IpAddr),
    /// An endpoint of TCP: what comes from there and belongs to no connection, by what connection
    /// tracking knows, is dropped. Nobody would put it back into the Service's words, and who gets it
    /// would end the connection (kubernetes#74839).
    Server(SocketAddr),
}

impl Element {
    /// Whether it is of IPv4.
    pub const fn is_ipv4(&self) -> bool {
        match self {
            Self::Frontend { group, .. }
            | Self::Choice { group, .. }
            | Self::Endpoint { group, .. }
            | Self::Affinity { group, .. }
            | Self::Number { group, .. }
            | Self::Numbered { group, .. } => group.ipv4,
            Self::Restricted(frontend) | Self::Range { frontend, .. } => frontend.addr.is_ipv4(),
            Self::Hairpin(ip) | Self::Node(ip) => ip.is_ipv4(),
            Self::Server(addr) => addr.is_ipv4(),
        }
    }
}

/// What a packet to a frontend gets.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Choice {
    /// One of the endpoints in this many slots: the least power of two that is not less than their
    /// number, so that it changes seldom. A slot that is drawn and empty is drawn again.
    Slots(u32),
    /// An ICMP error, port unreachable: there are no endpoints anywhere (F1).
    Reject,
    /// Nothing: there are some, but none here (F2).
    Drop,
}

impl Choice {
    /// Of a number of endpoints, more than none.
    pub const fn of(endpoints: u32) -> Self {
        match endpoints.checked_next_power_of_two() {
            Some(slots) => Self::Slots(slots),
            None => Self::Slots(1 << 31),
        }
    }
}

/// One change to the table. A value that changes is deleted and added, side by side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Edit {
    /// It was not there.
    Add(Element),
    /// It was there just like that.
    Delete(Element),
}

impl Edit {
    /// What undoes it.
    #[must_use]
    pub const fn inverse(self) -> Self {
        match self {
            Self::Add(element) => Self::Delete(element),
            Self::Delete(element) => Self::Add(element),
        }
    }

    /// What is added or deleted.
    pub const fn element(&self) -> &Element {
        match self {
            Self::Add(element) | Self::Delete(element) => element,
        }
    }
}

/// The table in the kernel, or one in memory.
pub trait Table {
    /// Carries out a transaction: all of it, in this order, or on error nothing.
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError>;

    /// Makes sure that there is such a table, with its rules; then `take` gets all elements that it
    /// has, in any order. One that cannot be gone on from is said to have none; it serves until the
    /// next transaction, which replaces it.
    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError>;

    /// All that is wanted was written, if anything was: what waits to be replaced waits no longer.
    fn settle(&mut self) -> Result<(), TableError> {
        Ok(())
    }
}

/// Why the table is not as it should be. Each names a remedy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TableError {
    /// This transaction was not taken. Others may be: a set is full, say.
    #[error("{0}")]
    Refused(String),
    /// None will be taken: rights are missing, the kernel has no such tables, memory is short.
    #[error("{0}")]
    Unusable(String),
}

const fn whom(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "cluster",
        TrafficPolicy::Local => "local",
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots(slots) => write!(f, "slots {slots}"),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

/// The number, behind the family's.
impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}:{}", if self.ipv4 { 4 } else { 6 }, self.number)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend { policy, frontend, group } => {
                write!(f, "frontend {} {frontend} {group}", whom(*policy))
            }
            Self::Choice { group, value } => write!(f, "choice {group} {value}"),
            Self::Endpoint { group, slot, addr } => write!(f, "endpoint {group} {slot} {addr}"),
            Self::Affinity { group, seconds } => write!(f, "affinity {group} {seconds}"),
            Self::Number { group, slot, number } => write!(f, "number {group} {slot} {number}"),
            Self::Numbered { group, number, addr } => {
                write!(f, "numbered {group} {number} {addr}")
            }
            Self::Restricted(frontend) => write!(f, "restricted {frontend}"),
            Self::Range { frontend, range } => write!(f, "range {frontend} {range}"),
            Self::Hairpin(ip) => write!(f, "hairpin {ip}"),
            Self::Node(ip) => write!(f, "node {ip}"),
            Self::Server(addr) => write!(f, "server {addr}"),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(element) => write!(f, "add {element}"),
            Self::Delete(element) => write!(f, "delete {element}"),
        }
    }
}
