//! The entry points: a socket's address in, a verdict of [`lb_common::select`], an address or an
//! error out. What is decided is decided in `lb-common`; this crate reads and writes.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "the kernel's memory and its helpers are reached by pointers throughout"
)]

mod connection;
mod heard;
mod hook;
mod maps;
mod socket;
mod storage;
mod words;

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use hook::{Asker, Hook};
use lb_common::{
    Addr, Flow, Origin, Prior, Refusal, Selection, Verdict,
    abi::{Counter, TCP, UDP},
    flow_bits, select_into,
};
use maps::{Maps, count};
use socket::{Socket, V4, V6};

/// Let the system call go on, with whatever address now stands in the context.
const PROCEED: i32 = 1;
/// Fail the system call, with the error given by `bpf_set_retval`.
const FAIL: i32 = 0;

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

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&V4(ctx))
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&V6(ctx))
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(&V4(ctx))
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(&V6(ctx))
}

/// A socket that connects.
struct Connecting<'a, S>(&'a S);

impl<S: Socket> Hook for Connecting<'_, S> {
    const CONNECTS: bool = true;

    #[inline(always)]
    fn dialled(&self) -> Addr {
        dialled(self.0)
    }

    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        self.0.context()
    }

    /// Other bits for each connection.
    #[inline(always)]
    fn random(&self, _: &Flow) -> u32 {
        // SAFETY: the helper takes no argument.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        self.0.bound()
    }

    #[inline(always)]
    fn come_from(&self, addr: Addr) -> Origin {
        self.0.bind(addr)
    }
}

/// A socket that sends a datagram.
struct Sending<'a, S>(&'a S);

impl<S: Socket> Hook for Sending<'_, S> {
    const CONNECTS: bool = false;

    #[inline(always)]
    fn dialled(&self) -> Addr {
        dialled(self.0)
    }

    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        self.0.context()
    }

    /// The same bits for each datagram of a flow.
    #[inline(always)]
    fn random(&self, flow: &Flow) -> u32 {
        flow_bits(storage::cookie(self.context()), flow)
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        self.0.source()
    }

    #[inline(always)]
    fn come_from(&self, addr: Addr) -> Origin {
        self.0.set_source(addr);
        Origin::Settled
    }
}

/// The address that was given, read anew: what the verifier learns of it from a branch would keep it
/// from seeing that all that comes after is the same, and multiply its work.
#[inline(always)]
fn dialled(socket: &impl Socket) -> Addr {
    socket.flow().peer.addr
}

/// Makes an address that is `before` be `after`, by what differs: for the verifier it stays unknown, as it
/// is on all other ways.
#[inline(always)]
fn replace(addr: &mut Addr, before: Addr, after: Addr) {
    let ([a, b, c, d], before, after) = (addr.words(), before.words(), after.words());
    *addr = Addr::from_words([
        a ^ before[0] ^ after[0],
        b ^ before[1] ^ after[1],
        c ^ before[2] ^ after[2],
        d ^ before[3] ^ after[3],
    ]);
}

/// Takes the unspecified address for what Linux makes of it. A function of its own: the stack has 512 bytes.
#[inline(never)]
fn take_as_meant(socket: &impl Socket, flow: &mut Flow) {
    let given = dialled(socket);
    if given.is_unspecified() {
        replace(&mut flow.peer.addr, given, given.meant(socket.source()));
    }
}

#[inline(always)]
fn connect(socket: &impl Socket) -> i32 {
    let mut flow = socket.flow();
    if flow.protocol != TCP && flow.protocol != UDP {
        return PROCEED;
    }
    let given = dialled(socket);
    if given.is_unspecified() {
        replace(&mut flow.peer.addr, given, given.meant(socket.bound()));
    }
    let ctx = socket.context();
    let mut choice = MaybeUninit::uninit();
    let choice = first(&mut choice, &flow);
    let verdict = select_into(choice, &Maps, &Asker(&Connecting(socket)), &flow);
    log(ctx, &flow, verdict, &choice.to);
    match verdict {
        Verdict::Fail(refusal) if !refusal.lets_connect(flow.protocol) => return fail(refusal),
        Verdict::Fail(_) => {
            count(Counter::UdpConnectUntouched);
            connection::forget(ctx, &flow);
        }
        // It has no earlier one to stay with.
        Verdict::Miss | Verdict::Stay => connection::forget(ctx, &flow),
        Verdict::Forward(()) => {
            connection::remember(ctx, &flow, &choice.to, choice.service);
            connection::remember_for_whole(ctx);
            socket.set_peer(choice.to.backend);
        }
    }
    PROCEED
}

