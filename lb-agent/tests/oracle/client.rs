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

/// The client that sends the packet, bound to its address: an [`Onlooker`] that takes what it is told
/// to, and keeps the bond that it is given.
pub(super) struct Client {
    pub(super) onlooker: Onlooker,
    /// Which of the records it takes; the last one, if there are not that many.
    pub(super) index: Cell<u32>,
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
        let onlooker = Onlooker { index: 0, netns, source: packet.source.into(), now };
        Self { onlooker, index: Cell::new(0), bond: Cell::new(None) }
    }
}

impl Caller for Client {
    fn index(&self, _: &Flow, count: u32) -> u32 {
        self.index.get().min(count.saturating_sub(1))
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
