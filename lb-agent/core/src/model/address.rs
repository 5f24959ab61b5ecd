//! Addresses and ranges as people write them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range of addresses.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cidr {
    /// Its first address.
    pub addr: IpAddr,
    /// How many bits of it count: up to 32, or 128.
    pub prefix: u8,
}

impl Cidr {
    /// The range of this one address.
    pub const fn host(addr: IpAddr) -> Self {
        Self { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether the address is in it. An address of the other family never is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        first(ip, self.prefix) == Some(self.addr) && ip.is_ipv4() == self.addr.is_ipv4()
    }
}

/// The first address of the range that `ip` is in; none if the prefix is too long.
fn first(ip: IpAddr, prefix: u8) -> Option<IpAddr> {
    let host = |bits: u8| bits.checked_sub(prefix).map(u32::from);
    Some(match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(host(32)?).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(host(128)?).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    })
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// As kube-proxy reads it (A9): spaces around it and leading zeros do not matter, and any address
    /// of the range will do.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no range such as 192.0.2.0/24");
        let (ip, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
        let ip = parse_ip(ip).filter(|_| !ip.contains(char::is_whitespace)).ok_or_else(bad)?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse::<u8>().ok().filter(|_| digits).ok_or_else(bad)?;
        let (ip, prefix) = match (ip.to_canonical(), prefix.checked_sub(96)) {
            (v4 @ IpAddr::V4(_), Some(prefix)) if ip.is_ipv6() => (v4, prefix),
            _ => (ip, prefix),
        };
        Ok(Self { addr: first(ip, prefix).ok_or_else(bad)?, prefix })
    }
}

/// An address with or without leading zeros, which are decimal (A9): `010.0.0.1` is 10.0.0.1.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| sloppy_v4(text))
}

fn sloppy_v4(text: &str) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or(if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(()) })
            .ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_kube_proxy_does() {
        for (text, range) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("203.0.113.000/025", "203.0.113.0/25"),
            (" 1.2.3.4/32\t", "1.2.3.4/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::/0", "::/0"),
            ("::ffff:192.0.2.9/120", "192.0.2.0/24"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), range, "{text}");
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0/8",
            "x/8",
            "10.0.0.0 /8",
            "10.0.0.0/",
            "10.0.0.0/8/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_contains_its_family_only() {
        let contains =
            |range: &str, ip: &str| range.parse::<Cidr>().unwrap().contains(ip.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("0.0.0.0/0", "192.0.2.1") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "fd00::1") && !contains("::/0", "10.0.0.1"));
        assert!(contains("fd00::/126", "fd00::3") && !contains("fd00::/126", "fd00::4"));
        assert!(Cidr::host([10, 0, 0, 1].into()).contains([10, 0, 0, 1].into()));
    }
}
