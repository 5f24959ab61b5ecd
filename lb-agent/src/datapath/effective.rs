//! Which programs run for the sockets of a cgroup, and in which order, as the kernel has it.
#![expect(unsafe_code, reason = "neither aya nor nix has BPF_PROG_QUERY for cgroups")]

use std::{
    fs::File,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd as _, RawFd},
};

use aya::programs::loaded_programs;

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// The kernel takes 64 at each level.
const MOST: usize = 512;

/// `bpf_attr.query`, as in `linux/bpf.h`. Whole: Linux 6.17 to 7.1 writes the last field, whatever size it
/// is told, unless it has <https://git.kernel.org/torvalds/c/21c4b99b27f3>.
#[derive(Debug)]
#[repr(C)]
pub struct Query<'a> {
    target: RawFd,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
    ids: PhantomData<&'a mut [u32]>,
}

const _: () = {
    assert!(std::mem::offset_of!(Query<'_>, revision) == 56);
    assert!(size_of::<Query<'_>>() == 64);
};

impl<'a> Query<'a> {
    /// Of the programs of an attach type that run for the sockets of a cgroup.
    pub fn new(cgroup: &'a File, attach_type: u32, ids: &'a mut [u32]) -> Self {
        Self {
            target: cgroup.as_raw_fd(),
            attach_type,
            flags: BPF_F_QUERY_EFFECTIVE,
            attach_flags: 0,
            programs: ids.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(ids.len()).unwrap_or(0),
            padding: 0,
            program_flags: 0,
            links: 0,
            link_flags: 0,
            revision: 0,
            ids: PhantomData,
        }
    }

    /// Fills the ids in; says how many programs there are, or as many as there was room for.
    pub fn ask(&mut self) -> io::Result<usize> {
        let room = self.count;
        let query = std::ptr::from_mut(self);
        // SAFETY: the kernel reads and writes the query, and as many ids as it says there is room for,
        // which are borrowed.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, query, size_of::<Self>()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            // More than there is room for: the first ones matter.
            if error.raw_os_error() != Some(libc::ENOSPC) {
                return Err(error);
            }
        }
        Ok(self.count.min(room) as usize)
    }
}

/// The ids of the programs of an attach type, those first that run first; also those of the cgroups
/// above.
pub(crate) fn programs(cgroup: &File, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0; MOST];
    let count = Query::new(cgroup, attach_type, &mut ids).ask()?;
    ids.truncate(count);
    Ok(ids)
}

/// The name of a program, if it has one and we may know it, for which `CAP_SYS_ADMIN` is needed.
pub(super) fn name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    program.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}
