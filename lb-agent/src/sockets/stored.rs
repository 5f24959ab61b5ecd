//! What the programs have stored for each live socket of the machine, by the socket's cookie.
//!
//! sock_diag shows what is stored for TCP sockets only: for others it stops before that
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_diag.c#L299-L303>). So the kernel's
//! iterator over the map is asked (`bpf_iter__bpf_sk_storage_map`, since Linux 5.9).
//!
//! A hardened kernel may refuse it (EPERM, seen with a hosted 6.18), since programs of this kind could
//! write to the values. There the iterators over UDP and TCP sockets (`bpf_iter__udp`,
//! `bpf_iter__tcp`, since 5.9) are asked in each network namespace, which takes longer, and shows
//! nothing of namespaces that cannot be entered.
//!
//! These iterators count their way through lists that others change meanwhile: they may miss a socket,
//! which the next look finds, or print one twice.

use std::{io, os::fd::BorrowedFd};

use super::{
    iterator::{
        EXIT, GET_SOCKET_COOKIE, Instruction, Iterator, Program, SEQ_WRITE, SK_STORAGE_GET, add,
        call, copy, if_zero, load, load_map, set, store,
    },
    namespaces::{Namespaces, tour},
};

/// One SK_STORAGE map, to be read as a whole.
#[derive(Debug)]
pub(super) enum Stored {
    /// By what the map has.
    OfMap(Iterator),
    /// By what sockets have, in each network namespace.
    OfSockets([Iterator; 2]),
}

impl Stored {
    /// Of these maps; the first `bytes` of each value are read. Takes as long as [`Program::load`].
    pub(super) fn open<const N: usize>(
        bytes: usize,
        maps: [BorrowedFd<'_>; N],
    ) -> io::Result<[Self; N]> {
        let bytes = i32::try_from(bytes).map_err(io::Error::other)?;
        let all: io::Result<Vec<_>> =
            match Program::load("stored", "bpf_iter_bpf_sk_storage_map", &of_map(bytes)) {
                Ok(program) => {
                    maps.iter().map(|map| Ok(Self::OfMap(program.over(Some(*map))?))).collect()
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    maps.iter().map(|map| Self::of_sockets(bytes, *map)).collect()
                }
                Err(error) => Err(error),
            };
        // As many as there are maps.
        all?.try_into().map_err(|_| io::ErrorKind::Other.into())
    }

    fn of_sockets(bytes: i32, map: BorrowedFd<'_>) -> io::Result<Self> {
        let program = of_socket(bytes, map);
        let over = |function| Program::load("stored", function, &program)?.over(None);
        Ok(Self::OfSockets([over("bpf_iter_udp")?, over("bpf_iter_tcp")?]))
    }

    /// Tells what is stored now, in pieces of `N` bytes: the cookie of the socket, and what is read of
    /// its value.
    pub(super) fn read<const N: usize>(&self, mut each: impl FnMut(&[u8; N])) -> io::Result<()> {
        let iterators = match self {
            Self::OfMap(iterator) => return iterator.read(each),
            Self::OfSockets(iterators) => iterators,
        };
        let doors = Namespaces::find()?.doors;
        let pieces = tour(&doors, |_| {
            let mut pieces = Vec::new();
            for iterator in iterators {
                iterator.read::<N>(|piece| pieces.push(*piece))?;
            }
            Ok(pieces)
        });
        // Who looks for sockets has told of namespaces that cannot be entered.
        pieces.iter().flatten().flatten().for_each(&mut each);
        Ok(())
    }
}

/// Prints the start of each value of a map, behind the socket's cookie. The context has four pointers:
/// to `struct bpf_iter_meta`, which begins with one to the output; the map; the socket; the value. The
/// last two are null at the end.
const fn of_map(bytes: i32) -> [Instruction; 20] {
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

/// Prints the same of each socket that has a value in the map. The context has two pointers: to `struct
/// bpf_iter_meta`, and to the socket, null at the end.
fn of_socket(bytes: i32, map: BorrowedFd<'_>) -> [Instruction; 27] {
    let [first, second] = load_map(1, map);
    [
        copy(6, 1),
        load(7, 6, 8),
        if_zero(7, 22),
        first,
        second,
        copy(2, 7),
        // Without a value, and without flags: nothing is made.
        set(3, 0),
        set(4, 0),
        call(SK_STORAGE_GET),
        if_zero(0, 15),
        copy(9, 0),
        copy(1, 7),
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
        copy(2, 9),
        set(3, bytes),
        call(SEQ_WRITE),
        set(0, 0),
        EXIT,
    ]
}
