//! From whom UDP sockets have just heard: looked at, and forgotten once it is over.

use aya::maps::{HashMap, MapData, MapError};
use bytemuck::must_cast;
use lb_common::{
    abi::{HEARD, Peer},
    heard::{self, Exchange, Heard, Slot},
};

use super::{
    OpenError,
    bonds::now,
    one::{gone, hash},
};
use crate::pins::Pins;

const SLOT: usize = size_of::<Slot>();
const EXCHANGES: usize = size_of::<Heard>();

/// The pinned exchanges of UDP sockets with peers that have a Service's address.
#[derive(Debug)]
pub struct Exchanges {
    map: HashMap<MapData, [u8; SLOT], [u8; EXCHANGES]>,
    size: u32,
}

impl Exchanges {
    /// Opens those that are pinned.
    pub fn open(pins: &Pins) -> Result<Self, OpenError> {
        let (map, size) = hash(pins.root(), HEARD)?;
        Ok(Self { map, size })
    }

    /// Whether a socket of a network namespace that sends to its peer answers it.
    pub fn is_answer(&self, netns: u64, own: Peer, peer: Peer) -> bool {
        let exchange = Exchange::new(netns, own, peer);
        let found = self.map.get(&must_cast(exchange.slot), 0);
        found.is_ok_and(|heard| {
            heard::is_answer(&must_cast::<_, Heard>(heard).places, &exchange, now())
        })
    }

    /// Forgets what is over, also that of network namespaces that are gone. Returns how many slots
    /// were in use, and how many are.
    ///
    /// A program may be about to write into a slot that is being removed: then its next datagram does.
    pub fn sweep(&mut self) -> Result<(usize, usize), MapError> {
        let now = now();
        let all: Vec<([u8; SLOT], [u8; EXCHANGES])> = self.map.iter().collect::<Result<_, _>>()?;
        let mut left = all.len();
        for (slot, heard) in &all {
            if must_cast::<_, Heard>(*heard).is_over(now) {
                gone(self.map.remove(slot))?;
                left -= 1;
            }
        }
        Ok((all.len(), left))
    }

    /// How many slots are in use, and how many there may be.
    pub fn fill(&self) -> (usize, u32) {
        (self.map.keys().count(), self.size)
    }
}
