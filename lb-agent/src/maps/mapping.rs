//! The memory of the backends array, shared with the kernel: a block is written without a system
//! call per record.
#![expect(unsafe_code, reason = "the kernel's memory is reached through a pointer")]

use std::{io, num::NonZeroUsize, os::fd::BorrowedFd, ptr::NonNull};

use lb_common::abi::{BACKENDS, Backend};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{Access, StoreError, last_generation};

/// An array of [`Backend`] in memory shared with the kernel, and perhaps with other processes:
/// every access is a volatile copy, none a reference.
///
/// The kernel enters all pages when the map is mapped, and has no way to bring one back: after
/// `MADV_DONTNEED` an access is SIGBUS. So all of it counts as resident in this process.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<Backend>,
    len: u32,
}

// SAFETY: the pointer is to a shared mapping, which belongs to no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps a `BPF_F_MMAPABLE` array of `len` elements.
    pub(super) fn new(map: BorrowedFd<'_>, len: u32, access: Access) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(Self::bytes(len)).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { base: base.cast(), len })
    }

    const fn bytes(len: u32) -> usize {
        len as usize * size_of::<Backend>()
    }

    /// Number of records.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// A copy of `count` records from `block` on; empty if they are not all in the array.
    pub(super) fn read(&self, block: u32, count: u32) -> Vec<Backend> {
        if block.checked_add(count).is_none_or(|end| end > self.len) {
            return Vec::new();
        }
        (block..block + count)
            // SAFETY: the index is in bounds, and any bytes are a `Backend`.
            .map(|index| unsafe { self.base.add(index as usize).read_volatile() })
            .collect()
    }

    /// Writes a block that no service names.
    pub(super) fn write(&mut self, block: u32, records: &[Backend]) -> Result<(), StoreError> {
        let len = self.len as usize;
        let start = block as usize;
        if start > len || len - start < records.len() {
            let (count, capacity) = (records.len(), self.len);
            return Err(StoreError::OutOfBounds { block, count, capacity });
        }
        for (i, record) in records.iter().enumerate() {
            // SAFETY: in bounds, and `Access::Write` was asked for by whoever has `&mut self`.
            unsafe { self.base.add(start + i).write_volatile(*record) };
        }
        Ok(())
    }

    /// The generation given last, see [`last_generation`].
    pub(super) fn last_generation(&self) -> u32 {
        last_generation((0..self.len).map(|index| {
            // SAFETY: as in `read`.
            unsafe { self.base.add(index as usize).read_volatile() }.generation
        }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping, and nothing refers to it any more.
        if let Err(error) = unsafe { munmap(self.base.cast(), Self::bytes(self.len)) } {
            tracing::debug!(map = BACKENDS, %error, "munmap");
        }
    }
}
