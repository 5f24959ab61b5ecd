//! Sockets that were connected when things were different: looked for in every network namespace,
//! judged by what the maps say now, and ended.
//!
//! A Service's address is translated once, at connect(). A TCP connection finds out by itself when
//! its backend dies; a connected UDP socket does not, and goes on sending to where nobody listens.
//! kube-proxy's counterpart deletes conntrack entries (L2 to L4). Here the socket is ended by
//! sock_diag's SOCK_DESTROY, which Linux has since 4.9, in IPv4 as in IPv6.
//!
//! What the application sees of a connected UDP socket that is ended (seen on Linux 6.18; the kernel
//! does the same since 4.9, <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/udp.c#L3047-L3070>):
//!
//! * poll() wakes, with POLLERR among the rest; a blocked recv() returns;
//! * recv() fails with ECONNABORTED, or getsockopt(SO_ERROR) says it, whichever is first, and once;
//! * else the socket is as after connect(AF_UNSPEC): send() fails with EDESTADDRREQ, getpeername() with
//!   ENOTCONN, the next recv() waits for whatever comes. A local port that the kernel had chosen is given
//!   back, one chosen by bind() stays;
//! * connect() connects it again, through the programs.
//!
//! A TCP socket gets ECONNABORTED too, and its peer a reset. One that waits to be connected gets it
//! from connect(), or as SO_ERROR: it dialled a Service's address before the programs were there, or
//! knew the Service, and its packets reach nobody, for two minutes. Dialled again, it is translated.
//!
//! Never ended: a socket without a peer; one whose peer is not where the programs sent it; one whose
//! backend still serves, be it terminating; one outside the cgroup that the programs are attached to,
//! unless they had translated it; a TCP connection that was answered and that they did not translate;
//! a UDP socket that answers its peer; one that was connected to a machine's address from a port that
//! the application has chosen, before there was a Service: a server's, who has connected it to a client.
//!
//! Needed: `CAP_BPF` and `CAP_PERFMON` to read what is stored, `CAP_NET_ADMIN` to destroy; `CAP_SYS_ADMIN` to enter the
//! namespaces of others, and to find those that are not mounted in a known place, the machine's
//! process ids and `CAP_SYS_PTRACE`.
//!
//! Not found: sockets of a namespace that lives on without a process or a mount. Two UDP sockets with
//! the same addresses on both sides (SO_REUSEPORT) are ended one after the other.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::abi::{FORMER, Peer, SOCKETS, Translation};
use lb_core::model::Protocol;

use crate::pins::{Pins, shown};

mod agenda;
mod clients;
mod diag;
mod followed;
mod gone;
mod healed;
mod held;
mod iterator;
mod judge;
mod namespaces;
mod routes;
mod said;
mod servers;
mod stored;
mod subtree;
mod sweeper;

pub use clients::ClientsQuestion;
use diag::{Connected, Diag, SocketName};
pub use followed::{Followed, SourceAddresses};
pub use gone::Gone;
pub use held::{Counted, Storage};
pub use judge::{EndReason, Truth, judge};
use namespaces::{Door, Namespaces, tour};
pub use namespaces::{cookie_of_process, in_netns_of_process};
pub use servers::without_servers;
use stored::{Having, Stored};
use subtree::Subtree;
pub use sweeper::{News, Sweeper};

/// Which sockets are looked for: of those that have a peer.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SocketKind {
    /// All of UDP.
    Udp,
    /// Those of TCP that wait for an answer to their SYN. Few, but the kernel goes through its whole
    /// table for each network namespace: they are looked for when there is a reason.
    Dialling,
    /// All of TCP.
    Tcp,
}

impl SocketKind {
    /// Its protocol.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Udp => Protocol::Udp,
            Self::Dialling | Self::Tcp => Protocol::Tcp,
        }
    }
}

/// A socket that has a peer.
#[derive(Clone, Debug)]
pub struct Found {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Cookie of the socket; unique on the machine.
    pub cookie: u64,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its own address.
    pub local: Peer,
    /// The other end, as the kernel has it: after a translation the backend.
    pub peer: Peer,
    /// What the programs stored at some connect(), see [`Found::translated`].
    pub translation: Option<Translation>,
    /// Id of its cgroup.
    pub cgroup: u64,
    /// Whether that cgroup is the one that the programs are attached to, or one below it. Looked at
    /// only where it matters: for UDP, and TCP that waits, without a translation.
    pub inside: bool,
    /// TCP: nobody has answered yet.
    pub dialling: bool,
    door: Door,
    name: SocketName,
}

