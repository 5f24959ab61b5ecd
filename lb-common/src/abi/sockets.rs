//! `sockets` and `former`: what a connected socket dialled, and what it got.

use bytemuck::{Pod, Zeroable, must_cast};

use super::{Backend, Peer, Port};

/// Value of [`SOCKETS`](super::SOCKETS) and [`FORMER`](super::FORMER): what the socket was told, and
/// where it went. 48 bytes; each address starts at a word.
///
/// `connect(AF_UNSPEC)` runs no program, and a connect() may fail after them, so the value may outlive
/// the connection it describes, or describe one that never was: believe it only while `backend` is the
/// socket's peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Translation {
    /// What the application dialled.
    pub frontend: Peer,
    /// Always 0.
    pub reserved: [u8; 2],
    /// What it got.
    pub backend: Peer,
    /// Always 0.
    pub reserved_too: [u8; 2],
    /// Id of the service port.
    pub service: u32,
    /// Generation of the block the backend was taken from.
    pub generation: u32,
}

impl Translation {
    /// Of a socket that dialled `frontend`.
    #[inline(always)]
    pub const fn new(frontend: Peer, backend: &Backend) -> Self {
        Self {
            frontend,
            reserved: [0; 2],
            backend: backend.peer,
            reserved_too: [0; 2],
            service: backend.service,
            generation: backend.generation,
        }
    }

    /// Whether `peer` is the backend. Word by word, as they stand.
    #[inline(always)]
    pub const fn is_to(&self, peer: &Peer) -> bool {
        let [a, b, c, d] = peer.addr.words();
        let words: [u32; 12] = must_cast(*self);
        let is_addr = a == words[5] && b == words[6] && c == words[7] && d == words[8];
        is_addr && self.port().raw() == peer.port.raw()
    }

    /// The backend's port.
    #[inline(always)]
    pub const fn port(&self) -> Port {
        let [.., port, _, _, _, _, _]: [u16; 24] = must_cast(*self);
        Port::from_raw(port)
    }
}

const _: () = {
    assert!(size_of::<Translation>() == 48);
};
