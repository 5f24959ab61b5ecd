//! The kernel's iterators (`bpf_iter`, since Linux 5.8), and small programs that say what they print.
//!
//! Such a program stands here in the machine's words, since it is loaded by itself, goes with this
//! process, and refers to nothing of ours but the size of a value.
#![expect(
    unsafe_code,
    reason = "aya cannot iterate over what the kernel has, and nix has no bpf(2)"
)]

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::btf::{Btf, BtfKind};
use bytemuck::{Pod, Zeroable};

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

/// One instruction.
pub(super) type Instruction = [u8; 8];

pub(super) const fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let (offset, number) = (offset.to_ne_bytes(), number.to_ne_bytes());
    [code, registers, offset[0], offset[1], number[0], number[1], number[2], number[3]]
}

/// `to = *(u64 *)(from + offset)`
pub(super) const fn load(to: u8, from: u8, offset: i16) -> Instruction {
    op(0x79, to, from, offset, 0)
}

/// `to = *(u8 *)(from + offset)`
pub(super) const fn load_byte(to: u8, from: u8, offset: i16) -> Instruction {
    op(0x71, to, from, offset, 0)
}

/// `*(u64 *)(to + offset) = from`
pub(super) const fn store(to: u8, offset: i16, from: u8) -> Instruction {
    op(0x7b, to, from, offset, 0)
}

/// `to = from`
pub(super) const fn copy(to: u8, from: u8) -> Instruction {
    op(0xbf, to, from, 0, 0)
}

/// `to = number`
pub(super) const fn set(to: u8, number: i32) -> Instruction {
    op(0xb7, to, 0, 0, number)
}

/// `to += number`
pub(super) const fn add(to: u8, number: i32) -> Instruction {
    op(0x07, to, 0, 0, number)
}

/// `to &= number`
pub(super) const fn and(to: u8, number: i32) -> Instruction {
    op(0x57, to, 0, 0, number)
}

/// `if register == 0 goto offset`
pub(super) const fn if_zero(register: u8, offset: i16) -> Instruction {
    op(0x15, register, 0, offset, 0)
}

/// Calls a helper.
pub(super) const fn call(helper: i32) -> Instruction {
    op(0x85, 0, 0, 0, helper)
}

/// `return r0`
pub(super) const EXIT: Instruction = op(0x95, 0, 0, 0, 0);

/// `to = map`, which takes two instructions.
pub(super) fn load_map(to: u8, map: BorrowedFd<'_>) -> [Instruction; 2] {
    // BPF_PSEUDO_MAP_FD stands where a register would.
    [op(0x18, to, 1, 0, map.as_raw_fd()), [0; 8]]
}

pub(super) const GET_SOCKET_COOKIE: i32 = 46;
pub(super) const SK_STORAGE_GET: i32 = 107;
pub(super) const SEQ_WRITE: i32 = 127;

/// A program that says what is printed of each thing.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

/// The kernel's type information, which names the iterators' functions. To read it takes some 100 ms, and
/// as many types as the kernel has.
#[derive(Debug)]
pub(super) struct Types(Btf);

impl Types {
    /// `Unsupported` if the kernel has none.
    pub(super) fn read() -> io::Result<Self> {
        Btf::from_sys_fs().map(Self).map_err(unsupported)
    }
}

fn unsupported(error: aya_obj::btf::BtfError) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, error)
}

impl Program {
    /// For the iterator whose function is `target`. `Unsupported` if the kernel has none.
    pub(super) fn load(
        types: &Types,
        name: &str,
        target: &str,
        instructions: &[Instruction],
    ) -> io::Result<Self> {
        let function = types.0.id_by_type_name_kind(target, BtfKind::Func).map_err(unsupported)?;
        let license = c"Dual MIT/GPL";
        let mut attributes = Load {
            kind: BPF_PROG_TYPE_TRACING,
            instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            attachment: BPF_TRACE_ITER,
            attach_btf_id: function,
            ..Load::zeroed()
        };
        let named = attributes.name.iter_mut().zip(name.bytes());
        named.take(15).for_each(|(to, from)| *to = from);
        Ok(Self(bpf(BPF_PROG_LOAD, &attributes)?))
    }

    /// Over the elements of a map, or over what needs none.
    pub(super) fn over(&self, map: Option<BorrowedFd<'_>>) -> io::Result<Iterator> {
        let info = [map.map_or(Ok(0), |map| descriptor(map.as_raw_fd()))?];
        let mut attributes = Attach {
            program: descriptor(self.0.as_raw_fd())?,
            attachment: BPF_TRACE_ITER,
            ..Attach::zeroed()
        };
        if map.is_some() {
            (attributes.info, attributes.info_len) = (info.as_ptr().expose_provenance() as u64, 4);
        }
        // The link keeps the program and the map.
        Ok(Iterator(bpf(BPF_LINK_CREATE, &attributes)?))
    }
}

/// A program at work, to be asked again and again.
#[derive(Debug)]
pub(super) struct Iterator(OwnedFd);

impl Iterator {
    /// Tells what there is now, in pieces of `N` bytes. Of sockets: those in the network namespace of
    /// the calling thread.
    pub(super) fn read<const N: usize>(&self, mut each: impl FnMut(&[u8; N])) -> io::Result<()> {
        let link = descriptor(self.0.as_raw_fd())?;
        let mut file = File::from(bpf(BPF_ITER_CREATE, &Iterate { link, flags: 0 })?);
        let mut buffer = vec![0; N * 1024];
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
            let (entries, rest) = buffer[..filled].as_chunks::<N>();
            entries.iter().for_each(&mut each);
            let (start, len) = (filled - rest.len(), rest.len());
            buffer.copy_within(start..filled, 0);
            filled = len;
        }
    }
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
