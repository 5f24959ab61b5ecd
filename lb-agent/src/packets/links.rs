//! Interfaces that packets pass in a way that is in the way: rtnetlink.
//!
//! Attributes are those of linux/if_link.h and linux/if_addr.h.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use super::{nft::Family, obstacle::Obstacle, read::text};
use crate::netlink::{Netlink, attributes};

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;

/// What leads out of a machine, and not to its pods or to a tunnel. A device without a kind is none that
/// software makes.
const OUTWARD: [&str; 7] = ["", "bond", "ipvlan", "macvlan", "team", "veth", "vlan"];

/// An interface.
#[derive(Debug, Default)]
struct Link {
    name: String,
    kind: String,
    /// The bridge or the like that it is a port of.
    master: Option<u32>,
    /// Of a bridge: whether what it carries passes the hooks of IPv4 and of IPv6.
    calls: [bool; 2],
}

/// Interfaces by their number, and those that have an address of IPv4.
struct Links {
    all: BTreeMap<u32, Link>,
    with_ipv4: BTreeSet<u32>,
}

/// What is wrong with interfaces for these families.
pub(super) fn obstacles(proc: &Path, families: &[Family]) -> io::Result<Vec<Obstacle>> {
    let links = Links::read()?;
    let mut found: Vec<_> =
        families.iter().filter_map(|family| links.short_cut(proc, *family)).collect();
    if families.contains(&Family::Ip) {
        found.extend(links.strict(proc));
    }
    Ok(found)
}

impl Links {
    fn read() -> io::Result<Self> {
        let mut netlink = Netlink::route()?;
        let mut all = BTreeMap::new();
        netlink.dump(GET_LINK, &[0; IFINFOMSG], |body| match body {
            None => all.clear(),
            Some(body) => all.extend(link(body)),
        })?;
        let mut with_ipv4 = BTreeSet::new();
        netlink.dump(GET_ADDRESS, &[0; IFADDRMSG], |body| match body {
            None => with_ipv4.clear(),
            Some(body) => with_ipv4.extend(interface_of_ipv4(body)),
        })?;
        Ok(Self { all, with_ipv4 })
    }

    /// A bridge with several ports whose packets pass no hook: an answer from port to port is not
    /// translated back.
    fn short_cut(&self, proc: &Path, family: Family) -> Option<Obstacle> {
        let (name, which) = match family {
            Family::Ip => ("bridge-nf-call-iptables", 0),
            Family::Ip6 => ("bridge-nf-call-ip6tables", 1),
        };
        let setting = fs::read_to_string(proc.join("sys/net/bridge").join(name));
        if setting.is_ok_and(|value| value.trim() != "0") {
            return None;
        }
        let ports = |bridge: u32| self.all.values().filter(|of| of.master == Some(bridge)).count();
        let mut bridges = self.all.iter().filter(|(_, link)| link.kind == "bridge");
        let (_, bridge) = bridges.find(|(index, link)| !link.calls[which] && ports(**index) > 1)?;
        Some(Obstacle {
            what: format!(
                "net.bridge.{name} is 0, or br_netfilter is not loaded: on the bridge {}, a client \
                 without a socket on this node (a virtual machine's) gets no answer from an endpoint \
                 beside it, where the traffic policy is Local",
                bridge.name
            ),
            remedy: format!(
                "`modprobe br_netfilter; sysctl -w net.bridge.{name}=1`, and the same in \
                 /etc/modules-load.d and /etc/sysctl.d"
            ),
        })
    }

    /// One of several ways out of the machine that takes nothing from those to whom another way leads.
    fn strict(&self, proc: &Path) -> Option<Obstacle> {
        let leads_out = |(index, link): &(&u32, &Link)| {
            self.with_ipv4.contains(*index)
                && link.name != "lo"
                && OUTWARD.contains(&link.kind.as_str())
        };
        let ways: Vec<_> = self.all.iter().filter(leads_out).map(|(_, link)| &link.name).collect();
        let value = |name: &str| -> Option<u32> {
            let path = proc.join("sys/net/ipv4/conf").join(name).join("rp_filter");
            fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        // The greater of both counts, linux/Documentation/networking/ip-sysctl.rst.
        let for_all = value("all")?;
        let name = ways.iter().find(|name| value(name).map(|own| own.max(for_all)) == Some(1))?;
        (ways.len() > 1).then(|| Obstacle {
            what: format!(
                "net.ipv4.conf.{name}.rp_filter is 1: what comes by {name} from a client to whom another \
                 interface leads is dropped"
            ),
            remedy: format!(
                "if clients' packets may come by another way than answers go, `sysctl -w \
                 net.ipv4.conf.{name}.rp_filter=2`, and the same in /etc/sysctl.d"
            ),
        })
    }
}

/// The number of an interface, and the interface.
fn link(body: &[u8]) -> Option<(u32, Link)> {
    let index = body.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let mut link = Link::default();
    for (kind, content) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(content),
            IFLA_MASTER => link.master = content.try_into().ok().map(u32::from_ne_bytes),
            IFLA_LINKINFO => {
                for (kind, content) in attributes(content) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = text(content),
                        IFLA_INFO_DATA => link.calls = calls(content),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((index, link))
}

fn calls(data: &[u8]) -> [bool; 2] {
    [IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES]
        .map(|wanted| attributes(data).any(|(kind, value)| kind == wanted && value == [1]))
}

fn interface_of_ipv4(body: &[u8]) -> Option<u32> {
    let [family, _, _, _, index @ ..] = *body.first_chunk::<IFADDRMSG>()?;
    (i32::from(family) == libc::AF_INET).then(|| u32::from_ne_bytes(index))
}
