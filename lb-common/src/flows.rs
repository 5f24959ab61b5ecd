//! What an unconnected UDP socket has sent to whom: where the next datagram to the same address goes,
//! and from what address an answer seems to come.
//!
//! A socket's flows are its own: no other socket ever takes their place. When it talks to more
//! Services than there is room for, the flow that it used least recently is forgotten.
//!
//! Two Services may lead to one backend, and a socket may talk to that backend directly as well. The
//! answers then differ in nothing; they are taken to come in the order of the questions. A question
//! that had no answer for a second is no longer waited for, so that one lost datagram does not shift
//! all labels behind it.

use bytemuck::{Pod, Zeroable, must_cast};

use crate::{
    abi::{Addr, Peer, Port, bpf_spin_lock, mixed},
    lookup::Prior,
};

/// What nearly every socket gets along with: one set of four flows.
pub type Few = Flows<4, 1>;
/// What the others have besides. With what the kernel puts before it, 8 KB: one allocation of a socket.
pub type Many = Flows<7, 16>;
/// What the kernel puts before a value that is stored for a socket, in bytes.
pub const BEFORE: usize = 72;

/// For how long an answer is waited for, in nanoseconds.
const PATIENCE: u64 = 1_000_000_000;

/// A [`Peer`] in words: as what it is compared with, it is read from memory once per word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Words {
    addr: [u64; 2],
    port: u16,
}

impl Words {
    #[inline(always)]
    fn new(peer: Peer) -> Self {
        let [a, b, c, d] = peer.addr.words();
        Self { addr: [must_cast([a, b]), must_cast([c, d])], port: peer.port.raw() }
    }

    /// Whether it is the same, in one step: with more for each of many flows, the kernel's verifier has
    /// no patience.
    #[inline(always)]
    const fn is(&self, addr: &[u64; 2], port: u16) -> bool {
        (self.addr[0] ^ addr[0]) | (self.addr[1] ^ addr[1]) | (self.port ^ port) as u64 == 0
    }

    /// 64 bits of it.
    #[inline(always)]
    const fn tag(&self) -> u64 {
        let [[a, b], [c, d]]: [[u32; 2]; 2] = must_cast(self.addr);
        let sum = mixed([a, b, c, d]).wrapping_add(self.port as u64);
        (sum ^ (sum >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (sum >> 32)
    }

    /// 32 bits of it, of which one is set.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "these are the bits")]
    const fn short_tag(&self) -> u32 {
        self.tag() as u32 | 1
    }
}

#[inline(always)]
const fn peer(addr: [u64; 2], port: u16) -> Peer {
    Peer { addr: Addr::from_words(must_cast(addr)), port: Port::from_raw(port) }
}

/// Of how many questions that wait for an answer the order is known, for each flow.
const ORDERED: usize = 8;

/// The datagrams to one address. 72 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sent {
    /// The address that the application gave.
    frontend: [u64; 2],
    /// Where they went: the same address, if it was no Service's.
    backend: [u64; 2],
    /// The port that the application gave.
    frontend_port: u16,
    /// The port where they went.
    backend_port: u16,
    /// Generation of the block that the backend was last found in; 0: in none.
    generation: u32,
    /// When the last one was sent, in nanoseconds of the monotonic clock; 0: the place is free.
    last: u64,
    /// Short tag of the backend before this one, which may have an answer under way; 0: none.
    former: u32,
    /// How many of the last ones were not answered.
    waiting: u16,
    /// How many there were.
    asked: u8,
    /// 1 once a backend has answered.
    answered: u8,
    /// The turns of the last ones: which of all the socket's datagrams they were.
    turns: [u16; ORDERED],
}

/// The flows of a socket, `N` in each of `SETS`; the flow's frontend says in which one. 24 bytes,
/// and 72 for each.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Flows<const N: usize, const SETS: usize> {
    /// Several threads may send through one socket at one time.
    pub lock: bpf_spin_lock,
    /// Whether it has further ones, in [`MORE_FLOWS`](crate::abi::MORE_FLOWS).
    pub more: u16,
    /// How many datagrams were sent, in the first flows for all of them.
    pub turn: u16,
    /// [`backend_bit`] of each backend there was, in the first flows for all of them: most sockets
    /// that send to addresses of Services and to others do not send to these Services' backends.
    pub backends: u64,
    /// The cgroup in whose name further flows were made, see [`HELD`](crate::abi::HELD).
    pub cgroup: u64,
    /// The flows.
    pub sets: [[Sent; N]; SETS],
}

