//! What a socket remembers, and whose its answers are.

use core::net::SocketAddr;

use super::{questions::PATIENCE, *};
use crate::{abi::bpf_spin_lock, lookup::Prior};

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

const fn none<const N: usize, const SETS: usize, const ASKED: usize>() -> Flows<N, SETS, ASKED> {
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
    fn send_via(&mut self, frontend: &str, backend: &str, now: u32) -> FlowPlace {
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
            last_used(flows, backend, &mut best, |last| *last);
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
    let bits = (0..64u8)
        .fold(0, |bits, n| bits | backend_bit(SocketAddr::from(([10, 0, n / 16, n], 53)).into()));
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
    let was_answered =
        |socket: &mut Socket, frontend: &str| was_answered(&mut socket.0.sets[0], peer(frontend));
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
