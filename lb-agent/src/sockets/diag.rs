//! The sockets of one network namespace that have a peer, and the end of one of them.
//!
//! `struct inet_diag_*` are those of linux/inet_diag.h. An id goes back to the kernel as it came: it
//! looks for the socket by its addresses, among IPv4 sockets if both are IPv4-mapped
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/udp_diag.c#L166-L217>), and then compares
//! the cookie. So a socket that has meanwhile gone elsewhere is not found.

use std::{fs, io};

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};
use lb_common::abi::{Addr, Peer, Port};
use lb_core::model::Protocol;

use super::{SocketKind, namespaces};
use crate::netlink::{Netlink, attributes};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// The attribute of a message that says the socket's cgroup.
const CGROUP_ID: u16 = 21;
/// `TCP_SYN_SENT`.
const SYN_SENT: u8 = 2;

impl SocketKind {
    /// The states that are dumped, as bits: those with a peer. Closed sockets (7) and listening ones
    /// (10) have none, and of others only a stub is left (TIME_WAIT, 6).
    const fn states(self) -> u32 {
        match self {
            // A connected UDP socket is ESTABLISHED, any other is CLOSED.
            Self::Udp => 1 << 1,
            Self::Dialling => 1 << SYN_SENT,
            Self::Tcp => {
                1 << 1 /* ESTABLISHED */ | 1 << SYN_SENT | 1 << 4 | 1 << 5 /* FIN_WAIT */
                | 1 << 8 /* CLOSE_WAIT */ | 1 << 9 /* LAST_ACK */ | 1 << 11 /* CLOSING */
            }
        }
    }
}

/// Which socket: `struct inet_diag_sockid`. Addresses of IPv4 sockets are in the first four bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Id {
    local_port: Port,
    peer_port: Port,
    local: [u8; 16],
    peer: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Message {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: Id,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

const _: () = {
    assert!(size_of::<Id>() == 48);
    assert!(size_of::<Request>() == 56);
    assert!(size_of::<Message>() == 72);
};

/// The kernel's name of a socket in its namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SocketName {
    family: Family,
    id: Id,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn number(self) -> u8 {
        let number = match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        };
        u8::try_from(number).unwrap_or_default()
    }

    /// The file, relative to /proc/thread-self/net, and the line that count the sockets.
    const fn count(self, protocol: Protocol) -> (&'static str, &'static str) {
        match (self, protocol) {
            (Self::V4, Protocol::Tcp) => ("sockstat", "TCP: inuse "),
            (Self::V4, Protocol::Udp) => ("sockstat", "UDP: inuse "),
            (Self::V6, Protocol::Tcp) => ("sockstat6", "TCP6: inuse "),
            (Self::V6, Protocol::Udp) => ("sockstat6", "UDP6: inuse "),
            (_, Protocol::Sctp) => ("sctp/snmp", "SctpCurrEstab"),
        }
    }

    fn address(self, bytes: [u8; 16]) -> Addr {
        match self {
            Self::V4 => {
                let [a, b, c, d, ..] = bytes;
                Addr::from_v4_word(u32::from_ne_bytes([a, b, c, d]))
            }
            Self::V6 => std::net::IpAddr::from(bytes).into(),
        }
    }
}

impl SocketName {
    /// Nobody's.
    pub(super) fn sample() -> Self {
        Self { family: Family::V4, id: Id::zeroed() }
    }
}

/// A socket that has a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connected {
    pub(super) name: SocketName,
    pub(super) cookie: u64,
    pub(super) local: Peer,
    pub(super) peer: Peer,
    pub(super) cgroup: u64,
    /// TCP: it has not been answered yet.
    pub(super) dialling: bool,
}

/// sock_diag of the network namespace it is opened in.
#[derive(Debug)]
pub(super) struct Diag(Netlink);

