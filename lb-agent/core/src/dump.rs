//! What the maps say, for people and for programs: one text, one JSON, shared by `lbctl` and the
//! golden tests.
//!
//! Everything here is a pure function of a [`Snapshot`], and its order depends on nothing else.
//! The JSON is an interface: fields are added, never renamed; another [`API_VERSION`] would be
//! another schema.

mod list;
#[cfg(any(test, feature = "sample"))]
pub mod sample;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use lb_common::abi::{Action, Backend, Peer, PortOptions, Service, ServiceKey};
use serde::Serialize;

pub use self::list::{BackendItem, List, ServiceItem, backends, services};
use crate::{
    model::{Cidr, PortRef, Protocol, Scope},
    op::KeyText,
    store::Snapshot,
};

/// Names the schema of all JSON that `lbctl` prints.
pub const API_VERSION: &str = "socklb/v1";

/// One frontend, with all that the maps say of it.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The service port it belongs to; none if the maps are damaged.
    pub port: Option<&'a PortRef>,
    /// The frontend.
    pub key: &'a ServiceKey,
    /// Where its records are.
    pub service: &'a Service,
    /// Its records; fewer than `service.records()` only if the maps are damaged.
    pub records: &'a [Backend],
    /// The clients that may connect, by the records' demand; nobody, if there are none.
    pub source_ranges: Option<BTreeSet<Cidr>>,
    /// What is true of the service port, by the records' demand.
    pub options: PortOptions,
}

/// What a connection to a frontend gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// A backend.
    Forward,
    /// ECONNREFUSED: there are no backends.
    Refuse,
    /// EHOSTUNREACH: there are some, but the traffic policy allows none here.
    Unreachable,
    /// ECONNREFUSED: the records are not the set that the frontend names.
    Damaged,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Refuse => "refuse",
            Self::Unreachable => "unreachable",
            Self::Damaged => "damaged",
        })
    }
}

impl<'a> Entry<'a> {
    /// Namespace, name and port; empty if they are not known.
    pub fn names(&self) -> [&'a str; 3] {
        names(self.port)
    }

    /// The records to choose from, and those that are kept.
    fn parts(&self) -> (&'a [Backend], &'a [Backend]) {
        let count = usize::try_from(self.service.count).unwrap_or(usize::MAX);
        self.records.split_at(count.min(self.records.len()))
    }

    /// The addresses that a connection may get, sorted; none if it fails.
    pub fn backends(&self) -> Vec<Peer> {
        sorted(self.parts().0)
    }

    /// The addresses with which flows that are there already may stay, sorted.
    pub fn kept(&self) -> Vec<Peer> {
        sorted(self.parts().1)
    }

    /// The records that lead somewhere, each with its index in the backends map, and whether it is
    /// only kept.
    pub fn forwarding(&self) -> impl Iterator<Item = (u32, &'a Backend, bool)> {
        let service = *self.service;
        (0..service.records())
            .zip(self.records)
            .filter(|(_, record)| record.action() == Action::Forward)
            .map(move |(i, record)| (service.block.wrapping_add(i), record, i >= service.count))
    }

    /// Whether the records are not the set that the frontend names. An agent never leaves that.
    pub fn is_damaged(&self) -> bool {
        self.service.count == 0
            || u32::try_from(self.records.len()) != Ok(self.service.records())
            || self.records.iter().any(|record| record.generation != self.service.generation)
            || self.records.iter().any(|record| !record.is_known())
            || !self.options.is_known()
    }

    /// What a connection gets.
    pub fn fate(&self) -> Fate {
        let actions = || self.parts().0.iter().map(Backend::action);
        if self.is_damaged() {
            Fate::Damaged
        } else if actions().any(|action| action == Action::Forward) {
            Fate::Forward
        } else if actions().any(|action| action == Action::Unreachable) {
            Fate::Unreachable
        } else {
            Fate::Refuse
        }
    }

    /// For how many seconds a client stays with its backend; 0: not at all.
    pub const fn affinity(&self) -> u32 {
        self.options.affinity
    }
}

