//! The agent's own memory: what is needed once is given back to the kernel.

/// glibc takes a large block that is freed for a sign that more such will be needed, and from then on keeps
/// what is freed. What is large here, the kernel's BTF and the programs, is needed once, at the start. To be
/// called before there is another thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nobody but glibc itself has mallopt(3)")]
pub fn keep_no_large_blocks() {
    // SAFETY: there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives back what was freed between small blocks that stay: a sync of everything leaves a third of the
/// memory so. Takes some ms.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nobody but glibc itself has malloc_trim(3)")]
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators do so by themselves, or not at all.
#[cfg(not(target_env = "gnu"))]
pub const fn keep_no_large_blocks() {}

/// Other allocators do so by themselves, or not at all.
#[cfg(not(target_env = "gnu"))]
pub(crate) const fn give_back() {}