impl Found {
    fn new(netns: u64, door: &Door, protocol: Protocol, socket: Connected) -> Self {
        let Connected { name, cookie, local, peer, cgroup, dialling } = socket;
        let (inside, translation, door) = (false, None, door.clone());
        Self {
            netns,
            cookie,
            protocol,
            local,
            peer,
            translation,
            cgroup,
            inside,
            dialling,
            door,
            name,
        }
    }

    /// Takes in one of the translations that are stored for it. The one of its connection counts.
    fn learn(&mut self, translation: Translation) {
        if self.translated().is_none() {
            self.translation = Some(translation);
        }
    }

    /// The translation that the present connection went through.
    pub fn translated(&self) -> Option<&Translation> {
        judge::valid(self.translation.as_ref(), self.peer)
    }

    /// A socket that is nowhere, for tests.
    pub fn sample(protocol: Protocol, peer: SocketAddr) -> Self {
        Self {
            netns: 1,
            cookie: 1,
            protocol,
            local: SocketAddr::from(([10, 2, 0, 1], 40000)).into(),
            peer: peer.into(),
            translation: None,
            cgroup: 1,
            inside: true,
            dialling: false,
            door: Door::Own,
            name: SocketName::sample(),
        }
    }
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Sight {
    /// The sockets that may have to go, see [`judge()`].
    pub found: Vec<Found>,
    /// Network namespaces that were looked into.
    pub namespaces: usize,
    /// Those that could not be entered or looked into, and the last error.
    pub refused: usize,
    /// Why not.
    pub error: Option<io::Error>,
    /// Processes whose namespace is not shown.
    pub hidden: usize,
}

/// The means to look for sockets: what the programs have stored, and where they are attached.
#[derive(Debug)]
pub struct Scanner {
    /// Of [`SOCKETS`] and [`FORMER`].
    stored: Stored<2>,
    subtree: Subtree,
}

impl Scanner {
    /// Of the maps of live sockets, see [`open`], and of programs that are attached to `cgroup`.
    /// `Unsupported` if the kernel has no type information (BTF). Takes some 100 ms.
    pub fn new(maps: &SocketMaps, cgroup: &Path) -> io::Result<Self> {
        let maps = maps.0.each_ref().map(|map| (map.as_fd(), Having::Both));
        let stored = Stored::open(0..TRANSLATION, maps)?;
        Ok(Self { stored, subtree: Subtree::new(cgroup) })
    }

    /// Looks into all network namespaces for sockets of these kinds that may have to go: those that were
    /// translated, and inside the subtree those of UDP, and of TCP that wait, that were not.
    pub fn scan(&mut self, kinds: &[SocketKind]) -> Sight {
        let mut sight = Sight::default();
        let Namespaces { doors, hidden, .. } = match Namespaces::find() {
            Ok(namespaces) => namespaces,
            Err(error) => return Sight { refused: 1, error: Some(error), ..sight },
        };
        sight.hidden = hidden;
        let seen = tour(&doors, |_| {
            let mut diag = Diag::open()?;
            let mut found = Vec::new();
            for kind in kinds {
                let connected = diag.connected(*kind)?.into_iter();
                found.extend(connected.map(|socket| (kind.protocol(), socket)));
            }
            Ok((diag.cookie()?, found))
        });
        let (mut sockets, mut visited) = (Vec::new(), Vec::new());
        for (door, result) in doors.iter().zip(seen) {
            match result {
                Ok((netns, found)) => {
                    sight.namespaces += 1;
                    visited.push(door);
                    let found = found.into_iter();
                    sockets.extend(
                        found.map(|(protocol, socket)| Found::new(netns, door, protocol, socket)),
                    );
                }
                // Its last process or mount has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    sight.refused += 1;
                    sight.error = Some(error);
                }
            }
        }
        if let Err(error) = self.translations(&visited, &mut sockets) {
            return Sight { refused: doors.len(), error: Some(error), ..sight };
        }
        self.subtree.renew();
        sockets.retain_mut(|socket| self.is_candidate(socket, kinds));
        sight.found = sockets;
        sight
    }

    /// Adds what is stored. To be done after the sockets were seen: it is stored before a socket gets
    /// its peer.
    fn translations(&self, doors: &[&Door], sockets: &mut [Found]) -> io::Result<()> {
        if sockets.is_empty() {
            return Ok(());
        }
        let places = sockets.iter().enumerate().map(|(place, socket)| (socket.cookie, place));
        let places: HashMap<u64, usize> = places.collect();
        // What the first map has counts before the rest.
        for index in 0..2 {
            self.stored.read::<{ 8 + size_of::<Translation>() }, _>(index, doors, |bytes| {
                if let Some((cookie, translation)) = entry(bytes)
                    && let Some(place) = places.get(&cookie)
                {
                    sockets[*place].learn(translation);
                }
            })?;
        }
        Ok(())
    }

