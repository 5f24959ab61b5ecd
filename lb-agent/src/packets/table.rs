//! The tables in the kernel: elements in and out.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
};

use lb_core::{
    model::{Cidr, Frontend, Protocol, Scope},
    packets::{Choice, Edit, Element, Table, TableError},
    policy::TrafficPolicy,
};

use super::{
    nft::{self, Family, Message, NftError, Raw, Transaction},
    ruleset::{self, COMMENT, DROP, Kind, MAX_SLOTS, OWNED, OWNER, REJECT, Set, TABLE},
};
use crate::netlink::Netlink;

/// The tables of the families that this kernel has. They belong to this as long as it lives, where the
/// kernel knows owners.
#[derive(Debug)]
pub(super) struct Tables {
    netlink: Netlink,
    families: Vec<Family>,
}

/// Why the tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The kernel refuses.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Another program uses the name.
    #[error(
        "the table `{0} {TABLE}` was not made by socklb: rename or remove it (`nft delete table {0} \
         {TABLE}`)"
    )]
    Foreign(&'static str),
}

impl Tables {
    /// In the network namespace of this thread.
    pub(super) fn open(families: Vec<Family>) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::netfilter()?, families })
    }

    pub(super) const fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Whether tables, chains and rules are there as they are to be.
    pub(super) fn are_whole(&mut self) -> Result<bool, Trouble> {
        for family in self.families.clone() {
            if !self.is_ours(family)? {
                return Ok(false);
            }
            if nft::rules(&mut self.netlink, family, TABLE)? != ruleset::wanted(family) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes them so; elements that are there stay.
    pub(super) fn set_up(&mut self) -> Result<(), Trouble> {
        for family in self.families.clone() {
            let found = nft::table(&mut self.netlink, family, TABLE)?;
            let is_other = match &found {
                Some(table) if is_foreign(table) => {
                    return Err(Trouble::Foreign(family.name()));
                }
                Some(table) => table.comment.as_deref() != Some(COMMENT),
                None => false,
            };
            let mut result = Ok(());
            // A table keeps the kind of ownership that it was made with.
            let kept = found.filter(|_| !is_other).map(|table| table.flags & OWNED);
            let flags = kept.map_or(vec![OWNED, 0], |kept| vec![if kept == 0 { 0 } else { OWNED }]);
            for flags in flags {
                let mut transaction = Transaction::default();
                if is_other {
                    ruleset::remove(&mut transaction, family);
                }
                ruleset::set_up(&mut transaction, family, flags);
                result = transaction.commit(&mut self.netlink);
                // Linux before 6.9 knows no owner that outlives itself.
                let is_unknown = |error: &NftError| {
                    matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL))
                };
                if !result.as_ref().is_err_and(is_unknown) {
                    break;
                }
            }
            result?;
        }
        Ok(())
    }

    /// Takes tables over whose owner has ended.
    fn claim(&mut self) -> Result<(), Trouble> {
        for family in self.families.clone() {
            let found = nft::table(&mut self.netlink, family, TABLE)?;
            if found.is_some_and(|table| table.flags & OWNED == OWNED & !OWNER) {
                let mut transaction = Transaction::default();
                ruleset::claim(&mut transaction, family);
                transaction.commit(&mut self.netlink)?;
            }
        }
        Ok(())
    }

    /// Removes the tables. Their names, if they were there.
    pub(super) fn remove(&mut self) -> Result<Vec<String>, Trouble> {
        let mut removed = Vec::new();
        for family in self.families.clone() {
            let Some(table) = nft::table(&mut self.netlink, family, TABLE)? else { continue };
            if is_foreign(&table) {
                continue;
            }
            let mut transaction = Transaction::default();
            ruleset::remove(&mut transaction, family);
            transaction.commit(&mut self.netlink)?;
            removed.push(format!("table {} {TABLE}", family.name()));
        }
        Ok(removed)
    }

    fn is_ours(&mut self, family: Family) -> Result<bool, Trouble> {
        match nft::table(&mut self.netlink, family, TABLE)? {
            Some(table) if is_foreign(&table) => Err(Trouble::Foreign(family.name())),
            Some(table) => Ok(table.comment.as_deref() == Some(COMMENT)),
            None => Ok(false),
        }
    }
}

impl Table for Tables {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        // Nobody sees an order in what takes effect at once; a value that changes is deleted and added.
        let mut all: BTreeMap<(bool, Family, Set), Vec<Raw>> = BTreeMap::new();
        for edit in edits {
            let (family, set, raw) = encode(edit.element());
            all.entry((matches!(edit, Edit::Add(_)), family, set)).or_default().push(raw);
        }
        let mut transaction = Transaction::default();
        for ((is_added, family, set), raw) in &all {
            let message = if *is_added { Message::NewElements } else { Message::DelElements };
            transaction.elements(message, *family, (TABLE, set.name()), raw);
        }
        transaction.commit(&mut self.netlink).map_err(|error| Trouble::from(error).into())
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        if self.are_whole()? {
            self.claim()?;
        } else {
            self.set_up()?;
        }
        let mut all = Vec::new();
        for family in self.families.clone() {
            for set in Set::ALL {
                let raw = nft::elements(&mut self.netlink, family, (TABLE, set.name()));
                let raw = raw.map_err(Trouble::from)?.unwrap_or_default();
                all.extend(raw.iter().filter_map(|raw| decode(family, set, raw)));
            }
        }
        // Nothing of it counts unless all could be read.
        all.into_iter().for_each(take);
        Ok(())
    }
}

