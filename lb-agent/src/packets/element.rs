//! Elements, as they stand in the sets.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use lb_core::{
    model::{Cidr, Frontend, Protocol, Scope},
    packets::{Choice, Element, Group},
    policy::TrafficPolicy,
};

use super::{
    nft::{Bytes, Family, Raw},
    sets::{BASE, BYTES, DIGITS, DROP, Kind, REJECT, Set},
};

const fn kind(policy: TrafficPolicy, scope: Scope) -> Kind {
    match (policy, scope) {
        (TrafficPolicy::Cluster, Scope::Any) => Kind::Cluster,
        (TrafficPolicy::Local, Scope::Any) => Kind::Local,
        (TrafficPolicy::Cluster, _) => Kind::ClusterPort,
        (TrafficPolicy::Local, _) => Kind::LocalPort,
    }
}

/// The set that an element is in, and its bytes there.
pub(super) fn encode(element: &Element) -> (Set, Raw) {
    let plain = |key| Raw { key, end: None, value: None };
    match element {
        Element::Node(ip) => (Set::Nodes, plain(octets(*ip))),
        Element::Hairpin(ip) => (Set::Hairpin, plain(Bytes::joined(&[&octets(*ip), &octets(*ip)]))),
        Element::Server(addr) => {
            let frontend = Frontend::new(*addr, Protocol::Tcp);
            (Set::Servers, plain(key(&frontend)))
        }
        Element::Restricted(frontend) => (Set::Restricted, plain(key(frontend))),
        Element::Range { frontend, range } => {
            let [first, last] = bounds(*range);
            let with = |ip| Bytes::joined(&[&key(frontend), &octets(ip)]);
            let raw = Raw { key: with(first), end: Some(with(last)), value: None };
            (Set::Ranges, raw)
        }
        Element::Frontend { policy, frontend, group } => {
            let value = Some(number(group.number));
            let set = Set::Frontends(kind(*policy, frontend.scope));
            (set, Raw { value, ..plain(key(frontend)) })
        }
        Element::Choice { group, value } => {
            let value = match value {
                Choice::Slots(slots) => moduli(*slots),
                Choice::Reject => REJECT,
                Choice::Drop => DROP,
            };
            (Set::Choices, Raw { value: Some(number(value)), ..plain(number(group.number)) })
        }
        Element::Endpoint { group, slot, addr } => {
            let value = Some(endpoint(*addr));
            (Set::Endpoints, Raw { value, ..plain(at_slot(group.number, *slot)) })
        }
        Element::Affinity { group, seconds } => {
            let value = Some(number(seconds.get()));
            (Set::Affinity, Raw { value, ..plain(number(group.number)) })
        }
        Element::Number { group, slot, number: value } => {
            let value = Some(number(*value));
            (Set::Numbers, Raw { value, ..plain(at_slot(group.number, *slot)) })
        }
        Element::Numbered { group, number, addr } => {
            let value = Some(endpoint(*addr));
            (Set::Numbered, Raw { value, ..plain(numbers(&[group.number, *number])) })
        }
    }
}

/// What a modulus makes of a number below the base, in the map that is always the same.
pub(super) fn remainder(modulus: u32, of: u32, remainder: u32) -> Raw {
    Raw { key: numbers(&[modulus, of]), end: None, value: Some(number(remainder)) }
}

fn number(number: u32) -> Bytes {
    numbers(&[number])
}

fn numbers<const N: usize>(all: &[u32; N]) -> Bytes {
    Bytes::joined(&all.each_ref().map(|number| number.to_ne_bytes()).each_ref().map(|it| &it[..]))
}

/// The moduli of the digits of so many slots, a power of two, each a byte, the lowest digit's the lowest
/// one. Their product is that number, or if there is no room for it the greatest there is.
fn moduli(slots: u32) -> u32 {
    let modulus = |(digit, byte)| (slots / BASE.pow(digit)).clamp(1, BASE) << byte;
    (0..).zip(BYTES).map(modulus).sum()
}

/// How many slots have these moduli.
fn slots(moduli: u32) -> Option<u32> {
    let bytes = moduli.to_le_bytes();
    let (digits, rest) = bytes.split_at(DIGITS);
    let product: u32 = digits.iter().copied().map(u32::from).product();
    rest.iter().all(|byte| *byte == 0).then_some(product)
}

fn at_slot(group: u32, slot: u32) -> Bytes {
    let mut key = [group; 1 + DIGITS];
    let mut rest = slot;
    for digit in &mut key[1..] {
        (*digit, rest) = (rest % BASE, rest / BASE);
    }
    // Nobody draws a slot that has more digits.
    key[DIGITS] += rest * BASE;
    numbers(&key)
}

fn endpoint(addr: SocketAddr) -> Bytes {
    Bytes::joined(&[&octets(addr.ip()), &port(addr.port())])
}