/// In which of [`Many`]'s sets a flow is.
#[inline(always)]
pub fn set(frontend: Peer) -> usize {
    (Words::new(frontend).tag() >> 60) as usize
}

/// [`Answered::rank`] of a flow that goes to another backend now.
const LATE: u64 = 1;
/// Bit of [`Answered::rank`]: it waits.
const WAITS: u64 = 1 << 63;

/// The flow that an answer belongs to, as far as can be said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answered {
    /// The address that the application asked.
    pub frontend: Peer,
    /// Of those that wait the one that waits longest has the highest, then the one used last.
    rank: u64,
}

impl Answered {
    /// None. Not an `Option`: what LLVM makes of moving one that is empty, the verifier refuses.
    pub const NOBODY: Self = Self {
        frontend: Peer { addr: Addr::from_words([0; 4]), port: Port::from_raw(0) },
        rank: 0,
    };

    /// Whether there is one.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.rank != 0
    }
}

/// What [`record`] did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recorded {
    /// The flow has its place.
    Known,
    /// It has the place of another flow, which is forgotten.
    InPlaceOfAnother,
    /// There is no place.
    Full,
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

/// The bit of [`Flows::backends`] that speaks for a backend.
#[inline(always)]
pub fn backend_bit(backend: Peer) -> u64 {
    1 << (Words::new(backend).tag() >> 58)
}

impl Sent {
    /// Whether they are datagrams to this address. A free place is all zero, which is nobody's address.
    #[inline(always)]
    const fn is_to(&self, frontend: &Words) -> bool {
        frontend.is(&self.frontend, self.frontend_port)
    }

    /// Whether they go to this backend.
    #[inline(always)]
    const fn is_via(&self, backend: &Words) -> bool {
        backend.is(&self.backend, self.backend_port)
    }

    /// A new flow takes the place. Field by field, and without those that say nothing of a flow that
    /// has asked nothing yet: LLVM zeroes more than a word by a call, and Linux before 6.9 allows none
    /// while the flows are locked.
    #[inline(always)]
    const fn begin(&mut self, frontend: &Words, backend: &Words, generation: u32) {
        self.frontend = frontend.addr;
        self.frontend_port = frontend.port;
        self.backend = backend.addr;
        self.backend_port = backend.port;
        self.generation = generation;
        self.waiting = 0;
        self.asked = 0;
        self.answered = 0;
        self.former = 0;
    }

    /// One more goes there, as the socket's datagram number `turn`.
    #[inline(always)]
    fn ask(&mut self, turn: u16, now: u64) {
        self.turns[usize::from(self.asked) % ORDERED] = turn;
        self.asked = self.asked.wrapping_add(1);
        self.waiting = self.waiting.saturating_add(1);
        self.last = now;
    }

    /// How many turns ago the first question was asked that waits; if more wait than the order is known
    /// of, a later one.
    #[inline(always)]
    fn age(&self, turn: u16) -> u16 {
        let first = usize::from(u16::from(self.asked).wrapping_sub(self.waiting)) % ORDERED;
        turn.wrapping_sub(self.turns[first])
    }
}

/// A datagram of a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// When it is sent, or was received, in nanoseconds of the monotonic clock.
    pub now: u64,
    /// How many the socket has sent.
    pub turn: u16,
}

