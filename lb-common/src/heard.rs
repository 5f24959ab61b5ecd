//! From whom the UDP sockets of a network namespace have just heard. What they send there is an answer,
//! and stays untranslated, though the address be that of a Service: a client may send from a node's
//! address and the number of some NodePort, or from an address that a load balancer has too.
//!
//! The key is that of connection tracking: own address and port, the peer's address and port. It is
//! kept as long as connection tracking keeps it: 30 s, or 180 s once it was answered, each datagram that
//! is heard beginning them anew. What is sent does not: a client of kube-proxy hears from a Service's
//! address too, and would be taken for a server for as long as it asks, also when kube-proxy is gone.
//!
//! Each network namespace has room of its own, for [`SLOTS`] × [`WAYS`] exchanges, as long as there are no
//! more than [`MAX_SLOTS`] in all: where it is short, the exchange gives way that was silent longest among the
//! [`WAYS`] that share its slot. Only peers that a Service's address is true of are here at all.
//!
//! A place says whose it is by 64 bits of the key, the network namespace included. So nobody is misled
//! by a hash element that was recycled, and the comparison is one step.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Peer, bpf_spin_lock, mixed};

/// Slots of a network namespace.
pub const SLOTS: u32 = 32;
/// Exchanges in a slot.
pub const WAYS: usize = 4;
/// Slots of all network namespaces: at most 1.6 MB.
pub const MAX_SLOTS: usize = 8192;

/// How long an exchange is kept that was not answered, in nanoseconds.
const UNANSWERED: u64 = 30_000_000_000;
/// The same of one that was.
const ANSWERED: u64 = 180_000_000_000;
/// Bit of [`HeardPlace::last`]: it was answered.
const WAS_ANSWERED: u64 = 1;

/// Key of [`HEARD`](crate::abi::HEARD). 16 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Below [`SLOTS`].
    pub number: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Value of [`HEARD`](crate::abi::HEARD). 104 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Heard {
    /// Several threads may hear, and answer, at one time.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
    /// The exchanges.
    pub places: [HeardPlace; WAYS],
}

impl Heard {
    /// Of nobody yet.
    pub const NOBODY: Self = Self {
        lock: bpf_spin_lock::UNLOCKED,
        reserved: 0,
        places: [HeardPlace { tag: 0, own: 0, last: 0 }; WAYS],
    };

    /// Whether nothing in it matters any more.
    pub fn is_over(&self, now: u64) -> bool {
        self.places.iter().all(|place| !place.is_fresh(now))
    }
}

/// One exchange. 24 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct HeardPlace {
    /// Tag of the network namespace, the own port, the peer.
    tag: u64,
    /// Tag of the own address; 0: the socket is bound to none, and any will do.
    own: u64,
    /// When the last datagram came, in nanoseconds of the monotonic clock, save the lowest
    /// bit, which is [`WAS_ANSWERED`]; 0: the place is free.
    last: u64,
}

impl HeardPlace {
    #[inline(always)]
    const fn is_fresh(&self, now: u64) -> bool {
        let limit = if self.last & WAS_ANSWERED == 0 { UNANSWERED } else { ANSWERED };
        // Another CPU's clock may be a little ahead.
        self.last != 0 && now.saturating_sub(self.last) < limit
    }
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exchange {
    /// Where it is kept.
    pub slot: Slot,
    tag: u64,
    own: u64,
}

impl Exchange {
    /// Of a socket in a network namespace. Its own address may be unspecified.
    #[inline(always)]
    pub const fn new(netns: u64, own: Peer, peer: Peer) -> Self {
        let ports = peer.port.raw() as u64 | (own.port.raw() as u64) << 16;
        let sum = mixed(peer.addr.words())
            .wrapping_add(ports.wrapping_mul(0x1656_67b1_9e37_79f9))
            .wrapping_add(netns.wrapping_mul(0xff51_afd7_ed55_8ccd));
        let tag = scattered(sum);
        let number = (tag >> 32) as u32 % SLOTS;
        let own =
            if own.addr.is_unspecified() { 0 } else { scattered(mixed(own.addr.words())) | 1 };
        Self { slot: Slot { netns, number, reserved: 0 }, tag, own }
    }