/// What an element of a set means, if anything.
pub(super) fn decode(family: Family, set: Set, raw: &Raw) -> Option<Element> {
    let mut key = Reader { rest: &raw.key, family };
    let mut value = Reader { rest: raw.value.as_deref().unwrap_or_default(), family };
    let element = match set {
        Set::Nodes => Element::Node(key.ip()?),
        Set::Hairpin => {
            let ip = key.ip()?;
            (key.ip()? == ip).then_some(Element::Hairpin(ip))?
        }
        Set::Servers => {
            let server = key.frontend(Scope::Any)?;
            (server.protocol == Protocol::Tcp).then_some(Element::Server(server.addr))?
        }
        Set::Restricted => Element::Restricted(key.frontend(Scope::Any)?),
        Set::Ranges => {
            let mut end = Reader { rest: raw.end.as_deref().unwrap_or(&raw.key), family };
            let frontend = key.frontend(Scope::Any)?;
            let last = end.frontend(Scope::Any).and_then(|_| end.ip())?;
            Element::Range { frontend, range: range(key.ip()?, last)? }
        }
        Set::Frontends(kind) => {
            let (policy, frontend) = key.of(kind)?;
            Element::Frontend { policy, frontend, group: value.group()? }
        }
        Set::Choices => {
            let group = key.group()?;
            let value = match value.number()? {
                REJECT => Choice::Reject,
                DROP => Choice::Drop,
                moduli => Choice::Slots(slots(moduli)?),
            };
            Element::Choice { group, value }
        }
        Set::Endpoints => {
            let (group, slot) = (key.group()?, key.slot()?);
            Element::Endpoint { group, slot, addr: value.addr()? }
        }
        Set::Affinity => {
            let seconds = NonZeroU32::new(value.number()?)?;
            Element::Affinity { group: key.group()?, seconds }
        }
        Set::Numbers => {
            let (group, slot) = (key.group()?, key.slot()?);
            Element::Number { group, slot, number: value.number()? }
        }
        Set::Numbered => {
            let (group, number) = (key.group()?, key.number()?);
            Element::Numbered { group, number, addr: value.addr()? }
        }
        // What the rules have written is theirs, and what is always the same says nothing.
        Set::Bonds | Set::Remainders => return None,
    };
    (key.rest.is_empty() && value.rest.is_empty()).then_some(element)
}

/// A field of two bytes or fewer has four, of which the last ones are 0.
fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn key(frontend: &Frontend) -> Bytes {
    let ip = match frontend.scope {
        Scope::Any => octets(frontend.addr.ip()),
        _ => Bytes::joined(&[]),
    };
    let protocol = [frontend.protocol.number(), 0, 0, 0];
    Bytes::joined(&[&ip, &protocol, &port(frontend.addr.port())])
}

fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::joined(&[&ip.octets()]),
        IpAddr::V6(ip) => Bytes::joined(&[&ip.octets()]),
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

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn slot(&mut self) -> Option<u32> {
        let (mut slot, mut place) = (0_u32, 1);
        for n in 1..=DIGITS {
            let digit = self.number()?;
            // The highest one is what is left.
            (n == DIGITS || digit < BASE).then_some(())?;
            slot = slot.checked_add(digit.checked_mul(place)?)?;
            place *= BASE;
        }
        Some(slot)
    }

    fn group(&mut self) -> Option<Group> {
        Some(Group { ipv4: self.family == Family::Ip, number: self.number()? })
    }

    fn addr(&mut self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip()?, self.port()?))
    }

    /// For whom, and which.
    fn of(&mut self, kind: Kind) -> Option<(TrafficPolicy, Frontend)> {
        let (policy, scope) = match kind {
            Kind::Cluster => (TrafficPolicy::Cluster, Scope::Any),
            Kind::Local => (TrafficPolicy::Local, Scope::Any),
            Kind::ClusterPort => (TrafficPolicy::Cluster, Scope::OwnNode),
            Kind::LocalPort => (TrafficPolicy::Local, Scope::OwnNode),
        };
        Some((policy, self.frontend(scope)?))
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
                Element::Server(pod),
                Element::Restricted(vip),
                Element::Range { frontend: vip, range: range.parse().unwrap() },
                Element::Range { frontend: vip, range: host },
            ];
            for (policy, frontend) in [(Cluster, vip), (Local, vip), (Cluster, port), (Local, port)]
            {
                let group = Group { ipv4: addr.is_ipv4(), number: u32::MAX };
                all.push(Element::Frontend { policy, frontend, group });
            }
            let group = Group { ipv4: addr.is_ipv4(), number: 1 << 17 };
            let sizes = (0..=15).map(|exponent| Choice::Slots(1 << exponent));
            for value in sizes.chain([Choice::Reject, Choice::Drop]) {
                all.push(Element::Choice { group, value });
            }
            let number = 1 << 18;
            for slot in [0, 1, 31, 32, 1023, 1024, 32_767, 32_768, (1 << 20) - 1] {
                all.push(Element::Endpoint { group, slot, addr: pod });
                all.push(Element::Number { group, slot, number });
            }
            all.push(Element::Numbered { group, number, addr: pod });
            all.push(Element::Affinity { group, seconds: NonZeroU32::new(10_800).unwrap() });
            for element in all {
                let family = Family::of(element.is_ipv4());
                let (set, raw) = encode(&element);
                assert_eq!(decode(family, set, &raw), Some(element));
            }
        }
    }

    #[test]
    fn more_slots_than_there_is_room_for_are_as_many_as_there_is() {
        let most = BASE.pow(u32::try_from(DIGITS).unwrap());
        for too_many in [most, most * 2, 1 << 31] {
            assert_eq!(slots(moduli(too_many)), Some(most));
        }
        assert_eq!((moduli(1), moduli(64)), (0x01_01_01, 0x01_02_20));
        assert_eq!(slots(0x01_00_00_00 | moduli(1)), None);
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        let raw = |key: &[u8]| Raw { key: Bytes::joined(&[key]), end: None, value: None };
        assert_eq!(decode(Family::Ip, Set::Nodes, &raw(&[1, 2, 3])), None);
        assert_eq!(decode(Family::Ip, Set::Nodes, &raw(&[1, 2, 3, 4, 5])), None);
        assert_eq!(decode(Family::Ip, Set::Hairpin, &raw(&[1, 2, 3, 4, 1, 2, 3, 5])), None);
        assert_eq!(
            decode(Family::Ip, Set::Frontends(Kind::ClusterPort), &raw(&[6, 0, 0, 0, 0, 80, 0, 0])),
            None
        );
        assert_eq!(range([10, 0, 0, 1].into(), [10, 0, 0, 2].into()), None);
    }
}
