//! What the programs have stored for each live socket of the machine, by the socket's cookie.
//!
//! sock_diag shows what is stored for TCP sockets only: for others it stops before that
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_diag.c#L299-L303>). So the kernel's
//! iterator over the map is asked (`bpf_iter__bpf_sk_storage_map`, since Linux 5.9). It needs a small
//! program that says what to print. It stands here in the machine's words, since it is loaded by
//! itself, goes with this process, and refers to nothing of ours but the size of a value.
//!
//! The iterator counts its way through lists that others change meanwhile: it may miss a socket, which
//! the next look finds, or print one twice.
#![expect(unsafe_code, reason = "aya cannot iterate over a map, and nix has no bpf(2)")]

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya_obj::btf::{Btf, BtfKind};
use bytemuck::{Pod, Zeroable};
use lb_common::abi::Translation;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_attr` for BPF_PROG_LOAD, up to the last field that is used.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attachment: u32,
    debug: [u32; 8],
    line_count: u32,
    attach_btf_id: u32,
}

/// The same for BPF_LINK_CREATE.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Attach {
    program: u32,
    target: u32,
    attachment: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    pad: u32,
}

/// The same for BPF_ITER_CREATE.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Iterate {
    link: u32,
    flags: u32,
}

const _: () = {
    assert!(std::mem::offset_of!(Load, attachment) == 68);
    assert!(std::mem::offset_of!(Load, attach_btf_id) == 108);
};

/// What the program prints of a socket: its cookie and what is stored.
const ENTRY: usize = 8 + size_of::<Translation>();

/// One instruction.
const fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> [u8; 8] {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let (offset, number) = (offset.to_ne_bytes(), number.to_ne_bytes());
    [code, registers, offset[0], offset[1], number[0], number[1], number[2], number[3]]
}

/// `to = *(u64 *)(from + offset)`
const fn load(to: u8, from: u8, offset: i16) -> [u8; 8] {
    op(0x79, to, from, offset, 0)
}

/// `to = from`
const fn copy(to: u8, from: u8) -> [u8; 8] {
    op(0xbf, to, from, 0, 0)
}

/// `to = number`
const fn set(to: u8, number: i32) -> [u8; 8] {
    op(0xb7, to, 0, 0, number)
}

/// `if register == 0 goto offset`
const fn if_zero(register: u8, offset: i16) -> [u8; 8] {
    op(0x15, register, 0, offset, 0)
}

/// Calls a helper.
const fn call(helper: i32) -> [u8; 8] {
    op(0x85, 0, 0, 0, helper)
}

const GET_SOCKET_COOKIE: i32 = 46;
const SEQ_WRITE: i32 = 127;

/// The context has four pointers: to `struct bpf_iter_meta`, which begins with one to the output; the
/// map; the socket; the value. The last two are null at the end.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is small")]
const PROGRAM: [[u8; 8]; 20] = [
    copy(6, 1),
    load(1, 6, 16),
    if_zero(1, 15),
    load(7, 6, 24),
    if_zero(7, 13),
    call(GET_SOCKET_COOKIE),
    op(0x7b, 10, 0, -8, 0), // *(u64 *)(r10 - 8) = r0
    load(8, 6, 0),
    load(8, 8, 0),
    copy(1, 8),
    copy(2, 10),
    op(0x07, 2, 0, 0, -8), // r2 += -8
    set(3, 8),
    call(SEQ_WRITE),
    copy(1, 8),
    copy(2, 7),
    set(3, size_of::<Translation>() as i32),
    call(SEQ_WRITE),
    set(0, 0),
    op(0x95, 0, 0, 0, 0), // return r0
];

/// The maps of live sockets, to be read as a whole.
#[derive(Debug)]
pub(super) struct Stored([OwnedFd; 2]);

impl Stored {
    /// Of two SK_STORAGE maps of [`Translation`]s. Reads the kernel's type information, which takes
    /// some 100 ms and as many types as the kernel has.
    pub(super) fn open([last, former]: &[OwnedFd; 2]) -> io::Result<Self> {
        let function = Btf::from_sys_fs()
            .and_then(|btf| btf.id_by_type_name_kind("bpf_iter_bpf_sk_storage_map", BtfKind::Func))
            .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?;
        let license = c"Dual MIT/GPL";
        let mut attributes = Load {
            kind: BPF_PROG_TYPE_TRACING,
            instruction_count: u32::try_from(PROGRAM.len()).map_err(io::Error::other)?,
            instructions: PROGRAM.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            attachment: BPF_TRACE_ITER,
            attach_btf_id: function,
            ..Load::zeroed()
        };
        attributes.name[..6].copy_from_slice(b"stored");
        let program = bpf(BPF_PROG_LOAD, &attributes)?;
        // The link keeps the program and the map.
        let link = |map: &OwnedFd| {
            let info = [descriptor(map.as_raw_fd())?];
            let attributes = Attach {
                program: descriptor(program.as_raw_fd())?,
                attachment: BPF_TRACE_ITER,
                info: info.as_ptr().expose_provenance() as u64,
                info_len: 4,
                ..Attach::zeroed()
            };
            bpf(BPF_LINK_CREATE, &attributes)
        };
        Ok(Self([link(last)?, link(former)?]))
    }

    /// Tells what is stored now, and for which socket: what is in the first map, then the rest.
    pub(super) fn read(&self, mut each: impl FnMut(u64, Translation)) -> io::Result<()> {
        self.0.iter().try_for_each(|link| read(link, &mut each))
    }
}

fn read(link: &OwnedFd, each: &mut impl FnMut(u64, Translation)) -> io::Result<()> {
    let link = descriptor(link.as_raw_fd())?;
    let mut file = File::from(bpf(BPF_ITER_CREATE, &Iterate { link, flags: 0 })?);
    let mut buffer = vec![0; ENTRY * 1024];
    let mut filled = 0;
    loop {
        filled += match file.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            // WouldBlock: after a million sockets without output the kernel lets others work.
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            },
        };
        let (entries, rest) = buffer[..filled].as_chunks::<ENTRY>();
        for (cookie, translation) in entries.iter().filter_map(entry) {
            each(cookie, translation);
        }
        let (start, len) = (filled - rest.len(), rest.len());
        buffer.copy_within(start..filled, 0);
        filled = len;
    }
}

fn entry(bytes: &[u8; ENTRY]) -> Option<(u64, Translation)> {
    let (cookie, translation) = bytes.split_first_chunk()?;
    Some((u64::from_ne_bytes(*cookie), bytemuck::try_pod_read_unaligned(translation).ok()?))
}

fn descriptor(fd: libc::c_int) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}

/// bpf(2), of commands that return a descriptor.
fn bpf<T: Pod>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, and what they point to, which all live longer.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    match libc::c_int::try_from(fd) {
        // SAFETY: it was made for us, and is nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
