//! What is dialled, by which socket.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, socket},
};

use super::{SERVICES, TCP_SERVICES};
use crate::{
    cluster::{PORT, TARGET, cluster_ip, pod_ip},
    lab::Lab,
};

/// Family of the socket, and form of the address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
    /// An IPv6 socket that dials ::ffff:a.b.c.d.
    Mapped,
}

/// Whose sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    /// connect() sends nothing, and may be called again and again.
    Udp,
    /// In a network namespace without a way to anywhere, where connect() fails behind the programs.
    Tcp,
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
    pub(crate) protocol: Protocol,
    pub(crate) reach: Reach,
    /// A new socket for each connect(), with socket() and close() counted in; else always the same.
    pub(crate) fresh: bool,
    /// Calls before those that are measured.
    warm: u32,
    /// Calls that are measured in one round.
    pub(crate) batch: u32,
}

impl Load {
    const fn again(name: &'static str, family: Family, protocol: Protocol, reach: Reach) -> Self {
        let (warm, batch) = match reach {
            Reach::Same => (50, 500),
            // Each address was dialled once before it counts: what is in the caches then is what
            // has room there, not what the variant before has left.
            Reach::Among(many) => (many, many),
        };
        Self { name, family, protocol, reach, fresh: false, warm, batch }
    }

    const fn new(name: &'static str, family: Family, protocol: Protocol, reach: Reach) -> Self {
        let (warm, batch) = match reach {
            Reach::Same => (10, 100),
            // As many sockets would take too long: what is dialled was not dialled lately.
            Reach::Among(_) => (10, 200),
        };
        Self { name, family, protocol, reach, fresh: true, warm, batch }
    }

    pub(crate) const ALL: [Self; 13] = {
        use Family::{Mapped, V4, V6};
        use Protocol::{Tcp, Udp};
        use Reach::{Among, Same};
        [
            Self::again("v4, same", V4, Udp, Same),
            Self::again("v4, any of 1,000", V4, Udp, Among(1_000)),
            Self::again("v4, any of 10,000", V4, Udp, Among(10_000)),
            Self::again("v6, same", V6, Udp, Same),
            Self::again("v6, any of 10,000", V6, Udp, Among(10_000)),
            Self::again("mapped, same", Mapped, Udp, Same),
            Self::again("TCP v4, same", V4, Tcp, Same),
            Self::again("TCP v4, any of 1,000", V4, Tcp, Among(1_000)),
            Self::again("TCP v6, same", V6, Tcp, Same),
            Self::new("new v4, same", V4, Udp, Same),
            Self::new("new v4, any of 10,000", V4, Udp, Among(10_000)),
            Self::new("new v6, same", V6, Udp, Same),
            Self::new("new TCP v4, same", V4, Tcp, Same),
        ]
    };
}

/// What the address is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Dial {
    /// One outside of the cluster.
    Outside,
    /// A backend's own.
    Pod,
    /// A Service's.
    Hit,
}

impl Dial {
    pub(crate) const ALL: [Self; 3] = [Self::Outside, Self::Pod, Self::Hit];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Outside => "miss, outside",
            Self::Pod => "miss, a pod",
            Self::Hit => "hit",
        }
    }

    /// The one of that number.
    fn address(self, service: u32, ipv4: bool) -> (IpAddr, u16) {
        match self {
            Self::Outside => (outside(service, ipv4), 443),
            Self::Pod => (pod_ip(service, 0, ipv4), TARGET),
            Self::Hit => (cluster_ip(service, ipv4), PORT),
        }
    }
}

/// One in about 50 of them shares a bit of the filter with a Service; the ones that are dialled again and
/// again do not.
const STRIDE: u32 = 101;

/// Address `n` of the world: within 10.16.0.0/12 or fd00:1::/64.
fn outside(n: u32, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 16, 0, 1).to_bits() + n * STRIDE).into()
    } else {
        let first = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
        Ipv6Addr::from_bits(first.to_bits() + u128::from(n * STRIDE)).into()
    }
}

