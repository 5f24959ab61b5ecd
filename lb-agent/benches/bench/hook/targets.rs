//! What is dialled, by which socket.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::Result;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use crate::cluster::{PORT, TARGET, cluster_ip, pod_ip};

/// Family of the socket, and form of the address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
    /// An IPv6 socket that dials ::ffff:a.b.c.d.
    Mapped,
}

/// Whether the addresses are those of one Service, again and again, or of all of them in turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reach {
    /// Always the same: everything is in the CPU's caches.
    Same,
    /// Another one of so many each time, in an order without pattern.
    Among(u32),
}

/// A loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
    pub(crate) reach: Reach,
    /// A new socket for each connect(), with socket() and close() counted in; else always the same.
    pub(crate) fresh: bool,
    /// Calls before those that are measured.
    pub(crate) warm: u32,
    /// Calls that are measured in one round.
    pub(crate) batch: u32,
}

impl Load {
    const fn again(name: &'static str, family: Family, reach: Reach) -> Self {
        let (warm, batch) = match reach {
            Reach::Same => (50, 500),
            // Each address was dialled once before it counts: what is in the caches then is what
            // has room there, not what the variant before has left.
            Reach::Among(many) => (many, if many < 250 { 500 } else { 2 * many }),
        };
        Self { name, family, reach, fresh: false, warm, batch }
    }

    const fn new(name: &'static str, family: Family) -> Self {
        Self { name, family, reach: Reach::Same, fresh: true, warm: 10, batch: 100 }
    }

    pub(crate) const ALL: [Self; 10] = [
        Self::again("v4, same", Family::V4, Reach::Same),
        Self::again("v4, any of 100", Family::V4, Reach::Among(100)),
        Self::again("v4, any of 1,000", Family::V4, Reach::Among(1_000)),
        Self::again("v4, any of 10,000", Family::V4, Reach::Among(10_000)),
        Self::again("v6, same", Family::V6, Reach::Same),
        Self::again("v6, any of 10,000", Family::V6, Reach::Among(10_000)),
        Self::again("mapped, same", Family::Mapped, Reach::Same),
        Self::again("mapped, any of 10,000", Family::Mapped, Reach::Among(10_000)),
        Self::new("new v4, same", Family::V4),
        Self::new("new v6, same", Family::V6),
    ];
}

/// What the address is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Dial {
    /// A backend's own.
    Miss,
    /// A Service's.
    Hit,
}

impl Dial {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Hit => "hit",
        }
    }
}

impl Family {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Mapped => "v4-mapped",
        }
    }

    const fn socket(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 | Self::Mapped => AddressFamily::Inet6,
        }
    }

    fn address(self, ip: IpAddr, port: u16) -> SockaddrStorage {
        let ip = match (self, ip) {
            (Self::Mapped, IpAddr::V4(v4)) => IpAddr::V6(v4.to_ipv6_mapped()),
            (_, ip) => ip,
        };
        SocketAddr::new(ip, port).into()
    }
}

/// The addresses of a loop, and its socket.
pub(crate) struct Targets {
    family: Family,
    /// The one that is connected again and again.
    socket: Option<OwnedFd>,
    addresses: Vec<SockaddrStorage>,
    next: usize,
}

impl Targets {
    /// The socket belongs to the cgroup in which the process is now.
    pub(crate) fn new(load: Load, dial: Dial, services: u32) -> Result<Self> {
        let family = load.family;
        let ipv4 = family != Family::V6;
        let address = |i| match dial {
            Dial::Miss => family.address(pod_ip(i, 0, ipv4), TARGET),
            Dial::Hit => family.address(cluster_ip(i, ipv4), PORT),
        };
        let addresses = match load.reach {
            Reach::Same => vec![address(services / 2)],
            Reach::Among(many) => (0..many).map(|n| address(scatter(n) % many)).collect(),
        };
        let socket = if load.fresh { None } else { Some(open(family)?) };
        Ok(Self { family, socket, addresses, next: 0 })
    }

    /// That many calls.
    pub(crate) fn run(&mut self, calls: u32) -> nix::Result<()> {
        for _ in 0..calls {
            let address = &self.addresses[self.next];
            self.next = if self.next + 1 == self.addresses.len() { 0 } else { self.next + 1 };
            match &self.socket {
                Some(socket) => connect(socket.as_raw_fd(), address)?,
                None => connect(open(self.family)?.as_raw_fd(), address)?,
            }
        }
        Ok(())
    }
}

fn open(family: Family) -> nix::Result<OwnedFd> {
    socket(family.socket(), SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// Numbers without a pattern (the finaliser of MurmurHash3).
const fn scatter(n: u32) -> u32 {
    let n = (n ^ (n >> 16)).wrapping_mul(0x85eb_ca6b);
    let n = (n ^ (n >> 13)).wrapping_mul(0xc2b2_ae35);
    n ^ (n >> 16)
}
