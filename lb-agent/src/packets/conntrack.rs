//! What connection tracking remembers of UDP, over ctnetlink: read, and forgotten where an endpoint is
//! gone (L2). What began between other addresses than a frontend's is never touched.
//!
//! Names and numbers are those of linux/netfilter/nfnetlink_conntrack.h.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use lb_core::{model::Protocol, packets::ServedFlows, printable::Printable};

use super::nft::{Attributes, Family};
use crate::netlink::{Netlink, attributes};

/// `NFNL_SUBSYS_CTNETLINK << 8`, and `IPCTNL_MSG_CT_*`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;

/// Bytes before the attributes of an answer: `struct nfgenmsg`.
const HEAD: usize = 4;

/// `CTA_*`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `CTA_FILTER_F_CTA_PROTO_NUM` of the kernel's nf_internals.h, as libnetfilter_conntrack has it.
const FILTER_PROTOCOL: u32 = 1 << 3;

/// An entry: a flow of UDP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlowEntry {
    /// Who began it.
    pub client: SocketAddr,
    /// Where its first datagram was sent, before any translation.
    pub to: SocketAddr,
    /// Where answers come from.
    pub from: SocketAddr,
    /// Another entry has another one, also one between the same addresses.
    pub id: u32,
    family: Family,
    /// What names it to the kernel, as the kernel has said it.
    name: Vec<u8>,
}

/// How many entries were forgotten.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Forgotten {
    /// Of IPv4.
    pub ipv4: u64,
    /// Of IPv6.
    pub ipv6: u64,
}

/// Why entries cannot be read or forgotten. It says what helps.
#[derive(Debug, thiserror::Error)]
#[error("conntrack: {}{}", Printable(_0), remedy(_0))]
pub struct ConntrackError(#[from] io::Error);

impl ConntrackError {
    /// Whether the kernel does not have what it takes, also the next time.
    pub fn lacks_the_means(&self) -> bool {
        let means = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT];
        self.0.raw_os_error().is_some_and(|errno| means.contains(&errno))
    }
}

/// The entries of UDP in this network namespace, of both families.
pub fn flows() -> Result<Vec<FlowEntry>, ConntrackError> {
    let mut netlink = Netlink::netfilter()?;
    let mut all = Vec::new();
    for family in Family::ALL {
        all.append(&mut read(&mut netlink, family, |_| true)?);
    }
    Ok(all)
}

/// Forgets what is over of the flows in this network namespace: its next datagram begins a new one.
/// Costs as much as there are entries of UDP. What one entry or one family refuses keeps nothing else;
/// the first error says why some may be left.
pub fn forget(served: &ServedFlows) -> (Forgotten, Option<ConntrackError>) {
    let mut outcome = Outcome::default();
    let looked = Netlink::netfilter().map(|mut netlink| {
        for family in Family::ALL {
            let is_over = |entry: &FlowEntry| served.is_over(entry.to, entry.from);
            match read(&mut netlink, family, is_over) {
                Ok(over) => outcome.delete(&over, |entry| delete(&mut netlink, entry)),
                Err(error) => outcome.fail(error),
            }
        }
    });
    if let Err(error) = looked {
        outcome.fail(error.into());
    }
    (outcome.forgotten, outcome.error)
}

/// What came of forgetting so far.
#[derive(Default)]
struct Outcome {
    forgotten: Forgotten,
    /// The first one.
    error: Option<ConntrackError>,
}

impl Outcome {
    /// Linux before 6.1.32 refuses to delete what a flowtable has offloaded (EBUSY).
    fn delete(
        &mut self,
        over: &[FlowEntry],
        mut delete: impl FnMut(&FlowEntry) -> Result<bool, ConntrackError>,
    ) {
        for entry in over {
            let count = match entry.family {
                Family::Ip => &mut self.forgotten.ipv4,
                Family::Ip6 => &mut self.forgotten.ipv6,
            };
            match delete(entry) {
                Ok(was_there) => *count += u64::from(was_there),
                Err(error) => self.fail(error),
            }
        }
    }

