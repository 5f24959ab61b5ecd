//! The socket that sends a packet, as the programs see it.

use std::cell::Cell;

use lb_common::{
    Caller, Flow, Origin,
    abi::{self, Addr, AffinityKey, Bond},
};

use super::{outcome::Packet, program::Place};

/// Cookies of network namespaces.
pub(super) const HOST: u64 = 1;
const POD: u64 = 2;

pub(super) fn flow(packet: &Packet) -> Flow {
    let protocol = if packet.protocol == "UDP" { abi::UDP } else { abi::TCP };
    Flow { peer: packet.to.into(), protocol }
}

/// A number with which [`lb_common::pick`] takes the `i`-th of so many.
pub(super) fn nth(i: u32, count: u32) -> u32 {
    let first = (u64::from(i) << 32).div_ceil(u64::from(count));
    u32::try_from(first).expect("i is below count")
}

/// The socket that sends the packet. It is bound to its address.
pub(super) struct Socket {
    pub(super) netns: u64,
    pub(super) source: Addr,
    pub(super) random: Cell<u32>,
    pub(super) now: u64,
    /// What it was bound to last.
    pub(super) bond: Cell<Option<(AffinityKey, Bond)>>,
}

impl Socket {
    pub(super) fn of(packet: &Packet) -> Self {
        let netns = match packet.place {
            Place::Pod => POD,
            Place::Host => HOST,
            Place::Outside => unreachable!("no socket of this node"),
        };
        Self {
            netns,
            source: packet.source.into(),
            random: Cell::new(0),
            now: 1,
            bond: Cell::new(None),
        }
    }
}

impl Caller for Socket {
    fn random(&self, _: &Flow) -> u32 {
        self.random.get()
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn source(&self) -> Addr {
        self.source
    }

    fn come_from(&self, _: Addr) -> Origin {
        Origin::Settled
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn bind(&self, key: &AffinityKey, _: &Bond, bond: &mut Bond) -> bool {
        self.bond.set(Some((*key, *bond)));
        true
    }
}
