//! nf_tables over netlink: messages of one transaction, and what the kernel says of it.
//!
//! Names and numbers are those of linux/netfilter/nf_tables.h. Numbers in attributes are big-endian;
//! what is compared with a register is in the order in which the register holds it.

use std::{io, mem, ops::Deref};

use lb_core::printable::Printable;

use crate::netlink::{BatchError, Netlink, attributes, put_attribute};

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's kind.
const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// A nest says that it is one.
pub(super) const NESTED: u16 = 0x8000;
/// Bytes of elements in one message: an attribute's length has 16 bits.
const ELEMENTS: usize = 48 * 1024;

/// Of an IP version.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    pub(super) const fn of(is_ipv4: bool) -> Self {
        if is_ipv4 { Self::Ip } else { Self::Ip6 }
    }

    /// `NFPROTO_*`.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// As nft calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// `NFT_MSG_*`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum Message {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    NewElements = 12,
    GetElements = 13,
    DelElements = 14,
    GetGeneration = 16,
}

impl Message {
    pub(super) const fn kind(self) -> u16 {
        u16::from_be_bytes([SUBSYSTEM, self as u8])
    }
}

/// Attributes, one after the other.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, content: &[u8]) -> Self {
        put_attribute(&mut self.0, kind, |inside| inside.extend_from_slice(content));
        self
    }

    pub(super) fn number(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    pub(super) fn name(self, kind: u16, name: &str) -> Self {
        self.bytes(kind, &[name.as_bytes(), &[0]].concat())
    }

    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// A list: each of them is a `NFTA_LIST_ELEM`.
    pub(super) fn list(self, kind: u16, inner: impl IntoIterator<Item = Self>) -> Self {
        let list = inner.into_iter().fold(Self::default(), |list, one| list.nest(1, &one));
        self.nest(kind, &list)
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.0
    }
}

/// The longest key of ours: two addresses, a protocol and a port of IPv6.
const LONGEST: usize = 40;

/// A key or a value. In place, for there are very many.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Bytes {
    all: [u8; LONGEST],
    len: u8,
}

impl Bytes {
    /// None if there are more than a key of ours has.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut all = [0; LONGEST];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { all, len: u8::try_from(bytes.len()).ok()? })
    }

    /// These, one after the other. There is room for every key of ours.
    pub(super) fn joined(parts: &[&[u8]]) -> Self {
        let (mut all, mut len) = ([0; LONGEST], 0);
        for part in parts {
            all[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        #[expect(clippy::cast_possible_truncation, reason = "below LONGEST")]
        Self { all, len: len as u8 }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.all[..usize::from(self.len)]
    }
}

/// An element of a set: the bytes of its key, and of what else it has.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Raw {
    pub(super) key: Bytes,
    /// The last key of an interval.
    pub(super) end: Option<Bytes>,
    /// Of a map.
    pub(super) value: Option<Bytes>,
}

impl Raw {
    /// Appends its attributes.
    fn write(&self, bytes: &mut Vec<u8>) {
        let all = [(1, Some(&self.key)), (2, self.value.as_ref()), (10, self.end.as_ref())];
        for (kind, value) in all {
            let Some(value) = value else { continue };
            put_attribute(bytes, kind | NESTED, |inside| {
                put_attribute(inside, 1, |inside| inside.extend_from_slice(value));
            });
        }
    }

    /// None if it is none of ours.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let (mut key, mut value, mut end) = (None, None, None);
        for (kind, data) in attributes(body) {
            let place = match kind {
                1 => &mut key,
                2 => &mut value,
                10 => &mut end,
                _ => continue,
            };
            let (_, bytes) = attributes(data).find(|(kind, _)| *kind == 1)?;
            *place = Some(Bytes::of(bytes)?);
        }
        Some(Self { key: key?, end, value })
    }
}

/// Messages that take effect together, or not at all.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    bytes: Vec<u8>,
    /// What each message is about, for whoever reads that it was refused.
    subjects: Vec<String>,
    /// Where the last message begins.
    last: usize,
}

impl Transaction {
    pub(super) fn add(
        &mut self,
        message: Message,
        family: Family,
        subject: String,
        body: &Attributes,
    ) {
        let flags = match message {
            Message::NewRule => CREATE | APPEND,
            Message::NewTable | Message::NewChain | Message::NewSet | Message::NewElements => {
                CREATE
            }
            _ => 0,
        };
        if self.bytes.is_empty() {
            push(&mut self.bytes, BATCH_BEGIN, REQUEST, 0, u16::from(SUBSYSTEM), &[]);
        }
        self.last = self.bytes.len();
        push(&mut self.bytes, message.kind(), REQUEST | flags, family.number(), 0, body.content());
        self.subjects.push(subject);
    }

