//! The maps, private behind total functions. Sizes are the agent's to set; those here are the least.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, SkStorage},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    Tables,
    abi::{Backend, Name, Service, ServiceEntry, ServiceKey, Translation},
};

#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, ServiceEntry, 1, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Memory-mapped: the agent writes a block without a system call per record.
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Here so that one loader creates and pins all maps; no program reads it.
#[btf_map(name = "names")]
static NAMES: HashMap<u32, Name, 1, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map(name = "sockets")]
static SOCKETS: SkStorage<Translation> = SkStorage::new();

/// The lookup's view of the maps.
pub(crate) struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: the pointer is valid while the program runs. The value may change under us, or the
        // element be recycled for another key: the sealed generation detects both. A volatile read
        // makes the copy once, so that what was checked is what is used. The lock is not read: the
        // verifier does not allow it.
        SERVICES
            .get_ptr(key)
            .map(|entry| unsafe { ptr::addr_of!((*entry).service).read_volatile() }.sealed(key))
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend> {
        // SAFETY: as above.
        BACKENDS.get_ptr(index).map(|backend| unsafe { backend.read_volatile() })
    }
}

/// Stores what the socket was translated to. Without memory for it the connection still works; only
/// getpeername() then tells the backend.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, translation: Translation) {
    let stored = SOCKETS.get_ptr_mut(ctx);
    if stored.is_null() {
        // A copy of its own: what a helper has a pointer to, LLVM keeps in memory.
        let mut first = translation;
        SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut first));
    } else {
        // SAFETY: valid while the program runs; the socket is locked by its connect().
        unsafe { *stored = translation };
    }
}

/// What [`remember`] stored for the socket.
#[inline(always)]
pub(crate) fn recall(ctx: &SockAddrContext) -> Option<Translation> {
    // SAFETY: a non-null pointer is valid while the program runs.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }.copied()
}

/// Undoes [`remember`].
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    // SAFETY: as in `recall`.
    if let Some(translation) = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() } {
        *translation = bytemuck::Zeroable::zeroed();
    }
}