impl Diag {
    /// Of the network namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(Netlink::diag()?))
    }

    /// The namespace's cookie.
    pub(super) fn cookie(&self) -> io::Result<u64> {
        namespaces::cookie_of(self.0.fd())
    }

    /// The sockets of a kind.
    pub(super) fn connected(&mut self, kind: SocketKind) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        let protocol = kind.protocol();
        for family in [Family::V4, Family::V6] {
            // The kernel walks the sockets of all namespaces for each dump.
            if is_unused(family, protocol) {
                continue;
            }
            let request = Request {
                family: family.number(),
                protocol: protocol.number(),
                states: kind.states(),
                ..Request::zeroed()
            };
            let start = found.len();
            self.0
                .dump(SOCK_DIAG_BY_FAMILY, bytes_of(&request), |message| match message {
                    None => found.truncate(start),
                    Some(message) => found.extend(parse(message)),
                })
                .map_err(no_module)?;
        }
        Ok(found)
    }

    /// Ends a socket as if its application had been told ECONNABORTED. `NotFound` if there is no such
    /// socket any more, or it has another peer.
    pub(super) fn destroy(&mut self, protocol: Protocol, name: &SocketName) -> io::Result<()> {
        let request = Request {
            family: name.family.number(),
            protocol: protocol.number(),
            id: name.id,
            ..Request::zeroed()
        };
        self.0.order(SOCK_DESTROY, bytes_of(&request)).map_err(|error| match error.raw_os_error() {
            // Another socket, by its cookie, with the same addresses.
            Some(libc::ESTALE) => io::ErrorKind::NotFound.into(),
            _ => error,
        })
    }

    /// Whether the kernel would show and destroy sockets of this protocol.
    pub(super) fn probe(&mut self, protocol: Protocol) -> io::Result<()> {
        // No socket is in none of the states, or has no addresses.
        let request = Request {
            family: Family::V4.number(),
            protocol: protocol.number(),
            ..Request::zeroed()
        };
        self.0.dump(SOCK_DIAG_BY_FAMILY, bytes_of(&request), |_| ())?;
        match self.0.order(SOCK_DESTROY, bytes_of(&request)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// ENOENT is said of what is not there; here it is the means to look that is not.
fn no_module(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::Unsupported, error),
        _ => error,
    }
}

/// Whether the namespace of this thread surely has no such socket.
fn is_unused(family: Family, protocol: Protocol) -> bool {
    let (file, line) = family.count(protocol);
    let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    text.lines()
        .find_map(|text| text.strip_prefix(line))
        .is_some_and(|count| count.split_ascii_whitespace().next() == Some("0"))
}

fn parse(message: &[u8]) -> Option<Connected> {
    let (head, rest) = message.split_at_checked(size_of::<Message>())?;
    let head: Message = pod_read_unaligned(head);
    let family = match i32::from(head.family) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let id = head.id;
    let [low, high] = id.cookie;
    let mut connected = Connected {
        name: SocketName { family, id },
        cookie: u64::from(low) | u64::from(high) << 32,
        local: Peer { addr: family.address(id.local), port: id.local_port },
        peer: Peer { addr: family.address(id.peer), port: id.peer_port },
        cgroup: 0,
        dialling: head.state == SYN_SENT,
    };
    for (kind, content) in attributes(rest) {
        if kind == CGROUP_ID {
            connected.cgroup = content.try_into().map_or(0, u64::from_ne_bytes);
        }
    }
    (connected.peer.port.number() != 0).then_some(connected)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::netlink::attribute;

    fn message(family: libc::c_int, peer: [u8; 16], attributes: &[Vec<u8>]) -> Vec<u8> {
        let id = Id {
            local_port: 40000.into(),
            peer_port: 53.into(),
            peer,
            cookie: [5, 1],
            ..Id::zeroed()
        };
        let family = u8::try_from(family).unwrap();
        let head = Message { family, state: 1, id, ..Message::zeroed() };
        [bytes_of(&head), &attributes.concat()].concat()
    }

    #[test]
    fn one_form_for_ipv4_and_ipv4_mapped() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[10, 1, 0, 1]);
        let mapped = "::ffff:10.1.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let expected: SocketAddr = "10.1.0.1:53".parse().unwrap();
        for (family, peer) in [(libc::AF_INET, v4), (libc::AF_INET6, mapped)] {
            let connected = parse(&message(family, peer, &[])).unwrap();
            assert_eq!(SocketAddr::from(connected.peer), expected);
            assert_eq!(connected.cookie, 1 << 32 | 5);
            assert_eq!(connected.name.id.peer, peer, "the kernel gets back what it gave");
        }
    }

    #[test]
    fn the_cgroup() {
        let other = attribute(15, &[1; 4]);
        let cgroup = attribute(CGROUP_ID, &77u64.to_ne_bytes());
        let connected = parse(&message(libc::AF_INET6, [1; 16], &[other, cgroup])).unwrap();
        assert_eq!(connected.cgroup, 77);
    }

    #[test]
    fn what_is_too_short_is_nothing() {
        assert!(parse(&[2; 71]).is_none());
        assert!(parse(&message(libc::AF_UNIX, [0; 16], &[])).is_none());
    }
}
