//! `services` and `names`: which block holds a frontend's backends, and whose the frontend is.

use bytemuck::{Pod, Zeroable, must_cast};

use super::{Addr, Peer, bpf_spin_lock, ip::mixed};

/// [`ServiceKey::scope`]: the address is the one that clients dial.
pub const SCOPE_ANY: u8 = 0;
/// A NodePort on the addresses of this node; the address is the unspecified one of the family.
pub const SCOPE_OWN_NODE: u8 = 1;
/// A NodePort on the addresses of all other nodes; the address is the unspecified one of the family.
pub const SCOPE_OTHER_NODES: u8 = 2;
/// A NodePort on an address of one other node; goes before [`SCOPE_OTHER_NODES`].
pub const SCOPE_NODE: u8 = 3;

/// Key of [`SERVICES`](super::SERVICES): one frontend. 20 bytes, hashed by the kernel word by word, so
/// written so.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct ServiceKey {
    /// Address and port that clients dial.
    pub peer: Peer,
    /// [`TCP`](super::TCP) or [`UDP`](super::UDP).
    pub protocol: u8,
    /// Which address space `peer` is in: one of the `SCOPE_*`.
    pub scope: u8,
}

impl ServiceKey {
    /// The frontend as any client sees it.
    #[inline(always)]
    pub const fn new(peer: Peer, protocol: u8) -> Self {
        let [a, b, c, d] = peer.addr.words();
        let [high, low] = peer.port.raw().to_ne_bytes();
        must_cast([a, b, c, d, u32::from_ne_bytes([high, low, protocol, 0])])
    }

    /// The same port of what `scope` makes of `addr`.
    #[inline(always)]
    #[must_use]
    pub const fn scoped(&self, addr: Addr, scope: u8) -> Self {
        let [a, b, c, d] = addr.words();
        let [high, low] = self.peer.port.raw().to_ne_bytes();
        must_cast([a, b, c, d, u32::from_ne_bytes([high, low, self.protocol, scope])])
    }

    /// 32 bits of the key: equal for two different keys once in 2^32 times. The sum of the words,
    /// each multiplied by an odd number of its own, costs the datapath little.
    #[inline(always)]
    pub(crate) const fn digest(&self) -> u32 {
        let rest =
            self.peer.port.raw() as u64 | (self.protocol as u64) << 16 | (self.scope as u64) << 24;
        let rest = rest.wrapping_mul(0x1656_67b1_9e37_79f9);
        (mixed(self.peer.addr.words()).wrapping_add(rest) >> 32) as u32
    }
}

/// What [`SERVICES`](super::SERVICES) says of a frontend: which block holds its backends. 20 bytes.
///
/// A hash element is recycled while readers still hold it, so a reader may see a mix of two values, or
/// the value of another key. It therefore believes nothing here that a [`Backend`](super::Backend) with
/// the same generation does not confirm, and the generation stands in the map [sealed](Self::sealed)
/// with the key; all else that is true of the set stands in the records.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Service {
    /// Index in [`BACKENDS`](super::BACKENDS) of the first record.
    pub block: u32,
    /// Number of records to choose from; never 0 (an empty set is one record that refuses).
    pub count: u32,
    /// Number of records behind those: backends that flows may stay with, but no new one goes to.
    pub kept: u32,
    /// The same number in each record of the block; another block, another number; never 0.
    pub generation: u32,
    /// The service port this frontend belongs to, key of [`NAMES`](super::NAMES). For people; the
    /// datapath takes the id from the record.
    pub id: u32,
}

impl Service {
    /// Number of records in the block.
    #[inline(always)]
    pub const fn records(&self) -> u32 {
        self.count.wrapping_add(self.kept)
    }

    /// The value as it stands in the map under `key`, made from what it says; and the inverse. What
    /// was sealed with another key says a generation that no record has.
    #[inline(always)]
    #[must_use]
    pub const fn sealed(self, key: &ServiceKey) -> Self {
        Self { generation: self.generation ^ key.digest(), ..self }
    }
}

/// Value of [`SERVICES`](super::SERVICES). 24 bytes.
///
/// The lock lets the agent change a value where it stands (`BPF_F_LOCK`). Any other update puts a new
/// element at the head of its bucket and then takes the old one out behind it, and a reader on its
/// way through the bucket meets neither: the frontend would be gone for that reader. Nobody else
/// takes the lock; a reader finds out about a value half changed by its generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceEntry {
    /// What it says.
    pub service: Service,
    /// The kernel's.
    pub lock: bpf_spin_lock,
}

/// Value of [`NAMES`](super::NAMES): the service port behind an id. 200 bytes.
///
/// It lets `lbctl` show names while the agent is dead, and a new agent find the ids of the old one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Name {
    /// Namespace of the Service, padded with zero bytes.
    pub namespace: [u8; 64],
    /// Name of the Service, padded with zero bytes.
    pub name: [u8; 64],
    /// Name of the Service's port (may be empty), padded with zero bytes.
    pub port: [u8; 64],
    /// [`TCP`](super::TCP) or [`UDP`](super::UDP).
    pub protocol: u8,
    /// Always 0.
    pub reserved: [u8; 7],
}

const _: () = {
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<Service>() == 20);
    assert!(size_of::<ServiceEntry>() == 24);
    assert!(size_of::<Name>() == 200);
};

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::SocketAddr;

    use super::{
        super::{TCP, UDP},
        *,
    };

    #[test]
    fn keys_that_differ_anywhere_seal_differently() {
        let key = |addr: &str, protocol, scope| ServiceKey {
            peer: addr.parse::<SocketAddr>().unwrap().into(),
            protocol,
            scope,
        };
        let mut keys = std::vec![key("10.96.0.1:80", UDP, 0), key("10.96.0.1:80", TCP, 1)];
        for n in 1..=250 {
            keys.push(key(&std::format!("10.96.0.{n}:80"), TCP, 0));
            keys.push(key(&std::format!("10.{n}.0.1:80"), TCP, 0));
            keys.push(key(&std::format!("10.96.1.0:{n}"), TCP, 0));
            keys.push(key(&std::format!("[fd00:{n}::1]:80"), TCP, 0));
            keys.push(key(&std::format!("[fd01::1:{n}:0:0]:80"), TCP, 0));
        }
        keys.sort_unstable();
        keys.dedup();
        let digests: std::collections::BTreeSet<_> = keys.iter().map(ServiceKey::digest).collect();
        assert_eq!(digests.len(), keys.len());

        let service = Service { block: 1, count: 2, kept: 0, generation: 3, id: 4 };
        assert_eq!(service.sealed(&keys[0]).sealed(&keys[0]), service);
        assert_ne!(service.sealed(&keys[0]).sealed(&keys[1]).generation, service.generation);
    }
}
