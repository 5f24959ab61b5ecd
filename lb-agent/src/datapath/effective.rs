//! Which programs run for the sockets of a cgroup, and in which order, as the kernel has it.
#![expect(unsafe_code, reason = "neither aya nor nix has BPF_PROG_QUERY for cgroups")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, RawFd},
};

use aya::programs::loaded_programs;

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// The kernel takes 64 at each level.
const MOST: usize = 512;

/// `bpf_attr.query`, as in `linux/bpf.h`. Whole, since newer kernels write to its end.
#[repr(C)]
struct Query {
    target: RawFd,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: *mut u32,
    count: u32,
    padding: u32,
    unused: [u64; 4],
}

/// The ids of the programs of an attach type, those first that run first.
pub(super) fn programs(cgroup: &File, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0; MOST];
    let mut query = Query {
        target: cgroup.as_raw_fd(),
        attach_type,
        flags: BPF_F_QUERY_EFFECTIVE,
        attach_flags: 0,
        programs: ids.as_mut_ptr(),
        count: u32::try_from(ids.len()).unwrap_or(0),
        padding: 0,
        unused: [0; 4],
    };
    let query = &raw mut query;
    // SAFETY: the kernel reads and writes the query, and as many ids as it says there is room for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, query, size_of::<Query>()) };
    if result != 0 {
        let error = io::Error::last_os_error();
        // More than there is room for: the first ones matter.
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return Err(error);
        }
    }
    // SAFETY: it was made above, and the kernel wrote a number to it.
    let count = unsafe { (*query).count };
    ids.truncate(count as usize);
    Ok(ids)
}

/// The name of a program, if it has one and we may know it, for which `CAP_SYS_ADMIN` is needed.
pub(super) fn name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    program.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}
