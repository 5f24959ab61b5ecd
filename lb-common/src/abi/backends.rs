//! `backends`: the records of the backend sets.

use bytemuck::{Pod, Zeroable};

use super::Peer;

/// Element of [`BACKENDS`](super::BACKENDS): one endpoint of one backend set. 32 bytes, so none
/// straddles a cache line.
///
/// A record is immutable from the moment a service names its block until a grace period after the
/// last service stopped naming it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Where the connection goes.
    pub peer: Peer,
    /// What is to be done, see [`Backend::action`].
    pub action: u8,
    /// [`Backend::SOURCE_RANGES`], [`Backend::OPTIONS`], or 0. A reader that does not know a bit refuses.
    pub flags: u8,
    /// Generation of the block.
    pub generation: u32,
    /// Id of the service port.
    pub service: u32,
    /// Id of the endpoint as this service port's; 0 in the records of empty sets. It is the same in all
    /// sets of the service port, and small enough to be an index; another endpoint has it only long after
    /// the last record with it was given up.
    pub backend: u32,
}

/// What a [`Backend`] record asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Connect to the record's address.
    Forward,
    /// Fail with ECONNREFUSED: the service port has no endpoints (kube-proxy F1).
    Refuse,
    /// Fail with EHOSTUNREACH: it has some, but none that a traffic policy allows from here (F2).
    Unreachable,
}

impl Action {
    /// As stored in [`Backend::action`].
    pub const fn code(self) -> u8 {
        match self {
            Self::Forward => 1,
            Self::Refuse => 2,
            Self::Unreachable => 3,
        }
    }
}

impl Backend {
    /// Bit of [`Backend::flags`]: [`SOURCE_RANGES`](super::SOURCE_RANGES) says which clients may connect.
    pub const SOURCE_RANGES: u8 = 1;
    /// Bit of [`Backend::flags`]: [`PORTS`](super::PORTS) says more of the service port.
    pub const OPTIONS: u8 = 2;

    /// Whether there is no bit in [`Backend::flags`] but those above.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.flags & !(Self::SOURCE_RANGES | Self::OPTIONS) == 0
    }

    /// A record to an endpoint.
    #[inline(always)]
    pub fn forward(peer: Peer) -> Self {
        Self { peer, action: Action::Forward.code(), ..Self::zeroed() }
    }

    /// The only record of a set without endpoints.
    pub fn refuse() -> Self {
        Self { action: Action::Refuse.code(), ..Self::zeroed() }
    }

    /// The only record of a set without endpoints here.
    pub fn unreachable() -> Self {
        Self { action: Action::Unreachable.code(), ..Self::zeroed() }
    }

    /// What the record asks for; refuse, if it asks for something unknown.
    #[inline(always)]
    pub const fn action(&self) -> Action {
        if self.action == Action::Forward.code() {
            Action::Forward
        } else if self.action == Action::Unreachable.code() {
            Action::Unreachable
        } else {
            Action::Refuse
        }
    }

    /// The same record with another block's generation and service.
    #[inline(always)]
    #[must_use]
    pub const fn stamped(self, generation: u32, service: u32) -> Self {
        Self { generation, service, ..self }
    }
}

const _: () = {
    assert!(size_of::<Backend>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_never_written_refuses() {
        assert_eq!(Backend::zeroed().action(), Action::Refuse);
    }
}
