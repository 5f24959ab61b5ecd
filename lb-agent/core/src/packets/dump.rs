//! What the table says, for people: the same for the mirror and for what was read from the kernel.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    num::NonZeroU32,
};

use super::{
    element::{Choice, Group},
    mirror::TableMirror,
};
use crate::{
    model::{Cidr, Frontend},
    policy::{PacketVerdict, TrafficPolicy},
};

/// A frontend, with all that the table says of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableEntry {
    /// The frontend.
    pub frontend: Frontend,
    /// What everybody gets; senders of this node only, if there is `strangers`.
    pub everybody: PacketFate,
    /// What senders from elsewhere get.
    pub strangers: Option<PacketFate>,
    /// The senders that may; none: all.
    pub source_ranges: Option<Vec<Cidr>>,
    /// How long they stay with their endpoint, in seconds.
    pub affinity: Option<NonZeroU32>,
}

/// What a packet gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PacketFate {
    /// One of these endpoints, sorted.
    Forward(Vec<SocketAddr>),
    /// An ICMP error, port unreachable.
    Reject,
    /// Nothing.
    Drop,
    /// It passes as it is, or not always: the elements are not what an engine writes.
    Damaged,
}

impl PacketFate {
    fn of(mirror: &TableMirror, frontend: Frontend, policy: TrafficPolicy) -> Option<Self> {
        let group = mirror.group(frontend, policy)?;
        let slots = mirror.endpoints(group);
        let number = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let endpoints: Option<Vec<SocketAddr>> = slots.collect();
        Some(match (mirror.choice(group), endpoints) {
            (Some(Choice::Reject), Some(none)) if none.is_empty() => Self::Reject,
            (Some(Choice::Drop), Some(none)) if none.is_empty() => Self::Drop,
            (Some(choice @ Choice::Slots(_)), Some(mut endpoints))
                if number > 0
                    && choice == Choice::of(number)
                    && is_affinity_whole(mirror, group, &endpoints) =>
            {
                endpoints.sort_unstable();
                Self::Forward(endpoints)
            }
            _ => Self::Damaged,
        })
    }

    /// In the words of the policy; none, if no policy says that.
    fn verdict(&self) -> Option<PacketVerdict<'_>> {
        match self {
            Self::Forward(endpoints) => Some(PacketVerdict::Forward(endpoints)),
            Self::Reject => Some(PacketVerdict::Reject),
            Self::Drop => Some(PacketVerdict::Drop),
            Self::Damaged => None,
        }
    }
}

/// Whether there is no affinity, or each slot leads to its endpoint by a number, and no other number is
/// there.
fn is_affinity_whole(mirror: &TableMirror, group: Group, endpoints: &[SocketAddr]) -> bool {
    mirror.affinity(group).is_none_or(|affinity| {
        let by_slot = affinity.numbers.values().map(|number| affinity.numbered.get(number));
        affinity.seconds.is_some()
            && affinity.numbers.keys().copied().eq((0..).take(endpoints.len()))
            && affinity.numbered.len() == endpoints.len()
            && by_slot.eq(endpoints.iter().map(Some))
    })
}

/// The frontends, sorted.
pub fn entries(mirror: &TableMirror) -> impl Iterator<Item = TableEntry> {
    mirror.frontends().into_iter().map(|frontend| TableEntry {
        frontend,
        everybody: PacketFate::of(mirror, frontend, TrafficPolicy::Cluster)
            .unwrap_or(PacketFate::Damaged),
        strangers: PacketFate::of(mirror, frontend, TrafficPolicy::Local),
        source_ranges: mirror.is_restricted(frontend).then(|| mirror.ranges(frontend).collect()),
        affinity: [TrafficPolicy::Cluster, TrafficPolicy::Local]
            .into_iter()
            .find_map(|policy| mirror.affinity(mirror.group(frontend, policy)?)?.seconds),
    })
}

/// A line for each frontend, `203.0.113.1:80/tcp source-ranges=10.0.0.0/8 affinity=60 -> 10.0.0.1:80`,
/// or `-> reject`, or `-> drop`, behind that what senders of this node get if it is something else; then
/// the addresses for node ports and those that may reach themselves.
pub fn text(mirror: &TableMirror) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for entry in entries(mirror) {
        let _ = writeln!(text, "{entry}");
    }
    for ip in mirror.nodes() {
        let _ = writeln!(text, "node {ip}");
    }
    for ip in mirror.hairpins() {
        let _ = writeln!(text, "hairpin {ip}");
    }
    for addr in mirror.servers() {
        let _ = writeln!(text, "server {addr}");
    }
    text
}

impl fmt::Display for TableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.frontend.fmt(f)?;
        for (i, range) in self.source_ranges.iter().flatten().enumerate() {
            write!(f, "{}{range}", if i == 0 { " source-ranges=" } else { "," })?;
        }
        if let Some(seconds) = self.affinity {
            write!(f, " affinity={seconds}")?;
        }
        match &self.strangers {
            Some(strangers) if *strangers != self.everybody => {
                write!(f, " ->{strangers}, from here{}", self.everybody)
            }
            _ => write!(f, " ->{}", self.everybody),
        }
    }
}

/// Begins with a space, as a [`PacketVerdict`] does.
impl fmt::Display for PacketFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict() {
            Some(verdict) => verdict.fmt(f),
            None => f.write_str(" damaged"),
        }
    }
}
