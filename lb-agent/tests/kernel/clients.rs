//! Clients: other network namespaces, and the ways in which a socket reaches a Service.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    panic::resume_unwind,
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{
    echo::PATIENCE,
    flips::{tcp_backend, udp_backend},
    raw::udp_socket,
    world::network,
};

/// Another network namespace, with the same addresses on `lo` as the test's own.
pub(crate) struct Elsewhere(File);

impl Elsewhere {
    pub(crate) fn new() -> Self {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            network();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        })
    }

    /// The same without an address.
    pub(crate) fn bare() -> Self {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        })
    }

    /// A file of it.
    pub(crate) fn file(&self) -> File {
        self.0.try_clone().unwrap()
    }

    /// Does something there. Its sockets are of this process, hence of the world's cgroup.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let result = thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// The cookie of this thread's network namespace.
pub(crate) fn cookie() -> u64 {
    lb_agent::sockets::own_netns().unwrap()
}

/// The backend that answers a datagram of a socket that is not connected.
fn unconnected_backend(to: &str) -> io::Result<SocketAddr> {
    let to: SocketAddr = to.parse().unwrap();
    answer(&udp_socket(to.is_ipv4()), to)
}

/// The same, of a socket that there is.
pub(crate) fn answer(socket: &UdpSocket, to: SocketAddr) -> io::Result<SocketAddr> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"who?", to)?;
    let mut bytes = [0; 256];
    let (length, from) = socket.recv_from(&mut bytes)?;
    assert_eq!(from, to, "the answer comes from elsewhere");
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    Ok(text.split_once(' ').unwrap().0.parse().unwrap())
}

/// How to find out the backend of a Service: each in TCP, then in UDP.
pub(crate) type Way = fn(&str) -> io::Result<SocketAddr>;
pub(crate) const TCP: &[Way] = &[tcp_backend];
pub(crate) const UDP: &[Way] = &[udp_backend, unconnected_backend];

/// Enough that one of four backends is not met once in 10^12 times.
pub(crate) const MANY: u64 = 100;

/// The backends of [`MANY`] connections.
pub(crate) fn reached(way: Way, to: &str) -> BTreeSet<IpAddr> {
    (0..MANY).map(|_| way(to).unwrap_or_else(|e| panic!("{to}: {e}")).ip().to_canonical()).collect()
}