/// Takes in that a datagram for `frontend` goes where `to` says. If there is no place left, the flow
/// used least recently gives up its own, or (`!replace`) nothing happens.
#[inline(always)]
pub fn record(
    flows: &mut [Sent],
    frontend: Peer,
    to: Prior,
    moment: Moment,
    replace: bool,
) -> Recorded {
    let Moment { now, turn } = moment;
    let Prior { backend, generation } = to;
    let (frontend, backend) = (&Words::new(frontend), &Words::new(backend));
    let (mut place, mut oldest) = (0, u64::MAX);
    let mut index = 0;
    while index < flows.len() {
        let flow = &mut flows[index];
        if flow.is_to(frontend) {
            if !backend.is(&flow.backend, flow.backend_port) {
                let before = Words { addr: flow.backend, port: flow.backend_port };
                flow.former = before.short_tag();
                flow.waiting = 0;
            }
            if now.wrapping_sub(flow.last) > PATIENCE {
                flow.waiting = 0;
            }
            flow.backend = backend.addr;
            flow.backend_port = backend.port;
            flow.generation = generation;
            flow.ask(turn, now);
            return Recorded::Known;
        }
        if flow.last < oldest {
            (place, oldest) = (index, flow.last);
        }
        index += 1;
    }
    if oldest != 0 && !replace {
        return Recorded::Full;
    }
    let Some(flow) = flows.get_mut(place) else { return Recorded::Full };
    flow.begin(frontend, backend, generation);
    flow.ask(turn, now);
    if oldest == 0 { Recorded::Known } else { Recorded::InPlaceOfAnother }
}

/// Puts the flow that a datagram from `backend` answers in the place of `best`, if there is a better
/// one.
#[inline(always)]
pub fn answered(flows: &[Sent], backend: Peer, moment: Moment, best: &mut Answered) {
    let Moment { now, turn } = moment;
    let backend = Words::new(backend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &flows[index];
        if flow.is_via(&backend) {
            // Without a branch in between, for the verifier's sake.
            let age = u64::from(flow.age(turn));
            let waits = (flow.waiting != 0) & (now.wrapping_sub(flow.last) <= PATIENCE);
            // The clock has run for less than 292 years.
            let rank = if waits { WAITS | age } else { flow.last };
            if rank > best.rank {
                *best = Answered { frontend: peer(flow.frontend, flow.frontend_port), rank };
            }
        }
        index += 1;
    }
}

/// The same for a datagram that no flow is known to wait for: a flow that went to `backend` before.
#[inline(always)]
pub fn answered_late(flows: &[Sent], backend: Peer, best: &mut Answered) {
    let via = Words::new(backend).short_tag();
    let mut index = 0;
    while index < flows.len() {
        let flow = &flows[index];
        if flow.former == via {
            *best = Answered { frontend: peer(flow.frontend, flow.frontend_port), rank: LATE };
            return;
        }
        index += 1;
    }
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
            if flow.answered == 0 {
                flow.generation = 0;
            }
            return flow.generation != 0;
        }
        index += 1;
    }
    false
}

/// Takes in that a question to `frontend` was answered, waited for or not.
#[inline(always)]
pub fn settle(flows: &mut [Sent], frontend: Peer) {
    let frontend = Words::new(frontend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &mut flows[index];
        if flow.is_to(&frontend) {
            flow.waiting = flow.waiting.saturating_sub(1);
            flow.answered = 1;
            return;
        }
        index += 1;
    }
}