impl From<Trouble> for TableError {
    fn from(trouble: Trouble) -> Self {
        let refused = match &trouble {
            Trouble::Foreign(_) => false,
            Trouble::Nft(error) => error.is_of_the_elements(),
        };
        if refused {
            Self::Refused(trouble.to_string())
        } else {
            Self::Unusable(trouble.to_string())
        }
    }
}

/// Whether somebody else made it: every layout of ours begins with the same words.
fn is_foreign(table: &nft::TableInfo) -> bool {
    let ours = COMMENT.split(',').next().unwrap_or_default();
    !table.comment.as_ref().is_some_and(|comment| comment.starts_with(ours))
}

const fn kind(policy: TrafficPolicy, scope: Scope) -> Kind {
    match (policy, scope) {
        (TrafficPolicy::Cluster, Scope::Any) => Kind::Cluster,
        (TrafficPolicy::Local, Scope::Any) => Kind::Local,
        (TrafficPolicy::Cluster, _) => Kind::ClusterPort,
        (TrafficPolicy::Local, _) => Kind::LocalPort,
    }
}

/// The set that an element is in, and its bytes there.
fn encode(element: &Element) -> (Family, Set, Raw) {
    let plain = |key: Vec<u8>| Raw { key, end: None, value: None };
    let family = |ip: IpAddr| Family::of(ip.is_ipv4());
    match element {
        Element::Node(ip) => (family(*ip), Set::Nodes, plain(octets(*ip))),
        Element::Hairpin(ip) => (family(*ip), Set::Hairpin, plain(octets(*ip).repeat(2))),
        Element::Restricted(frontend) => {
            (family(frontend.addr.ip()), Set::Restricted, plain(key(frontend)))
        }
        Element::Range { frontend, range } => {
            let [first, last] = bounds(*range);
            let with = |ip| [key(frontend), octets(ip)].concat();
            let raw = Raw { key: with(first), end: Some(with(last)), value: None };
            (family(range.addr), Set::Ranges, raw)
        }
        Element::Choice { policy, frontend, value } => {
            let slots = match value {
                Choice::Slots(slots) => (*slots).min(MAX_SLOTS),
                Choice::Reject => REJECT,
                Choice::Drop => DROP,
            };
            let value = Some(slots.to_ne_bytes().to_vec());
            let set = kind(*policy, frontend.scope).frontends();
            (family(frontend.addr.ip()), set, Raw { value, ..plain(key(frontend)) })
        }
        Element::Endpoint { policy, frontend, slot, addr } => {
            let key = [key(frontend), slot.to_ne_bytes().to_vec()].concat();
            let value = Some([octets(addr.ip()), port(addr.port())].concat());
            let set = kind(*policy, frontend.scope).endpoints();
            (family(addr.ip()), set, Raw { value, ..plain(key) })
        }
    }
}

/// What an element of a set means, if anything.
fn decode(family: Family, set: Set, raw: &Raw) -> Option<Element> {
    let mut key = Reader { rest: &raw.key, family };
    let mut value = Reader { rest: raw.value.as_deref().unwrap_or_default(), family };
    let element = match set {
        Set::Nodes => Element::Node(key.ip()?),
        Set::Hairpin => {
            let ip = key.ip()?;
            (key.ip()? == ip).then_some(Element::Hairpin(ip))?
        }
        Set::Restricted => Element::Restricted(key.frontend(Scope::Any)?),
        Set::Ranges => {
            let mut end = Reader { rest: raw.end.as_deref().unwrap_or(&raw.key), family };
            let frontend = key.frontend(Scope::Any)?;
            let last = end.frontend(Scope::Any).and_then(|_| end.ip())?;
            Element::Range { frontend, range: range(key.ip()?, last)? }
        }
        _ => {
            let policies = [TrafficPolicy::Cluster, TrafficPolicy::Local];
            let of = |scope| policies.map(|policy| (policy, scope, kind(policy, scope)));
            let mut kinds = of(Scope::Any).into_iter().chain(of(Scope::OwnNode));
            let (policy, scope, kind) =
                kinds.find(|(.., kind)| kind.frontends() == set || kind.endpoints() == set)?;
            let frontend = key.frontend(scope)?;
            if kind.frontends() == set {
                let value = match u32::from_ne_bytes(value.take()?) {
                    REJECT => Choice::Reject,
                    DROP => Choice::Drop,
                    slots => Choice::Slots(slots),
                };
                Element::Choice { policy, frontend, value }
            } else {
                let slot = u32::from_ne_bytes(key.take()?);
                let addr = SocketAddr::new(value.ip()?, value.port()?);
                Element::Endpoint { policy, frontend, slot, addr }
            }
        }
    };
    (key.rest.is_empty() && value.rest.is_empty()).then_some(element)
}

