//! sock_diag, rtnetlink and nfnetlink: requests out, messages in. Of the network namespace in which the
//! [`Netlink`] is made, wherever its thread goes later.
//!
//! By hand, since the crates that speak netlink end a dump that changes went through as if it were
//! whole, wait for an answer for ever, or do both.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

/// The kernel answers at once; this is for the case that it does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// The kernel puts no more than 32 KiB into one part of a dump, unless one message is longer.
const PART: usize = 64 * 1024;
/// How often a dump is begun anew that a change went through.
const ATTEMPTS: u32 = 3;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

const HEADER: usize = size_of::<Header>();
/// Where the number of a message is.
const SEQUENCE: std::ops::Range<usize> = 8..12;

/// Why nothing of a batch took effect.
#[derive(Debug)]
pub(crate) struct BatchError {
    /// The message that was refused, counted from the one after the first mark; none: all of them.
    pub(crate) message: Option<u32>,
    /// What the kernel says.
    pub(crate) error: io::Error,
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> Self {
        Self { message: None, error }
    }
}

/// A netlink socket to the kernel.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// sock_diag, in the network namespace of this thread.
    pub(crate) fn diag() -> io::Result<Self> {
        Self::new(SockProtocol::NetlinkSockDiag)
    }

    /// rtnetlink, in the network namespace of this thread.
    pub(crate) fn route() -> io::Result<Self> {
        Self::new(SockProtocol::NetlinkRoute)
    }

    /// nfnetlink, in the network namespace of this thread.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::new(SockProtocol::NetlinkNetFilter)
    }

    fn new(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        let seconds = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        Ok(Self { fd, buffer: Vec::new(), sequence: 0 })
    }

    /// The descriptor.
    pub(crate) const fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Keeps no memory until it is asked again.
    pub(crate) fn rest(&mut self) {
        self.buffer = Vec::new();
    }

    /// Asks for all there is; `each` gets the body of each message. It is called with `None` before
    /// the first message of an attempt: what it has got so far is void. False if changes went through
    /// each attempt, so that something may be missing.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(Option<&[u8]>),
    ) -> io::Result<bool> {
        let flags = flag(libc::NLM_F_REQUEST) | flag(libc::NLM_F_DUMP);
        for _ in 0..ATTEMPTS {
            each(None);
            self.request(kind, flags, body)?;
            if self.answers(|body| each(Some(body)))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks for something to be done. The error is the kernel's.
    pub(crate) fn order(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.ask(kind, body, |_| ())
    }

    /// Asks for one thing; `each` gets the body of the answer. The error is the kernel's.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        body: &[u8],
        each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.request(kind, flag(libc::NLM_F_REQUEST) | flag(libc::NLM_F_ACK), body)?;
        self.answers(each).map(drop)
    }

    /// Sends messages that take effect together, or not at all; the first and the last one are the
    /// marks of that, and the last but one asks for an acknowledgement.
    pub(crate) fn batch(&mut self, batch: &mut [u8]) -> Result<(), BatchError> {
        let first = self.sequence.wrapping_add(1);
        let mut rest = &mut *batch;
        let mut count = 0;
        while let Some(len) = rest.first_chunk().map(|len| u32::from_ne_bytes(*len)) {
            let len = usize::try_from(len).unwrap_or(usize::MAX).next_multiple_of(4);
            let Some((message, others)) = rest.split_at_mut_checked(len) else { break };
            if let Some(place) = message.get_mut(SEQUENCE) {
                place.copy_from_slice(&first.wrapping_add(count).to_ne_bytes());
            }
            count += 1;
            rest = others;
        }
        self.sequence = first.wrapping_add(count.saturating_sub(1));
        let acknowledged = self.sequence.wrapping_sub(1);
        let size = batch.len();
        // Beyond net.core.wmem_max, since nobody else waits for this socket.
        setsockopt(&self.fd, sockopt::SndBufForce, &size.saturating_mul(2))
            .map_err(io::Error::from)?;
        send(self.fd.as_raw_fd(), batch, MsgFlags::empty()).map_err(io::Error::from)?;
        // A refusal carries what was refused, which may fill a message of its own.
        self.buffer.resize(2 * PART, 0);
        let mut refused = Ok(());
        let mut flags = MsgFlags::empty();
        loop {
            let said = match self.receive(flags) {
                // The kernel goes on after a refusal and refuses more than there is room for; the first
                // ones are there. Of what was lost, nothing comes.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    flags = MsgFlags::MSG_DONTWAIT;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !flags.is_empty() => {
                    return refused.and(Err(io::Error::from(Errno::ENOBUFS).into()));
                }
                said => said?,
            };
            for (sequence, body) in said {
                let Err(error) = result(&body) else {
                    if sequence == acknowledged {
                        return refused;
                    }
                    continue;
                };
                let message = sequence.wrapping_sub(first);
                if refused.is_ok() && message < count {
                    refused = Err(BatchError { message: message.checked_sub(1), error });
                }
                // Of the whole, or of the last one: nothing else comes.
                if message == 0 || sequence == acknowledged {
                    return refused;
                }
            }
        }
    }

    /// The errors and acknowledgements in the next part.
    fn receive(&mut self, flags: MsgFlags) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let len = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC | flags) {
                Err(Errno::EINTR) => {}
                len => break len?,
            }
        };
        let part = self.buffer.get(..len).unwrap_or(&self.buffer);
        let errors = messages(part).filter(|(head, _)| i32::from(head.kind) == libc::NLMSG_ERROR);
        Ok(errors.map(|(head, body)| (head.sequence, body[..body.len().min(4)].to_vec())).collect())
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let header = Header { len, kind, flags, sequence: self.sequence, port: 0 };
        let message = [bytes_of(&header), body].concat();
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads to the end of what was asked for. False if things changed meanwhile, so that something
    /// may have been missed.
    fn answers(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut consistent = true;
        self.buffer.resize(PART, 0);
        loop {
            // With MSG_TRUNC the length is that of what was sent.
            let len = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                len => len?,
            };
            let Some(part) = self.buffer.get(..len) else {
                return Err(io::Error::other("a message of the kernel is too long"));
            };
            for (header, body) in messages(part) {
                if header.sequence != self.sequence {
                    // Of an earlier request that was given up.
                    continue;
                }
                consistent &= header.flags & flag(libc::NLM_F_DUMP_INTR) == 0;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        return result(body).map(|()| consistent);
                    }
                    libc::NLMSG_NOOP => {}
                    _ => each(body),
                }
            }
        }
    }
}

