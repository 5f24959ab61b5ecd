//! Ends of connections, as they stand in the storage and as they are compared.

use bytemuck::must_cast;

use crate::abi::{Addr, Peer, Port, mixed};

/// A [`Peer`] in words: as what it is compared with, it is read from memory once per word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Words {
    pub(super) addr: [u64; 2],
    pub(super) port: u16,
}

impl Words {
    #[inline(always)]
    pub(super) fn new(peer: Peer) -> Self {
        let [a, b, c, d] = peer.addr.words();
        Self { addr: [must_cast([a, b]), must_cast([c, d])], port: peer.port.raw() }
    }

    /// Whether it is the same, in one step: with more for each of many flows, the kernel's verifier has
    /// no patience.
    #[inline(always)]
    pub(super) const fn is(&self, addr: &[u64; 2], port: u16) -> bool {
        (self.addr[0] ^ addr[0]) | (self.addr[1] ^ addr[1]) | (self.port ^ port) as u64 == 0
    }

    /// 64 bits of it.
    #[inline(always)]
    pub(super) const fn tag(&self) -> u64 {
        let [[a, b], [c, d]]: [[u32; 2]; 2] = must_cast(self.addr);
        let sum = mixed([a, b, c, d]).wrapping_add(self.port as u64);
        (sum ^ (sum >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (sum >> 32)
    }

    /// 32 bits of it, of which one is set.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "these are the bits")]
    pub(super) const fn short_tag(&self) -> u32 {
        self.tag() as u32 | 1
    }

    /// Others of these bits, as a [`Question`](super::Question) has them of its frontend.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "these are the bits")]
    pub(super) const fn shorter_tag(&self) -> u16 {
        (self.tag() >> 32) as u16
    }
}

#[inline(always)]
pub(super) const fn peer(addr: [u64; 2], port: u16) -> Peer {
    Peer { addr: Addr::from_words(must_cast(addr)), port: Port::from_raw(port) }
}
