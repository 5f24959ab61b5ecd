//! What programs write to nftables, as the kernel tells it.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
        setsockopt, socket, sockopt,
    },
};

/// The group of nftables.
const GROUP: u32 = 1 << 6;
const SUBSYSTEM: u8 = 10;
const NEW_TABLE: u8 = 0;
const NEW_ELEMENTS: u8 = 12;
const DELETE_ELEMENTS: u8 = 14;
const NEW_GENERATION: u8 = 15;
/// Of a message about elements: the name of the set, and a list of them.
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
/// Packets write to it, too.
const BONDS: &[u8] = b"bonds\0";

/// Hears what happens in the network namespace in which it was made.
pub(super) struct Monitor(OwnedFd);

/// What was written.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Heard {
    pub(super) added: usize,
    pub(super) deleted: usize,
    /// Chains, rules and sets. A table that gets another owner is none.
    pub(super) others: usize,
}

impl Monitor {
    pub(super) fn open() -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(256 << 20)).unwrap();
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP)).unwrap();
        Self(socket)
    }

    /// What was written since the last time.
    pub(super) fn hear(&self) -> Heard {
        let mut heard = Heard::default();
        let mut bytes = vec![0; 1 << 20];
        loop {
            match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(len) => heard.take(&bytes[..len]),
                Err(Errno::EAGAIN) => return heard,
                Err(error) => panic!("this run is void: not all could be heard: {error}"),
            }
        }
    }
}

impl Heard {
    /// Messages, each with its length and its kind in front.
    fn take(&mut self, mut bytes: &[u8]) {
        while bytes.len() >= 20 {
            let len = usize::try_from(u32::from_ne_bytes(bytes[..4].try_into().unwrap())).unwrap();
            let [kind, subsystem] = u16::from_ne_bytes([bytes[4], bytes[5]]).to_le_bytes();
            if subsystem == SUBSYSTEM {
                let body = &bytes[20..len];
                match kind {
                    NEW_ELEMENTS => self.added += elements(body),
                    DELETE_ELEMENTS => self.deleted += elements(body),
                    NEW_TABLE | NEW_GENERATION => {}
                    _ => self.others += 1,
                }
            }
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// How many a message is about.
fn elements(body: &[u8]) -> usize {
    let all = attributes(body);
    let of = |kind| all.iter().find(|(of, _)| *of == kind).map(|(_, value)| *value);
    if of(SET) == Some(BONDS) { 0 } else { of(ELEMENTS).map_or(0, |list| attributes(list).len()) }
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while bytes.len() >= 4 {
        let [len, kind] = [0, 2].map(|at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        let len = usize::from(len);
        // The highest bits say what the value is like.
        all.push((kind & 0x3fff, &bytes[4..len]));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}
