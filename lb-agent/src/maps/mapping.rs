//! The memory of the backends array, shared with the kernel: a block is written without a system
//! call per record.
//!
//! A block is published by the service value that names it, which the kernel writes on our behalf.
//! A program that reads the new value must find the new records, whatever the processor:
//!
//! - **Writer.** The records are written, then a release fence, then the system call. Without the
//!   fence nothing orders the two on a processor that is weakly ordered (aarch64): entering the
//!   kernel is no barrier, and the lock that the kernel takes to change a value where it stands
//!   (`BPF_F_LOCK`) orders what comes before it only with what comes after its release, while the
//!   programs read the value without the lock. A new element is published with a release by the
//!   kernel, but not all values are new elements.
//! - **Reader.** The address of a record is computed from the `block` and the `count` that were read,
//!   and such a dependency orders the reads on every processor that Linux runs BPF on. The compiler
//!   keeps it: the reads are volatile, and the JIT translates instruction by instruction.
//! - **In between** a value may be read while it is half written. The generation tells: what is
//!   named by halves of two values is a record of another generation, so the value is read anew.
//!   That is why the address must never be older than the generation in the same record.
//! - **Afterwards** records are written again only after a grace period, when no program still has
//!   the value that named them.
//!
//! The tests have the model of this.
#![expect(unsafe_code, reason = "the kernel's memory is reached through a pointer")]

#[cfg(test)]
mod model;

use std::{
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

use lb_common::abi::{BACKENDS, Backend};
use lb_core::store::{StoreError, last_generation};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::Access;

/// Memory that programs read while it is written.
trait Records {
    /// Writes one record, which is in bounds.
    fn put(&mut self, index: u32, record: &Backend);
    /// Whoever sees what is written from now on sees all that was written before.
    fn release(&self);
}

/// Writes a block, to be published by whatever is written next.
fn write(memory: &mut impl Records, block: u32, records: &[Backend]) {
    for (index, record) in (block..).zip(records) {
        memory.put(index, record);
    }
    memory.release();
}

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

    /// Writes a block that no service names yet. A service value that is written after it may.
    pub(super) fn write(&mut self, block: u32, records: &[Backend]) -> Result<(), StoreError> {
        let len = self.len as usize;
        let start = block as usize;
        if start > len || len - start < records.len() {
            let (count, capacity) = (records.len(), self.len);
            return Err(StoreError::OutOfBounds { block, count, capacity });
        }
        write(self, block, records);
        Ok(())
    }

    /// The generation given last, see [`last_generation`].
    pub(super) fn last_generation(&self) -> u32 {
        last_generation(self.generations())
    }

    /// The greatest id of a backend that a record shows, in use or not; 0: none does.
    pub(super) fn last_backend(&self) -> u32 {
        self.all().map(|record| record.backend).max().unwrap_or(0)
    }

    /// Whether a record was ever written.
    pub(super) fn is_written(&self) -> bool {
        self.generations().any(|generation| generation != 0)
    }

    fn generations(&self) -> impl Iterator<Item = u32> {
        self.all().map(|record| record.generation)
    }

    fn all(&self) -> impl Iterator<Item = Backend> {
        // SAFETY: as in `read`.
        (0..self.len).map(|index| unsafe { self.base.add(index as usize).read_volatile() })
    }
}

impl Records for Mapping {
    fn put(&mut self, index: u32, record: &Backend) {
        // SAFETY: in bounds, and `Access::Write` was asked for by whoever has `&mut self`.
        unsafe { self.base.add(index as usize).write_volatile(*record) };
    }

    fn release(&self) {
        fence(Ordering::Release);
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
