//! Whoever has very many sockets, or sends to very many addresses, takes nothing from others.
#![expect(unsafe_code, reason = "aya has no lookup in a map of sockets")]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use aya::{maps::MapInfo, programs::loaded_programs};
use lb_agent::pins::open_link;
use lb_common::{
    abi::{FLOWS, MORE_FLOWS},
    flows::{Few, Many},
};
use nix::sched::{CloneFlags, unshare};

use super::{
    connect::V4,
    control::{Control, ROOMY},
    pods::{Pods, at, client, exchange, pipelined, pod4, read},
    world::{World, backend4},
};

/// Services with one backend each, so many that a socket's first place for them is too small.
pub(super) fn services(control: &mut Control) -> Vec<SocketAddr> {
    let all: Vec<SocketAddr> = (1..=6).map(|n| ([10, 96, 1, n], 80).into()).collect();
    for (to, n) in all.iter().zip(1..) {
        control.put(&to.ip().to_string(), &[&to.ip().to_string()], 80, &[backend4(n)]);
    }
    all
}

/// Whether a map has something of the socket.
fn is_stored(world: &World, map: &str, size: usize, socket: &UdpSocket) -> bool {
    #[repr(C)]
    struct Lookup {
        map: u64,
        key: u64,
        value: u64,
        flags: u64,
    }
    const LOOKUP: libc::c_int = 1;
    // Nobody needs it, so it is not pinned.
    let (link, _) = open_link(&world.pins().link("sendmsg4")).unwrap();
    let program = link.info().unwrap().program_id();
    // Those of others may be on their way out.
    let program = loaded_programs().filter_map(Result::ok).find(|p| p.id() == program).unwrap();
    let ids = program.map_ids().unwrap().unwrap();
    let mut maps = ids.iter().map(|id| MapInfo::from_id(*id).unwrap());
    let map = maps.find(|info| info.name_as_str() == Some(map)).unwrap().fd().unwrap();
    let key = socket.as_raw_fd();
    let mut value = vec![0u8; size];
    let lookup = Lookup {
        map: u64::try_from(map.as_fd().as_raw_fd()).unwrap(),
        key: (&raw const key).addr() as u64,
        value: value.as_mut_ptr().addr() as u64,
        flags: 0,
    };
    let attr = &raw const lookup;
    // SAFETY: the kernel reads a descriptor at `key` and writes a value of the map at `value`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP, attr, size_of::<Lookup>()) };
    let error = std::io::Error::last_os_error();
    assert!(result == 0 || error.raw_os_error() == Some(libc::ENOENT), "{error}");
    result == 0
}

pub(super) fn is_remembered(world: &World, socket: &UdpSocket) -> [bool; 2] {
    [
        is_stored(world, FLOWS, size_of::<Few>(), socket),
        is_stored(world, MORE_FLOWS, size_of::<Many>(), socket),
    ]
}

#[test]
fn what_is_no_service_needs_no_memory() {
    World::run(|world| {
        let mut control = Control::start_with(world, ROOMY);
        let services = services(&mut control);
        let pods = Pods::start(1..=12);
        let others: Vec<SocketAddr> = (1..=12)
            .flat_map(|n| (1..=200).map(move |k| (backend4(n), 20_000 + k).into()))
            .collect();

        let client = client(true);
        for to in others.iter().copied().chain((1..=12).map(pod4)) {
            client.send_to(b"?", to).unwrap();
        }
        assert_eq!(is_remembered(world, &client), [false; 2]);

        for _ in 1..=12 {
            pods.take();
        }
        for to in &services[..4] {
            assert_eq!(exchange(&client, *to, &pods).1, *to);
        }
        for to in &others {
            client.send_to(b"?", to).unwrap();
        }
        assert_eq!(is_remembered(world, &client), [true, false]);
        assert_eq!(pipelined(&client, &services[..4], &pods), services[..4]);
        assert_eq!(exchange(&client, services[4], &pods).1, services[4]);
        assert_eq!(is_remembered(world, &client), [true, true]);
    });
}

/// Of the whole machine; others may be busy too, so it is only printed.
fn kernel_memory() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("SUnreclaim:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A process may have no more descriptors than root allows, so threads have tables of their own.
const OF_A_THREAD: u32 = 10_000;

/// `SOCKLB_SOCKETS` says how many.
#[test]
fn sockets_without_number() {
    let number: u32 =
        std::env::var("SOCKLB_SOCKETS").map_or(20_000, |number| number.parse().unwrap());
    World::run(|world| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000").unwrap();
        let mut control = Control::start_with(world, ROOMY);
        let services = services(&mut control);
        control.put("web", &["10.96.0.10"], 80, &[1, 2, 3].map(backend4));
        let pods = Pods::start(1..=6);
        let first = client(true);
        let (pod, label) = exchange(&first, at(V4), &pods);
        assert_eq!(label, at(V4));
        for to in &services {
            assert_eq!(exchange(&first, *to, &pods).1, *to);
        }
        first.send_to(b"still under way", services[5]).unwrap();
        let under_way = pods.take();

        let mut took = Duration::ZERO;
        let mut memory = 0;
        thread::scope(|scope| {
            let mut crowds = Vec::new();
            for crowd in 0..number / OF_A_THREAD {
                let ((sent, wait), (go, gone)) = (channel(), channel::<()>());
                let pods = &pods;
                // An address has less than 65,536 ports.
                let from = backend4(10 + u8::try_from(crowd / 4).unwrap());
                scope.spawn(move || {
                    unshare(CloneFlags::CLONE_FILES).unwrap();
                    let sockets: Vec<_> =
                        (0..OF_A_THREAD).map(|_| UdpSocket::bind((from, 0)).unwrap()).collect();
                    let (before, start) = (kernel_memory(), Instant::now());
                    for socket in &sockets {
                        socket.send_to(b"hello", V4).unwrap();
                        pods.take();
                    }
                    sent.send((start.elapsed(), kernel_memory() - before)).unwrap();
                    gone.recv().unwrap();
                    // Each sticks.
                    for socket in sockets.iter().step_by(97) {
                        let (pod, label) = exchange(socket, at(V4), pods);
                        assert_eq!(label, at(V4));
                        assert!((1..=3).map(pod4).any(|old| old == pod), "{pod}");
                    }
                    sent.send((Duration::ZERO, 0)).unwrap();
                });
                let (time, more) = wait.recv().unwrap();
                took += time;
                memory += more;
                crowds.push((go, wait));
            }
            let each = memory * 1024 / i64::from(number);
            println!("{number} sockets sent in {took:?}; {each} bytes of kernel memory each");
            assert!(took < Duration::from_secs(60), "{took:?}");

            control.put("web", &["10.96.0.10"], 80, &[1, 2, 3, 4, 5, 6].map(backend4));
            pods.answer(&under_way);
            assert_eq!(read(&first).1, services[5]);
            assert_eq!(exchange(&first, at(V4), &pods), (pod, at(V4)));
            for to in &services {
                assert_eq!(exchange(&first, *to, &pods).1, *to);
            }
            for (go, wait) in crowds {
                go.send(()).unwrap();
                wait.recv().unwrap();
            }
        });
    });
}
