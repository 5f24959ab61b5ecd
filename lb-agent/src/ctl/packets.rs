//! What packets from elsewhere get, by the tables for packets as they stand in the kernel.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::ServiceKey;
use lb_core::{
    model::{Frontend, Protocol, Scope},
    packets::{
        TableError, TableMirror,
        dump::{self, PacketFate, TableEntry},
    },
};
use serde::Serialize;

use crate::{
    packets::{self, Seen},
    pins::Pins,
    sockets,
};

/// What stands there; none if there are no tables of ours. Who may not speak with nf_tables is told why,
/// and all else.
pub(super) fn read(pins: &Pins) -> Result<Option<Seen>, String> {
    where_the_agent_is(pins, packets::look)
}

/// How much stands there; none if there are no tables of ours.
pub(super) fn fill(pins: &Pins) -> Result<Option<PacketsFill>, String> {
    where_the_agent_is(pins, || {
        let Some(seen) = packets::look()? else { return Ok(None) };
        Ok(Some(PacketsFill::new(&seen, packets::bonds()?)))
    })
}

/// Looks in the network namespace of the agent if one runs.
fn where_the_agent_is<T: Send>(
    pins: &Pins,
    look: impl FnOnce() -> Result<T, TableError> + Send,
) -> Result<T, String> {
    let look = || look().map_err(|error| error.to_string());
    let holder = pins.holder().map_err(|error| error.to_string())?;
    let Some(pid) = holder.and_then(|holder| holder.pid) else { return look() };
    sockets::in_netns_of_process(pid, look).unwrap_or_else(|error| {
        Err(format!("the network namespace of the agent (pid {pid}) cannot be entered: {error}"))
    })
}

/// The line for [`read`]'s or [`fill`]'s error.
pub(super) fn unread(error: &str) -> String {
    format!("tables for packets: cannot be read: {error}")
}

/// What a packet from elsewhere gets at an address.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExplainedPacket {
    /// The entry: an address, or a node port.
    frontend: String,
    /// `forward`, `reject`, `drop`, `denied` (its sender is in none of the source ranges), `damaged`, or
    /// `changing`: the agent wrote while the table was read.
    verdict: &'static str,
    /// It goes to one of these.
    endpoints: Vec<String>,
    /// Whether they see this node's address instead of the sender's.
    masquerade: bool,
    /// The senders that may; null: any.
    source_ranges: Option<Vec<String>>,
    /// How long a sender stays with its endpoint; 0: not at all.
    affinity_seconds: u32,
}

impl ExplainedPacket {
    /// None if packets to that address are nobody's.
    pub(super) fn new(
        Seen { table, is_steady }: &Seen,
        to: SocketAddr,
        protocol: u8,
        from: Option<IpAddr>,
    ) -> Option<Self> {
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = all.into_iter().find(|known| known.number() == protocol)?;
        let TableEntry { frontend, everybody, strangers, source_ranges, affinity } =
            entry(table, to, protocol)?;
        let masquerade = strangers.is_none();
        let is_denied = from.is_some_and(|from| {
            source_ranges.as_ref().is_some_and(|all| !all.iter().any(|range| range.contains(from)))
        });
        let (verdict, endpoints) = match strangers.unwrap_or(everybody) {
            _ if is_denied => ("denied", Vec::new()),
            PacketFate::Forward(endpoints) => ("forward", endpoints),
            PacketFate::Reject => ("reject", Vec::new()),
            PacketFate::Drop => ("drop", Vec::new()),
            PacketFate::Damaged if *is_steady => ("damaged", Vec::new()),
            PacketFate::Damaged => ("changing", Vec::new()),
        };
        Some(Self {
            frontend: frontend.to_string(),
            verdict,
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            masquerade,
            source_ranges: source_ranges.map(|all| all.iter().map(ToString::to_string).collect()),
            affinity_seconds: affinity.map_or(0, Into::into),
        })
    }
}

/// What the table says of the frontend that a packet finds: by its address, or as a node port.
fn entry(table: &TableMirror, to: SocketAddr, protocol: Protocol) -> Option<TableEntry> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let frontend = Frontend::new(to, protocol);
    let node_port =
        Frontend { addr: SocketAddr::new(any, to.port()), scope: Scope::OwnNode, ..frontend };
    let is_node = table.nodes().contains(&to.ip());
    let found: Vec<_> = dump::entries(table)
        .filter(|entry| entry.frontend == frontend || (is_node && entry.frontend == node_port))
        .collect();
    // Its own entry goes first.
    let is_own = |entry: &&TableEntry| entry.frontend == frontend;
    found.iter().find(is_own).or(found.first()).cloned()
}

