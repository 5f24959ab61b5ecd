//! Ports, and the ends of connections.

use core::{fmt, net::SocketAddr};

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// A port in network order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(transparent)]
pub struct Port([u8; 2]);

impl Port {
    /// From a `sin_port`, as it stands in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw.to_ne_bytes())
    }

    /// The inverse of [`Port::from_raw`].
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        u16::from_ne_bytes(self.0)
    }

    /// The port number.
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl From<u16> for Port {
    fn from(number: u16) -> Self {
        Self(number.to_be_bytes())
    }
}

/// An address and a port: one end of a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct Peer {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
}

impl Peer {
    /// Numbers that compare as the peers do: by address, then by port. The records of a block stand
    /// in this order.
    #[inline(always)]
    pub const fn order(&self) -> (u64, u64, u16) {
        let [a, b, c, d] = self.addr.words();
        let high = a as u64 | (b as u64) << 32;
        let low = c as u64 | (d as u64) << 32;
        (u64::from_be(high.to_le()), u64::from_be(low.to_le()), u16::from_be(self.port.raw()))
    }
}

impl From<SocketAddr> for Peer {
    fn from(addr: SocketAddr) -> Self {
        Self { addr: addr.ip().into(), port: addr.port().into() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(Peer { addr, port }: Peer) -> Self {
        Self::new(addr.ip(), port.number())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn a_port_is_in_network_order() {
        assert_eq!(Port::from(80).raw().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::from_raw(Port::from(8080).raw()).number(), 8080);
    }

    #[test]
    fn peers_compare_by_address_then_by_port() {
        let mut peers: std::vec::Vec<SocketAddr> = [
            "10.0.0.1:80",
            "10.0.0.1:443",
            "10.0.1.0:1",
            "9.255.255.255:65535",
            "[fd00::1]:80",
            "[fd00::1:0]:1",
            "[fd00::1]:256",
            "192.0.2.1:255",
            "192.0.2.1:256",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        peers.sort_unstable();
        let peers: std::vec::Vec<Peer> = peers.into_iter().map(Peer::from).collect();
        assert!(peers.iter().is_sorted_by_key(Peer::order));
        assert!(peers.is_sorted());
    }
}
