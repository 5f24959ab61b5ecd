//! Which sockets are those of servers: the application has chosen their port.
//!
//! A server answers from the port at which it was asked; a client mostly leaves the choice to the
//! kernel, which remembers who chose (`SOCK_BINDPORT_LOCK`), but does not show it in sock_diag. So its
//! iterator over UDP sockets is asked (`bpf_iter__udp`, since Linux 5.9). It finds the bit by the type
//! information of the kernel. Where that does not work, a port outside of the range from which the
//! kernel chooses (`ip_local_port_range`) is taken for a server's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::RangeInclusive,
};

use super::{
    Found,
    iterator::{
        EXIT, GET_SOCKET_COOKIE, Instruction, Iterator, Program, SEQ_WRITE, Types, add, and, call,
        copy, if_zero, load, load_byte, set, store,
    },
    namespaces::{cookie, tour},
};

/// Bit of `sk_userlocks`: the application has chosen the port.
const SOCK_BINDPORT_LOCK: u32 = 8;
const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Those of the sockets that are not a server's. Of those of whom that cannot be told, none.
pub fn without_servers(sockets: Vec<Found>) -> Vec<Found> {
    if sockets.is_empty() {
        return sockets;
    }
    let chosen = Chosen::open();
    if let Err(error) = &chosen {
        tracing::debug!(%error, "who has chosen a port is told by its number");
    }
    let mut groups: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
    for found in sockets {
        groups.entry(found.netns).or_default().push(found);
    }
    let groups: Vec<_> = groups.into_iter().collect();
    let doors: Vec<_> = groups.iter().map(|(_, sockets)| sockets[0].door.clone()).collect();
    let clients = tour(&doors, |index| {
        let (netns, sockets) = &groups[index];
        if cookie()? != *netns {
            return Ok(Vec::new());
        }
        let servers = UdpServers::here(chosen.as_ref().ok())?;
        Ok(sockets.iter().filter(|found| !servers.contain(found)).cloned().collect())
    });
    clients
        .into_iter()
        .flat_map(|clients: io::Result<Vec<Found>>| clients.unwrap_or_default())
        .collect()
}

/// How the servers of a network namespace are told.
enum UdpServers {
    /// By the cookies of their sockets.
    Known(BTreeSet<u64>),
    /// By a port from which the kernel does not choose.
    Outside(RangeInclusive<u16>),
}

impl UdpServers {
    /// In the network namespace of this thread.
    fn here(chosen: Option<&Chosen>) -> io::Result<Self> {
        if let Some(cookies) = chosen.and_then(|chosen| chosen.cookies().ok()) {
            return Ok(Self::Known(cookies));
        }
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        Ok(Self::Outside(port_range(&range)?))
    }

    fn contain(&self, found: &Found) -> bool {
        match self {
            Self::Known(cookies) => cookies.contains(&found.cookie),
            Self::Outside(range) => !range.contains(&found.local.port.number()),
        }
    }
}

fn port_range(text: &str) -> io::Result<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The sockets whose port was chosen by the application.
struct Chosen(Iterator);

impl Chosen {
    fn open() -> io::Result<Self> {
        let first = first_bit(&fs::read(TYPES)?, "sock", "sk_userlocks")
            .ok_or(io::Error::from(io::ErrorKind::Unsupported))?;
        let program = program(first)?;
        Ok(Self(Program::load(&Types::read()?, "chosen", "bpf_iter_udp", &program)?.over(None)?))
    }

    /// The cookies of those in the network namespace of this thread.
    fn cookies(&self) -> io::Result<BTreeSet<u64>> {
        let mut cookies = BTreeSet::new();
        self.0.read::<8>(|cookie| _ = cookies.insert(u64::from_ne_bytes(*cookie)))?;
        Ok(cookies)
    }
}