    /// Adds elements to a set, or takes them out of it.
    pub(super) fn elements<'a>(
        &mut self,
        message: Message,
        family: Family,
        (table, set): (&str, &str),
        elements: impl IntoIterator<Item = &'a Raw>,
    ) {
        let mut list = Attributes::default();
        let mut flush = |list: Attributes| {
            let body = Attributes::default().name(1, table).name(2, set).nest(3, &list);
            self.add(message, family, format!("elements of {} {set}", family.name()), &body);
        };
        for element in elements {
            put_attribute(&mut list.0, 1 | NESTED, |inside| element.write(inside));
            if list.0.len() > ELEMENTS {
                flush(mem::take(&mut list));
            }
        }
        if !list.0.is_empty() {
            flush(list);
        }
    }

    /// Has the kernel carry it out.
    pub(super) fn commit(mut self, netlink: &mut Netlink) -> Result<(), NftError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        if let Some(flags) = self.bytes.get_mut(self.last + 6..).and_then(|at| at.first_chunk_mut())
        {
            *flags = (u16::from_ne_bytes(*flags) | ACK).to_ne_bytes();
        }
        push(&mut self.bytes, BATCH_END, REQUEST, 0, u16::from(SUBSYSTEM), &[]);
        netlink.batch(&mut self.bytes).map_err(|BatchError { message, error }| {
            let subject = message.and_then(|at| self.subjects.get(usize::try_from(at).ok()?));
            NftError { subject: subject.cloned(), error }
        })
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
    let len = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // The number of the message is given when it is sent; no port.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// What the kernel refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("nf_tables{}: {}{}", subject.as_ref().map_or(String::new(), |s| format!(", {s}")), Printable(error), remedy(self))]
pub struct NftError {
    /// What the refused message was about; none: the whole transaction.
    subject: Option<String>,
    error: io::Error,
}

impl NftError {
    /// Whether the kernel has no nf_tables, or not for what was asked.
    pub(super) fn lacks_the_means(&self) -> bool {
        let means = [libc::EPROTONOSUPPORT, libc::EINVAL, libc::EOPNOTSUPP, libc::EAFNOSUPPORT];
        self.errno().is_some_and(|errno| means.contains(&errno))
    }

    /// Whether another transaction may be taken: this one has an element too many, or one that is there
    /// already, or is not there.
    pub(super) fn is_of_the_elements(&self) -> bool {
        let of_elements = [libc::EEXIST, libc::ENOENT, libc::ENFILE, libc::EINVAL];
        self.subject.is_some() && self.errno().is_some_and(|errno| of_elements.contains(&errno))
    }

    /// The kernel's number.
    pub(super) fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}

impl From<io::Error> for NftError {
    fn from(error: io::Error) -> Self {
        Self { subject: None, error }
    }
}

/// What helps, where somebody can help.
fn remedy(error: &NftError) -> &'static str {
    match error.errno() {
        Some(libc::EPERM) => {
            ": give the agent CAP_NET_ADMIN; or another process owns the table, see `nft list tables`"
        }
        Some(libc::ENOMEM) => ": give the agent's cgroup more memory",
        Some(libc::ENFILE) => ": a set is full",
        Some(libc::ENOBUFS) => ": it is tried again",
        _ if error.lacks_the_means() => {
            ": use a kernel with nf_tables (modules nf_tables, nft_chain_nat, nft_ct, nft_masq, nft_nat, \
             nft_numgen, nft_reject)"
        }
        _ => "",
    }
}

/// A comment, as nft keeps it in what the kernel leaves to users: kind 0, length, text.
pub(super) fn userdata(comment: &str) -> Vec<u8> {
    let len = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, len], comment.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        let bytes = |bytes: &[u8]| Bytes::of(bytes).unwrap();
        let plain = Raw { key: bytes(&[1; 4]), end: None, value: None };
        let mapped = Raw { value: Some(bytes(&[7; 8])), ..plain.clone() };
        let interval = Raw { end: Some(bytes(&[2; LONGEST])), ..plain.clone() };
        for element in [plain, mapped, interval] {
            let mut written = Vec::new();
            element.write(&mut written);
            assert_eq!(Raw::parse(&written), Some(element));
        }
        assert_eq!(Raw::parse(&[]), None);
        let longer = Attributes::default().bytes(1, &[1; LONGEST + 1]);
        assert_eq!(Raw::parse(Attributes::default().nest(1, &longer).content()), None);
        assert_eq!(Bytes::joined(&[&[1, 2], &[], &[3]]), bytes(&[1, 2, 3]));
    }

    #[test]
    fn many_elements_are_several_messages() {
        let all: Vec<Raw> = (0..4000u32)
            .map(|n| Raw {
                key: Bytes::joined(&[&n.to_be_bytes(), &[0; 20]]),
                end: None,
                value: None,
            })
            .collect();
        let mut transaction = Transaction::default();
        transaction.elements(Message::NewElements, Family::Ip6, ("t", "s"), &all);
        assert!(transaction.subjects.len() > 1, "{}", transaction.subjects.len());
        assert_eq!(transaction.subjects[0], "elements of ip6 s");
    }

    #[test]
    fn an_error_says_what_helps() {
        let error = NftError {
            subject: Some("set x".into()),
            error: io::Error::from_raw_os_error(libc::EPERM),
        };
        let text = error.to_string();
        assert!(text.contains("set x") && text.contains("CAP_NET_ADMIN"), "{text}");
    }
}
