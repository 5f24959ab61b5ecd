//! The socket that asks, and what it asks for.

use bytemuck::Zeroable;

use crate::abi::{Addr, AffinityKey, Bond, Peer};

/// The socket that asks. Each is asked only where it matters, since each is a call into the kernel.
///
/// A way of choosing that asks how busy a backend is would ask here, by
/// [`Backend::backend`](crate::abi::Backend::backend); [`PortOptions`](crate::abi::PortOptions) has room for
/// its number.
pub trait Caller {
    /// Which of the `count` records to choose from it takes: a number below `count`, or 0. A socket draws
    /// one with [`pick`](super::pick).
    fn index(&self, flow: &Flow, count: u32) -> u32;
    /// The cookie of its network namespace.
    fn netns(&self) -> u64;
    /// The address that its packets come from, if that is settled: the socket is bound to it, or the
    /// message says so. Else the unspecified one.
    fn source(&self) -> Addr;
    /// Settles it.
    fn come_from(&self, addr: Addr) -> Origin;
    /// The time, in nanoseconds of the monotonic clock.
    fn now(&self) -> u64;
    /// Makes `bond` the client's in place of `before`, which was read. False if another program was
    /// faster; `bond` is then what that one made.
    fn bind(&self, key: &AffinityKey, before: &Bond, bond: &mut Bond) -> bool;
    /// Whether it comes from a loopback address and dials one: see
    /// [`Refusal::Confined`](crate::Refusal::Confined).
    #[inline(always)]
    fn is_confined(&self, flow: &Flow) -> bool {
        flow.peer.addr.is_loopback() && self.source().is_loopback()
    }
    /// Whether a datagram goes to the socket's own peer, and so where connect() has left it. Of an IPv4
    /// connection of an IPv6 socket, the kernel shows also what is sent without an address.
    #[inline(always)]
    fn is_connected_to(&self, _: &Peer) -> bool {
        false
    }
    /// Whether the flow's peer was heard before it was asked: then this is an answer, and no question
    /// to a Service.
    #[inline(always)]
    fn answers(&self, _: &Flow) -> bool {
        false
    }
}

/// Whether a socket comes from the address that it is to come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// It does.
    Settled,
    /// Nobody knows: it has a port already, and cannot be bound any more.
    Open,
    /// It does not: the address is none of its network namespace.
    Elsewhere,
}

/// What an application asked for. Aligned, or else the programs would read a reference byte by byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C, align(4))]
pub struct Flow {
    /// The destination it gave.
    pub peer: Peer,
    /// IP protocol number of the socket.
    pub protocol: u8,
}

/// Where earlier datagrams of the same flow went: a flow stays with a backend that still serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Zeroable)]
#[repr(C)]
pub struct Prior {
    /// The backend.
    pub backend: Peer,
    /// Generation of the block that it was last found in; 0: there were no earlier ones.
    pub generation: u32,
}

impl Prior {
    /// The first datagram of a flow, and every connection.
    pub const NONE: Self = Self { backend: Bond::NONE.backend, generation: 0 };

    /// Whether it was found in a later block. Generations begin anew behind the greatest number.
    #[inline(always)]
    pub const fn is_newer(&self, other: &Self) -> bool {
        self.generation.wrapping_sub(other.generation).wrapping_sub(1) < u32::MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_in_order_also_where_they_begin_anew() {
        let of = |generation| Prior { generation, ..Prior::NONE };
        for (new, old) in [(2, 1), (1000, 1), (1, u32::MAX), (5, u32::MAX - 5)] {
            assert!(of(new).is_newer(&of(old)) && !of(old).is_newer(&of(new)), "{new} {old}");
        }
        assert!(!of(7).is_newer(&of(7)));
    }
}
