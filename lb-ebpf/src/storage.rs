//! What is remembered of a socket, for as long as it lives.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::SkStorage,
    helpers::{
        bpf_get_socket_cookie, bpf_sk_storage_get, bpf_skc_to_mptcp_sock, bpf_spin_lock,
        bpf_spin_unlock,
    },
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    Flow, Prior,
    abi::{Counter, TCP, Translation},
    flows::{self, Answered, Few, Many, Moment, Recorded},
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

/// The same for the MPTCP socket that the TCP socket is a subflow of, if it is one: applications ask
/// that one.
#[inline(always)]
pub(crate) fn remember_for_whole(ctx: &SockAddrContext) {
    // SAFETY: a value is valid while the program runs, and not null then.
    unsafe {
        // Read where it stands: the stack has no room for a second one.
        let Some(translation) = SOCKETS.get_ptr_mut(ctx).as_ref() else { return };
        let whole = of_whole(ctx, BPF_SK_STORAGE_GET_F_CREATE.into());
        if !whole.is_null() {
            *whole = *translation;
        }
    }
}

/// The translation of the MPTCP socket that the socket is a subflow of; null if it is none.
#[inline(always)]
fn of_whole(ctx: &SockAddrContext, flags: u64) -> *mut Translation {
    // SAFETY: the kernel sets the socket, and none of the helpers is given a null pointer.
    unsafe {
        // Read from the context: the stack has no room to keep it.
        let protocol = core::ptr::addr_of!((*ctx.sock_addr).protocol).read_volatile();
        let sk = core::ptr::addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk).read_volatile();
        if protocol != u32::from(TCP) || sk.is_null() {
            return core::ptr::null_mut();
        }
        let whole = bpf_skc_to_mptcp_sock(sk.cast());
        if whole.is_null() {
            return core::ptr::null_mut();
        }
        let map = core::ptr::addr_of!(SOCKETS).cast_mut().cast();
        bpf_sk_storage_get(map, whole.cast(), core::ptr::null_mut(), flags).cast()
    }
}

/// Undoes [`remember`].
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    // SAFETY: a non-null pointer is valid while the program runs; the socket is locked by its connect().
    if let Some(translation) = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() } {
        *translation = bytemuck::Zeroable::zeroed();
        // SAFETY: as above.
        if let Some(whole) = unsafe { of_whole(ctx, 0).as_mut() } {
            *whole = bytemuck::Zeroable::zeroed();
        }
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

/// What the socket was last connected to through a Service.
#[inline(always)]
pub(crate) fn translation(ctx: &SockAddrContext) -> Option<&Translation> {
    // SAFETY: a non-null pointer is valid while the program runs.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }
}

/// Whether it still is, by the port. `connect(AF_UNSPEC)` runs no program.
#[inline(always)]
fn is_connected(ctx: &SockAddrContext, translation: &Translation) -> bool {
    // SAFETY: the kernel sets the socket in each of the hooks, and a null pointer is not read.
    unsafe {
        let sk = core::ptr::addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk).read_volatile();
        let Some(sk) = sk.as_ref() else { return false };
        let port = core::ptr::addr_of!(sk.dst_port).read_volatile();
        port != 0 && port == translation.backend.port.raw()
    }
}

