//! The addresses of one network namespace, and which of them routing chooses: rtnetlink.
//!
//! `struct ifinfomsg`, `ifaddrmsg` and `rtmsg` are those of linux/rtnetlink.h and linux/if_addr.h.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::pod_read_unaligned;

use crate::netlink::{Netlink, attribute, attributes};

/// Links, and addresses, routes and rules of both families: `RTMGRP_*`, see linux/rtnetlink.h.
pub(super) const SIGNS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const IFA_ADDRESS: u16 = 1;
/// One's own, where `IFA_ADDRESS` is the other end of a line.
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_PREFSRC: u16 = 7;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
/// The kernel does not let anybody use it, or not yet.
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_TENTATIVE: u8 = 0x40;
const IFA_F_OPTIMISTIC: u8 = 0x04;

/// An address, and whether it is the loopback interface's.
pub(super) type LocalAddress = (bool, IpAddr);

/// The addresses that can be used, in the kernel's order.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<LocalAddress>> {
    let mut links = BTreeMap::new();
    netlink.dump(GET_LINK, &[0; IFINFOMSG], |body| match body {
        None => links.clear(),
        Some(body) => links.extend(link(body)),
    })?;
    let mut addresses = Vec::new();
    netlink.dump(GET_ADDRESS, &[0; IFADDRMSG], |body| match body {
        None => addresses.clear(),
        Some(body) => addresses.extend(address(body).and_then(|(interface, ip)| {
            let flags = *links.get(&interface)?;
            (flags & IFF_UP != 0).then_some((flags & IFF_LOOPBACK != 0, ip))
        })),
    })?;
    Ok(addresses)
}

/// The source that routing chooses for what goes to an address; none if it leads nowhere.
pub(super) fn source(netlink: &mut Netlink, to: IpAddr) -> io::Result<Option<IpAddr>> {
    let (family, octets) = match to {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut body = vec![0; RTMSG];
    body[0] = u8::try_from(family).unwrap_or_default();
    body[1] = if to.is_ipv4() { 32 } else { 128 };
    body.extend(attribute(RTA_DST, &octets));
    let mut source = None;
    match netlink.ask(GET_ROUTE, &body, |body| source = preferred(body)) {
        Ok(()) => Ok(source),
        // What routing says of an address without a route, or of a forbidden one.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Number and flags of an interface.
fn link(body: &[u8]) -> Option<(u32, u32)> {
    let [_, number, flags, _]: [u32; 4] = pod_read_unaligned(body.get(..IFINFOMSG)?);
    Some((number, flags))
}

/// The interface of an address, and the address.
fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let [_, _, flags, _, a, b, c, d] = *body.first_chunk::<IFADDRMSG>()?;
    let is_pending = flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0;
    if is_pending || flags & IFA_F_DADFAILED != 0 {
        return None;
    }
    let find = |wanted| {
        let mut all = attributes(body.get(IFADDRMSG..)?);
        all.find_map(|(kind, content)| if kind == wanted { ip(content) } else { None })
    };
    Some((u32::from_ne_bytes([a, b, c, d]), find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?))
}

fn preferred(body: &[u8]) -> Option<IpAddr> {
    let mut all = attributes(body.get(RTMSG..)?);
    all.find_map(|(kind, content)| if kind == RTA_PREFSRC { ip(content) } else { None })
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|v6| Ipv6Addr::from(v6).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let mut body = vec![0; IFINFOMSG];
        (body[4], body[8], body[9]) = (7, 0x49, 0x10);
        let flags = u32::from_ne_bytes([0x49, 0x10, 0, 0]);
        assert_eq!(link(&body), Some((7, flags)));
        assert_eq!(link(&body[..12]), None);

        let message = |flags: u8, attributes: &[(u16, &[u8])]| {
            let mut body = vec![2, 32, flags, 0];
            body.extend(7u32.to_ne_bytes());
            body.extend(attributes.iter().flat_map(|(kind, content)| attribute(*kind, content)));
            body
        };
        let (mine, other) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let line = message(0x80, &[(IFA_ADDRESS, &other), (IFA_LOCAL, &mine)]);
        assert_eq!(address(&line), Some((7, mine.into())));
        let v6 = message(0x80, &[(IFA_ADDRESS, &[0xfd; 16])]);
        assert_eq!(address(&v6), Some((7, [0xfd; 16].into())));
        for (flags, can_be_used) in [(0x40, false), (0x08, false), (0x44, true), (0x20, true)] {
            let body = message(flags, &[(IFA_ADDRESS, &[0xfd; 16])]);
            assert_eq!(address(&body).is_some(), can_be_used, "{flags:x}");
        }
        assert_eq!(address(&message(0, &[])), None);

        let mut route = vec![0; RTMSG];
        assert_eq!(preferred(&route), None);
        route.extend(attribute(RTA_DST, &other));
        route.extend(attribute(RTA_PREFSRC, &mine));
        assert_eq!(preferred(&route), Some(mine.into()));
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::route().unwrap();
        let all = addresses(&mut netlink).unwrap();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(all.contains(&(true, loopback)), "{all:?}");
        assert_eq!(source(&mut netlink, loopback).unwrap(), Some(loopback));
        let nowhere = IpAddr::from([0, 0, 0, 1]);
        assert!(source(&mut netlink, nowhere).is_ok());
    }
}
