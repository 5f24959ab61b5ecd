//! What address an answer seems to come from, when a socket talks to more than one.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use super::{
    control::{Control, ROOMY, object, service, slice},
    pods::{Pods, at, client, exchange, mapped, pipelined, pod4},
    world::{PORT, World, backend4, backend6},
};
use lb_agent::datapath::Sizes;
use lb_core::model::{Change, Protocol, ServicePort, SlicePort};

const A: &str = "10.96.0.1:80";
const B: &str = "10.96.0.2:80";
/// Questions without an answer yet, where there are always some.
const UNDER_WAY: u32 = 32;

/// Two Services with one backend, which is the same.
fn twins(world: &World) -> (Control, Pods) {
    let mut control = Control::start(world);
    control.put("a", &["10.96.0.1", "fd00:96::1"], 80, &[backend4(1), backend6(1)]);
    control.put("b", &["10.96.0.2", "fd00:96::2"], 80, &[backend4(1), backend6(1)]);
    (control, Pods::start(1..=3))
}

#[test]
fn a_hundred_services_of_one_socket() {
    World::run(|world| {
        let mut control = Control::start_with(world, Sizes { backends: 4096, ..ROOMY });
        let services: Vec<SocketAddr> = (1..=100u8).map(|n| ([10, 96, 1, n], 80).into()).collect();
        for (to, n) in services.iter().zip(0..) {
            let name = to.ip().to_string();
            control.put(&name, &[&name], 80, &[1, 2].map(|k| backend4(1 + (n * k) % 24)));
        }
        let pods = Pods::start(1..=24);
        for ipv4 in [true, false] {
            let client = client(ipv4);
            let form = |to: &SocketAddr| if ipv4 { *to } else { mapped(*to) };
            for _ in 0..3 {
                for to in services.iter().map(form) {
                    assert_eq!(exchange(&client, to, &pods).1, to);
                }
            }
            // Many are under way before the first answer is read.
            for questions in services.chunks(40).chain(services.rchunks(40)) {
                let questions: Vec<_> = questions.iter().map(form).collect();
                assert_eq!(pipelined(&client, &questions, &pods), questions);
            }
        }
    });
}

/// More than a socket has room for, which share their backends, and always some questions under way: an
/// answer may lack its label, and then has the backend's own address, but no answer has another's.
#[test]
fn more_services_than_there_is_room_for() {
    const QUESTIONS: u32 = 4000;
    World::run(|world| {
        let mut control = Control::start_with(world, Sizes { backends: 4096, ..ROOMY });
        let services: Vec<SocketAddr> = (1..=200u8).map(|n| ([10, 96, 1, n], 80).into()).collect();
        for (to, n) in services.iter().zip(0..) {
            let name = to.ip().to_string();
            control.put(&name, &[&name], 80, &[backend4(1 + n % 3)]);
        }
        let pods = Pods::start(1..=3);
        let client = client(true);
        let (mut random, mut under_way) = (1u32, VecDeque::new());
        let (mut missing, mut wrong) = (0, 0);
        for n in 0..QUESTIONS + UNDER_WAY {
            if n < QUESTIONS {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let to = services[(random >> 16) as usize % services.len()];
                client.send_to(&n.to_be_bytes(), to).unwrap();
                under_way.push_back((to, pods.take()));
            }
            if n >= UNDER_WAY {
                let (to, letter) = under_way.pop_front().unwrap();
                pods.answer(&letter);
                let (bytes, label) = super::pods::read(&client);
                assert_eq!(bytes, letter.bytes, "the loopback keeps the order");
                missing += u32::from(label == letter.pod);
                wrong += u32::from(label != letter.pod && label != to);
            }
        }
        println!("of {QUESTIONS} answers, {missing} had no label and {wrong} a wrong one");
        assert_eq!(wrong, 0);
        assert!(missing < QUESTIONS / 50, "{missing}");
    });
}

#[test]
fn two_services_with_one_backend() {
    World::run(|world| {
        let (_control, pods) = twins(world);
        let of = |ips: [&str; 2]| ips.map(at);
        for [a, b] in
            [of([A, B]), of(["[fd00:96::1]:80", "[fd00:96::2]:80"]), of([A, B]).map(mapped)]
        {
            let client = client(a.is_ipv4());
            for to in [a, b, b, a, a, a, b, a, b, b] {
                assert_eq!(exchange(&client, to, &pods).1, to);
            }
            for questions in [&[a, b][..], &[b, a], &[a, a, b], &[a, b, a, b], &[b, a, b, a, b, a]]
            {
                assert_eq!(pipelined(&client, questions, &pods), questions);
            }
        }
    });
}

/// Any order of up to eight questions that are under way at once.
#[test]
fn questions_in_any_order() {
    World::run(|world| {
        let (_control, pods) = twins(world);
        let direct = pod4(1);
        let client = client(true);
        assert_eq!(exchange(&client, at(A), &pods).1, at(A));
        let mut random = 1u32;
        for _ in 0..300 {
            let mut next = || {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                random >> 16
            };
            let questions: Vec<_> =
                (0..2 + next() % 7).map(|_| [at(A), at(B), direct][next() as usize % 3]).collect();
            assert_eq!(pipelined(&client, &questions, &pods), questions);
        }
    });
}

