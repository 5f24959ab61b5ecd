//! TCP sockets that dialled a Service's address before the programs knew it are told to dial again, and
//! no others.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Command,
    thread,
    time::Duration,
};

use lb_agent::sockets::{EndReason, SocketKind};
use lb_core::model::Protocol;
use nix::errno::Errno;

use super::{
    agent::Agent,
    connect::{MAPPED, V4},
    control::Control,
    echo::{Backends, ask},
    look::{Elsewhere, Known, Look},
    raw::{dial, finished, nonblocking_tcp},
    stale::{FORMS, addr, at_port, backends},
    world::{PORT, World, backend4, soon},
    yaml,
};

/// Packets to Services, and to 198.18.0.0/16, vanish without a word.
fn hole() {
    for command in [
        "link add hole type veth peer name deep",
        "link set hole arp off",
        "link set deep up",
        "link set hole up",
        "-4 route add 10.96.0.0/16 dev hole",
        "-4 route add 198.18.0.0/16 dev hole",
        "-6 route add fd00:96::/64 dev hole",
    ] {
        let status = Command::new("ip").args(command.split(' ')).status().unwrap();
        assert!(status.success(), "{command}");
    }
}

/// A socket that waits.
fn dialling(to: &str) -> OwnedFd {
    let to = addr(to);
    let socket = nonblocking_tcp(to.is_ipv4());
    assert_eq!(dial(&socket, to), Err(Errno::EINPROGRESS), "{to}");
    socket
}

fn error_of(socket: &OwnedFd) -> Option<Errno> {
    match nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::SocketError).unwrap() {
        0 => None,
        error => Some(Errno::from_raw(error)),
    }
}

#[test]
fn who_waits_at_a_service_is_told_and_nobody_else() {
    World::run(|world| {
        let _backends = Backends::start(backends());
        hole();
        let elsewhere = Elsewhere::new();
        elsewhere.run(hole);
        let mut control = Control::start(world);
        let waiting: Vec<OwnedFd> = FORMS
            .map(dialling)
            .into_iter()
            .chain(FORMS.map(|form| elsewhere.run(move || dialling(form))))
            .collect();
        let others = ["10.96.0.77:80", "10.96.0.10:81", "198.18.0.9:80"].map(dialling);
        let outside = world.outside(|| dialling(V4));
        // Answered by somebody who has the address of the Service to come.
        let listener = TcpListener::bind((backend4(9), 80)).unwrap();
        let answered = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // Translated, to a backend that does not answer, and whose address is another Service's.
        control.put("slow", &["10.96.0.50"], 80, &["198.18.0.1".parse().unwrap()]);
        let slow = dialling("10.96.0.50:80");

        let mut look = Look::new(world);
        let nobody = Known::default();
        assert!(look.sweep_of(&[SocketKind::Dialling], &nobody).0.is_empty());
        control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &backends());
        control.put("shadow", &["198.18.0.1"], PORT, &backends());
        control.put("answered", &["10.1.0.9"], 80, &backends());
        let known = Known {
            frontends: FORMS
                .map(|form| (addr(form).ip().to_canonical(), 80).into())
                .into_iter()
                .chain(["198.18.0.1:8080", "10.1.0.9:80"].map(addr))
                .collect(),
            listed: at_port(backends()).into_iter().collect(),
            ..Known::default()
        };
        let (condemned, outcome) = look.sweep_of(&[SocketKind::Udp, SocketKind::Dialling], &known);
        assert!(condemned.iter().all(|(found, reason)| {
            *reason == EndReason::Dialling && found.protocol == Protocol::Tcp && found.dialling
        }));
        assert_eq!((condemned.len(), outcome.destroyed, outcome.failed), (6, 6, 0));
        for socket in &waiting {
            assert_eq!(finished(socket), Err(Errno::ECONNABORTED));
        }
        for socket in others.iter().chain([&outside, &slow]) {
            assert_eq!(error_of(socket), None, "it goes on waiting");
        }
        assert!(answered.take_error().unwrap().is_none());
        assert!(look.sweep_of(&[SocketKind::Dialling], &known).0.is_empty(), "once");
        // What applications do.
        for form in FORMS {
            ask(&TcpStream::connect(form).unwrap());
        }
    });
}

/// An application that dials until it is connected, and what it was told on the way.
fn persistent(to: &str) -> thread::JoinHandle<Vec<Option<i32>>> {
    let to: SocketAddr = addr(to);
    thread::spawn(move || {
        let mut told = Vec::new();
        loop {
            match TcpStream::connect_timeout(&to, Duration::from_secs(60)) {
                Ok(stream) => {
                    ask(&stream);
                    return told;
                }
                Err(error) => told.push(error.raw_os_error()),
            }
            assert!(told.len() < 9, "{told:?}");
        }
    })
}

/// Whether so many sockets of this namespace wait.
fn wait(count: usize) -> bool {
    let is_waiting = |line: &&str| line.split_whitespace().nth(3) == Some("02");
    let of = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        text.lines().filter(is_waiting).count()
    };
    of("tcp") + of("tcp6") == count
}

/// The agent attaches for the first time; then a Service appears.
#[test]
fn the_agent_tells_those_who_wait() {
    World::run(|world| {
        let _backends = Backends::start(backends());
        hole();
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        let clients = [V4, MAPPED].map(persistent);
        assert!(soon(|| wait(2)), "they do not wait");
        let agent = Agent::start(world);
        for client in clients {
            assert_eq!(client.join().unwrap(), [Some(libc::ECONNABORTED)]);
        }
        agent.wait_for("reason=\"dialling\"");

        let clients = ["10.96.0.20:80", "10.96.0.20:80"].map(persistent);
        let stranger = dialling("10.96.0.21:80");
        assert!(soon(|| wait(3)), "they do not wait");
        yaml::put(world, "late", "10.96.0.20", &[backend4(2)]);
        for client in clients {
            assert_eq!(client.join().unwrap(), [Some(libc::ECONNABORTED)]);
        }
        // Without endpoints there is an answer too: nobody.
        yaml::put(world, "empty", "10.96.0.21", &[]);
        assert_eq!(finished(&stranger), Err(Errno::ECONNABORTED));
        let again = nonblocking_tcp(true);
        assert_eq!(dial(&again, addr("10.96.0.21:80")), Err(Errno::ECONNREFUSED));
    });
}
