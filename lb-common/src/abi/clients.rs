//! `source_ranges` and `clients`: which clients may use a service port, and from which address a
//! client comes.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{Addr, bpf_spin_lock, ip::mixed};

/// Key of [`SOURCE_RANGES`](super::SOURCE_RANGES), behind the length of the prefix: all of the id, and
/// up to 128 bits of the address. 20 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct SourceRangeKey {
    /// Id of the service port, in network order.
    service: [u8; 4],
    /// The address.
    addr: Addr,
}

impl SourceRangeKey {
    /// Length of a prefix that leaves out nothing.
    pub const BITS: u32 = 160;

    /// A client of a service port, or the first one of a range.
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr) -> Self {
        Self { service: service.to_be_bytes(), addr }
    }

    /// Id of the service port.
    pub const fn service(&self) -> u32 {
        u32::from_be_bytes(self.service)
    }

    /// The address.
    pub const fn addr(&self) -> Addr {
        self.addr
    }
}

/// Key of [`CLIENTS`](super::CLIENTS): a network namespace, and where its socket connects to. 24 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct ClientKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The address of a load balancer; the unspecified one of the family: any.
    pub to: Addr,
}

impl ClientKey {
    /// What holds for all addresses of the family of `to` that have no entry of their own.
    #[inline(always)]
    pub const fn general(netns: u64, to: Addr) -> Self {
        Self { netns, to: to.unspecified() }
    }

    /// The same namespace, when it connects to `to`.
    #[inline(always)]
    #[must_use]
    pub const fn towards(self, to: Addr) -> Self {
        Self { to, ..self }
    }

    #[inline(always)]
    const fn digest(&self) -> u64 {
        self.netns.wrapping_mul(0x1656_67b1_9e37_79f9).wrapping_add(mixed(self.to.words()))
    }
}

/// The source address that routing in a network namespace chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SourceAddress {
    /// The address.
    pub addr: Addr,
    /// Any of the constants.
    pub flags: u32,
}

impl SourceAddress {
    /// Bit of `flags`, in a general entry: there are others, for single addresses of load balancers.
    pub const OTHERS: u32 = 1;
    /// Bit of `flags`: also a socket that has a port, and so cannot be bound any more, comes from there:
    /// there is no other address, or nobody to be afraid of.
    pub const SURE: u32 = 2;

    /// A client that comes from `addr`.
    #[inline(always)]
    pub const fn new(addr: Addr, flags: u32) -> Self {
        Self { addr, flags }
    }
}

/// Value of [`CLIENTS`](super::CLIENTS). 32 bytes.
///
/// The lock is there as in [`ServiceEntry`](super::ServiceEntry): a key is never hidden. The programs
/// take it as well, so that nobody reads half a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ClientEntry {
    /// What it says.
    pub source: SourceAddress,
    /// The kernel's.
    pub lock: bpf_spin_lock,
    /// 64 bits of the key: a hash element may be recycled under its reader.
    pub seal: u64,
}

impl ClientEntry {
    /// What stands in the map under `key`.
    #[inline(always)]
    pub const fn new(key: &ClientKey, source: SourceAddress) -> Self {
        Self { source, lock: bpf_spin_lock::UNLOCKED, seal: Self::seal(key) }
    }

    /// The seal of a value under `key`.
    #[inline(always)]
    pub const fn seal(key: &ClientKey) -> u64 {
        key.digest()
    }
}

const _: () = {
    assert!(size_of::<SourceRangeKey>() == 20);
    assert!(size_of::<ClientKey>() == 24);
    assert!(size_of::<ClientEntry>() == 32);
    assert!(offset_of!(ClientEntry, lock) == 20);
};

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::IpAddr;

    use super::*;

    #[test]
    fn a_client_of_another_key_has_another_seal() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let v4 = ClientKey::general(7, addr("203.0.113.5"));
        let v6 = ClientKey::general(7, addr("2001:db8::5"));
        assert_eq!(v4, ClientKey::general(7, addr("203.0.113.6")));
        let other = ClientKey::general(8, addr("203.0.113.5"));
        let one = v4.towards(addr("203.0.113.5"));
        let seals = [v4, v6, other, one].map(|key| ClientEntry::seal(&key));
        for (n, seal) in seals.iter().enumerate() {
            assert!(!seals[..n].contains(seal), "{seals:x?}");
        }
    }
}