/// One line.
impl fmt::Display for ExplainedPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a packet from elsewhere ")?;
        if let (Some(ranges), "forward") = (&self.source_ranges, self.verdict) {
            write!(f, "with a source in {} ", ranges.join(", "))?;
        }
        match self.verdict {
            "forward" => {
                write!(f, "goes to {}", self.endpoints.join(" or "))?;
                if self.masquerade {
                    f.write_str(", which sees this node's address")?;
                }
                if self.affinity_seconds > 0 {
                    write!(f, "; a sender stays with its endpoint for {} s", self.affinity_seconds)?;
                }
                Ok(())
            }
            "reject" => f.write_str("is rejected: there are no endpoints"),
            "drop" => f.write_str(
                "is dropped: the traffic policy is Local, and no endpoint is on this node",
            ),
            "denied" => f.write_str("is dropped: its source is in none of the source ranges"),
            "changing" => f.write_str("is served otherwise just now: the agent is writing, ask again"),
            _ => f.write_str(
                "may not be served: the table is damaged, which the agent repairs within an hour, or at \
                 its next start",
            ),
        }
    }
}

/// What packets from elsewhere get at the frontends: the column of `lbctl get services -o wide`.
#[derive(Debug, Default)]
pub(super) struct PacketCells {
    cells: BTreeMap<Frontend, String>,
    /// The tables cannot be read; `lbctl status` says why.
    is_unread: bool,
}

impl PacketCells {
    pub(super) fn read(pins: &Pins) -> Self {
        match read(pins) {
            Ok(seen) => seen.as_ref().map(Self::new).unwrap_or_default(),
            Err(_) => Self { is_unread: true, ..Self::default() },
        }
    }

    pub(super) fn new(Seen { table, is_steady }: &Seen) -> Self {
        let cell = |entry: TableEntry| match entry.strangers.unwrap_or(entry.everybody) {
            PacketFate::Forward(endpoints) => endpoints.len().to_string(),
            PacketFate::Reject => "0".to_owned(),
            PacketFate::Drop => "<drop>".to_owned(),
            PacketFate::Damaged if *is_steady => "<damaged>".to_owned(),
            PacketFate::Damaged => "<changing>".to_owned(),
        };
        let cells = dump::entries(table).map(|entry| (entry.frontend, cell(entry)));
        Self { cells: cells.collect(), is_unread: false }
    }

    /// How many endpoints they may go to, or what becomes of them; nothing if they are nobody's.
    pub(super) fn cell(&self, key: &ServiceKey) -> String {
        if self.is_unread {
            return "<unknown>".to_owned();
        }
        let frontend = Frontend::from_key(key);
        frontend.and_then(|frontend| self.cells.get(&frontend)).cloned().unwrap_or_default()
    }
}

/// How much stands in the tables.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PacketsFill {
    /// Which packets are served.
    serves: &'static str,
    /// Addresses with protocol and port, and node ports.
    frontends: usize,
    /// Elements of all sets, but for the bonds of session affinity.
    elements: usize,
    /// Bonds of session affinity.
    bonds: usize,
    /// Frontends that are damaged.
    damaged: Vec<String>,
}

impl PacketsFill {
    fn new(Seen { table, is_steady }: &Seen, bonds: usize) -> Self {
        let is_damaged = |entry: &TableEntry| {
            let fates = [Some(&entry.everybody), entry.strangers.as_ref()];
            *is_steady && fates.contains(&Some(&PacketFate::Damaged))
        };
        let damaged = dump::entries(table).filter(is_damaged);
        Self {
            serves: "external",
            frontends: table.frontends().len(),
            elements: table.len(),
            bonds,
            damaged: damaged.map(|entry| entry.frontend.to_string()).collect(),
        }
    }

    /// What is wrong, and what helps.
    pub(super) fn problem(&self) -> Option<String> {
        let first = self.damaged.first()?;
        Some(format!(
            "the tables for packets are damaged at {} frontends, {first} among them: the agent repairs \
             that within an hour, or at its next start",
            self.damaged.len()
        ))
    }
}

