//! What the programs have stored for each live socket of the machine, by the socket's cookie.
//!
//! sock_diag shows what is stored for TCP sockets only: for others it stops before that
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_diag.c#L299-L303>). So the kernel's
//! iterator over the map is asked (`bpf_iter__bpf_sk_storage_map`, since Linux 5.9).
//!
//! The iterator counts its way through lists that others change meanwhile: it may miss a socket, which
//! the next look finds, or print one twice.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use lb_common::abi::Translation;

use super::iterator::{
    EXIT, GET_SOCKET_COOKIE, Instruction, Iterator, Program, SEQ_WRITE, add, call, copy, if_zero,
    load, set, store,
};

/// The iterator's function.
pub(super) const FUNCTION: &str = "bpf_iter_bpf_sk_storage_map";
/// What the program prints of a socket: its cookie and what is stored.
const ENTRY: usize = 8 + size_of::<Translation>();

/// Prints the first `bytes` of each value, behind the socket's cookie. The context has four pointers: to `struct bpf_iter_meta`, which begins with one to the output; the
/// map; the socket; the value. The last two are null at the end.
pub(super) const fn program(bytes: i32) -> [Instruction; 20] {
    [
        copy(6, 1),
        load(1, 6, 16),
        if_zero(1, 15),
        load(7, 6, 24),
        if_zero(7, 13),
        call(GET_SOCKET_COOKIE),
        store(10, -8, 0),
        load(8, 6, 0),
        load(8, 8, 0),
        copy(1, 8),
        copy(2, 10),
        add(2, -8),
        set(3, 8),
        call(SEQ_WRITE),
        copy(1, 8),
        copy(2, 7),
        set(3, bytes),
        call(SEQ_WRITE),
        set(0, 0),
        EXIT,
    ]
}

/// The maps of live sockets, to be read as a whole.
#[derive(Debug)]
pub(super) struct Stored([Iterator; 2]);

impl Stored {
    /// Of two SK_STORAGE maps of [`Translation`]s. Takes as long as [`Program::load`].
    pub(super) fn open([last, former]: &[OwnedFd; 2]) -> io::Result<Self> {
        let bytes = i32::try_from(size_of::<Translation>()).map_err(io::Error::other)?;
        let program = Program::load("stored", FUNCTION, &program(bytes))?;
        Ok(Self([program.over(Some(last.as_fd()))?, program.over(Some(former.as_fd()))?]))
    }

    /// Tells what is stored now, and for which socket: what is in the first map, then the rest.
    pub(super) fn read(&self, mut each: impl FnMut(u64, Translation)) -> io::Result<()> {
        for iterator in &self.0 {
            iterator.read::<ENTRY>(|bytes| {
                if let Some((cookie, translation)) = entry(bytes) {
                    each(cookie, translation);
                }
            })?;
        }
        Ok(())
    }
}

fn entry(bytes: &[u8; ENTRY]) -> Option<(u64, Translation)> {
    let (cookie, translation) = bytes.split_first_chunk()?;
    Some((u64::from_ne_bytes(*cookie), bytemuck::try_pod_read_unaligned(translation).ok()?))
}
