//! The flows of a socket: where its datagrams to each address go.

use bytemuck::{Pod, Zeroable};

use super::words::{Words, peer};
use crate::{abi::Peer, lookup::Prior};

/// The datagrams to one address. 48 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sent {
    /// The address that the application gave.
    pub(super) frontend: [u64; 2],
    /// Where they went: the same address, if it was no Service's.
    pub(super) backend: [u64; 2],
    /// The port that the application gave.
    pub(super) frontend_port: u16,
    /// The port where they went.
    pub(super) backend_port: u16,
    /// Generation of the block that the backend was last found in; 0: in none.
    pub(super) generation: u32,
    /// When the last one was sent, in halves of a nanosecond of the monotonic clock, save the lowest
    /// bit, which is [`Sent::ANSWERED`]; 0: the place is free.
    pub(super) last: u64,
}

impl Sent {
    /// Whether they are datagrams to this address. A free place is all zero, which is nobody's address.
    #[inline(always)]
    const fn is_to(&self, frontend: &Words) -> bool {
        frontend.is(&self.frontend, self.frontend_port)
    }

    /// Whether they go to this backend.
    #[inline(always)]
    pub(super) const fn is_via(&self, backend: &Words) -> bool {
        backend.is(&self.backend, self.backend_port)
    }

    /// Bit of [`last`](Self::last): a backend has answered.
    pub(super) const ANSWERED: u64 = 1;
}

/// A datagram that is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Datagram {
    /// The address that the application gave.
    pub frontend: Peer,
    /// Where it goes.
    pub to: Prior,
    /// When, in nanoseconds of the monotonic clock.
    pub now: u64,
}

/// The place of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowPlace(u32);

impl FlowPlace {
    /// There is none.
    const FULL: Self = Self(u32::MAX);
    /// Bit: it was another flow's, which is forgotten.
    const REPLACED: u32 = 1 << 16;

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_full(self) -> bool {
        self.0 == u32::MAX
    }

    /// Whether it was another flow's, which is forgotten.
    #[inline(always)]
    pub const fn was_another_s(self) -> bool {
        !self.is_full() && self.0 & Self::REPLACED != 0
    }

    /// Where it is.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the rest is no number")]
    pub const fn index(self) -> u16 {
        self.0 as u16
    }
}

/// Takes in that a datagram goes where it goes. If there is no place left, the flow used least recently
/// gives up its own, or (`!replace`) nothing happens.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "there are not that many")]
pub fn record(flows: &mut [Sent], datagram: &Datagram, replace: bool) -> FlowPlace {
    let Datagram { frontend, to: Prior { backend, generation }, now } = *datagram;
    let (frontend, backend) = (&Words::new(frontend), &Words::new(backend));
    let (mut place, mut oldest) = (0, u64::MAX);
    let mut index = 0;
    while index < flows.len() {
        let flow = &mut flows[index];
        if flow.is_to(frontend) {
            flow.backend = backend.addr;
            flow.backend_port = backend.port;
            flow.generation = generation;
            flow.last = now << 1 | flow.last & Sent::ANSWERED;
            return FlowPlace(index as u32);
        }
        if flow.last < oldest {
            (place, oldest) = (index, flow.last);
        }
        index += 1;
    }
    let is_free = oldest == 0;
    if !is_free && !replace {
        return FlowPlace::FULL;
    }
    let Some(flow) = flows.get_mut(place) else { return FlowPlace::FULL };
    // Field by field: LLVM zeroes more than a word by a call, and Linux before 6.9 allows none while the
    // flows are locked.
    flow.frontend = frontend.addr;
    flow.frontend_port = frontend.port;
    flow.backend = backend.addr;
    flow.backend_port = backend.port;
    flow.generation = generation;
    flow.last = now << 1;
    FlowPlace(place as u32 | if is_free { 0 } else { FlowPlace::REPLACED })
}

/// Puts into `place` where datagrams to `frontend` went before; false if there were none.
#[inline(always)]
pub fn prior(flows: &[Sent], frontend: Peer, place: &mut Prior) -> bool {
    let frontend = Words::new(frontend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &flows[index];
        if flow.is_to(&frontend) {
            *place = Prior {
                backend: peer(flow.backend, flow.backend_port),
                generation: flow.generation,
            };
            return true;
        }
        index += 1;
    }
    false
}

/// Whether another flow than that to `frontend` goes to `backend`.
#[inline(always)]
pub fn has_another(flows: &[Sent], backend: Peer, frontend: Peer) -> bool {
    let (backend, frontend) = (Words::new(backend), Words::new(frontend));
    let mut index = 0;
    while index < flows.len() {
        let flow = &flows[index];
        if flow.is_via(&backend) && !flow.is_to(&frontend) {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether one of the flows goes to `backend`.
#[inline(always)]
pub fn leads_to(flows: &[Sent], backend: Peer) -> bool {
    let backend = Words::new(backend);
    let mut index = 0;
    while index < flows.len() {
        if flows[index].is_via(&backend) {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether `frontend` is a Service's, and a question to it was answered. What was sent there without an
/// answer may have been one itself, too late: whether it is a question is asked anew with the next datagram,
/// as with the first.
#[inline(always)]
pub fn was_answered(flows: &mut [Sent], frontend: Peer) -> bool {
    let frontend = Words::new(frontend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &mut flows[index];
        if flow.is_to(&frontend) {
            if flow.last & Sent::ANSWERED == 0 {
                flow.generation = 0;
            }
            return flow.generation != 0;
        }
        index += 1;
    }
    false
}

/// Takes in that an answer seems to come from `frontend`, whether it was waited for or not.
#[inline(always)]
pub fn settle(flows: &mut [Sent], frontend: Peer) {
    let frontend = Words::new(frontend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &mut flows[index];
        if flow.is_to(&frontend) {
            flow.last |= Sent::ANSWERED;
            return;
        }
        index += 1;
    }
}

const _: () = assert!(size_of::<Sent>() == 48);
