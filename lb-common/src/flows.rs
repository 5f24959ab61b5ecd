//! What an unconnected UDP socket has sent to whom: where the next datagram to the same address goes,
//! and from what address an answer seems to come.
//!
//! A socket's flows are its own: no other socket ever takes their place. When it talks to more
//! Services than there is room for, the flow that it used least recently is forgotten.
//!
//! Two Services may lead to one backend, and a socket may talk to that backend directly as well. The
//! answers then differ in nothing; they are taken to come in the order of the questions. A question
//! that had no answer for a second is no longer waited for, so that one lost datagram does not shift
//! all labels behind it. Where the order is not known, as more questions were under way than are kept,
//! or the flow of a question was forgotten, an answer has no label rather than another one's.

mod entries;
mod questions;
#[cfg(test)]
mod tests;
mod words;

use words::Words;

pub use self::{
    entries::{
        Datagram, FlowPlace, Sent, has_another, leads_to, prior, record, settle, was_answered,
    },
    questions::{Answered, FEW, Question, last_used, ticks},
};
use crate::abi::{Peer, bpf_spin_lock};

/// What nearly every socket gets along with: one set of four flows.
pub type Few = Flows<4, 1, 16>;
/// What the others have besides. With what the kernel puts before it, 8 KB: one allocation of a socket.
pub type Many = Flows<WAYS, 16, 128>;
const WAYS: usize = 8;
/// What the kernel puts before a value that is stored for a socket, in bytes.
pub const BEFORE: usize = 72;

/// The flows of a socket, `N` in each of `SETS`, and its last `ASKED` questions; the flow's frontend says
/// in which set it is. All of the three are powers of two. 32 bytes, 48 for each flow, 12 for each question.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Flows<const N: usize, const SETS: usize, const ASKED: usize> {
    /// Several threads may send through one socket at one time.
    pub lock: bpf_spin_lock,
    /// Whether it has further ones, in [`MORE_FLOWS`](crate::abi::MORE_FLOWS), and its questions there.
    pub more: u16,
    /// How many questions there were here.
    asked: u16,
    /// [`backend_bit`] of each backend there was, in the first flows for all of them: most sockets
    /// that send to addresses of Services and to others do not send to these Services' backends.
    pub backends: u64,
    /// The cgroup in whose name further flows were made, see [`HELD`](crate::abi::HELD).
    pub cgroup: u64,
    /// When the last question was asked that gave up its place while an answer was waited for; 0: none.
    lost: u32,
    /// Always 0.
    reserved: u32,
    /// The flows.
    pub sets: [[Sent; N]; SETS],
    /// The questions: a ring.
    questions: [Question; ASKED],
}

/// In which of [`Many`]'s sets a flow is.
#[inline(always)]
pub fn set(frontend: Peer) -> usize {
    (Words::new(frontend).tag() >> 60) as usize
}

/// The place among all of [`Many`]'s flows of one in this set.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "there are 16 sets")]
pub const fn place_in(set: usize, place: FlowPlace) -> u16 {
    (set * WAYS) as u16 + place.index()
}

/// The bit of [`Flows::backends`] that speaks for a backend.
#[inline(always)]
pub fn backend_bit(backend: Peer) -> u64 {
    1 << (Words::new(backend).tag() >> 58)
}

/// The tag of a backend in a [`Question`].
#[inline(always)]
pub fn via(backend: Peer) -> u32 {
    Words::new(backend).short_tag()
}

const _: () = assert!(size_of::<Few>() + BEFORE <= 512);
const _: () = assert!(size_of::<Many>() + BEFORE <= 8192);
