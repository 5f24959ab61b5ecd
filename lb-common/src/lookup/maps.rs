//! What the lookup reads.

use super::search::{Range, find};
use crate::abi::{
    Addr, Address, AffinityKey, Backend, Bond, ClientKey, Peer, PortOptions, Service, ServiceKey,
    SourceAddress, SourceRangeKey,
};

/// The maps, as far as the lookup reads them. Values are copies, each read from memory once.
pub trait ReadMaps {
    /// The frontend's entry in [`SERVICES`](crate::abi::SERVICES), its seal undone.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// What [`PORTS`](crate::abi::PORTS) says of a service port; none if out of bounds.
    fn port(&self, id: u32) -> Option<PortOptions>;
    /// The record at `index` of [`BACKENDS`](crate::abi::BACKENDS); none if out of bounds.
    fn backend(&self, index: u32) -> Option<Backend>;
    /// [`find`], for a backend. Its own function in the programs: the verifier then looks at the loop
    /// once, and not wherever it is needed.
    #[inline(always)]
    fn find(&self, range: Range, backend: &Peer) -> Option<bool>
    where
        Self: Sized,
    {
        find(self, range, backend.order())
    }
    /// What [`ADDRESSES`](crate::abi::ADDRESSES) says of an address.
    fn address(&self, addr: &Addr) -> Option<Address>;
    /// From where a socket of a network namespace connects, in [`CLIENTS`](crate::abi::CLIENTS).
    fn client(&self, key: &ClientKey) -> Option<SourceAddress>;
    /// Whether a range in [`SOURCE_RANGES`](crate::abi::SOURCE_RANGES) has the client.
    fn allows(&self, client: &SourceRangeKey) -> bool;
    /// Where the client went before, in [`AFFINITY`](crate::abi::AFFINITY); [`Bond::NONE`] if nowhere.
    fn bond(&self, key: &AffinityKey) -> Bond;
    /// Whether an address may be one that the maps know, by [`FILTER`](crate::abi::FILTER).
    #[inline(always)]
    fn may_know(&self, _: &Addr) -> bool {
        true
    }
}
