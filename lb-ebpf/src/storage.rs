//! What is remembered of a socket, for as long as it lives.

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::SkStorage,
    helpers::{bpf_get_socket_cookie, bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    Flow, Prior,
    abi::{Counter, Peer, Translation},
    flows::{self, Answered, Few, Many, Recorded},
};

use crate::maps::{count, now};

/// What a socket was connected to.
#[btf_map(name = "sockets")]
static SOCKETS: SkStorage<Translation> = SkStorage::new();

/// What a UDP socket sends without being connected.
#[btf_map(name = "flows")]
static FLOWS: SkStorage<Few> = SkStorage::new();

#[btf_map(name = "more_flows")]
static MORE_FLOWS: SkStorage<Many> = SkStorage::new();

/// Stores what the socket was translated to. Without memory for it the connection still works; only
/// getpeername() then tells the backend.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, translation: Translation) {
    let stored = SOCKETS.get_ptr_mut(ctx);
    if stored.is_null() {
        // A copy of its own: what a helper has a pointer to, LLVM keeps in memory.
        let mut first = translation;
        if SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut first)).is_null() {
            count(Counter::NoSocketMemory);
        }
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

/// Does something with the flows while no other thread can.
macro_rules! locked {
    ($flows:expr, |$locked:ident| $do:expr) => {{
        let flows = $flows;
        // SAFETY: a storage's pointer is valid while the program runs, and the lock is its own.
        unsafe {
            bpf_spin_lock(core::ptr::addr_of_mut!((*flows).lock).cast());
            let $locked = &mut *flows;
            let result = $do;
            bpf_spin_unlock(core::ptr::addr_of_mut!((*flows).lock).cast());
            result
        }
    }};
}

/// The further flows, if there are any.
#[inline(always)]
fn more(ctx: &SockAddrContext, few: *mut Few) -> Option<*mut Many> {
    // SAFETY: not null, hence valid.
    if unsafe { (*few).more } == 0 {
        return None;
    }
    let many = MORE_FLOWS.get_ptr_mut(ctx);
    (!many.is_null()).then_some(many)
}

/// The translation of a connected socket. `connect(AF_UNSPEC)` runs no program, so what was stored at
/// the last connect may be over.
#[inline(always)]
fn connected(ctx: &SockAddrContext) -> Option<&Translation> {
    // SAFETY: a non-null pointer is valid while the program runs. The kernel sets the socket in each of
    // the hooks, and a null pointer is not read.
    unsafe {
        let translation = SOCKETS.get_ptr_mut(ctx).as_ref()?;
        let sk = core::ptr::addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk).read_volatile();
        let port = core::ptr::addr_of!((*sk.as_ref()?).dst_port).read_volatile();
        (port != 0 && port == translation.backend.port.raw()).then_some(translation)
    }
}

/// Where earlier datagrams of the flow went, in `place`; false if it sent none. Those to
/// the address that it is connected to go where the others go.
///
/// Nothing is returned through memory here: the verifier takes the place's address, which LLVM leaves
/// in the return register, for a leak.
#[inline(never)]
pub(crate) fn prior(ctx: &SockAddrContext, flow: &Flow, place: &mut Prior) -> bool {
    let frontend = flow.peer;
    if let Some(known) = connected(ctx)
        && known.frontend == frontend
    {
        *place = Prior { backend: known.backend, generation: known.generation };
        return true;
    }
    let few = FLOWS.get_ptr_mut(ctx);
    if few.is_null() {
        return false;
    }
    if locked!(few, |flows| flows::prior(&flows.sets[0], frontend, place)) {
        return true;
    }
    let Some(many) = more(ctx, few) else { return false };
    let set = flows::set(frontend);
    locked!(many, |flows| flows::prior(&flows.sets[set], frontend, place))
}

/// Takes in that a datagram of the flow goes where `to` says.
#[inline(never)]
pub(crate) fn sent(ctx: &SockAddrContext, flow: &Flow, to: &Prior) {
    let (frontend, to) = (flow.peer, *to);
    let few = FLOWS.get_or_insert_ptr_mut(ctx, None);
    if few.is_null() {
        count(Counter::NoSocketMemory);
        return;
    }
    let now = now();
    let recorded = locked!(few, |few| {
        few.backends |= flows::backend_bit(to.backend);
        flows::record(&mut few.sets[0], frontend, to, now, false)
    });
    if recorded != Recorded::Full {
        return;
    }
    let many = MORE_FLOWS.get_or_insert_ptr_mut(ctx, None);
    if many.is_null() {
        count(Counter::NoSocketMemory);
        return;
    }
    // SAFETY: not null, hence valid.
    unsafe { (*few).more = 1 };
    let set = flows::set(frontend);
    let recorded =
        locked!(many, |flows| flows::record(&mut flows.sets[set], frontend, to, now, true));
    if recorded == Recorded::InPlaceOfAnother {
        count(Counter::FlowForgotten);
    }
}

/// Whether a datagram from `peer` may be taken for an answer of a Service.
#[inline(always)]
pub(crate) fn may_lead_to(ctx: &SockAddrContext, peer: Peer) -> bool {
    // SAFETY: a non-null pointer is valid while the program runs.
    unsafe { FLOWS.get_ptr_mut(ctx).as_ref() }
        .is_some_and(|few| few.backends & flows::backend_bit(peer) != 0)
}

/// Replaces the source of a datagram by the address from which the application expects what comes from it; false if
/// that is the backend's own.
#[inline(never)]
pub(crate) fn answered(ctx: &SockAddrContext, answer: &mut Flow) -> bool {
    let backend = answer.peer;
    if let Some(known) = connected(ctx)
        && known.backend == backend
    {
        answer.peer = known.frontend;
        return true;
    }
    let few = FLOWS.get_ptr_mut(ctx);
    if few.is_null() {
        return false;
    }
    let now = now();
    let mut best = Answered::NOBODY;
    locked!(few, |flows| flows::answered(flows.sets.as_flattened(), backend, now, &mut best));
    let many = more(ctx, few);
    if let Some(many) = many {
        locked!(many, |flows| flows::answered(flows.sets.as_flattened(), backend, now, &mut best));
    }
    if !best.is_known() {
        return false;
    }
    answer.peer = best.frontend;
    locked!(few, |flows| flows::settle(&mut flows.sets[0], best.frontend));
    if let Some(many) = many {
        let set = flows::set(best.frontend);
        locked!(many, |flows| flows::settle(&mut flows.sets[set], best.frontend));
    }
    true
}

/// A number that no other socket has, as long as the machine runs.
#[inline(always)]
pub(crate) fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