/// A datagram with an address of its own, from a socket that may be connected elsewhere or not at all.
/// UDP-Lite runs this hook too, since it shares UDP's code; no other protocol does.
#[inline(always)]
fn sendmsg(socket: &impl Socket) -> i32 {
    let mut flow = socket.flow();
    if flow.protocol != UDP {
        return PROCEED;
    }
    take_as_meant(socket, &mut flow);
    let ctx = socket.context();
    let mut choice = MaybeUninit::uninit();
    let choice = first(&mut choice, &flow);
    if storage::prior(ctx, &flow, &mut choice.to) {
        return PROCEED;
    }
    let verdict = select_into(choice, &Maps, &Asker(&Sending(socket)), &flow);
    log(ctx, &flow, verdict, &choice.to);
    match verdict {
        Verdict::Fail(refusal) => return fail(refusal),
        Verdict::Miss => {
            // The answer must not be taken for that of a Service whose backend the peer is.
            if storage::leads_to(ctx, &flow) {
                sent(ctx, &flow, &Prior { backend: flow.peer, generation: 0 });
            }
        }
        Verdict::Stay | Verdict::Forward(()) => {
            sent(ctx, &flow, &choice.to);
            socket.set_peer(choice.to.backend);
        }
    }
    PROCEED
}

/// Nothing is chosen yet, and there were no earlier datagrams.
#[inline(always)]
fn first<'a>(choice: &'a mut MaybeUninit<Selection>, flow: &Flow) -> &'a mut Selection {
    let choice = words::clear(choice);
    choice.to.backend = flow.peer;
    choice
}

/// Takes in that a datagram goes where `to` says.
#[inline(always)]
fn sent(ctx: &SockAddrContext, flow: &Flow, to: &Prior) {
    if !storage::sent(ctx, flow, to) {
        count(Counter::NoSocketMemory);
    }
}

/// What comes from a backend seems to come from the address that the application has sent to.
#[inline(always)]
fn recvmsg(socket: &impl Socket) -> i32 {
    let ctx = socket.context();
    let mut answer = socket.flow();
    if answer.protocol != UDP {
        return PROCEED;
    }
    if storage::answered(ctx, &mut answer) {
        socket.set_peer(answer.peer);
    } else if !heard::hear(ctx, &answer) {
        count(Counter::HeardFull);
    }
    PROCEED
}

/// Makes the system call fail.
#[inline(always)]
fn fail(refusal: Refusal) -> i32 {
    count(refusal.counter());
    // SAFETY: any negative errno is a valid argument in these hooks.
    unsafe { bpf_set_retval(-(refusal.errno() as i32)) };
    FAIL
}

#[cfg(not(feature = "log"))]
#[inline(always)]
const fn log(_: &SockAddrContext, _: &Flow, _: Verdict<()>, _: &Prior) {}

#[cfg(feature = "log")]
fn log(ctx: &SockAddrContext, flow: &Flow, verdict: Verdict<()>, to: &Prior) {
    use aya_log_ebpf::info;

    let (addr, port) = (flow.peer.addr.octets(), flow.peer.port.number());
    match verdict {
        Verdict::Miss => info!(ctx, "{:i}:{} is no Service", addr, port),
        Verdict::Stay => info!(ctx, "{:i}:{} goes where it went", addr, port),
        Verdict::Forward(()) => {
            let (to, at) = (to.backend.addr.octets(), to.backend.port.number());
            info!(ctx, "{:i}:{} goes to {:i}:{}", addr, port, to, at);
        }
        Verdict::Fail(refusal) => info!(ctx, "{:i}:{}: {}", addr, port, refusal.text()),
    }
}

/// The application sees the address that it dialled.
#[inline(always)]
fn getpeername(socket: &impl Socket) -> i32 {
    if let Some(translation) = connection::translation(socket.context(), &socket.flow().peer) {
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