const _: () = assert!(size_of::<Sent>() == 72);
const _: () = assert!(size_of::<Few>() + BEFORE <= 512);
const _: () = assert!(size_of::<Many>() + BEFORE <= 8192);

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::*;

    fn peer(text: &str) -> Peer {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn to(backend: &str, generation: u32) -> Prior {
        Prior { backend: peer(backend), generation }
    }

    /// The time, which is the turn as well.
    fn at(now: u64) -> Moment {
        Moment { now, turn: u16::try_from(now % 65_536).unwrap() }
    }

    const A: &str = "10.96.0.1:53";
    const B: &str = "10.96.0.2:53";
    const POD: &str = "10.0.0.1:53";

    fn prior(flows: &[Sent], frontend: Peer) -> Option<Prior> {
        let mut place = Prior::NONE;
        super::prior(flows, frontend, &mut place).then_some(place)
    }

    fn label(flows: &[Sent], backend: &str, now: u64) -> Option<Peer> {
        let mut best = Answered::NOBODY;
        answered(flows, peer(backend), at(now), &mut best);
        best.is_known().then_some(best.frontend)
    }

    /// Sends to each at its time, then asks for as many labels of answers from `POD`.
    fn labels(questions: &[(&str, u64)], answers: usize) -> [Peer; 4] {
        let mut flows = [Sent::zeroed(); 4];
        for (frontend, at) in questions {
            record(&mut flows, peer(frontend), to(POD, 1), self::at(*at), false);
        }
        let mut labels = [peer("0.0.0.0:0"); 4];
        for label in labels.iter_mut().take(answers) {
            *label = self::label(&flows, POD, 9).unwrap();
            settle(&mut flows, *label);
        }
        labels
    }

    #[test]
    fn a_flow_goes_where_it_went_and_is_answered_by_the_address_asked() {
        let mut flows = [Sent::zeroed(); 4];
        assert_eq!(prior(&flows, peer(A)), None);
        assert_eq!(label(&flows, POD, 9), None);
        assert_eq!(record(&mut flows, peer(A), to(POD, 7), at(1), false), Recorded::Known);
        assert_eq!(prior(&flows, peer(A)), Some(to(POD, 7)));
        assert_eq!(prior(&flows, peer("10.96.0.1:54")), None);
        assert_eq!(label(&flows, POD, u64::MAX), Some(peer(A)));
        assert_eq!(label(&flows, "10.0.0.1:54", 9), None);
    }

    #[test]
    fn two_services_with_one_backend_are_told_apart_by_the_order_of_questions() {
        let [first, second, ..] = labels(&[(A, 1), (B, 2)], 2);
        assert_eq!([first, second], [peer(A), peer(B)]);
        let [first, second, ..] = labels(&[(B, 1), (A, 2)], 2);
        assert_eq!([first, second], [peer(B), peer(A)]);
        let all = labels(&[(A, 1), (B, 2), (A, 3), (A, 4)], 4);
        assert_eq!(all, [A, B, A, A].map(peer));
        let all = labels(&[(A, 1), (A, 2), (B, 3)], 3);
        assert_eq!(all[..3], [A, A, B].map(peer));
    }

    #[test]
    fn direct_datagrams_are_answered_as_such() {
        let [first, second, ..] = labels(&[(A, 1), (POD, 2)], 2);
        assert_eq!([first, second], [peer(A), peer(POD)]);
    }

    #[test]
    fn more_answers_than_questions_belong_to_the_last_question() {
        let all = labels(&[(A, 1), (B, 2)], 4);
        assert_eq!(all, [A, B, B, B].map(peer));
    }

    #[test]
    fn a_question_without_an_answer_is_not_waited_for_long() {
        let mut flows = [Sent::zeroed(); 4];
        record(&mut flows, peer(A), to(POD, 1), at(1), false);
        let later = 2 + PATIENCE;
        record(&mut flows, peer(B), to(POD, 1), at(later), false);
        assert_eq!(label(&flows, POD, later), Some(peer(B)));
        record(&mut flows, peer(A), to(POD, 1), at(later + 1), false);
        settle(&mut flows, peer(A));
        assert_eq!(label(&flows, POD, later + 1), Some(peer(B)), "A was asked once");
    }

    #[test]
    fn backends_rarely_share_a_bit() {
        let bits = (0..64u8).fold(0, |bits, n| {
            bits | backend_bit(SocketAddr::from(([10, 0, n / 16, n], 53)).into())
        });
        assert!(bits.count_ones() > 32, "{bits:x}");
    }

    #[test]
    fn forty_services_of_one_socket_all_have_their_place() {
        let mut sets = [[Sent::zeroed(); 7]; 16];
        let frontends = || (1..=40u8).map(|n| SocketAddr::from(([10, 96, n / 7, n], 53)).into());
        for (frontend, now) in frontends().zip(1..) {
            let recorded = record(&mut sets[set(frontend)], frontend, to(POD, 1), at(now), true);
            assert_eq!(recorded, Recorded::Known);
        }
        assert!(frontends().all(|frontend| prior(&sets[set(frontend)], frontend).is_some()));
    }

    #[test]
    fn the_flow_used_least_recently_gives_up_its_place() {
        let mut flows = [Sent::zeroed(); 4];
        let frontend = |last: u8| SocketAddr::from(([10, 96, 0, last], 53)).into();
        for last in 1..=4u8 {
            record(&mut flows, frontend(last), to(POD, 1), at(last.into()), false);
        }
        assert_eq!(record(&mut flows, frontend(5), to(POD, 1), at(5), false), Recorded::Full);
        assert_eq!(record(&mut flows, frontend(1), to(POD, 1), at(6), false), Recorded::Known);
        let replaced = record(&mut flows, frontend(5), to(POD, 1), at(7), true);
        assert_eq!(replaced, Recorded::InPlaceOfAnother);
        assert_eq!(prior(&flows, frontend(2)), None);
        assert!(prior(&flows, frontend(1)).is_some() && prior(&flows, frontend(5)).is_some());
    }

    #[test]
    fn answers_under_way_keep_their_label_when_the_flow_goes_elsewhere() {
        const NEXT: &str = "10.0.0.2:53";
        let mut flows = [Sent::zeroed(); 4];
        let late = |flows: &[Sent], backend| {
            let mut best = Answered::NOBODY;
            answered_late(flows, peer(backend), &mut best);
            best.is_known().then_some(best.frontend)
        };
        record(&mut flows, peer(A), to(POD, 1), at(1), false);
        assert_eq!(late(&flows, POD), None);
        record(&mut flows, peer(A), to(NEXT, 2), at(2), false);
        assert_eq!(label(&flows, POD, 9), None);
        assert_eq!(late(&flows, POD), Some(peer(A)));
        assert_eq!(label(&flows, NEXT, 9), Some(peer(A)));
        assert!(leads_to(&flows, peer(NEXT)) && !leads_to(&flows, peer(POD)));
    }

    #[test]
    fn who_was_never_answered_may_be_a_server() {
        let mut flows = [Sent::zeroed(); 4];
        record(&mut flows, peer(A), to(POD, 7), at(1), false);
        record(&mut flows, peer(POD), to(POD, 0), at(2), false);
        settle(&mut flows, peer(POD));
        assert!(!was_answered(&mut flows, peer(POD)), "no Service's");
        assert!(!was_answered(&mut flows, peer(B)), "nothing was sent there");
        assert_eq!(prior(&flows, peer(A)), Some(to(POD, 7)));
        assert!(!was_answered(&mut flows, peer(A)), "nothing came");
        assert_eq!(prior(&flows, peer(A)), Some(to(POD, 0)), "as if nothing had been sent");

        record(&mut flows, peer(A), to(POD, 7), at(3), false);
        settle(&mut flows, peer(A));
        // Another backend makes no difference, nor an answer too many.
        record(&mut flows, peer(A), to("10.0.0.2:53", 8), at(4), false);
        assert!(was_answered(&mut flows, peer(A)));
        settle(&mut flows, peer(A));
        settle(&mut flows, peer(A));
        assert!(was_answered(&mut flows, peer(A)));
        assert_eq!(prior(&flows, peer(A)), Some(to("10.0.0.2:53", 8)));

        // What is forgotten is forgotten.
        for last in 1..=4 {
            let other = SocketAddr::from(([10, 96, 1, last], 53)).into();
            record(&mut flows, other, to(POD, 9), at(10), true);
            assert!(!was_answered(&mut flows, other));
        }
        record(&mut flows, peer(A), to(POD, 9), at(11), true);
        assert!(!was_answered(&mut flows, peer(A)));
    }

    #[test]
    fn more_questions_than_there_are_turns() {
        let questions: [_; 4] = core::array::from_fn(|n| if n == 3 { B } else { A });
        let mut flows = [Sent::zeroed(); 4];
        // The numbers of the turns begin anew on the way.
        for turn in 65_500..65_560u64 {
            let to_whom = questions[(turn % 4) as usize];
            record(&mut flows, peer(to_whom), to(POD, 1), at(turn), false);
            let answer = label(&flows, POD, turn).unwrap();
            assert_eq!(answer, peer(to_whom));
            settle(&mut flows, answer);
        }
        for turn in 0..40 {
            record(&mut flows, peer(A), to(POD, 1), at(65_600 + turn), false);
        }
        for _ in 0..40 {
            assert_eq!(label(&flows, POD, 65_650), Some(peer(A)));
            settle(&mut flows, peer(A));
        }
    }
}
