//! What a connected socket dialled and what it got, for as long as it lives.
//!
//! The programs run before the kernel connects the socket, and the kernel may refuse. A UDP socket is
//! then still connected to what it was before. So what it was connected to is kept beside what was
//! chosen last. The one whose backend is the socket's peer is true.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::SkStorage,
    helpers::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    Addr, Flow, Port, Prior,
    abi::{Backend, Counter, Peer, TCP, Translation},
};

use crate::{maps::count, words};

/// What was chosen for the socket's last connect() to a Service.
#[btf_map(name = "sockets")]
static SOCKETS: SkStorage<Translation> = SkStorage::new();

/// What a UDP socket was connected to before that, if it was when it was connected once more.
#[btf_map(name = "former")]
static FORMER: SkStorage<Translation> = SkStorage::new();

const AF_INET: u32 = 2;

/// The socket that the context is of; null in none of the hooks.
macro_rules! sk {
    ($ctx:expr) => {
        // SAFETY: the kernel sets the socket in each of the hooks, and a null pointer is not read.
        unsafe {
            core::ptr::addr_of!((*$ctx.sock_addr).__bindgen_anon_1.sk).read_volatile().as_ref()
        }
    };
}
pub(crate) use sk;
/// A field of it: each is read by itself, in its own size.
macro_rules! sk_field {
    ($sk:expr, $($field:tt)+) => {
        // SAFETY: a reference is valid.
        unsafe { core::ptr::addr_of!($sk.$($field)+).read_volatile() }
    };
}
pub(crate) use sk_field;

/// An IPv6 address of it. To be read whether it is needed or not: of two addresses that are read in two
/// branches, LLVM reads the last word behind a pointer that it computes, which the verifier refuses.
macro_rules! sk_words {
    ($sk:expr, $field:ident) => {
        lb_common::Addr::from_words([
            sk_field!($sk, $field[0]),
            sk_field!($sk, $field[1]),
            sk_field!($sk, $field[2]),
            sk_field!($sk, $field[3]),
        ])
    };
}
pub(crate) use sk_words;

/// Stores what the socket was translated to. Without memory for it the connection still works; only
/// getpeername() then tells the backend.
///
/// A function of its own: the stack has 512 bytes, and most of it is connect()'s.
#[inline(never)]
pub(crate) fn remember(ctx: &SockAddrContext, flow: &Flow, to: &Prior, service: u32) {
    let backend = Backend::forward(to.backend).stamped(to.generation, service);
    let translation = Translation::new(flow.peer, &backend);
    // A new one is zero, which is nobody's translation.
    // SAFETY: a non-null pointer is valid while the program runs; the socket is locked by its connect().
    let Some(last) = (unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() }) else {
        count(Counter::NoSocketMemory);
        return;
    };
    if !last.is_to(&translation.backend) && is_there(ctx, last) {
        let former = FORMER.get_or_insert_ptr_mut(ctx, None);
        if former.is_null() {
            count(Counter::NoSocketMemory);
        } else {
            // SAFETY: as above.
            unsafe { words::copy(former, last) };
        }
    }
    *last = translation;
}

/// The same for the MPTCP socket that the TCP socket is a subflow of, if it is one: applications ask
/// that one.
#[inline(always)]
pub(crate) fn remember_for_whole(ctx: &SockAddrContext) {
    // SAFETY: a value is valid while the program runs, and not null then.
    unsafe {
        let whole = of_whole(ctx, BPF_SK_STORAGE_GET_F_CREATE.into());
        if whole.is_null() {
            return;
        }
        // Read where it stands: the stack has no room for a second one.
        let translation = SOCKETS.get_ptr_mut(ctx);
        if !translation.is_null() {
            words::copy(whole, translation);
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

/// The socket is about to be connected to the flow's peer itself: what had led there leads there no more.
/// Whatever led elsewhere stays, and is true again if the kernel refuses.
///
/// A function of its own: the stack of connect() is full.
#[inline(never)]
pub(crate) fn forget(ctx: &SockAddrContext, flow: &Flow) {
    // SAFETY: a non-null pointer is valid while the program runs; the socket is locked by its connect().
    let Some(last) = (unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() }) else { return };
    if last.is_to(&flow.peer) {
        words::reset(last);
        // SAFETY: as above.
        if let Some(whole) = unsafe { of_whole(ctx, 0).as_mut() } {
            words::reset(whole);
        }
    }
    // SAFETY: as above.
    if let Some(former) = unsafe { FORMER.get_ptr_mut(ctx).as_mut() }
        && former.is_to(&flow.peer)
    {
        words::reset(former);
    }
}

/// What led the socket to `peer`, if it is there through a Service.
#[inline(always)]
pub(crate) fn translation<'a>(ctx: &'a SockAddrContext, peer: &Peer) -> Option<&'a Translation> {
    match known(ctx, |translation| translation.is_to(peer)) {
        Some((translation, true)) => Some(translation),
        _ => None,
    }
}

/// What led the socket to its peer, and true; if nothing did, what was chosen for it last, and false.
#[inline(always)]
pub(crate) fn last_known(ctx: &SockAddrContext) -> Option<(&Translation, bool)> {
    known(ctx, |translation| is_there(ctx, translation))
}

#[inline(always)]
fn known(
    ctx: &SockAddrContext,
    is_true: impl Fn(&Translation) -> bool,
) -> Option<(&Translation, bool)> {
    // SAFETY: a non-null pointer is valid while the program runs.
    let last = unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }?;
    if is_true(last) {
        return Some((last, true));
    }
    // SAFETY: as above.
    match unsafe { FORMER.get_ptr_mut(ctx).as_ref() } {
        Some(former) if is_true(former) => Some((former, true)),
        _ => Some((last, false)),
    }
}

/// Whether it leads to the socket's peer. `connect(AF_UNSPEC)` runs no program, but takes the port.
#[inline(always)]
fn is_there(ctx: &SockAddrContext, translation: &Translation) -> bool {
    peer(ctx, translation.port()).is_some_and(|peer| translation.is_to(&peer))
}

/// Whether it is the socket's peer.
#[inline(always)]
pub(crate) fn is_peer(ctx: &SockAddrContext, other: &Peer) -> bool {
    peer(ctx, other.port).is_some_and(|peer| peer == *other)
}

/// The socket's peer, if it is at this port.
#[inline(always)]
fn peer(ctx: &SockAddrContext, port: Port) -> Option<Peer> {
    let sk = sk!(ctx)?;
    let at = sk_field!(sk, dst_port);
    if at == 0 || at != port.raw() {
        return None;
    }
    let v4 = Addr::from_v4_word(sk_field!(sk, dst_ip4));
    let v6 = sk_words!(sk, dst_ip6);
    let addr = if sk_field!(sk, family) == AF_INET { v4 } else { v6 };
    Some(Peer { addr, port })
}
