//! Sockets in ways that std does not offer, and those that it does, in one line.
#![expect(unsafe_code, reason = "neither std nor nix has connect(AF_UNSPEC)")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getpeername, socket,
        sockopt,
    },
};

/// A connected UDP socket that was bound to nothing.
pub(crate) fn udp(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = udp_socket(to.is_ipv4());
    socket.connect(to)?;
    Ok(socket)
}

pub(crate) fn udp_socket(ipv4: bool) -> UdpSocket {
    let any: IpAddr =
        if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).unwrap()
}

/// A TCP socket that does not wait, for destinations of this family.
pub(crate) fn nonblocking_tcp(ipv4: bool) -> OwnedFd {
    let family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap()
}

/// A TCP connection from a given address.
pub(crate) fn tcp_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    dial(&fd, to)?;
    Ok(fd.into())
}

/// A socket of any protocol; why not, if the kernel has none.
pub(crate) fn exotic(ipv4: bool, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a system call without pointers; the descriptor it returns is nobody else's.
    unsafe {
        match libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// connect(2), with a `sockaddr` of the destination's own family, whatever the socket's is.
pub(crate) fn dial(socket: &impl AsRawFd, to: SocketAddr) -> Result<(), Errno> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
}

/// connect(2) to nothing: dissolves the association, and runs no program.
pub(crate) fn disconnect(socket: &impl AsRawFd) {
    let nowhere = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap(),
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap();
    // SAFETY: the pointer is to `length` bytes, which the kernel copies.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// getpeername(2), in whatever family the kernel answers.
pub(crate) fn peer(socket: &impl AsRawFd) -> Result<SocketAddr, Errno> {
    let name: SockaddrStorage = getpeername(socket.as_raw_fd())?;
    let v4 = name.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    let v6 = name.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port())));
    Ok(v4.or(v6).unwrap())
}

/// Each call that has nowhere to go says so itself: it is made on a socket that does not wait, so what
/// it says is what it knew when it was made. Whoever would wait for an answer says EINPROGRESS.
pub(crate) fn at_once(to: &str, expected: Errno) {
    let to: SocketAddr = to.parse().unwrap();
    let ipv4 = to.is_ipv4();
    assert_eq!(dial(&nonblocking_tcp(ipv4), to), Err(expected), "TCP {to}");
    let [connected, unconnected] = [(); 2].map(|()| udp_socket(ipv4));
    for socket in [&connected, &unconnected] {
        socket.set_nonblocking(true).unwrap();
    }
    udp_fails(&connected, to, expected);
    assert_eq!(errno(unconnected.send_to(b"x", to)), expected, "sendto {to}");
}

/// connect() of a UDP socket says this, where datagrams are refused so: it sends nothing, and goes on as if
/// there were no programs for lack of a port or of endpoints. Then it says that there is no route, as
/// here to all Services, or that the address is an own one.
pub(crate) fn udp_fails(socket: &UdpSocket, to: SocketAddr, refusal: Errno) {
    let result = dial(socket, to);
    match (refusal, result) {
        (Errno::ECONNREFUSED | Errno::EHOSTUNREACH, Ok(())) => {
            let name = socket.local_addr().map(|name| name.ip());
            assert_eq!((peer(socket), name.ok()), (Ok(to), Some(to.ip())), "UDP {to}");
        }
        (Errno::ECONNREFUSED | Errno::EHOSTUNREACH, _) => {
            assert_eq!(result, Err(Errno::ENETUNREACH), "UDP {to}");
        }
        _ => assert_eq!(result, Err(refusal), "UDP {to}"),
    }
}

/// Waits until a socket that is being connected is, or fails to be.
pub(crate) fn finished(socket: &OwnedFd) -> Result<(), Errno> {
    use std::os::fd::AsFd as _;
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut wanted, PollTimeout::from(5_000u16)), Ok(1), "not writable");
    match nix::sys::socket::getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// The error of a call, as a number with a name.
pub(crate) fn errno<T>(result: io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => Errno::from_raw(error.raw_os_error().unwrap()),
    }
}