    /// Whether it may be the one at the place: an address that is not specified may be any.
    #[inline(always)]
    const fn may_be(&self, place: &HeardPlace) -> bool {
        self.tag == place.tag && (self.own == 0 || place.own == 0 || self.own == place.own)
    }
}

/// The finalizer of MurmurHash3.
#[inline(always)]
const fn scattered(sum: u64) -> u64 {
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    sum ^ (sum >> 33)
}

/// Takes in that the peer was heard.
#[inline(always)]
pub fn hear(places: &mut [HeardPlace; WAYS], exchange: &Exchange, now: u64) {
    let (mut at, mut oldest) = (0, u64::MAX);
    let mut index = 0;
    while index < WAYS {
        let place = &mut places[index];
        let is_fresh = place.is_fresh(now);
        if place.tag == exchange.tag && place.own == exchange.own {
            let answered = if is_fresh { place.last & WAS_ANSWERED } else { 0 };
            place.last = now & !WAS_ANSWERED | answered;
            return;
        }
        let last = if is_fresh { place.last } else { 0 };
        if last < oldest {
            (at, oldest) = (index, last);
        }
        index += 1;
    }
    if let Some(place) = places.get_mut(at) {
        *place = HeardPlace { tag: exchange.tag, own: exchange.own, last: now & !WAS_ANSWERED };
    }
}

/// Whether a datagram that the socket sends to the peer is an answer; takes in that it is sent.
#[inline(always)]
pub fn answer(places: &mut [HeardPlace; WAYS], exchange: &Exchange, now: u64) -> bool {
    let mut index = 0;
    while index < WAYS {
        let place = &mut places[index];
        if exchange.may_be(place) && place.is_fresh(now) {
            place.last |= WAS_ANSWERED;
            return true;
        }
        index += 1;
    }
    false
}

/// Whether it would be one.
pub fn is_answer(places: &[HeardPlace; WAYS], exchange: &Exchange, now: u64) -> bool {
    answer(&mut { *places }, exchange, now)
}

const _: () = assert!(size_of::<Heard>() == 104);

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::SocketAddr;
    use std::collections::BTreeSet;

    use super::*;

    const NOBODY: [HeardPlace; WAYS] = Heard::NOBODY.places;
    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1000 * SECOND + 1;

