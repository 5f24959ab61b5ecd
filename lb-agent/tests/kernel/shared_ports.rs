//! Sockets that share a port. Connection tracking tells a Service's flows from its backend's; here the
//! packets of both are the same, and belong to whom the kernel gives them.
#![expect(unsafe_code, reason = "nix has no SO_ATTACH_REUSEPORT_CBPF")]

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};

use super::{
    connect::V4,
    control::Control,
    echo::{Backends, PATIENCE},
    pods::{Pods, at, pod4},
    raw::{dial, peer},
    world::{World, backend4},
};

const OWN: &str = "10.2.0.1:7000";
const OTHER: &str = "10.96.0.11:80";

/// Two Services with one backend.
fn start(world: &World) -> Control {
    let mut control = Control::start(world);
    control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
    control.put("other", &["10.96.0.11"], 80, &[backend4(1)]);
    control
}

/// A socket at [`OWN`], with others.
fn shared(kind: SockType) -> OwnedFd {
    let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    if kind == SockType::Datagram {
        setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at(OWN))).unwrap();
    fd
}

/// From one port, one connection to a backend is possible, by whatever address it was dialled.
#[test]
fn one_port_connects_to_a_backend_once() {
    World::run(|world| {
        let _control = start(world);
        let _backends = Backends::start([backend4(1)]);
        let [first, second, third, fourth] = [(); 4].map(|()| shared(SockType::Stream));
        dial(&first, at(V4)).unwrap();
        assert_eq!(peer(&first), Ok(at(V4)));
        for (socket, to) in [(&second, at(V4)), (&third, at(OTHER)), (&fourth, pod4(1))] {
            assert_eq!(dial(socket, to), Err(Errno::EADDRNOTAVAIL), "{to}");
        }
    });
}

/// Reads what is there.
fn came(socket: &UdpSocket) -> Vec<SocketAddr> {
    socket.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    loop {
        match socket.recv_from(&mut [0; 8]) {
            Ok((_, from)) => all.push(from),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Of two connected UDP sockets with one port, one gets the answers to both.
#[test]
fn one_of_two_connected_sockets_gets_all_answers() {
    World::run(|world| {
        let _control = start(world);
        let pods = Pods::start([1]);
        let sockets = [V4, OTHER].map(|to| {
            let socket = UdpSocket::from(shared(SockType::Datagram));
            dial(&socket, at(to)).unwrap();
            (socket, at(to))
        });
        for (socket, _) in &sockets {
            socket.send(b"?").unwrap();
            pods.answer(&pods.take());
        }
        let mut counts = sockets.each_ref().map(|(socket, to)| {
            let labels = came(socket);
            assert!(labels.iter().all(|label| label == to), "{labels:?}");
            labels.len()
        });
        counts.sort_unstable();
        assert_eq!(counts, [0, 2]);
    });
}

/// Gives all that comes to one of the sockets that share the port.
fn all_to(socket: &UdpSocket, number: u32) {
    let mut code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: number }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).unwrap();
    // SAFETY: the kernel reads the program and its step, which live longer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// An answer that another socket of the port gets than the one that asked has the backend's own address.
#[test]
fn a_sibling_does_not_know_what_was_asked() {
    World::run(|world| {
        let _control = start(world);
        let pods = Pods::start([1]);
        let sockets = [(); 2].map(|()| UdpSocket::from(shared(SockType::Datagram)));
        for socket in &sockets {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let [asks, sibling] = &sockets;
        for (reader, number, label) in [(asks, 0, at(V4)), (sibling, 1, pod4(1))] {
            all_to(asks, number);
            asks.send_to(b"?", V4).unwrap();
            pods.answer(&pods.take());
            assert_eq!(super::pods::read(reader).1, label, "socket {number}");
        }
    });
}
