//! Backends of UDP that answer when the test says so. They live in the thread of the test, and the
//! loopback delivers within the send, so the order of all that happens is the test's.

use std::{
    collections::VecDeque,
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, SockaddrStorage, sendmsg},
};

use super::{
    echo::PATIENCE,
    world::{PORT, backend4, backend6},
};

/// Sockets at addresses of backends.
pub(crate) struct Pods(Vec<UdpSocket>);

/// A datagram, as the backend has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Letter {
    pub(crate) pod: SocketAddr,
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

impl Pods {
    /// At [`PORT`] of the backends of both families with these numbers.
    pub(crate) fn start(numbers: impl IntoIterator<Item = u8>) -> Self {
        let ips = numbers.into_iter().flat_map(|n| [backend4(n), backend6(n)]);
        Self::at(ips.map(|ip| (ip, PORT).into()))
    }

    pub(crate) fn at(addrs: impl IntoIterator<Item = SocketAddr>) -> Self {
        let bind = |addr| {
            let socket = UdpSocket::bind(addr).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        Self(addrs.into_iter().map(bind).collect())
    }

    /// The next datagram that any of them gets.
    pub(crate) fn take(&self) -> Letter {
        self.within(PATIENCE).expect("no datagram came")
    }

    /// Nothing came, and nothing comes.
    pub(crate) fn assert_idle(&self) {
        assert_eq!(self.within(Duration::from_millis(20)), None);
    }

    fn within(&self, patience: Duration) -> Option<Letter> {
        let mut wanted: Vec<_> =
            self.0.iter().map(|pod| PollFd::new(pod.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut wanted, PollTimeout::try_from(patience).unwrap()).unwrap();
        let ready = wanted.iter().position(|fd| fd.any().unwrap())?;
        let pod = &self.0[ready];
        let mut bytes = vec![0; 4096];
        let (n, from) = pod.recv_from(&mut bytes).unwrap();
        bytes.truncate(n);
        Some(Letter { pod: pod.local_addr().unwrap(), from, bytes })
    }

    /// The backend answers with what it was sent.
    pub(crate) fn answer(&self, letter: &Letter) {
        let pod = self.0.iter().find(|pod| pod.local_addr().unwrap() == letter.pod).unwrap();
        pod.send_to(&letter.bytes, letter.from).unwrap();
    }

    /// Answers everything at once, until told to stop.
    pub(crate) fn serve(&self, stop: &AtomicBool, mut seen: impl FnMut(&Letter)) {
        while !stop.load(Ordering::Relaxed) {
            if let Some(letter) = self.within(Duration::from_millis(10)) {
                seen(&letter);
                self.answer(&letter);
            }
        }
    }
}

/// A UDP socket that was neither bound nor connected.
pub(crate) fn client(ipv4: bool) -> UdpSocket {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket =
        UdpSocket::from(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What the client reads next, and from whom it seems to come.
pub(crate) fn read(client: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 4096];
    let (n, from) = client.recv_from(&mut bytes).unwrap();
    bytes.truncate(n);
    (bytes, from)
}

/// Asks, and has the answer: which backend it was, and what address the answer seems to come from.
pub(crate) fn exchange(
    client: &UdpSocket,
    to: SocketAddr,
    pods: &Pods,
) -> (SocketAddr, SocketAddr) {
    client.send_to(b"who?", to).unwrap();
    let letter = pods.take();
    pods.answer(&letter);
    let (bytes, label) = read(client);
    assert_eq!(bytes, b"who?");
    (letter.pod, label)
}

/// Sends each of the questions, then reads as many answers: which label has each?
pub(crate) fn pipelined(
    client: &UdpSocket,
    questions: &[SocketAddr],
    pods: &Pods,
) -> Vec<SocketAddr> {
    let mut letters = VecDeque::new();
    for (to, n) in questions.iter().zip(0u32..) {
        client.send_to(&n.to_be_bytes(), to).unwrap();
        letters.push_back(pods.take());
    }
    for letter in &letters {
        pods.answer(letter);
    }
    let mut labels = Vec::new();
    for n in 0..questions.len() {
        let (bytes, label) = read(client);
        assert_eq!(bytes, u32::try_from(n).unwrap().to_be_bytes(), "the loopback keeps the order");
        labels.push(label);
    }
    labels
}

/// sendmsg(2).
pub(crate) fn send_message(
    socket: &impl AsRawFd,
    parts: &[&[u8]],
    to: SocketAddr,
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    sendmsg(socket.as_raw_fd(), &parts, &[], flags, Some(&SockaddrStorage::from(to)))
}

/// The same port of `::ffff:` and an IPv4 address; an IPv6 address as it is.
pub(crate) fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A backend of both families, at [`PORT`].
pub(crate) fn pod4(n: u8) -> SocketAddr {
    (backend4(n), PORT).into()
}
