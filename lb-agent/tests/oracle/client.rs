//! The client that sends a packet, as the programs see its socket.

use std::cell::Cell;

use lb_common::{
    Caller, Flow, Origin,
    abi::{self, Addr, AffinityKey, Bond},
};
use lb_core::onlooker::Onlooker;

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

/// The client that sends the packet, bound to its address: an [`Onlooker`] that draws what it is told
/// to, and keeps the bond that it is given.
pub(super) struct Client {
    pub(super) onlooker: Onlooker,
    pub(super) random: Cell<u32>,
    /// What it was bound to last.
    pub(super) bond: Cell<Option<(AffinityKey, Bond)>>,
}

impl Client {
    pub(super) fn of(packet: &Packet) -> Self {
        Self::at(1, packet)
    }

    /// At a time in nanoseconds.
    pub(super) fn at(now: u64, packet: &Packet) -> Self {
        let netns = match packet.place {
            Place::Pod => POD,
            Place::Host => HOST,
            Place::Outside => unreachable!("no socket of this node"),
        };
        let onlooker = Onlooker { random: 0, netns, source: packet.source.into(), now };
        Self { onlooker, random: Cell::new(0), bond: Cell::new(None) }
    }
}

impl Caller for Client {
    fn random(&self, _: &Flow) -> u32 {
        self.random.get()
    }

    fn netns(&self) -> u64 {
        self.onlooker.netns()
    }

    fn source(&self) -> Addr {
        self.onlooker.source()
    }

    fn come_from(&self, to: Addr) -> Origin {
        self.onlooker.come_from(to)
    }

    fn now(&self) -> u64 {
        self.onlooker.now()
    }

    fn bind(&self, key: &AffinityKey, _: &Bond, bond: &mut Bond) -> bool {
        self.bond.set(Some((*key, *bond)));
        true
    }
}
