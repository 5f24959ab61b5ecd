//! A datagram to a Service reaches one backend, and what the backend answers comes from the Service,
//! by whatever system calls.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::Ordering,
    thread,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, recvmsg, sendmmsg},
};

use super::{
    connect::{MAPPED, V4, V6},
    control::Control,
    flips::Load,
    pods::{Pods, at, client, exchange, mapped, pod4, read, send_message},
    raw::{errno, peer},
    world::{PORT, World, backend4, backend6},
};

/// The Service web, three backends of each family.
pub(crate) fn web(world: &World) -> (Control, Pods) {
    let mut control = Control::start(world);
    let ips: Vec<_> = (1..=3).flat_map(|n| [backend4(n), backend6(n)]).collect();
    control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &ips);
    (control, Pods::start(1..=3))
}

fn socket_addr(from: Option<SockaddrStorage>) -> SocketAddr {
    let from = from.unwrap();
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or(from.as_sockaddr_in6().map(|v6| (v6.ip(), v6.port()).into())).unwrap()
}

#[test]
fn send_to_and_receive_from() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for to in [V4, V6, MAPPED].map(at) {
            for size in [0, 1, 2000] {
                let client = client(to.is_ipv4());
                let bytes: Vec<u8> = (0..size).map(|n: u16| n.to_be_bytes()[1]).collect();
                assert_eq!(client.send_to(&bytes, to).unwrap(), bytes.len());
                let letter = pods.take();
                assert_eq!(letter.bytes, bytes);
                assert_eq!(letter.from.port(), client.local_addr().unwrap().port());
                assert_eq!(letter.pod.is_ipv4(), to.ip().to_canonical().is_ipv4());
                pods.answer(&letter);
                assert_eq!(read(&client), (bytes, to), "in the form in which it was asked");
                // A datagram goes to one backend only, and leaves the socket unconnected.
                pods.assert_idle();
                assert_eq!(peer(&client), Err(Errno::ENOTCONN));
            }
        }
    });
}

/// What the kernel itself takes for an AF_INET6 socket is served the same: a `sockaddr_in`.
#[test]
fn a_v6_socket_given_a_v4_address() {
    World::run(|world| {
        let (_control, pods) = web(world);
        let client = client(false);
        let (first, label) = exchange(&client, at(V4), &pods);
        assert_eq!(label, at(MAPPED));
        // It is the same flow as in the other form.
        assert_eq!(exchange(&client, at(MAPPED), &pods), (first, at(MAPPED)));
        // And the IPv6 Service is another one.
        let (third, label) = exchange(&client, at(V6), &pods);
        assert_eq!((third.is_ipv6(), label), (true, at(V6)));
    });
}

#[test]
fn a_socket_that_was_bound() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for (from, to) in [("10.2.0.1", V4), ("fd00:2::1", V6), ("::ffff:10.2.0.1", MAPPED)] {
            let from: IpAddr = from.parse().unwrap();
            let client = UdpSocket::bind((from, 0)).unwrap();
            client.send_to(b"hello", at(to)).unwrap();
            let letter = pods.take();
            assert_eq!(mapped(letter.from), mapped(client.local_addr().unwrap()));
            pods.answer(&letter);
            assert_eq!(read(&client).1, at(to));
        }
    });
}

#[test]
fn a_socket_that_does_not_wait() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for to in [V4, V6, MAPPED].map(at) {
            let client = client(to.is_ipv4());
            client.set_nonblocking(true).unwrap();
            let receive = || client.recv_from(&mut [0; 16]);
            client.send_to(b"hello", to).unwrap();
            assert_eq!(errno(receive()), Errno::EAGAIN);
            pods.answer(&pods.take());
            assert_eq!(receive().unwrap(), (5, to));
            assert_eq!(errno(receive()), Errno::EAGAIN);
            // The same for one call only.
            let flags = MsgFlags::MSG_DONTWAIT;
            assert_eq!(send_message(&client, &[b"hello"], to, flags), Ok(5));
            pods.take();
        }
    });
}

/// Neither a look at the answer without taking it, nor a buffer that is too small changes its source.
#[test]
fn messages() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for to in [V4, V6, MAPPED].map(at) {
            let client = client(to.is_ipv4());
            let sent = send_message(&client, &[b"hel", b"lo"], to, MsgFlags::empty());
            assert_eq!(sent, Ok(5));
            let letter = pods.take();
            assert_eq!(letter.bytes, b"hello");
            pods.answer(&letter);
            for flags in [MsgFlags::MSG_PEEK, MsgFlags::MSG_PEEK, MsgFlags::empty()] {
                let (mut one, mut two) = ([0; 2], [0; 2]);
                let mut parts = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
                let message =
                    recvmsg::<SockaddrStorage>(client.as_raw_fd(), &mut parts, None, flags);
                let message = message.unwrap();
                assert_eq!((message.bytes, socket_addr(message.address)), (4, to));
                assert!(message.flags.contains(MsgFlags::MSG_TRUNC));
                assert_eq!((&one, &two), (b"he", b"ll"));
            }
            // In pieces, sent as one; only the first has an address that counts.
            let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
            send_message(&client, &[b"one "], to, more).unwrap();
            send_message(&client, &[b"piece"], to, MsgFlags::empty()).unwrap();
            let letter = pods.take();
            assert_eq!(letter.bytes, b"one piece");
            pods.answer(&letter);
            assert_eq!(read(&client).1, to);
        }
    });
}