/// A field of two bytes or fewer has four, of which the last ones are 0.
fn port(port: u16) -> Vec<u8> {
    [&port.to_be_bytes()[..], &[0; 2]].concat()
}

fn key(frontend: &Frontend) -> Vec<u8> {
    let ip = match frontend.scope {
        Scope::Any => octets(frontend.addr.ip()),
        _ => Vec::new(),
    };
    let protocol = [frontend.protocol.number(), 0, 0, 0].to_vec();
    [ip, protocol, port(frontend.addr.port())].concat()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The first and the last address of a range.
fn bounds(range: Cidr) -> [IpAddr; 2] {
    let prefix = u32::from(range.prefix);
    match range.addr {
        IpAddr::V4(ip) => {
            let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
            [ip.to_bits() & !host, ip.to_bits() | host].map(|ip| IpAddr::V4(ip.into()))
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
            [ip.to_bits() & !host, ip.to_bits() | host].map(|ip| IpAddr::V6(ip.into()))
        }
    }
}

/// The range of these bounds, if it is one.
fn range(first: IpAddr, last: IpAddr) -> Option<Cidr> {
    let bits = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            32 - (u32::from(first) ^ u32::from(last)).count_ones()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            128 - (u128::from(first) ^ u128::from(last)).count_ones()
        }
        _ => return None,
    };
    let range = Cidr { addr: first, prefix: u8::try_from(bits).ok()? };
    (bounds(range) == [first, last]).then_some(range)
}

/// Reads fields.
struct Reader<'a> {
    rest: &'a [u8],
    family: Family,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*field)
    }

    fn ip(&mut self) -> Option<IpAddr> {
        match self.family {
            Family::Ip => self.take::<4>().map(IpAddr::from),
            Family::Ip6 => self.take::<16>().map(IpAddr::from),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, 0, 0] = self.take()? else { return None };
        Some(u16::from_be_bytes([high, low]))
    }

    fn frontend(&mut self, scope: Scope) -> Option<Frontend> {
        let ip = match (scope, self.family) {
            (Scope::Any, _) => self.ip()?,
            (_, Family::Ip) => [0; 4].into(),
            (_, Family::Ip6) => [0; 16].into(),
        };
        let [protocol, 0, 0, 0] = self.take()? else { return None };
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = all.into_iter().find(|known| known.number() == protocol)?;
        Some(Frontend { addr: SocketAddr::new(ip, self.port()?), protocol, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        use TrafficPolicy::{Cluster, Local};
        for (any, pod, range) in [
            ("192.0.2.1:80", "10.0.0.1:8080", "10.0.0.0/8"),
            ("[2001:db8::1]:80", "[fd00::1]:8080", "fd00::/8"),
        ] {
            let addr: SocketAddr = any.parse().unwrap();
            let pod: SocketAddr = pod.parse().unwrap();
            let unspecified: IpAddr = if addr.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let vip = Frontend::new(addr, Protocol::Tcp);
            let port = Frontend {
                addr: (unspecified, 30080).into(),
                protocol: Protocol::Sctp,
                scope: Scope::OwnNode,
            };
            let host = Cidr::host(addr.ip());
            let mut all = vec![
                Element::Node(addr.ip()),
                Element::Hairpin(pod.ip()),
                Element::Restricted(vip),
                Element::Range { frontend: vip, range: range.parse().unwrap() },
                Element::Range { frontend: vip, range: host },
            ];
            for (policy, frontend) in [(Cluster, vip), (Local, vip), (Cluster, port), (Local, port)]
            {
                for value in [Choice::Slots(4), Choice::Reject, Choice::Drop] {
                    all.push(Element::Choice { policy, frontend, value });
                }
                all.push(Element::Endpoint { policy, frontend, slot: 9999, addr: pod });
            }
            for element in all {
                let (family, set, raw) = encode(&element);
                assert_eq!(decode(family, set, &raw), Some(element));
            }
        }
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        let raw = |key: &[u8]| Raw { key: key.to_vec(), end: None, value: None };
        assert_eq!(decode(Family::Ip, Set::Nodes, &raw(&[1, 2, 3])), None);
        assert_eq!(decode(Family::Ip, Set::Nodes, &raw(&[1, 2, 3, 4, 5])), None);
        assert_eq!(decode(Family::Ip, Set::Hairpin, &raw(&[1, 2, 3, 4, 1, 2, 3, 5])), None);
        assert_eq!(decode(Family::Ip, Set::Ports, &raw(&[6, 0, 0, 0, 0, 80, 0, 0])), None);
        assert_eq!(range([10, 0, 0, 1].into(), [10, 0, 0, 2].into()), None);
    }
}
