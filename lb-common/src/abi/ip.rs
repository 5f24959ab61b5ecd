//! IP addresses as they stand in the maps.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::{Pod, Zeroable, must_cast};

use super::addresses::FILTER_BITS;

/// An IP address in network order; IPv4 as `::ffff:a.b.c.d`.
///
/// One form for both families means one set of maps, and a dual-stack socket that dials
/// `::ffff:10.96.0.10` finds the IPv4 Service without a special case.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(transparent)]
pub struct Addr([u8; 16]);

impl Addr {
    /// The four 32-bit words of a `sockaddr_in6`, as they stand in memory.
    ///
    /// A cast, not a sum of bytes: LLVM would not put the bytes together again, and the datapath
    /// would move them one by one.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        must_cast(words)
    }

    /// The inverse of [`Addr::from_words`].
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        must_cast(self)
    }

    /// The word of a `sockaddr_in`, as it stands in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), word])
    }

    /// The last word: the whole address, if it is an IPv4 one.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.words()[3]
    }

    /// The unspecified address of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn unspecified(self) -> Self {
        if self.is_v4() { Self::from_v4_word(0) } else { Self::from_words([0; 4]) }
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether it is `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.words();
        a == 0 && b == 0 && d == 0 && (c == 0 || c == u32::from_ne_bytes([0, 0, 0xff, 0xff]))
    }

    /// Whether it is `::1` or one of `127.0.0.0/8`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        let [a, b, c, d] = self.words();
        if self.is_v4() {
            d & u32::from_ne_bytes([0xff, 0, 0, 0]) == u32::from_ne_bytes([127, 0, 0, 0])
        } else {
            a == 0 && b == 0 && c == 0 && d == u32::from_ne_bytes([0, 0, 0, 1])
        }
    }

    /// Where a socket that is bound to `source` gets that dials this address, the unspecified one: to
    /// itself in IPv4, or else to the loopback address. Linux does so after the programs have run
    /// (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`, `__ip6_datagram_connect`, `udpv6_sendmsg`).
    #[inline(always)]
    #[must_use]
    pub const fn meant(self, source: Self) -> Self {
        let localhost = Self::from_v4_word(u32::from_ne_bytes([127, 0, 0, 1]));
        if self.is_v4() {
            if source.is_v4() && !source.is_unspecified() { source } else { localhost }
        } else if source.is_v4() {
            // A socket of both families, bound in IPv4.
            localhost
        } else {
            Self::from_words([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])])
        }
    }

    /// The bit of [`FILTER`](super::FILTER) that speaks for the address and its 255 neighbours.
    #[inline(always)]
    pub const fn filter_bit(self) -> u32 {
        let [a, b, c, d] = self.words();
        let d = d & u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
        // Multiplication carries upwards only: once more, for the high bits of both halves.
        let sum = mixed([a, b, c, d]);
        ((sum ^ (sum >> 32)).wrapping_mul(0x1656_67b1_9e37_79f9) >> (64 - FILTER_BITS)) as u32
    }

    /// 32 bits of the address.
    #[inline(always)]
    pub(super) const fn digest(self) -> u32 {
        (mixed(self.words()) >> 32) as u32
    }

    /// The bytes, in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.0
    }

    /// The address as the standard library has it, IPv4-mapped ones as IPv4.
    pub const fn ip(self) -> IpAddr {
        Ipv6Addr::from_octets(self.0).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self(ip.to_ipv6_mapped().octets())
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// The words of an address, each half multiplied by an odd number of its own. The high bits are the
/// best mixed.
#[inline(always)]
pub(crate) const fn mixed([a, b, c, d]: [u32; 4]) -> u64 {
    let high = (a as u64 | (b as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let low = (c as u64 | (d as u64) << 32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    high.wrapping_add(low)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{
        super::{FILTER_WORDS, LOOPBACK_NET},
        *,
    };

    #[test]
    fn v4_and_its_mapped_form_are_one_address() {
        let v4: IpAddr = "10.96.0.10".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.96.0.10".parse().unwrap();
        assert_eq!(Addr::from(v4), Addr::from(mapped));
        assert_eq!(Addr::from(mapped).ip(), v4);
        let word = u32::from_ne_bytes([10, 96, 0, 10]);
        assert_eq!(Addr::from_v4_word(word), Addr::from(v4));
        assert_eq!(Addr::from(v4).v4_word(), word);
    }

    #[test]
    fn words_round_trip() {
        let v6 = Addr::from("2001:db8::1:2".parse::<IpAddr>().unwrap());
        assert_eq!(Addr::from_words(v6.words()), v6);
        assert_eq!(v6.words()[0].to_ne_bytes(), [0x20, 0x01, 0x0d, 0xb8]);
    }

    #[test]
    fn neighbours_share_a_bit_of_the_filter_and_others_rarely_do() {
        let bit = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap()).filter_bit();
        assert_eq!(bit("10.96.0.1"), bit("10.96.0.254"));
        assert_eq!(bit("fd00::1:1"), bit("fd00::1:fe"));
        let mut bits: std::vec::Vec<u32> =
            (0..=255).map(|n| bit(&std::format!("10.96.{n}.1"))).collect();
        bits.extend((0..=255).map(|n| bit(&std::format!("fd00:10:96::{n:x}00"))));
        bits.extend((0..=255).map(|n| bit(&std::format!("192.168.{n}.1"))));
        assert!(bits.iter().all(|bit| *bit < FILTER_WORDS * 64));
        bits.sort_unstable();
        bits.dedup();
        assert!(bits.len() > 650, "{} different ones of 768", bits.len());
    }

    #[test]
    fn the_unspecified_address_means_what_it_means_to_the_kernel() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        // The mapped form of 0.0.0.0 is the same.
        let [none4, none6] = ["0.0.0.0", "::"].map(addr);
        for (dialled, source, meant) in [
            (none4, none4, "127.0.0.1"),
            (none4, addr("127.0.0.9"), "127.0.0.9"),
            (none4, addr("192.0.2.1"), "192.0.2.1"),
            (none4, none6, "127.0.0.1"),
            (none4, addr("2001:db8::1"), "127.0.0.1"),
            (none6, none6, "::1"),
            (none6, addr("2001:db8::1"), "::1"),
            (none6, addr("192.0.2.1"), "127.0.0.1"),
            (none6, none4, "127.0.0.1"),
        ] {
            assert!(dialled.is_unspecified());
            assert_eq!(dialled.meant(source), addr(meant), "{dialled} from {source}");
        }
        for text in ["127.0.0.1", "127.255.0.9", "127.0.0.0", "::1"] {
            assert!(addr(text).is_loopback() && !addr(text).is_unspecified(), "{text}");
        }
        for text in ["128.0.0.1", "1.0.0.127", "126.255.255.255", "::7f00:1", "::2", "fe80::1"] {
            assert!(!addr(text).is_loopback() && !addr(text).is_unspecified(), "{text}");
        }
        assert_eq!(LOOPBACK_NET, addr("127.0.0.0"));
    }
}
