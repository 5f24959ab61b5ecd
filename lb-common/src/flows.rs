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

use bytemuck::{Pod, Zeroable, must_cast};

use crate::{
    abi::{Addr, Peer, Port, bpf_spin_lock, mixed},
    lookup::Prior,
};

/// What nearly every socket gets along with: one set of four flows.
pub type Few = Flows<4, 1, 16>;
/// What the others have besides. With what the kernel puts before it, 8 KB: one allocation of a socket.
pub type Many = Flows<WAYS, 16, 128>;
const WAYS: usize = 8;
/// What the kernel puts before a value that is stored for a socket, in bytes.
pub const BEFORE: usize = 72;

/// For how long an answer is waited for, in [`ticks`].
const PATIENCE: u32 = ticks(1_000_000_000);

/// A moment of the monotonic clock, of which these are the nanoseconds: in 16 µs, but never 0. They begin
/// anew after 19 hours.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "they begin anew")]
pub const fn ticks(now: u64) -> u32 {
    (now >> 14) as u32 | 1
}

/// Whether what was asked `at` a moment may have an answer under way. Another CPU's clock may be a little
/// ahead.
#[inline(always)]
const fn is_recent(at: u32, now: u32) -> bool {
    const AHEAD: u32 = ticks(1_000_000);
    now.wrapping_add(AHEAD).wrapping_sub(at) <= PATIENCE + AHEAD
}

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

    /// Others of these bits, as a [`Question`] has them of its frontend.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "these are the bits")]
    const fn shorter_tag(&self) -> u16 {
        (self.tag() >> 32) as u16
    }
}

#[inline(always)]
const fn peer(addr: [u64; 2], port: u16) -> Peer {
    Peer { addr: Addr::from_words(must_cast(addr)), port: Port::from_raw(port) }
}

/// The datagrams to one address. 48 bytes.
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
    /// When the last one was sent, in halves of a nanosecond of the monotonic clock, save the lowest bit, which
    /// is [`Sent::ANSWERED`]; 0: the place is free.
    last: u64,
}

/// A datagram that may have an answer under way. 12 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Question {
    /// Short tag of the backend that it went to; 0: there is none, or it was answered.
    via: u32,
    /// When, in [`ticks`].
    at: u32,
    /// The place of its flow among all of the sets, or, with [`FEW`], among the first ones.
    flow: u16,
    /// Tag of the flow's frontend: the place may be another flow's by now.
    of: u16,
}

/// Bit of `Question::flow`: the flow is one of the socket's [`Few`], the question among its [`Many`].
pub const FEW: u16 = 1 << 15;

impl Question {
    const NONE: Self = Self { via: 0, at: 0, flow: 0, of: 0 };

    /// Whether an answer is waited for.
    #[inline(always)]
    const fn is_awaited(&self, now: u32) -> bool {
        self.via != 0 && is_recent(self.at, now)
    }
}

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

/// The flow that an answer belongs to, as far as can be said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answered {
    /// The address that the application asked.
    pub frontend: Peer,
    /// The question.
    question: Question,
    /// When the flow was used last, as the flow has it; 0: none is known.
    last: u64,
    /// Not 0: more questions were under way than are kept, and nobody knows their order.
    disorder: u32,
}

impl Answered {
    /// None. Not an `Option`: what LLVM makes of moving one that is empty, the verifier refuses.
    pub const NOBODY: Self = Self {
        frontend: Peer { addr: Addr::from_words([0; 4]), port: Port::from_raw(0) },
        question: Question::NONE,
        last: 0,
        disorder: 0,
    };

    /// Whether the question is known.
    #[inline(always)]
    pub const fn is_found(&self) -> bool {
        self.question.via != 0
    }

    /// Whether the question's flow is one of the [`Few`].
    #[inline(always)]
    pub const fn is_of_few(&self) -> bool {
        self.question.flow & FEW != 0
    }

