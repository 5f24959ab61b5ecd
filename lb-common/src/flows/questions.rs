//! Questions that may have an answer under way, and whose an answer is.

use bytemuck::{Pod, Zeroable};

use super::{
    Flows,
    entries::{Datagram, Sent},
    words::{Words, peer},
};
use crate::abi::{Addr, Peer, Port};

/// For how long an answer is waited for, in [`ticks`].
pub(super) const PATIENCE: u32 = ticks(1_000_000_000);

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

/// Bit of `Question::flow`: the flow is one of the socket's [`Few`](super::Few), the question among its
/// [`Many`](super::Many).
pub const FEW: u16 = 1 << 15;

/// A datagram that may have an answer under way. 12 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Question {
    /// Short tag of the backend that it went to; 0: there is none, or it was answered.
    pub(super) via: u32,
    /// When, in [`ticks`].
    pub(super) at: u32,
    /// The place of its flow among all of the sets, or, with [`FEW`], among the first ones.
    pub(super) flow: u16,
    /// Tag of the flow's frontend: the place may be another flow's by now.
    pub(super) of: u16,
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

impl Question {
    pub(super) const NONE: Self = Self { via: 0, at: 0, flow: 0, of: 0 };

    /// Whether an answer is waited for.
    #[inline(always)]
    const fn is_awaited(&self, now: u32) -> bool {
        self.via != 0 && is_recent(self.at, now)
    }
}

/// The flow that an answer belongs to, as far as can be said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answered {
    /// The address that the application asked.
    pub frontend: Peer,
    /// The question.
    question: Question,
    /// When the flow was used last, as the flow has it; 0: none is known.
    pub(super) last: u64,
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

    /// Whether the question's flow is one of the [`Few`](super::Few).
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

const _: () = assert!(size_of::<Question>() == 12);

/// Whose a datagram of `backend` may be that no question is known to wait for: that of the flow used
/// last, if it was used later than the one that is there. `anew` reads a word of a flow once more: what the
/// kernel's verifier learns of it by a comparison differs from flow to flow, and would multiply its work.
#[inline(always)]
pub fn last_used(flows: &[Sent], backend: Peer, best: &mut Answered, anew: impl Fn(&u64) -> u64) {
    let backend = Words::new(backend);
    let mut index = 0;
    while index < flows.len() {
        let flow = &flows[index];
        if flow.is_via(&backend) && flow.last > best.last {
            best.frontend = peer(flow.frontend, flow.frontend_port);
            best.last = anew(&flow.last);
        }
        index += 1;
    }
}