    fn peer(text: &str) -> Peer {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn exchange(own: &str, with: &str) -> Exchange {
        Exchange::new(7, peer(own), peer(with))
    }

    /// Heard at [`NOW`].
    fn heard(own: &str, with: &str) -> [HeardPlace; WAYS] {
        let mut places = NOBODY;
        hear(&mut places, &exchange(own, with), NOW);
        places
    }

    const CLIENT: &str = "192.0.2.10:30053";
    const SERVER: &str = "10.244.7.13:9000";

    #[test]
    fn what_was_heard_is_answered_by_these_two_ends_only() {
        let places = heard(SERVER, CLIENT);
        assert!(is_answer(&places, &exchange(SERVER, CLIENT), NOW));
        for (own, with) in [
            ("10.244.7.13:9001", CLIENT),
            ("10.244.7.14:9000", CLIENT),
            (SERVER, "192.0.2.10:30054"),
            (SERVER, "192.0.2.11:30053"),
            (SERVER, "[::1]:30053"),
        ] {
            assert!(!is_answer(&places, &exchange(own, with), NOW), "{own} {with}");
        }
        let elsewhere = Exchange::new(8, peer(SERVER), peer(CLIENT));
        assert!(!is_answer(&places, &elsewhere, NOW));
        assert!(!is_answer(&NOBODY, &exchange(SERVER, CLIENT), NOW));
    }

    /// A server's socket is mostly bound to no address; the one that it connects to its client may be.
    #[test]
    fn an_address_that_is_not_specified_may_be_any() {
        for any in ["0.0.0.0:9000", "[::]:9000", "[::ffff:0.0.0.0]:9000"] {
            for (own, asks) in [(any, SERVER), (SERVER, any), (any, any)] {
                let places = heard(own, CLIENT);
                assert!(is_answer(&places, &exchange(asks, CLIENT), NOW), "{own} {asks}");
                assert!(is_answer(&places, &exchange(asks, "[::ffff:192.0.2.10]:30053"), NOW));
            }
        }
        let places = heard("[fd00::1]:9000", "[fd00::2]:53");
        assert!(is_answer(&places, &exchange("[::]:9000", "[fd00::2]:53"), NOW));
    }

    /// nf_conntrack_udp_timeout, and what it was for a stream.
    #[test]
    fn it_is_kept_for_30_seconds_or_180_once_answered() {
        let ends = exchange(SERVER, CLIENT);
        let mut places = heard(SERVER, CLIENT);
        assert!(is_answer(&places, &ends, NOW + 30 * SECOND - 2));
        assert!(!is_answer(&places, &ends, NOW + 30 * SECOND));
        assert!(is_answer(&places, &ends, NOW - SECOND), "a clock that is behind");
        // Heard again, answered, heard again: what is sent does not begin it anew.
        hear(&mut places, &ends, NOW + 20 * SECOND);
        assert!(is_answer(&places, &ends, NOW + 49 * SECOND));
        assert!(answer(&mut places, &ends, NOW + 40 * SECOND));
        assert!(answer(&mut places, &ends, NOW + 199 * SECOND));
        assert!(!is_answer(&places, &ends, NOW + 201 * SECOND));
        hear(&mut places, &ends, NOW + 199 * SECOND);
        assert!(is_answer(&places, &ends, NOW + 378 * SECOND), "it was answered");
        hear(&mut places, &ends, NOW + 400 * SECOND);
        assert!(!is_answer(&places, &ends, NOW + 431 * SECOND), "it is another exchange");
        assert!(Heard { places, ..Heard::NOBODY }.is_over(NOW + 431 * SECOND));
        assert!(!Heard { places, ..Heard::NOBODY }.is_over(NOW + 401 * SECOND));
    }

    #[test]
    fn what_is_over_gives_way_first_and_then_what_was_silent_longest() {
        let own = |n: u64| exchange(&std::format!("10.0.0.1:{n}"), CLIENT);
        let mut places = NOBODY;
        for n in 1..=4 {
            hear(&mut places, &own(n), NOW + n * SECOND);
        }
        // The first one lasts longer.
        assert!(answer(&mut places, &own(1), NOW + 5 * SECOND));
        hear(&mut places, &own(1), NOW + 5 * SECOND);
        hear(&mut places, &own(5), NOW + 6 * SECOND);
        let known = |places: &[HeardPlace; WAYS], now| {
            (1..=6).filter(|n| is_answer(places, &own(*n), now)).collect::<std::vec::Vec<_>>()
        };
        assert_eq!(known(&places, NOW + 6 * SECOND), [1, 3, 4, 5]);
        // 3 and 4 are over, though the first one was silent for longer.
        hear(&mut places, &own(6), NOW + 35 * SECOND);
        assert_eq!(known(&places, NOW + 35 * SECOND), [1, 5, 6]);
    }

    #[test]
    fn a_namespace_has_room_for_many_at_one_time() {
        let mut slots = [NOBODY; SLOTS as usize];
        let clients =
            (0..40u16).map(|n| exchange(SERVER, &std::format!("192.0.2.10:{}", 30000 + n)));
        let clients: std::vec::Vec<_> = clients.collect();
        for client in &clients {
            hear(&mut slots[client.slot.number as usize], client, NOW);
        }
        let known =
            clients.iter().filter(|c| is_answer(&slots[c.slot.number as usize], c, NOW)).count();
        assert_eq!(known, clients.len());
    }

    #[test]
    fn ends_that_differ_anywhere_have_other_tags() {
        let mut tags = BTreeSet::new();
        let mut number = 0;
        for n in 0..250u64 {
            for (netns, own, with) in [
                (n + 1, 9000, std::string::String::from("10.0.0.1:53")),
                (300, 9001 + n, std::string::String::from("10.0.0.1:53")),
                (300, 9000, std::format!("10.0.0.1:{}", 54 + n)),
                (300, 9000, std::format!("10.0.{n}.2:53")),
                (300, 9000, std::format!("[fd00:{n}::1]:53")),
            ] {
                let own = peer(&std::format!("0.0.0.0:{own}"));
                tags.insert(Exchange::new(netns, own, peer(&with)).tag);
                number += 1;
            }
        }
        assert_eq!(tags.len(), number);
    }
}