fn sorted(records: &[Backend]) -> Vec<Peer> {
    let records = records.iter().filter(|record| record.action() == Action::Forward);
    let mut peers: Vec<Peer> = records.map(|record| record.peer).collect();
    peers.sort_unstable();
    peers
}

/// Namespace, name and port; empty if they are not known.
pub fn names(port: Option<&PortRef>) -> [&str; 3] {
    port.map_or([""; 3], |port| [&port.service.namespace, &port.service.name, &port.port])
}

/// The frontends, sorted by namespace, name, port and address.
pub fn entries(snapshot: &Snapshot) -> Vec<Entry<'_>> {
    let mut entries: Vec<_> = snapshot
        .services
        .iter()
        .map(|(key, service)| {
            let records = snapshot.blocks.get(&service.block).map_or(&[][..], |records| {
                let count = usize::try_from(service.records()).unwrap_or(usize::MAX);
                &records[..count.min(records.len())]
            });
            let asks = |flag| records.iter().any(|record| record.flags & flag != 0);
            let source_ranges =
                asks(Backend::SOURCE_RANGES).then(|| source_ranges(snapshot, service.id));
            let options = snapshot.ports.get(&service.id).filter(|_| asks(Backend::OPTIONS));
            let options = options.copied().unwrap_or_default();
            Entry {
                port: snapshot.names.get(&service.id),
                key,
                service,
                records,
                source_ranges,
                options,
            }
        })
        .collect();
    entries.sort_by_key(|entry| (entry.port, entry.key));
    entries
}

/// The clients that may use a service port, should its records ask.
pub fn source_ranges(snapshot: &Snapshot, id: u32) -> BTreeSet<Cidr> {
    let first = Cidr { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
    let all = snapshot.source_ranges.range((id, first)..).take_while(|(of, _)| *of == id);
    all.map(|(_, range)| *range).collect()
}

/// The maps without what is of no meaning (blocks, generations), one frontend to a line:
/// `default/web:http 10.96.0.10:80/tcp id=0 -> 10.0.0.1:8080 10.0.0.2:8080`, or `-> refuse`, or
/// `-> unreachable`. Before the arrow `affinity=SECONDS` and `source-ranges=RANGE,...`, behind the
/// backends `kept` and those that are. Then source ranges that no frontend asks for, then the addresses.
pub fn text(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let entries = entries(snapshot);
    // Writing to a string does not fail.
    for entry in &entries {
        let _ = writeln!(text, "{entry}");
    }
    let asking = entries.iter().filter(|entry| entry.source_ranges.is_some());
    let asking: BTreeSet<u32> = asking.map(|entry| entry.service.id).collect();
    for (id, range) in snapshot.source_ranges.iter().filter(|(id, _)| !asking.contains(id)) {
        let _ = writeln!(text, "unused source range id={id} {range}");
    }
    for (addr, known) in &snapshot.addresses {
        let _ = writeln!(text, "address {addr}{known}");
    }
    text
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => port.fmt(f)?,
            None => f.write_str("<unknown>")?,
        }
        write!(f, " {} id={}", KeyText(self.key), self.service.id)?;
        let fate = self.fate();
        if fate == Fate::Damaged {
            return f.write_str(" -> damaged");
        }
        if self.affinity() > 0 {
            write!(f, " affinity={}", self.affinity())?;
        }
        if let Some(source_ranges) = &self.source_ranges {
            write!(f, " source-ranges={}", join(source_ranges))?;
        }
        f.write_str(" ->")?;
        if fate != Fate::Forward {
            write!(f, " {fate}")?;
        }
        for backend in self.backends() {
            write!(f, " {backend}")?;
        }
        for (i, backend) in self.kept().into_iter().enumerate() {
            write!(f, "{} {backend}", if i == 0 { " kept" } else { "" })?;
        }
        Ok(())
    }
}

/// Separated by commas.
pub fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

