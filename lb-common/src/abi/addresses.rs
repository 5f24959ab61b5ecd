//! `addresses` and `filter`: what is known of an address, whatever the port.

use bytemuck::{Pod, Zeroable};

use super::{Addr, bpf_spin_lock};

/// What [`ADDRESSES`](super::ADDRESSES) says of an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Address {
    /// One or more of the constants.
    pub flags: u32,
    /// In the map: 32 bits of all the rest and of the key, as a hash element may change, or be recycled,
    /// under its reader.
    pub seal: u32,
    /// Only in the network namespace with this cookie; 0: in all.
    pub netns: u64,
}

impl Address {
    /// Bit of `flags`: an address of this node; NodePorts are [`SCOPE_OWN_NODE`](super::SCOPE_OWN_NODE).
    pub const OWN_NODE: u32 = 1;
    /// Bit of `flags`: an address of another node.
    pub const OTHER_NODE: u32 = 2;
    /// Bit of `flags`: a cluster IP; a port that no Service has is refused (kube-proxy E12).
    pub const CLUSTER_IP: u32 = 4;
    /// Bit of `flags`: every port is refused, also to a connect() of UDP. So the programs' being in
    /// force can be seen without a datagram.
    pub const RESERVED: u32 = 8;

    /// An address as it stands in the map under `key`.
    #[inline(always)]
    pub const fn new(key: Addr, flags: u32, netns: u64) -> Self {
        Self { flags, seal: Self::seal(key, flags, netns), netns }
    }

    /// Whether it was made for `key`.
    #[inline(always)]
    pub const fn is_of(&self, key: Addr) -> bool {
        self.seal == Self::seal(key, self.flags, self.netns)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    const fn seal(key: Addr, flags: u32, netns: u64) -> u32 {
        key.digest() ^ flags ^ netns as u32 ^ (netns >> 32) as u32
    }
}

/// Value of [`ADDRESSES`](super::ADDRESSES), changed where it stands as a
/// [`ServiceEntry`](super::ServiceEntry) is. 24 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct AddressEntry {
    /// What it says.
    pub address: Address,
    /// The kernel's.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
}

/// Key of [`ADDRESSES`](super::ADDRESSES) that speaks for all of `127.0.0.0/8` that has no entry of its
/// own, as far as it is this node's.
pub const LOOPBACK_NET: Addr = Addr::from_v4_word(u32::from_ne_bytes([127, 0, 0, 0]));

/// Bits of an index of a bit in [`FILTER`](super::FILTER).
pub(super) const FILTER_BITS: u32 = 12;

/// Elements of [`FILTER`](super::FILTER).
pub const FILTER_WORDS: u32 = (1 << FILTER_BITS) / u64::BITS;

const _: () = {
    assert!(size_of::<AddressEntry>() == 24);
};

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn what_is_said_of_one_address_is_not_believed_of_another() {
        let [a, b] = ["10.96.0.1", "10.96.0.2"].map(|ip| Addr::from(ip.parse::<IpAddr>().unwrap()));
        let address = Address::new(a, Address::CLUSTER_IP, 0);
        assert!(address.is_of(a) && !address.is_of(b));
        assert!(a.is_v4() && a.unspecified() == Addr::from(Ipv4Addr::UNSPECIFIED));
        let v6 = Addr::from("fd00::1".parse::<IpAddr>().unwrap());
        assert!(!v6.is_v4() && v6.unspecified() == Addr::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)));
    }
}