    /// Whether the flow is known.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.last != 0
    }

    /// Whether nobody knows the order of the questions, so that only a flow counts that is the only one.
    #[inline(always)]
    pub const fn is_disordered(&self) -> bool {
        self.disorder != 0
    }
}

/// The place of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place(u32);

impl Place {
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

/// The place among all of [`Many`]'s flows of one in this set.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "there are 16 sets")]
pub const fn place_in(set: usize, place: Place) -> u16 {
    (set * WAYS) as u16 + place.index()
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

    /// Bit of [`last`](Self::last): a backend has answered.
    const ANSWERED: u64 = 1;
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

impl Datagram {
    /// What is remembered of it until it is answered, if its flow is at this place.
    #[inline(always)]
    pub fn question(&self, flow: u16) -> Question {
        Question {
            via: Words::new(self.to.backend).short_tag(),
            at: ticks(self.now),
            flow,
            of: Words::new(self.frontend).shorter_tag(),
        }
    }
}

/// Takes in that a datagram goes where it goes. If there is no place left, the flow used least recently
/// gives up its own, or (`!replace`) nothing happens.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "there are not that many")]
pub fn record(flows: &mut [Sent], datagram: &Datagram, replace: bool) -> Place {
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
            return Place(index as u32);
        }
        if flow.last < oldest {
            (place, oldest) = (index, flow.last);
        }
        index += 1;
    }
    let is_free = oldest == 0;
    if !is_free && !replace {
        return Place::FULL;
    }
    let Some(flow) = flows.get_mut(place) else { return Place::FULL };
    // Field by field: LLVM zeroes more than a word by a call, and Linux before 6.9 allows none while the
    // flows are locked.
    flow.frontend = frontend.addr;
    flow.frontend_port = frontend.port;
    flow.backend = backend.addr;
    flow.backend_port = backend.port;
    flow.generation = generation;
    flow.last = now << 1;
    Place(place as u32 | if is_free { 0 } else { Place::REPLACED })
}

impl<const N: usize, const SETS: usize, const ASKED: usize> Flows<N, SETS, ASKED> {
    /// Takes in a question.
    #[inline(always)]
    pub fn ask(&mut self, question: Question) {
        let place = &mut self.questions[usize::from(self.asked) % ASKED];
        if place.is_awaited(question.at) {
            self.lost = place.at;
        }
        *place = question;
        self.asked = self.asked.wrapping_add(1);
    }

    /// Takes the first question out that an answer from this backend is waited for, if there is one.
    #[inline(always)]
    fn take(&mut self, via: u32, now: u32) -> Question {
        let mut index = 0;
        while index < ASKED {
            let question = &mut self.questions[(usize::from(self.asked) + index) % ASKED];
            if question.via == via && is_recent(question.at, now) {
                let taken = *question;
                question.via = 0;
                return taken;
            }
            index += 1;
        }
        Question::NONE
    }

    /// Takes in that an answer came from a backend with this tag, and whose it is: that of the question
    /// that waits longest.
    #[inline(always)]
    pub fn answered(&mut self, via: u32, now: u32, answered: &mut Answered) {
        let question = self.take(via, now);
        answered.disorder |= self.disorder(now);
        if answered.is_disordered() {
            return;
        }
        answered.question = question;
        if question.via != 0 && question.flow & FEW == 0 {
            self.name(answered);
        }
    }

    /// Not 0 while an answer may come to a question that is not kept any more.
    #[inline(always)]
    const fn disorder(&self, now: u32) -> u32 {
        (self.lost != 0 && is_recent(self.lost, now)) as u32
    }

    /// Takes in whose the question was that was answered, if that flow has not been forgotten since.
    #[inline(always)]
    pub fn name(&mut self, answered: &mut Answered) {
        let Question { flow, of, .. } = answered.question;
        let flow = &mut self.sets.as_flattened_mut()[usize::from(flow & !FEW) % (N * SETS)];
        let frontend = Words { addr: flow.frontend, port: flow.frontend_port };
        if frontend.shorter_tag() == of {
            answered.frontend = peer(frontend.addr, frontend.port);
            answered.last = u64::MAX;
            flow.last |= Sent::ANSWERED;
        }
    }
}