/// The scope of a frontend, as JSON has it.
pub fn scope(key: &ServiceKey) -> &'static str {
    match Scope::from_code(key.scope) {
        Some(Scope::Any) => "any",
        Some(Scope::OwnNode) => "ownNode",
        Some(Scope::OtherNodes) => "otherNodes",
        Some(Scope::Node) => "node",
        None => "unknown",
    }
}

/// What clients dial: `10.96.0.10:80`, `own-node-ipv4:30080`; the address of another node as it is.
fn frontend(key: &ServiceKey) -> String {
    match Scope::from_code(key.scope) {
        Some(Scope::OwnNode | Scope::OtherNodes) => {
            let text = KeyText(key).to_string();
            text.rsplit_once('/').map_or_else(|| text.clone(), |(text, _)| text.to_owned())
        }
        _ => key.peer.to_string(),
    }
}

/// The same with its protocol: `10.96.0.10:80/tcp`.
pub fn frontend_text(key: &ServiceKey) -> String {
    format!("{}/{}", frontend(key), protocol(key.protocol).to_ascii_lowercase())
}

/// A protocol as Kubernetes writes it, or its number.
pub fn protocol(number: u8) -> Cow<'static, str> {
    Protocol::from_number(number)
        .map_or_else(|| number.to_string().into(), |known| known.name().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dump::sample::memory, op::Op, store::Store as _};

    #[test]
    fn text_is_sorted_by_name_and_has_no_volatile_numbers() {
        assert_eq!(
            text(&memory().snapshot()),
            "default/db 10.96.0.9:5432/tcp id=1 -> 10.0.0.1:5432\n\
             default/web:http 10.96.0.10:80/tcp id=0 -> 10.0.0.9:8080 10.0.0.10:8080\n\
             default/web:http 192.0.2.7:80/tcp id=0 -> 10.0.0.9:8080 10.0.0.10:8080\n\
             default/web:http [fd00::a]:80/tcp id=0 -> [fd01::1]:8080\n\
             kube-system/kube-dns:dns 10.96.0.2:53/udp id=3 -> refuse\n"
        );
        assert_eq!(text(&Snapshot::default()), "");
    }

    #[test]
    fn damage_is_shown_not_hidden() {
        let mut memory = memory();
        memory.apply(&Op::DeleteName { id: 1 }).unwrap();
        let records = vec![Backend::refuse().stamped(1, 3)];
        memory.apply(&Op::WriteBlock { block: 9, records }).unwrap();
        let text = text(&memory.snapshot());
        assert!(text.starts_with("<unknown> 10.96.0.9:5432/tcp id=1 -> 10.0.0.1:5432\n"), "{text}");
        assert!(text.ends_with("kube-dns:dns 10.96.0.2:53/udp id=3 -> damaged\n"), "{text}");
    }

    #[test]
    fn all_that_a_frontend_can_be() {
        let mut memory = sample::rich();
        memory
            .apply(&Op::PutSourceRange { id: 9, range: "192.0.2.0/24".parse().unwrap() })
            .unwrap();
        let snapshot = memory.snapshot();
        assert_eq!(
            text(&snapshot),
            "\
default/game 10.96.0.20:53/udp id=4 affinity=30 -> 10.0.0.1:53 kept 10.0.0.2:53 10.0.0.3:53
shop/cart own-node-ipv4:30080/tcp id=5 -> 10.0.1.1:80
shop/cart other-nodes-ipv4:30080/tcp id=5 -> unreachable
shop/cart 10.96.0.21:80/tcp id=5 source-ranges=10.0.0.0/8,2001:db8::/32 -> 10.0.1.1:80
shop/cart node 192.0.2.9:30080/tcp id=5 -> 10.0.1.1:80
unused source range id=9 192.0.2.0/24
address 10.96.0.20 cluster-ip
address 10.96.0.21 cluster-ip
address 127.0.0.1 own-node host-only
address 192.0.2.1 own-node
address 192.0.2.9 other-node
"
        );
    }
}
