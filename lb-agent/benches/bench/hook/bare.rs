//! Programs of a few instructions, each a part of what every load balancer at this hook pays: the call
//! of a program at all, one HASH lookup, the storage of a socket.
#![expect(
    unsafe_code,
    reason = "aya loads programs from ELF files only: these are a few instructions"
)]

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;

const PROG_LOAD: libc::c_int = 5;
const OBJ_GET: libc::c_int = 7;
const LINK_CREATE: libc::c_int = 28;
pub(super) const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`.
const CONNECT4: u32 = 10;
const CONNECT6: u32 = 11;

/// What a program does before it returns 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part<'a> {
    /// Nothing: what the kernel takes for calling any program at all.
    Floor,
    /// Looks up what was dialled in a map of `ServiceKey`s.
    Hash(&'a Path),
    /// Looks up the storage of the socket, and makes it if there is none.
    Storage(&'a Path),
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    cgroup: RawFd,
    attach: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The id of the program of a pinned link.
pub(super) fn program_of(link: &Path) -> Result<u32> {
    let path = CString::new(link.as_os_str().as_bytes())?;
    let mut get = ObjGet { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let link = bpf(OBJ_GET, &mut get).with_context(|| link.display().to_string())?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).context("no link")?;
    Ok(id.trim().parse()?)
}

/// Attaches it to both families; it stays while the links live.
pub(crate) fn attach(cgroup: &File, part: Part<'_>) -> Result<Vec<OwnedFd>> {
    let map = match part {
        Part::Floor => None,
        Part::Hash(path) | Part::Storage(path) => {
            Some(MapData::from_pin(path).with_context(|| path.display().to_string())?)
        }
    };
    let map = map.as_ref().map_or(-1, |map| map.fd().as_fd().as_raw_fd());
    let mut links = Vec::new();
    for attach in [CONNECT4, CONNECT6] {
        let code: Vec<u64> = match part {
            Part::Floor => RETURN_1.to_vec(),
            Part::Hash(_) => [&key(attach)[..], &lookup(map), &RETURN_1].concat(),
            Part::Storage(_) => [&storage(map)[..], &RETURN_1].concat(),
        };
        let mut load = ProgLoad {
            kind: CGROUP_SOCK_ADDR,
            instructions: u32::try_from(code.len())?,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 4],
            kernel: 0,
            flags: 0,
            name: [0; 16],
            interface: 0,
            attach,
        };
        let program = bpf(PROG_LOAD, &mut load).with_context(|| format!("cannot load {part:?}"))?;
        let (program, cgroup) = (program.as_raw_fd(), cgroup.as_raw_fd());
        let mut link = LinkCreate { program, cgroup, attach, flags: 0 };
        links.push(bpf(LINK_CREATE, &mut link).context("cannot attach an empty program")?);
    }
    Ok(links)
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is the head of a `bpf_attr` of the command, and as long as we say; the kernel
    // takes what is missing as zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: each of the commands returns a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One instruction, as `struct bpf_insn` stands in memory.
const fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    let (offset, imm) = (offset.to_ne_bytes(), imm.to_ne_bytes());
    let [low, high] = offset;
    u64::from_ne_bytes([code, dst | src << 4, low, high, imm[0], imm[1], imm[2], imm[3]])
}

const fn load32(dst: u8, src: u8, offset: i16) -> u64 {
    insn(0x61, dst, src, offset, 0)
}

const fn store32(dst: u8, offset: i16, src: u8) -> u64 {
    insn(0x63, dst, src, offset, 0)
}

const fn store32_imm(dst: u8, offset: i16, imm: i32) -> u64 {
    insn(0x62, dst, 0, offset, imm)
}

const fn set(dst: u8, imm: i32) -> u64 {
    insn(0xb7, dst, 0, 0, imm)
}

const fn call(helper: i32) -> u64 {
    insn(0x85, 0, 0, 0, helper)
}

/// `r1 = map`, of two instructions' size.
const fn load_map(map: RawFd) -> [u64; 2] {
    const PSEUDO_MAP_FD: u8 = 1;
    [insn(0x18, 1, PSEUDO_MAP_FD, 0, map), 0]
}

const RETURN_1: [u64; 2] = [set(0, 1), insn(0x95, 0, 0, 0, 0)];

/// Where the key stands on the stack.
const KEY: i16 = -24;

/// The `ServiceKey` of what was dialled, written to the stack. Offsets are those of
/// `struct bpf_sock_addr`.
fn key(attach: u32) -> Vec<u64> {
    let mut code = if attach == CONNECT4 {
        let mapped = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
        vec![
            store32_imm(10, KEY, 0),
            store32_imm(10, KEY + 4, 0),
            store32_imm(10, KEY + 8, mapped),
            load32(2, 1, 4),
            store32(10, KEY + 12, 2),
        ]
    } else {
        let word = |n: i16| [load32(2, 1, 8 + 4 * n), store32(10, KEY + 4 * n, 2)];
        (0..4).flat_map(word).collect()
    };
    // The port; above it the protocol.
    let shift_left_16 = insn(0x67, 3, 0, 0, 16);
    let or = insn(0x4f, 2, 3, 0, 0);
    code.extend([load32(2, 1, 24), load32(3, 1, 36), shift_left_16, or, store32(10, KEY + 16, 2)]);
    code
}

/// `bpf_map_lookup_elem` of that key.
const fn lookup(map: RawFd) -> [u64; 5] {
    let [first, second] = load_map(map);
    let stack = insn(0xbf, 2, 10, 0, 0);
    let key = insn(0x07, 2, 0, 0, KEY as i32);
    [first, second, stack, key, call(1)]
}

/// `bpf_sk_storage_get` of the socket, which makes it.
const fn storage(map: RawFd) -> [u64; 6] {
    let [first, second] = load_map(map);
    let socket = insn(0x79, 2, 1, 64, 0);
    [socket, first, second, set(3, 0), set(4, 1), call(107)]
}