    /// Whether the socket may have to go.
    fn is_candidate(&mut self, socket: &mut Found, kinds: &[SocketKind]) -> bool {
        if socket.translated().is_some() {
            return socket.protocol == Protocol::Udp || kinds.contains(&SocketKind::Tcp);
        }
        if socket.protocol == Protocol::Udp || socket.dialling {
            socket.inside = self.subtree.contains(socket.cgroup);
        }
        socket.inside
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "48 bytes")]
const TRANSLATION: i16 = size_of::<Translation>() as i16;

/// A socket's cookie, and what is stored for it.
fn entry(bytes: &[u8]) -> Option<(u64, Translation)> {
    let (cookie, translation) = bytes.split_first_chunk()?;
    Some((u64::from_ne_bytes(*cookie), bytemuck::try_pod_read_unaligned(translation).ok()?))
}

/// What became of sockets that had to go.
#[derive(Debug, Default)]
pub struct Destroyed {
    /// They are ended.
    pub destroyed: usize,
    /// Those of them that had an IPv6 peer.
    pub destroyed_ipv6: usize,
    /// They were gone, had gone elsewhere, or their namespace could not be found again.
    pub gone: usize,
    /// They are as they were.
    pub failed: usize,
    /// Why, of one of them.
    pub error: Option<io::Error>,
}

/// Ends sockets. Of two with the same addresses the kernel finds only one, until that is ended.
pub fn destroy(condemned: &[Found]) -> Destroyed {
    let mut outcome = Destroyed::default();
    let mut groups: BTreeMap<u64, Vec<&Found>> = BTreeMap::new();
    for found in condemned {
        groups.entry(found.netns).or_default().push(found);
    }
    let groups: Vec<_> = groups.into_iter().collect();
    let doors: Vec<_> = groups.iter().map(|(_, sockets)| sockets[0].door.clone()).collect();
    let results = tour(&doors, |index| {
        let mut diag = Diag::open()?;
        let (netns, sockets) = &groups[index];
        if diag.cookie()? != *netns {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(destroy_all(&mut diag, sockets))
    });
    for ((_, sockets), result) in groups.iter().zip(results) {
        match result {
            Ok(part) => {
                outcome.destroyed += part.destroyed;
                outcome.destroyed_ipv6 += part.destroyed_ipv6;
                outcome.gone += part.gone;
                outcome.failed += part.failed;
                outcome.error = part.error.or(outcome.error);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => outcome.gone += sockets.len(),
            Err(error) => {
                outcome.failed += sockets.len();
                outcome.error = Some(error);
            }
        }
    }
    outcome
}

fn destroy_all(diag: &mut Diag, sockets: &[&Found]) -> Destroyed {
    let mut outcome = Destroyed::default();
    let mut left = sockets.to_vec();
    loop {
        let before = outcome.destroyed;
        left.retain(|socket| match diag.destroy(socket.protocol, &socket.name) {
            Ok(()) => {
                outcome.destroyed += 1;
                outcome.destroyed_ipv6 += usize::from(SocketAddr::from(socket.peer).is_ipv6());
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                outcome.failed += 1;
                outcome.error = Some(error);
                false
            }
        });
        if left.is_empty() || outcome.destroyed == before {
            outcome.gone = left.len();
            return outcome;
        }
    }
}

/// The maps of live sockets: [`SOCKETS`] and [`FORMER`].
#[derive(Debug)]
pub struct SocketMaps([OwnedFd; 2]);

/// The maps of live sockets, for [`Scanner::new`].
pub fn open(pins: &Pins) -> Result<SocketMaps> {
    let open = |path: PathBuf| {
        let map = MapData::from_pin(&path)
            .with_context(|| format!("cannot open the pinned map {}", shown(&path).display()))?;
        map.fd().as_fd().try_clone_to_owned().context("cannot keep the map of sockets open")
    };
    Ok(SocketMaps([open(pins.storage(SOCKETS))?, open(pins.storage(FORMER))?]))
}

/// The cookie of this process's own network namespace. An agent belongs into the machine's
/// (`hostNetwork`).
pub fn own_netns() -> io::Result<u64> {
    namespaces::cookie()
}
