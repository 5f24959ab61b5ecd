//! Whose address a connection from a network namespace has: for `loadBalancerSourceRanges`.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use super::namespaces::{Namespaces, cookie, tour};

/// The addresses of the clients in one network namespace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Client {
    /// For IPv4 connections.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 connections.
    pub v6: Option<Ipv6Addr>,
}

/// The client in each network namespace, by the cookie of the namespace: the first global address of
/// each family, on an interface that is up; one of the loopback interface only if no other has any.
/// Namespaces that cannot be entered are left out. The machine's own namespace is in it like any
/// other.
///
/// Blocks for some milliseconds; starts a thread and waits for it.
pub fn clients() -> io::Result<Clients> {
    let Namespaces { doors, .. } = Namespaces::find()?;
    let mut clients = Clients { known: BTreeMap::new(), complete: true };
    for seen in tour(&doors, |_| Ok((cookie()?, client()?))) {
        match seen {
            Ok((netns, client)) => _ = clients.known.insert(netns, client),
            // It has ended meanwhile; or a process that showed it has, and others live there.
            Err(_) => clients.complete = false,
        }
    }
    Ok(clients)
}

/// The clients on this machine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Clients {
    /// By the cookie of their network namespace.
    pub known: BTreeMap<u64, Client>,
    /// Whether each network namespace that was found could be asked.
    pub complete: bool,
}

fn client() -> io::Result<Client> {
    let mut addresses = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())));
        if let Some(ip) = ip
            && interface.flags.contains(InterfaceFlags::IFF_UP)
        {
            addresses.push((interface.flags.contains(InterfaceFlags::IFF_LOOPBACK), ip));
        }
    }
    Ok(first(&addresses))
}

/// From addresses in the kernel's order, each with whether it is the loopback interface's.
fn first(addresses: &[(bool, IpAddr)]) -> Client {
    let mut client = Client::default();
    for loopback in [false, true] {
        for (_, ip) in addresses.iter().filter(|(on, ip)| *on == loopback && is_global(*ip)) {
            match ip {
                IpAddr::V4(v4) => _ = client.v4.get_or_insert(*v4),
                IpAddr::V6(v6) => _ = client.v6.get_or_insert(*v6),
            }
        }
    }
    client
}

const fn is_global(ip: IpAddr) -> bool {
    !match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_of(addresses: &[(bool, &str)]) -> (Option<String>, Option<String>) {
        let addresses: Vec<_> =
            addresses.iter().map(|(lo, ip)| (*lo, ip.parse().unwrap())).collect();
        let Client { v4, v6 } = first(&addresses);
        (v4.map(|v4| v4.to_string()), v6.map(|v6| v6.to_string()))
    }

    #[test]
    fn the_first_global_address_of_each_family() {
        let pod = [
            (true, "127.0.0.1"),
            (false, "169.254.1.1"),
            (false, "10.244.1.7"),
            (false, "192.168.0.1"),
            (true, "::1"),
            (false, "fe80::1"),
            (false, "fd00:244::7"),
        ];
        assert_eq!(first_of(&pod), (Some("10.244.1.7".into()), Some("fd00:244::7".into())));
    }

    #[test]
    fn of_the_loopback_interface_only_if_no_other_has_any() {
        let both = [(true, "10.0.0.1"), (false, "10.244.1.7"), (true, "fd00::1")];
        assert_eq!(first_of(&both), (Some("10.244.1.7".into()), Some("fd00::1".into())));
        assert_eq!(first_of(&[(true, "127.0.0.1"), (true, "::1")]), (None, None));
    }
}