/// The answer of one question never comes. Once nobody waits for it any more, all is as before.
#[test]
fn an_answer_that_is_lost() {
    World::run(|world| {
        let (_control, pods) = twins(world);
        let client = client(true);
        client.send_to(b"lost", at(A)).unwrap();
        pods.take();
        thread::sleep(Duration::from_millis(1_100));
        for to in [B, A, B, B, A].map(at) {
            assert_eq!(exchange(&client, to, &pods).1, to);
        }
        assert_eq!(pipelined(&client, &[at(B), at(A)], &pods), [at(B), at(A)]);
        // Of one Service, it costs no label at all.
        client.send_to(b"lost", at(A)).unwrap();
        pods.take();
        assert_eq!(pipelined(&client, &[at(A), at(A)], &pods), [at(A), at(A)]);
    });
}

#[test]
fn a_service_and_its_backend() {
    World::run(|world| {
        let (_control, pods) = twins(world);
        for (service, direct) in [
            (at(A), pod4(1)),
            (at("[fd00:96::1]:80"), (backend6(1), PORT).into()),
            (mapped(at(A)), mapped(pod4(1))),
        ] {
            let client = client(service.is_ipv4());
            for to in [direct, service, direct, direct, service, service, direct] {
                assert_eq!(exchange(&client, to, &pods).1, to);
            }
            let questions = [service, direct, service, direct, direct];
            assert_eq!(pipelined(&client, &questions[..4], &pods), questions[..4]);
        }
    });
}

#[test]
fn two_ports_of_one_service() {
    World::run(|world| {
        let mut control = Control::start(world);
        let ports = [("one", 53), ("two", 54)];
        let mut web = service(&["10.96.0.10"], 80);
        web.ports = ports.map(|(name, n)| ServicePort::new(name, Protocol::Udp, n)).to_vec();
        // Once to one port of the backend, once to two.
        for numbers in [[PORT, PORT], [PORT, PORT + 1]] {
            let mut slice = slice("web", &[backend4(1)]);
            slice.ports = ports
                .iter()
                .zip(numbers)
                .map(|((name, _), number)| SlicePort {
                    name: (*name).into(),
                    protocol: Protocol::Udp,
                    number,
                })
                .collect();
            control.pipeline.change(Change::Slice(object("web"), Some(slice)));
            control.pipeline.change(Change::Service(object("web"), Some(web.clone())));
            assert!(control.sync().sockets.failed.is_empty());
            let pods = Pods::at([PORT, PORT + 1].map(|port| (backend4(1), port).into()));
            let client = client(true);
            let [one, two] = ["10.96.0.10:53", "10.96.0.10:54"].map(at);
            for (to, number) in [(one, numbers[0]), (two, numbers[1]), (one, numbers[0])] {
                let (pod, label) = exchange(&client, to, &pods);
                assert_eq!((pod.port(), label), (number, to));
            }
            assert_eq!(pipelined(&client, &[two, one, two], &pods), [two, one, two]);
        }
    });
}

/// Who was never asked keeps the own address, be it a backend of the Service asked.
#[test]
fn a_letter_from_a_stranger() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.1"], 80, &[backend4(1), backend4(2)]);
        let pods = Pods::start(1..=3);
        for ipv4 in [true, false] {
            let client = client(ipv4);
            let form = |addr| if ipv4 { addr } else { mapped(addr) };
            let (asked, label) = exchange(&client, form(at(A)), &pods);
            assert_eq!(label, form(at(A)));
            client.send_to(b"?", form(at(A))).unwrap();
            let letter = pods.take();
            let others = (1..=3).map(pod4).filter(|pod| *pod != asked);
            for pod in others.chain([asked]) {
                pods.answer(&super::pods::Letter { pod, ..letter.clone() });
                let expected = if pod == asked { at(A) } else { pod };
                assert_eq!(super::pods::read(&client).1, form(expected));
            }
            // The backend's other ports are not the Service.
            let from: IpAddr = asked.ip();
            let other = std::net::UdpSocket::bind((from, 0)).unwrap();
            other.send_to(b"!", letter.from).unwrap();
            assert_eq!(super::pods::read(&client).1, form(other.local_addr().unwrap()));
        }
    });
}

/// The backend went away with the answer under way; the next question has already gone elsewhere.
#[test]
fn an_answer_of_the_backend_before() {
    World::run(|world| {
        let mut control = Control::start(world);
        let pods = Pods::start(1..=2);
        let client = client(true);
        control.put("web", &["10.96.0.1"], 80, &[backend4(1)]);
        client.send_to(b"first", at(A)).unwrap();
        let first = pods.take();
        control.put("web", &["10.96.0.1"], 80, &[backend4(2)]);
        client.send_to(b"second", at(A)).unwrap();
        let second = pods.take();
        assert_eq!((first.pod, second.pod), (pod4(1), pod4(2)));
        for letter in [&second, &first] {
            pods.answer(letter);
            assert_eq!(super::pods::read(&client), (letter.bytes.clone(), at(A)));
        }
    });
}
