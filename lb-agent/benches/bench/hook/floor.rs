//! The least a program can do: return 1. What it costs is what the kernel takes for calling any
//! program at all; no load balancer at this hook can be cheaper.
#![expect(
    unsafe_code,
    reason = "aya loads programs from ELF files only: this one is two instructions"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
pub(super) const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`.
const CONNECT: [u32; 2] = [10, 11];

/// `r0 = 1; exit`.
const RETURN_1: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

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

/// Attaches it to both families; it stays while the links live.
pub(crate) fn attach(cgroup: &File) -> Result<Vec<OwnedFd>> {
    let mut links = Vec::new();
    for attach in CONNECT {
        let mut load = ProgLoad {
            kind: CGROUP_SOCK_ADDR,
            instructions: 2,
            code: RETURN_1.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 4],
            kernel: 0,
            flags: 0,
            name: [0; 16],
            interface: 0,
            attach,
        };
        let program = bpf(PROG_LOAD, &mut load).context("cannot load the empty program")?;
        let (program, cgroup) = (program.as_raw_fd(), cgroup.as_raw_fd());
        let mut link = LinkCreate { program, cgroup, attach, flags: 0 };
        links.push(bpf(LINK_CREATE, &mut link).context("cannot attach the empty program")?);
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
    // SAFETY: both commands return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