#[test]
fn many_messages_in_one_call() {
    World::run(|world| {
        let (mut control, pods) = web(world);
        control.put("other", &["10.96.0.11"], 80, &[backend4(2)]);
        let client = client(true);
        let other = at("10.96.0.11:80");
        // A Service, a backend itself, another Service.
        let to = [at(V4), pod4(3), other, at(V4)];
        let bytes = [b"0", b"1", b"2", b"3"];
        let slices = bytes.map(|bytes| [IoSlice::new(bytes)]);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(4, None);
        let addrs = to.map(|to| Some(SockaddrStorage::from(to)));
        let sent =
            sendmmsg(client.as_raw_fd(), &mut headers, &slices, addrs, [], MsgFlags::empty());
        assert_eq!(sent.unwrap().count(), 4);

        let mut letters: Vec<_> = (0..4).map(|_| pods.take()).collect();
        letters.sort_by_key(|letter| letter.bytes.clone());
        assert_eq!((letters[1].pod, letters[2].pod), (pod4(3), pod4(2)));
        assert_eq!(letters[0].pod, letters[3].pod);
        for letter in &letters {
            pods.answer(letter);
        }

        let mut buffers = [[0; 8]; 4];
        let mut slices: Vec<_> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(4, None);
        let flags = MsgFlags::empty();
        let received = recvmmsg(client.as_raw_fd(), &mut headers, &mut slices, flags, None);
        let labels: Vec<_> = received.unwrap().map(|r| socket_addr(r.address)).collect();
        assert_eq!(labels, to);
    });
}

/// Who does not ask for the source is not in the way of who does.
#[test]
fn receive_without_an_address() {
    World::run(|world| {
        let (_control, pods) = web(world);
        for to in [V4, V6, MAPPED].map(at) {
            let client = client(to.is_ipv4());
            for _ in 0..3 {
                client.send_to(b"hello", to).unwrap();
                pods.answer(&pods.take());
                assert_eq!(client.recv(&mut [0; 16]).unwrap(), 5);
            }
            assert_eq!(exchange(&client, to, &pods).1, to);
        }
    });
}

/// A socket that listens is a client too; who is a client of it keeps its own address.
#[test]
fn a_socket_that_serves_and_asks() {
    World::run(|world| {
        let (_control, pods) = web(world);
        let server = UdpSocket::bind(("10.2.0.1", PORT)).unwrap();
        let (_, label) = exchange(&server, at(V4), &pods);
        assert_eq!(label, at(V4));
        let somebody = client(true);
        somebody.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let (bytes, from) = read(&server);
        assert_eq!(from.port(), somebody.local_addr().unwrap().port());
        assert_eq!(from.ip(), "10.2.0.1".parse::<IpAddr>().unwrap());
        server.send_to(&bytes, from).unwrap();
        assert_eq!(read(&somebody), (b"hello".into(), server.local_addr().unwrap()));
    });
}

/// Each thread sends to Services of its own, all through one socket: no datagram of one Service at
/// a backend of another, and as many answers from each Service as it was asked.
#[test]
fn a_socket_that_threads_share() {
    const THREADS: u8 = 8;
    const EACH: u32 = 2_000;
    World::run(|world| {
        let mut control = Control::start(world);
        for n in 1..=THREADS {
            let backends = [backend4(2 * n - 1), backend4(2 * n)];
            control.put(&format!("s{n}"), &[&format!("10.96.0.{n}")], 80, &backends);
        }
        let pods = Pods::start(1..=2 * THREADS);
        let client = client(true);
        let done = Load::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                pods.serve(&done.stop, |letter| {
                    let n = letter.bytes[0];
                    assert!([pod4(2 * n - 1), pod4(2 * n)].contains(&letter.pod), "{letter:?}");
                });
            });
            // The answers: what was asked of Service n has n for its first byte.
            let reader = scope.spawn(|| {
                let mut wrong = 0;
                for _ in 0..u32::from(THREADS) * EACH {
                    let (bytes, label) = read(&client);
                    let expected = SocketAddr::from(([10, 96, 0, bytes[0]], 80));
                    wrong += u32::from(label != expected);
                    done.done.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            });
            for n in 1..=THREADS {
                let (client, done) = (&client, &done);
                scope.spawn(move || {
                    let to = SocketAddr::from(([10, 96, 0, n], 80));
                    for sent in 1..=EACH {
                        client.send_to(&[n], to).unwrap();
                        // The loopback loses what nobody reads.
                        while u32::from(THREADS) * sent > done.done.load(Ordering::Relaxed) + 100
                            && !done.stop.load(Ordering::Relaxed)
                        {
                            thread::yield_now();
                        }
                    }
                });
            }
            let wrong = reader.join();
            done.stop.store(true, Ordering::Relaxed);
            assert_eq!(wrong.unwrap(), 0);
        });
    });
}
