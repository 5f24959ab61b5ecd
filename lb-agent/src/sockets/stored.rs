//! What the programs have stored for each live socket of the machine, by the socket's cookie.
//!
//! sock_diag shows what is stored for TCP sockets only: for others it stops before that
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_diag.c#L299-L303>). So the kernel's
//! iterator over the map is asked (`bpf_iter__bpf_sk_storage_map`, since Linux 5.9).
//!
//! A hardened kernel may refuse it (EPERM, seen with a hosted 6.18), since programs of this kind could
//! write to the values. There the iterators over UDP and TCP sockets (`bpf_iter__udp`,
//! `bpf_iter__tcp`, since 5.9) are asked in each network namespace. That takes longer, and shows neither
//! sockets of namespaces that cannot be entered, nor those that have no port.
//!
//! These iterators count their way through lists that others change meanwhile: they may miss a socket,
//! which the next look finds, or print one twice.

use std::{io, ops::Range, os::fd::BorrowedFd};

use super::{
    iterator::{
        EXIT, GET_SOCKET_COOKIE, Instruction, Iterator, Program, SEQ_WRITE, SK_STORAGE_GET, Types,
        add, call, copy, if_zero, load, load_map, set, store,
    },
    namespaces::{Door, Namespaces, tour},
};

/// Which sockets may have a value in a map.
#[derive(Clone, Copy, Debug)]
pub(super) enum Having {
    Udp,
    Both,
}

/// SK_STORAGE maps, each to be read as a whole.
#[derive(Debug)]
pub(super) enum Stored<const N: usize> {
    /// By what the maps have.
    OfMaps([Iterator; N]),
    /// By what sockets have, in each network namespace.
    OfSockets([Vec<Iterator>; N]),
}

impl<const N: usize> Stored<N> {
    /// Of these maps, to read these bytes of each value: none of a lock. Takes some 100 ms; `Unsupported`
    /// if the kernel has no type information (BTF).
    pub(super) fn open(bytes: Range<i16>, maps: [(BorrowedFd<'_>, Having); N]) -> io::Result<Self> {
        let types = Types::read()?;
        match Program::load(&types, "stored", "bpf_iter_bpf_sk_storage_map", &of_map(&bytes)) {
            Ok(program) => each(maps, |map, _| program.over(Some(map))).map(Self::OfMaps),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let of_sockets = |map, having| {
                    let program = of_socket(&bytes, map);
                    let over =
                        |function| Program::load(&types, "stored", function, &program)?.over(None);
                    let mut all = vec![over("bpf_iter_udp")?];
                    if matches!(having, Having::Both) {
                        all.push(over("bpf_iter_tcp")?);
                    }
                    Ok(all)
                };
                each(maps, of_sockets).map(Self::OfSockets)
            }
            Err(error) => Err(error),
        }
    }

    /// The network namespaces that have to be visited, to read all.
    pub(super) fn doors(&self) -> io::Result<Vec<Door>> {
        match self {
            Self::OfMaps(_) => Ok(Vec::new()),
            Self::OfSockets(_) => Ok(Namespaces::find()?.doors),
        }
    }

    /// Tells what is stored now in the map with this index, in pieces of `LEN` bytes: the cookie of the
    /// socket, and what is read of its value. Behind these doors, if they have to be visited; an error if
    /// one of them could not be, unless its namespace has gone.
    pub(super) fn read<const LEN: usize, D: AsRef<Door> + Sync>(
        &self,
        index: usize,
        doors: &[D],
        mut each: impl FnMut(&[u8; LEN]),
    ) -> io::Result<()> {
        let iterators = match self {
            Self::OfMaps(maps) => return maps[index].read(each),
            Self::OfSockets(maps) => &maps[index],
        };
        let visits = tour(doors, |_| {
            let mut pieces = Vec::new();
            for iterator in iterators {
                iterator.read::<LEN>(|piece| pieces.push(*piece))?;
            }
            Ok(pieces)
        });
        for visit in visits {
            match visit {
                Ok(pieces) => pieces.iter().for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The same for each map.
fn each<'a, T, const N: usize>(
    maps: [(BorrowedFd<'a>, Having); N],
    make: impl Fn(BorrowedFd<'a>, Having) -> io::Result<T>,
) -> io::Result<[T; N]> {
    let all: io::Result<Vec<_>> = maps.into_iter().map(|(map, having)| make(map, having)).collect();
    // As many as there are maps.
    all?.try_into().map_err(|_| io::ErrorKind::Other.into())
}

/// Prints these bytes of each value of a map, behind the socket's cookie. The context has four pointers:
/// to `struct bpf_iter_meta`, which begins with one to the output; the map; the socket; the value. The
/// last two are null at the end.
fn of_map(bytes: &Range<i16>) -> Vec<Instruction> {
    let begin =
        [copy(6, 1), load(1, 6, 16), if_zero(1, 2 + TO_END), load(7, 6, 24), if_zero(7, TO_END)];
    [&begin[..], &print(7, bytes)].concat()
}

/// Prints the same of each socket that has a value in the map. The context has two pointers: to `struct
/// bpf_iter_meta`, and to the socket, null at the end.
fn of_socket(bytes: &Range<i16>, map: BorrowedFd<'_>) -> Vec<Instruction> {
    let [first, second] = load_map(1, map);
    let begin = [
        copy(6, 1),
        load(7, 6, 8),
        if_zero(7, 9 + TO_END),
        first,
        second,
        copy(2, 7),
        // Without a value, and without flags: nothing is made.
        set(3, 0),
        set(4, 0),
        call(SK_STORAGE_GET),
        if_zero(0, 2 + TO_END),
        copy(9, 0),
        copy(1, 7),
    ];
    [&begin[..], &print(9, bytes)].concat()
}

/// From before what [`print()`] does to its end.
const TO_END: i16 = 14;

/// Prints the cookie of the socket in the first register, and bytes of the value in register `value`; ends.
/// The context is in the sixth.
fn print(value: u8, bytes: &Range<i16>) -> [Instruction; 16] {
    [
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
        copy(2, value),
        add(2, bytes.start.into()),
        set(3, i32::from(bytes.end - bytes.start)),
        call(SEQ_WRITE),
        set(0, 0),
        EXIT,
    ]
}