/// The context has a pointer to `struct bpf_iter_meta`, which begins with one to the output, and one to
/// the socket, null at the end.
fn program(first: u32) -> io::Result<[Instruction; 17]> {
    let bit = first + SOCK_BINDPORT_LOCK.trailing_zeros();
    let (byte, mask) = (i16::try_from(bit / 8).map_err(io::Error::other)?, 1 << (bit % 8));
    Ok([
        copy(6, 1),
        load(7, 6, 8),
        if_zero(7, 12),
        load_byte(1, 7, byte),
        and(1, mask),
        if_zero(1, 9),
        copy(1, 7),
        call(GET_SOCKET_COOKIE),
        store(10, -8, 0),
        load(1, 6, 0),
        load(1, 1, 0),
        copy(2, 10),
        add(2, -8),
        set(3, 8),
        call(SEQ_WRITE),
        set(0, 0),
        EXIT,
    ])
}

/// The first bit of a field of a structure, by the kernel's type information, see
/// <https://docs.kernel.org/bpf/btf.html>. None if there is no such field.
fn first_bit(btf: &[u8], structure: &str, field: &str) -> Option<u32> {
    let word = |at: usize| Some(u32::from_ne_bytes(*btf.get(at..)?.first_chunk()?));
    let header = word(4)? as usize;
    let types = header + word(8)? as usize;
    let end = types + word(12)? as usize;
    let strings = header + word(16)? as usize;
    let is_name = |offset: u32, name: &str| {
        let text = btf.get(strings + offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = types;
    while at < end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, len) = (info >> 24 & 31, (info & 0xffff) as usize);
        let members = at + 12;
        let rest = match kind {
            // INT, VAR, DECL_TAG.
            1 | 14 | 17 => 4,
            // ARRAY.
            3 => 12,
            // STRUCT, UNION, DATASEC, ENUM64.
            4 | 5 | 15 | 19 => 12 * len,
            // ENUM, FUNC_PROTO.
            6 | 13 => 8 * len,
            _ => 0,
        };
        if kind == 4 && is_name(name, structure) {
            for member in (members..members + rest).step_by(12) {
                if is_name(word(member)?, field) {
                    let place = word(member + 8)?;
                    // A structure with fields of some bits says how many above the place.
                    return Some(if info >> 31 == 1 { place & 0x00ff_ffff } else { place });
                }
            }
        }
        at = members + rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_by_its_port_where_nobody_says_who_chose_it() {
        let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 30053));
        // Its own port is 40000.
        let found = Found::sample(lb_core::model::Protocol::Udp, peer);
        assert!(!UdpServers::Outside(32768..=60999).contain(&found));
        assert!(UdpServers::Outside(1024..=39999).contain(&found));
        assert!(UdpServers::Known([found.cookie].into()).contain(&found));
        assert!(!UdpServers::Known([found.cookie + 1].into()).contain(&found));
        assert!(UdpServers::here(None).is_ok());
    }

    #[test]
    fn the_kernel_s_range_of_ports() {
        assert_eq!(port_range("32768\t60999\n").unwrap(), 32768..=60999);
        for wrong in ["", "32768", "a b", "1 65536"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }

    /// As far as the types of the machine that runs this test go.
    #[test]
    fn a_field_is_found_by_its_name() {
        let types = fs::read(TYPES).unwrap();
        let bit = |structure, field| first_bit(&types, structure, field);
        assert_eq!(bit("in6_addr", "in6_u"), Some(0));
        assert_eq!(bit("sockaddr_in", "sin_port"), Some(16));
        assert!(bit("sock", "sk_userlocks").is_some_and(|bit| bit > 64));
        assert_eq!(bit("sock", "sk_nothing"), None);
        assert_eq!(bit("no_such_structure", "a"), None);
        assert_eq!(first_bit(&types[..types.len() / 2], "sock", "sk_nothing"), None);
        assert_eq!(first_bit(&[], "sock", "sk_userlocks"), None);
    }
}