/// Where earlier datagrams of the flow went, in `place`. Those to the Service that the socket is
/// connected to go where those without an address go; and so they do at first when it is no longer: of
/// an IPv6 socket, the kernel drops what others answer even then. True if it is a datagram without an
/// address: of an IPv4 connection of an IPv6 socket, the kernel shows these too, and they go to the
/// backend already.
///
/// Another thread may connect the socket meanwhile, and half of a translation be read: then one datagram
/// goes where the connection went before.
///
/// Nothing is returned through memory here: the verifier takes the place's address, which LLVM leaves
/// in the return register, for a leak.
#[inline(never)]
pub(crate) fn prior(ctx: &SockAddrContext, flow: &Flow, place: &mut Prior) -> bool {
    let frontend = flow.peer;
    if let Some(known) = translation(ctx) {
        let is_connected = is_connected(ctx, known);
        if is_connected && known.backend == frontend {
            return true;
        }
        if known.frontend == frontend {
            *place = Prior { backend: known.backend, generation: known.generation };
            if is_connected {
                return false;
            }
        }
    }
    let few = FLOWS.get_ptr_mut(ctx);
    if few.is_null() {
        return false;
    }
    let mut datagrams = Prior { backend: frontend, generation: 0 };
    let mut found = locked!(few, |flows| flows::prior(&flows.sets[0], frontend, &mut datagrams));
    if !found && let Some(many) = more(ctx, few) {
        let set = flows::set(frontend);
        found = locked!(many, |flows| flows::prior(&flows.sets[set], frontend, &mut datagrams));
    }
    // What was sent since the connection ended counts for more.
    if found && (place.generation == 0 || datagrams.is_newer(place)) {
        *place = datagrams;
    }
    false
}

/// Takes in that a datagram of the flow goes where `to` says.
#[inline(never)]
pub(crate) fn sent(ctx: &SockAddrContext, flow: &Flow, to: &Prior) {
    let (frontend, to) = (flow.peer, *to);
    if let Some(known) = translation(ctx)
        && known.backend == to.backend
        && is_connected(ctx, known)
    {
        // The answer needs no label but the connection's.
        return;
    }
    let few = FLOWS.get_or_insert_ptr_mut(ctx, None);
    if few.is_null() {
        count(Counter::NoSocketMemory);
        return;
    }
    let mut moment = Moment { now: now(), turn: 0 };
    let recorded = locked!(few, |few| {
        few.turn = few.turn.wrapping_add(1);
        moment.turn = few.turn;
        few.backends |= flows::backend_bit(to.backend);
        flows::record(&mut few.sets[0], frontend, to, moment, false)
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
        locked!(many, |flows| flows::record(&mut flows.sets[set], frontend, to, moment, true));
    if recorded == Recorded::InPlaceOfAnother {
        count(Counter::FlowForgotten);
    }
}

/// Whether what the flow's peer answers may be taken for an answer of a Service.
#[inline(never)]
pub(crate) fn leads_to(ctx: &SockAddrContext, flow: &Flow) -> bool {
    let peer = flow.peer;
    let few = FLOWS.get_ptr_mut(ctx);
    // SAFETY: a non-null pointer is valid while the program runs.
    if few.is_null() || unsafe { (*few).backends } & flows::backend_bit(peer) == 0 {
        return false;
    }
    if locked!(few, |flows| flows::leads_to(&flows.sets[0], peer)) {
        return true;
    }
    let Some(many) = more(ctx, few) else { return false };
    locked!(many, |flows| flows::leads_to(flows.sets.as_flattened(), peer))
}

/// Replaces the source of a datagram by the address from which the application expects what comes
/// from it; false if that is the backend's own.
#[inline(never)]
pub(crate) fn answered(ctx: &SockAddrContext, answer: &mut Flow) -> bool {
    let backend = answer.peer;
    if let Some(known) = translation(ctx)
        && known.backend == backend
        && is_connected(ctx, known)
    {
        answer.peer = known.frontend;
        return true;
    }
    let few = FLOWS.get_ptr_mut(ctx);
    if few.is_null() {
        return false;
    }
    // SAFETY: not null, hence valid.
    let moment = Moment { now: now(), turn: unsafe { (*few).turn } };
    let mut best = Answered::NOBODY;
    locked!(few, |flows| flows::answered(flows.sets.as_flattened(), backend, moment, &mut best));
    let many = more(ctx, few);
    if let Some(many) = many {
        locked!(many, |flows| flows::answered(
            flows.sets.as_flattened(),
            backend,
            moment,
            &mut best
        ));
    }
    if !best.is_known() {
        locked!(few, |flows| flows::answered_late(&flows.sets[0], backend, &mut best));
    }
    if !best.is_known() {
        return false;
    }
    answer.peer = best.frontend;
    if !best.is_awaited() {
        return true;
    }
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