impl fmt::Display for PacketsFill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serves, frontends, elements, bonds, .. } = self;
        write!(
            f,
            "{serves} (in nftables: {frontends} frontends, {elements} elements, {bonds} bonds of session \
             affinity)"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use lb_core::{
        packets::{Choice, Element, Group},
        policy::TrafficPolicy::{Cluster, Local},
    };

    use super::*;

    fn seen() -> Seen {
        Seen { table: table(), is_steady: true }
    }

    fn table() -> TableMirror {
        let vip = Frontend::new("192.0.2.1:80".parse().unwrap(), Protocol::Tcp);
        let any = "0.0.0.0:30080".parse().unwrap();
        let port = Frontend { scope: Scope::OwnNode, ..Frontend::new(any, Protocol::Tcp) };
        let addr = "10.0.0.1:8080".parse().unwrap();
        let group = |port, policy| Group::of(true, port, policy);
        let [own, of_port, drop] = [group(7, Cluster), group(8, Cluster), group(8, Local)];
        let lead = |policy, frontend, group| Element::Frontend { policy, frontend, group };
        let serving = [own, of_port].into_iter().flat_map(|group| {
            [
                Element::Choice { group, value: Choice::Slots(1) },
                Element::Endpoint { group, slot: 0, addr },
            ]
        });
        let beside = [
            lead(Cluster, vip, own),
            lead(Cluster, port, of_port),
            lead(Local, port, drop),
            Element::Choice { group: drop, value: Choice::Drop },
            Element::Affinity { group: own, seconds: NonZeroU32::new(60).unwrap() },
            Element::Number { group: own, slot: 0, number: 3 },
            Element::Numbered { group: own, number: 3, addr },
            Element::Restricted(vip),
            Element::Range { frontend: vip, range: "10.9.0.0/16".parse().unwrap() },
            Element::Node("192.0.2.9".parse().unwrap()),
        ];
        serving.chain(beside).collect()
    }

    fn text(to: &str, from: Option<&str>) -> Option<String> {
        let from = from.map(|from| from.parse().unwrap());
        ExplainedPacket::new(&seen(), to.parse().unwrap(), 6, from).map(|found| found.to_string())
    }

    #[test]
    fn what_strangers_get() {
        let served = "a packet from elsewhere with a source in 10.9.0.0/16 goes to 10.0.0.1:8080, which sees \
                      this node's address; a sender stays with its endpoint for 60 s";
        assert_eq!(text("192.0.2.1:80", None).as_deref(), Some(served));
        assert_eq!(text("192.0.2.1:80", Some("10.9.1.1")).as_deref(), Some(served));
        let denied = text("192.0.2.1:80", Some("10.8.1.1")).unwrap();
        assert!(denied.contains("none of the source ranges"), "{denied}");
        let dropped = text("192.0.2.9:30080", Some("10.8.1.1")).unwrap();
        assert!(dropped.contains("no endpoint is on this node"), "{dropped}");
        assert_eq!(text("192.0.2.8:30080", None), None, "no address of the node");
        assert_eq!(text("192.0.2.1:81", None), None);
    }

    #[test]
    fn a_cell_for_each_frontend() {
        let port = Frontend {
            scope: Scope::OwnNode,
            ..Frontend::new("0.0.0.0:30080".parse().unwrap(), Protocol::Tcp)
        };
        let own = |addr: &str| Frontend::new(addr.parse().unwrap(), Protocol::Tcp);
        let cells = PacketCells::new(&seen());
        let cell = |frontend: Frontend| cells.cell(&ServiceKey::from(&frontend));
        assert_eq!(cell(own("192.0.2.1:80")), "1");
        assert_eq!(cell(port), "<drop>");
        assert_eq!(cell(own("10.96.0.10:80")), "");
        let unread = PacketCells { is_unread: true, ..PacketCells::default() };
        assert_eq!(unread.cell(&ServiceKey::from(&port)), "<unknown>");
    }

    #[test]
    fn damage_is_a_problem() {
        let fill = PacketsFill::new(&seen(), 3);
        assert_eq!(fill.problem(), None);
        let shown = "external (in nftables: 2 frontends, 14 elements, 3 bonds of session affinity)";
        assert_eq!(fill.to_string(), shown);
        let frontend = Frontend::new("192.0.2.3:80".parse().unwrap(), Protocol::Udp);
        let group = Group::of(true, 9, Cluster);
        let stray = Element::Frontend { policy: Cluster, frontend, group };
        let table: TableMirror = table().elements().chain([stray]).collect();
        let seen = |is_steady| Seen { table: table.clone(), is_steady };
        let problem = |is_steady| PacketsFill::new(&seen(is_steady), 0).problem();
        assert!(problem(true).unwrap().contains("192.0.2.3:80/udp"));
        assert_eq!(problem(false), None, "the agent writes");
        let verdict = |is_steady| {
            ExplainedPacket::new(&seen(is_steady), frontend.addr, 17, None).unwrap().verdict
        };
        assert_eq!([true, false].map(verdict), ["damaged", "changing"]);
    }
}