/// A socket that hears when something changes in the network namespace of this thread: `RTMGRP_*` of
/// linux/rtnetlink.h.
pub(crate) fn signs(groups: u32) -> io::Result<OwnedFd> {
    listener(SockProtocol::NetlinkRoute, groups)
}

/// A socket that hears of what others do, in groups of one protocol; each is a bit.
pub(crate) fn listener(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Takes in all that was heard until now.
pub(crate) fn heard(signs: &OwnedFd) {
    let mut buffer = [0; 4096];
    loop {
        match recv(signs.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            // ENOBUFS: so many that some were lost; a sign all the same.
            Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
            Err(Errno::EAGAIN) => return,
            Err(error) => return tracing::debug!(%error, "netlink"),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "flags have 16 bits")]
const fn flag(flag: libc::c_int) -> u16 {
    flag as u16
}

/// NLMSG_ERROR and NLMSG_DONE begin with a negative errno, or 0.
fn result(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
        code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

fn messages(mut rest: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let header: Header = pod_read_unaligned(rest.get(..HEADER)?);
        let len = usize::try_from(header.len).ok()?;
        let body = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

/// The attributes in a message, or in another attribute: kind and content.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        // The two upper bits are flags.
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let content = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// An attribute, as the kernel sends it and reads it.
pub(crate) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_attribute(&mut bytes, kind, |inside| inside.extend_from_slice(content));
    bytes
}

/// Appends an attribute, whose content `write` appends.
#[expect(clippy::cast_possible_truncation, reason = "nobody makes a longer one")]
pub(crate) fn put_attribute(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend(kind.to_ne_bytes());
    write(bytes);
    let len = bytes.len() - start;
    bytes[start..start + 2].copy_from_slice(&(len as u16).to_ne_bytes());
    bytes.resize(start + len.next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let nested = attribute(1, &7u32.to_ne_bytes());
        let bytes = [attribute(2, &nested), attribute(0x8003, b"abcde")].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(2, &*nested), (3, b"abcde")]);
        let inner: Vec<_> = attributes(&nested).collect();
        assert_eq!(inner, [(1, 7u32.to_ne_bytes().as_slice())]);
    }

    #[test]
    fn nonsense_ends_the_reading() {
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9, 9, 9]).count(), 0, "shorter than its own header");
        assert_eq!(attributes(&[40, 0, 1, 0]).count(), 0, "longer than there is");
        assert_eq!(attributes(&[4, 0, 1]).count(), 0);
        let header = Header { len: 3, kind: 1, flags: 0, sequence: 0, port: 0 };
        assert_eq!(messages(bytes_of(&header)).count(), 0);
        assert_eq!(messages(bytes_of(&Header { len: 99, ..header })).count(), 0);
        let two = [bytes_of(&Header { len: 16, ..header }); 2].concat();
        assert_eq!(messages(&two).count(), 2);
    }

    #[test]
    fn errors_are_the_kernels() {
        let error = result(&(-libc::ENOENT).to_ne_bytes()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(result(&[0; 4]).is_ok());
        assert!(result(&[]).is_ok());
    }
}