impl Family {
    const fn socket(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 | Self::Mapped => AddressFamily::Inet6,
        }
    }
}

/// As a system call takes it: no larger than need be, as there are many of them.
enum Address {
    V4(SockaddrIn),
    V6(SockaddrIn6),
}

impl Address {
    fn new(family: Family, (ip, port): (IpAddr, u16)) -> Self {
        match (family, SocketAddr::new(ip, port)) {
            (Family::Mapped, SocketAddr::V4(v4)) => {
                Self::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into())
            }
            (_, SocketAddr::V4(v4)) => Self::V4(SocketAddrV4::into(v4)),
            (_, SocketAddr::V6(v6)) => Self::V6(v6.into()),
        }
    }

    fn connect(&self, socket: &OwnedFd) -> nix::Result<()> {
        match self {
            Self::V4(address) => connect(socket.as_raw_fd(), address),
            Self::V6(address) => connect(socket.as_raw_fd(), address),
        }
    }
}

/// The addresses of a loop, and its socket.
pub(crate) struct Targets {
    load: Load,
    /// The one that is connected again and again.
    socket: Option<OwnedFd>,
    addresses: Vec<Address>,
    next: usize,
}

impl Targets {
    /// The socket belongs to the cgroup in which the process is now.
    pub(crate) fn new(lab: &Lab, load: Load, dial: Dial) -> Result<Self> {
        let ipv4 = load.family != Family::V6;
        let (first, all) = match load.protocol {
            Protocol::Udp => (0, SERVICES),
            Protocol::Tcp => (SERVICES, TCP_SERVICES),
        };
        let address = |n| Address::new(load.family, dial.address(first + n, ipv4));
        let addresses = match load.reach {
            Reach::Same => vec![address(all / 2)],
            Reach::Among(many) => (0..many).map(|n| address(scatter(n) % many)).collect(),
        };
        let socket = if load.fresh { None } else { Some(place(lab, load, || open(load))?) };
        Ok(Self { load, socket, addresses, next: 0 })
    }

    /// Warms up, then does `measure` with the calls that count.
    pub(crate) fn batch<T>(
        &mut self,
        lab: &Lab,
        measure: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<T>,
    ) -> Result<T> {
        let load = self.load;
        place(lab, load, || {
            self.run(load.warm)?;
            measure(&mut || self.run(load.batch))
        })
    }

    /// That many calls.
    fn run(&mut self, calls: u32) -> Result<()> {
        for _ in 0..calls {
            let address = &self.addresses[self.next];
            self.next = if self.next + 1 == self.addresses.len() { 0 } else { self.next + 1 };
            let result = match &self.socket {
                Some(socket) => address.connect(socket),
                None => address.connect(&open(self.load)?),
            };
            match (self.load.protocol, result) {
                (Protocol::Udp, result) => result?,
                (Protocol::Tcp, Err(Errno::ENETUNREACH | Errno::EADDRNOTAVAIL)) => {}
                (Protocol::Tcp, other) => {
                    other?;
                    Err(Errno::EISCONN).context("there is a way out")?;
                }
            }
        }
        Ok(())
    }
}

/// Does something where the sockets of a loop are.
fn place<T>(lab: &Lab, load: Load, act: impl FnOnce() -> Result<T>) -> Result<T> {
    match load.protocol {
        Protocol::Udp => act(),
        Protocol::Tcp => lab.in_the_void(act),
    }
}

fn open(load: Load) -> Result<OwnedFd> {
    let kind = match load.protocol {
        Protocol::Udp => SockType::Datagram,
        Protocol::Tcp => SockType::Stream,
    };
    Ok(socket(load.family.socket(), kind, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Numbers without a pattern (the finaliser of MurmurHash3).
const fn scatter(n: u32) -> u32 {
    let n = (n ^ (n >> 16)).wrapping_mul(0x85eb_ca6b);
    let n = (n ^ (n >> 13)).wrapping_mul(0xc2b2_ae35);
    n ^ (n >> 16)
}