/// The tag of a backend in a [`Question`].
#[inline(always)]
pub fn via(backend: Peer) -> u32 {
    Words::new(backend).short_tag()
}

/// Whose a datagram of `backend` may be that no question is known to wait for: that of the flow used
/// last, if it was used later than the one that is there.
#[inline(always)]
pub fn last_used(flows: &[Sent], backend: Peer, best: &mut Answered) {
    let backend = Words::new(backend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &flows[index];
        if flow.is_via(&backend) && flow.last > best.last {
            best.frontend = peer(flow.frontend, flow.frontend_port);
            best.last = flow.last;
        }
        index += 1;
    }
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

const _: () = assert!(size_of::<Sent>() == 48 && size_of::<Question>() == 12);
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

    /// The first nanosecond of a tick.
    fn at(tick: u32) -> u64 {
        u64::from(tick) << 14
    }

    const A: &str = "10.96.0.1:53";
    const B: &str = "10.96.0.2:53";
    const C: &str = "10.96.0.3:53";
    const POD: &str = "10.0.0.1:53";
    const NEXT: &str = "10.0.0.2:53";
    const NOTHING: Sent = Sent {
        frontend: [0; 2],
        backend: [0; 2],
        frontend_port: 0,
        backend_port: 0,
        generation: 0,
        last: 0,
    };

    const fn none<const N: usize, const SETS: usize, const ASKED: usize>() -> Flows<N, SETS, ASKED>
    {
        Flows {
            lock: bpf_spin_lock::UNLOCKED,
            more: 0,
            asked: 0,
            backends: 0,
            cgroup: 0,
            lost: 0,
            reserved: 0,
            sets: [[NOTHING; N]; SETS],
            questions: [Question::NONE; ASKED],
        }
    }

    /// A socket with few Services.
    struct Socket(Few);

    impl Socket {
        fn new() -> Self {
            Self(none())
        }

        /// It sends to `frontend`, from where that goes to `backend`.
        fn send_via(&mut self, frontend: &str, backend: &str, now: u32) -> Place {
            let datagram = Datagram { frontend: peer(frontend), to: to(backend, 7), now: at(now) };
            let place = record(&mut self.0.sets[0], &datagram, false);
            if !place.is_full() {
                self.0.ask(datagram.question(place.index()));
            }
            place
        }

        fn send(&mut self, frontend: &str, now: u32) {
            assert!(!self.send_via(frontend, POD, now).is_full());
        }

        /// What label an answer has.
        fn label(&mut self, backend: &str, now: u32) -> Option<Peer> {
            let (mut best, backend) = (Answered::NOBODY, peer(backend));
            self.0.answered(via(backend), now, &mut best);
            let flows = &self.0.sets[0];
            if !best.is_found() {
                last_used(flows, backend, &mut best);
                if best.is_disordered() && has_another(flows, backend, best.frontend) {
                    return None;
                }
            }
            best.is_known().then_some(best.frontend)
        }

        fn prior(&self, frontend: &str) -> Option<Prior> {
            let mut place = Prior::NONE;
            prior(&self.0.sets[0], peer(frontend), &mut place).then_some(place)
        }
    }

    /// Sends to each, then asks for as many labels of answers from `POD`.
    fn labels<const N: usize>(questions: &[&str], answers: [&str; N]) {
        let mut socket = Socket::new();
        for question in questions {
            socket.send(question, 1);
        }
        let labels = answers.map(|_| socket.label(POD, 9));
        assert_eq!(labels, answers.map(|answer| Some(peer(answer))), "{questions:?}");
    }

    #[test]
    fn a_flow_goes_where_it_went_and_is_answered_by_the_address_asked() {
        let mut socket = Socket::new();
        assert_eq!((socket.prior(A), socket.label(POD, 9)), (None, None));
        socket.send(A, 1);
        assert_eq!(socket.prior(A), Some(to(POD, 7)));
        assert_eq!(socket.prior("10.96.0.1:54"), None);
        assert_eq!(socket.label("10.0.0.1:54", 9), None);
        for now in [9, 9, u32::MAX] {
            assert_eq!(socket.label(POD, now), Some(peer(A)));
        }
    }

    #[test]
    fn two_services_with_one_backend_are_told_apart_by_the_order_of_questions() {
        labels(&[A, B], [A, B]);
        labels(&[B, A], [B, A]);
        labels(&[A, B, A, A], [A, B, A, A]);
        labels(&[A, A, B], [A, A, B]);
    }

    #[test]
    fn direct_datagrams_are_answered_as_such() {
        labels(&[A, POD], [A, POD]);
    }

    #[test]
    fn more_answers_than_questions_belong_to_the_last_question() {
        let mut socket = Socket::new();
        socket.send(A, 1);
        socket.send(B, 3);
        let labels = [(); 4].map(|()| socket.label(POD, 9));
        assert_eq!(labels, [A, B, B, B].map(|label| Some(peer(label))));
    }

    #[test]
    fn a_question_without_an_answer_is_not_waited_for_long() {
        let mut socket = Socket::new();
        socket.send(A, 1);
        let later = 2 + PATIENCE;
        for (to, now) in [(B, later), (A, later + 2), (B, later + 2)] {
            socket.send(to, now);
            assert_eq!(socket.label(POD, now), Some(peer(to)));
        }
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
        let mut many: Many = none();
        let frontends = || (1..=40u8).map(|n| SocketAddr::from(([10, 96, n / 7, n], 53)).into());
        for (frontend, now) in frontends().zip(1..) {
            let datagram = Datagram { frontend, to: to(POD, 1), now };
            assert!(!record(&mut many.sets[set(frontend)], &datagram, true).was_another_s());
        }
        let mut place = Prior::NONE;
        assert!(frontends().all(|to| prior(&many.sets[set(to)], to, &mut place)));
    }

    #[test]
    fn the_flow_used_least_recently_gives_up_its_place() {
        let mut flows = [NOTHING; 4];
        let frontend = |last: u8| SocketAddr::from(([10, 96, 0, last], 53)).into();
        let mut send = |last, now, replace| {
            record(&mut flows, &Datagram { frontend: frontend(last), to: to(POD, 1), now }, replace)
        };
        for last in 1..=4u8 {
            assert!(!send(last, last.into(), false).is_full());
        }
        assert!(send(5, 5, false).is_full());
        assert!(!send(1, 6, false).is_full());
        assert!(send(5, 7, true).was_another_s());
        let mut place = Prior::NONE;
        assert!(!prior(&flows, frontend(2), &mut place));
        assert!([1, 3, 4, 5].iter().all(|last| prior(&flows, frontend(*last), &mut place)));
    }

    #[test]
    fn answers_under_way_keep_their_label_when_the_flow_goes_elsewhere() {
        let mut socket = Socket::new();
        socket.send_via(A, POD, 1);
        socket.send_via(A, NEXT, 3);
        assert_eq!(socket.label(NEXT, 9), Some(peer(A)));
        assert_eq!(socket.label(POD, 9), Some(peer(A)), "asked before");
        assert_eq!([NEXT, POD].map(|pod| socket.label(pod, 9)), [Some(peer(A)), None]);
        assert!(leads_to(&socket.0.sets[0], peer(NEXT)) && !leads_to(&socket.0.sets[0], peer(POD)));
    }

    #[test]
    fn who_was_never_answered_may_be_a_server() {
        let mut socket = Socket::new();
        socket.send(A, 1);
        let mut direct = Datagram { frontend: peer(POD), to: to(POD, 0), now: 2 };
        record(&mut socket.0.sets[0], &direct, false);
        let was_answered = |socket: &mut Socket, frontend: &str| {
            was_answered(&mut socket.0.sets[0], peer(frontend))
        };
        settle(&mut socket.0.sets[0], peer(POD));
        assert!(!was_answered(&mut socket, POD), "no Service's");
        assert!(!was_answered(&mut socket, B), "nothing was sent there");
        assert_eq!(socket.prior(A), Some(to(POD, 7)));
        assert!(!was_answered(&mut socket, A), "nothing came");
        assert_eq!(socket.prior(A), Some(to(POD, 0)), "as if nothing had been sent");

        // Waited for, by order; the flow that was used last; another backend makes no difference.
        for by_order in [true, false] {
            let mut socket = Socket::new();
            socket.send(A, 3);
            if by_order {
                assert_eq!(socket.label(POD, 3), Some(peer(A)));
            } else {
                settle(&mut socket.0.sets[0], peer(A));
            }
            socket.send_via(A, NEXT, 5);
            assert!(was_answered(&mut socket, A));
            assert_eq!(socket.prior(A), Some(to(NEXT, 7)));
            // What is forgotten is forgotten.
            for last in 1..=4 {
                direct.frontend = SocketAddr::from(([10, 96, 1, last], 53)).into();
                direct.to = to(POD, 9);
                direct.now = at(10);
                record(&mut socket.0.sets[0], &direct, true);
                assert!(!super::was_answered(&mut socket.0.sets[0], direct.frontend));
            }
            direct.frontend = peer(A);
            direct.now = at(12);
            record(&mut socket.0.sets[0], &direct, true);
            assert!(!was_answered(&mut socket, A));
        }
    }

    #[test]
    fn more_questions_than_are_kept() {
        let mut socket = Socket::new();
        // Of one flow, it costs no label; nor has an order once all were answered.
        for now in 1..=40 {
            socket.send(A, now);
        }
        for _ in 1..=40 {
            assert_eq!(socket.label(POD, 41), Some(peer(A)));
        }
        // The numbers of the questions begin anew on the way.
        for n in 0..70_000u32 {
            let (to, now) = (if n % 4 == 3 { B } else { A }, 2 * PATIENCE + n);
            socket.send(to, now);
            assert_eq!(socket.label(POD, now), Some(peer(to)));
        }
        // Of two, nobody knows the order for a second.
        let now = 3 * PATIENCE;
        for n in 0..20 {
            socket.send(if n % 4 == 3 { B } else { A }, now);
        }
        for _ in 0..20 {
            assert_eq!(socket.label(POD, now), None);
        }
        let now = now + PATIENCE + 1;
        for to in [A, B, B] {
            socket.send(to, now);
        }
        assert_eq!([A, B, B].map(|_| socket.label(POD, now)), [A, B, B].map(|to| Some(peer(to))));
    }

    /// The place of a question's flow is another's when the answer comes, who is not named for it.
    #[test]
    fn a_question_whose_flow_is_forgotten() {
        let mut many: Flows<2, 1, 8> = none();
        let mut send = |frontend, now| {
            let datagram = Datagram { frontend: peer(frontend), to: to(POD, 1), now: at(now) };
            let place = record(&mut many.sets[0], &datagram, true);
            many.ask(datagram.question(place.index()));
        };
        for (to, now) in [(A, 1), (B, 3), (C, 5)] {
            send(to, now);
        }
        let labels = [(); 3].map(|()| {
            let mut best = Answered::NOBODY;
            many.answered(via(peer(POD)), 9, &mut best);
            assert!(best.is_found() && !best.is_of_few());
            best.is_known().then_some(best.frontend)
        });
        assert_eq!(labels, [None, Some(peer(B)), Some(peer(C))]);
    }
}
