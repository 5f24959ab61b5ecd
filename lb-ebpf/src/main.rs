//! The entry points: a socket's address in, a verdict of [`lb_common::select`], an address or an
//! error out. What is decided is decided in `lb-common`; this crate reads and writes.
#![no_std]
#![no_main]

mod maps;
mod socket;

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use lb_common::{
    Flow, Verdict,
    abi::{TCP, Translation, UDP},
    select,
};
use socket::{Socket, V4, V6};

/// Let the system call go on, with whatever address now stands in the context.
const PROCEED: i32 = 1;
/// Fail the system call, with the error given by `bpf_set_retval`.
const FAIL: i32 = 0;
/// The same number on every architecture that Linux runs BPF on, save MIPS, PA-RISC and SPARC.
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&V4(ctx))
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&V6(ctx))
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(&V4(ctx))
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(&V6(ctx))
}

#[inline(always)]
fn connect(socket: &impl Socket) -> i32 {
    let flow = socket.flow();
    if flow.protocol != TCP && flow.protocol != UDP {
        return PROCEED;
    }
    // SAFETY: the helper takes no argument.
    let random = || unsafe { bpf_get_prandom_u32() };
    let verdict = select(&maps::Kernel, &flow, random);
    log(socket.context(), &flow, &verdict);
    match verdict {
        Verdict::Miss => {
            // The socket may have been connected through a Service before.
            maps::forget(socket.context());
            PROCEED
        }
        Verdict::Forward(backend) => {
            maps::remember(socket.context(), Translation::new(flow.peer, &backend));
            socket.set_peer(backend.peer);
            PROCEED
        }
        Verdict::Refuse(_) | Verdict::Unstable => {
            // SAFETY: any negative errno is a valid argument in this hook.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            FAIL
        }
    }
}

#[cfg(not(feature = "log"))]
#[inline(always)]
const fn log(_: &SockAddrContext, _: &Flow, _: &Verdict) {}

#[cfg(feature = "log")]
fn log(ctx: &SockAddrContext, flow: &Flow, verdict: &Verdict) {
    use aya_log_ebpf::info;

    let (addr, port) = (flow.peer.addr.octets(), flow.peer.port.number());
    match verdict {
        Verdict::Miss => info!(ctx, "{:i}:{} is no Service", addr, port),
        Verdict::Forward(backend) => {
            let (to, at) = (backend.peer.addr.octets(), backend.peer.port.number());
            info!(ctx, "{:i}:{} goes to {:i}:{}", addr, port, to, at);
        }
        Verdict::Refuse(_) => info!(ctx, "{:i}:{} has no endpoints", addr, port),
        Verdict::Unstable => info!(ctx, "{:i}:{} changes too fast", addr, port),
    }
}

/// The application sees the address that it dialled.
#[inline(always)]
fn getpeername(socket: &impl Socket) -> i32 {
    if let Some(translation) = maps::recall(socket.context())
        && translation.backend == socket.flow().peer
    {
        socket.set_peer(translation.frontend);
    }
    PROCEED
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