    fn fail(&mut self, error: ConntrackError) {
        self.error.get_or_insert(error);
    }
}

/// The entries of UDP that somebody asks for.
fn read(
    netlink: &mut Netlink,
    family: Family,
    is_wanted: impl Fn(&FlowEntry) -> bool,
) -> Result<Vec<FlowEntry>, ConntrackError> {
    let udp = Attributes::default().bytes(1, &[Protocol::Udp.number()]);
    let flags = Attributes::default().bytes(1, &FILTER_PROTOCOL.to_ne_bytes());
    let query = Attributes::default()
        .nest(TUPLE_ORIG, &Attributes::default().nest(2, &udp))
        .nest(FILTER, &flags);
    let mut found = Vec::new();
    let whole = netlink.dump(GET, &message(family, query.content()), |body| match body {
        None => found.clear(),
        Some(body) => {
            let entry = FlowEntry::parse(family, body.get(HEAD..).unwrap_or_default());
            found.extend(entry.filter(&is_wanted));
        }
    })?;
    if whole { Ok(found) } else { Err(io::Error::from_raw_os_error(libc::EINTR).into()) }
}

/// Whether it was still there.
fn delete(netlink: &mut Netlink, entry: &FlowEntry) -> Result<bool, ConntrackError> {
    match netlink.order(DELETE, &message(entry.family, &entry.name)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn message(family: Family, attributes: &[u8]) -> Vec<u8> {
    [&[family.number(), 0, 0, 0], attributes].concat()
}

impl FlowEntry {
    fn parse(family: Family, body: &[u8]) -> Option<Self> {
        let find = |wanted| {
            let found = attributes(body).find(|(kind, _)| *kind == wanted);
            found.map(|(_, content)| content)
        };
        let (first, answer, id) = (find(TUPLE_ORIG)?, find(TUPLE_REPLY)?, find(ID)?);
        let mut name =
            Attributes::default().bytes(TUPLE_ORIG | super::nft::NESTED, first).bytes(ID, id);
        if let Some(zone) = find(ZONE) {
            name = name.bytes(ZONE, zone);
        }
        let Tuple { from: client, to } = Tuple::parse(family, first)?;
        Some(Self {
            client,
            to,
            from: Tuple::parse(family, answer)?.from,
            id: u32::from_be_bytes(id.try_into().ok()?),
            family,
            name: name.content().to_vec(),
        })
    }
}

/// One direction of a flow.
struct Tuple {
    from: SocketAddr,
    to: SocketAddr,
}

impl Tuple {
    /// None if it is no UDP.
    fn parse(family: Family, body: &[u8]) -> Option<Self> {
        let find = |body, wanted| {
            let found = attributes(body).find(|(kind, _)| *kind == wanted);
            found.map(|(_, content)| content)
        };
        let (ips, protocol) = (find(body, 1)?, find(body, 2)?);
        (find(protocol, 1)? == [Protocol::Udp.number()]).then_some(())?;
        let ip = |v4: u16| -> Option<IpAddr> {
            Some(match family {
                Family::Ip => <[u8; 4]>::try_from(find(ips, v4)?).ok()?.into(),
                Family::Ip6 => <[u8; 16]>::try_from(find(ips, v4 + 2)?).ok()?.into(),
            })
        };
        let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
        Some(Self {
            from: SocketAddr::new(ip(1)?, port(2)?),
            to: SocketAddr::new(ip(2)?, port(3)?),
        })
    }
}

/// What helps, where somebody can help.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": give the agent CAP_NET_ADMIN",
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
            ": load the module nf_conntrack_netlink, or use a kernel that has it"
        }
        Some(libc::ENOMEM) => ": give the agent's cgroup more memory",
        Some(libc::EINTR | libc::ENOBUFS | libc::EBUSY) => ": it is tried again",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(from: &str, to: &str, protocol: u8) -> Attributes {
        let [from, to]: [SocketAddr; 2] = [from, to].map(|text| text.parse().unwrap());
        let ip = |all: Attributes, kind, ip: IpAddr| match ip {
            IpAddr::V4(ip) => all.bytes(kind, &ip.octets()),
            IpAddr::V6(ip) => all.bytes(kind + 2, &ip.octets()),
        };
        let ips = ip(ip(Attributes::default(), 1, from.ip()), 2, to.ip());
        let ports = Attributes::default()
            .bytes(1, &[protocol])
            .bytes(2, &from.port().to_be_bytes())
            .bytes(3, &to.port().to_be_bytes());
        Attributes::default().nest(1, &ips).nest(2, &ports)
    }

    fn entry(first: &Attributes, answer: &Attributes) -> Attributes {
        Attributes::default().nest(TUPLE_ORIG, first).nest(TUPLE_REPLY, answer).number(ID, 7)
    }

    #[test]
    fn an_entry_is_named_as_the_kernel_names_it() {
        for (family, client, vip, pod) in [
            (Family::Ip, "10.9.0.1:5000", "192.0.2.1:53", "10.0.0.1:5353"),
            (Family::Ip6, "[fd09::1]:5000", "[2001:db8::1]:53", "[fd00::1]:5353"),
        ] {
            let first = tuple(client, vip, 17);
            let body = entry(&first, &tuple(pod, client, 17));
            let found = FlowEntry::parse(family, body.content()).unwrap();
            let all = [client, vip, pod].map(|text| text.parse().unwrap());
            assert_eq!(([found.client, found.to, found.from], found.id), (all, 7));
            let name = Attributes::default().nest(TUPLE_ORIG, &first).number(ID, 7);
            assert_eq!(found.name, name.content());
            let zoned = body.bytes(ZONE, &[0, 3]);
            let found = FlowEntry::parse(family, zoned.content()).unwrap();
            assert_eq!(found.name, name.bytes(ZONE, &[0, 3]).content());
        }
    }

    #[test]
    fn what_is_no_udp_is_no_flow() {
        let [a, b] = ["10.9.0.1:5000", "192.0.2.1:53"];
        let tcp = entry(&tuple(a, b, 6), &tuple(b, a, 6));
        assert_eq!(FlowEntry::parse(Family::Ip, tcp.content()), None);
        assert_eq!(FlowEntry::parse(Family::Ip, &[0, 3, 9]), None);
    }

    #[test]
    fn an_entry_that_stays_keeps_no_other() {
        let [client, vip, pod] = ["10.9.0.1:5000", "192.0.2.1:53", "10.0.0.1:5353"];
        let body = entry(&tuple(client, vip, 17), &tuple(pod, client, 17));
        let one = FlowEntry::parse(Family::Ip, body.content()).unwrap();
        let all: Vec<_> = (0..5).map(|id| FlowEntry { id, ..one.clone() }).collect();
        let mut outcome = Outcome::default();
        outcome.delete(&all, |entry| match entry.id {
            1 => Err(io::Error::from_raw_os_error(libc::EBUSY).into()),
            2 => Err(io::Error::from_raw_os_error(libc::EPERM).into()),
            3 => Ok(false),
            _ => Ok(true),
        });
        let v6 = FlowEntry { family: Family::Ip6, ..one };
        outcome.delete(&[v6], |_| Ok(true));
        assert_eq!(outcome.forgotten, Forgotten { ipv4: 2, ipv6: 1 });
        let ConntrackError(first) = outcome.error.unwrap();
        assert_eq!(first.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn an_error_says_what_helps() {
        for (errno, words) in [
            (libc::EPERM, "CAP_NET_ADMIN"),
            (libc::EINVAL, "nf_conntrack_netlink"),
            (libc::ENOBUFS, "tried again"),
            (libc::EINTR, "tried again"),
            (libc::ENOMEM, "memory"),
        ] {
            let text = ConntrackError(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.starts_with("conntrack: ") && text.contains(words), "{text}");
        }
    }
}
