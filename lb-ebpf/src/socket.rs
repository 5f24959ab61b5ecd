//! The program's context as a [`Flow`], and back.
//!
//! Each field is read and written by itself, in its own size: the verifier refuses a pointer into
//! the middle of the context ("dereference of modified ctx ptr"), and LLVM makes one as soon as the
//! words of `user_ip6` are copied as an array or in a loop.

use aya_ebpf::{bindings::sockaddr, helpers::bpf_bind, programs::SockAddrContext};
use lb_common::{Addr, Flow, Origin, Port, abi::Peer};

/// `user_port` is 32 bits wide; the port stands in the lower address, as in a `sockaddr`.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands the program a valid context; a volatile access is neither
        // merged with its neighbours nor split.
        unsafe { core::ptr::addr_of!((*$ctx.sock_addr).$($field)+).read_volatile() }
    };
}

macro_rules! set_field {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for `field!`; the hooks of this crate may write the address and the port.
        unsafe { core::ptr::addr_of_mut!((*$ctx.sock_addr).$($field)+).write_volatile($value) }
    };
}

/// A socket in the middle of one of the hooks.
pub(crate) trait Socket {
    /// What the helpers take.
    fn context(&self) -> &SockAddrContext;
    /// Destination and protocol.
    fn flow(&self) -> Flow;
    /// Replaces the destination (`connect`, `sendmsg`), or what the application is told
    /// (`getpeername`, `recvmsg`).
    fn set_peer(&self, peer: Peer);
    /// The address that the socket is bound to (`connect`); the unspecified one if to none.
    fn bound(&self) -> Addr;
    /// Binds it (`connect`), without a port.
    fn bind(&self, addr: Addr) -> Origin;
    /// The address that the message comes from (`sendmsg`): the socket's, or what a control message
    /// has chosen; the unspecified one if neither has any.
    fn source(&self) -> Addr;
    /// Replaces it (`sendmsg`). The kernel refuses to send what does not come from here.
    fn set_source(&self, addr: Addr);
}

/// Of a socket that has a port already.
const EINVAL: i64 = -22;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `struct sockaddr_in`.
#[repr(C)]
struct In {
    family: u16,
    port: u16,
    addr: u32,
    zero: u64,
}

const _: () = assert!(size_of::<In>() == 16 && size_of::<In6>() == 28);

/// `struct sockaddr_in6`.
#[repr(C)]
struct In6 {
    family: u16,
    port: u16,
    flow: u32,
    addr: [u32; 4],
    scope: u32,
}

#[inline(always)]
fn bind<A>(ctx: &SockAddrContext, mut to: A, size: i32) -> Origin {
    let address: *mut sockaddr = core::ptr::from_mut(&mut to).cast();
    // SAFETY: the context is valid, and so is the address, of this size.
    match unsafe { bpf_bind(ctx.sock_addr, address, size) } {
        0 => Origin::Settled,
        EINVAL => Origin::Open,
        _ => Origin::Elsewhere,
    }
}

/// A field of the socket itself; 0 if there is none, which the kernel rules out.
macro_rules! socket_field {
    ($ctx:expr, $($field:tt)+) => {{
        let sk = field!($ctx, __bindgen_anon_1.sk);
        // SAFETY: a pointer that is not null is valid; a volatile access as for `field!`.
        if sk.is_null() { 0 } else { unsafe { core::ptr::addr_of!((*sk).$($field)+).read_volatile() } }
    }};
}

/// The context of a `*4` hook: a `sockaddr_in`.
pub(crate) struct V4(pub(crate) SockAddrContext);
/// The context of a `*6` hook: a `sockaddr_in6`, perhaps with an IPv4-mapped address.
pub(crate) struct V6(pub(crate) SockAddrContext);

#[inline(always)]
fn flow(ctx: &SockAddrContext, addr: Addr) -> Flow {
    #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    let port = Port::from_raw(field!(ctx, user_port) as u16);
    #[expect(clippy::cast_possible_truncation, reason = "a larger number is no TCP nor UDP")]
    let protocol = match field!(ctx, protocol) {
        number @ 0..=255 => number as u8,
        _ => 255,
    };
    Flow { peer: Peer { addr, port }, protocol }
}

impl Socket for V4 {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }

    #[inline(always)]
    fn flow(&self) -> Flow {
        flow(&self.0, Addr::from_v4_word(field!(self.0, user_ip4)))
    }

    #[inline(always)]
    fn set_peer(&self, peer: Peer) {
        set_field!(self.0, peer.addr.v4_word(), user_ip4);
        set_field!(self.0, u32::from(peer.port.raw()), user_port);
    }

    #[inline(always)]
    fn bound(&self) -> Addr {
        Addr::from_v4_word(socket_field!(self.0, src_ip4))
    }

    #[inline(always)]
    fn bind(&self, addr: Addr) -> Origin {
        bind(&self.0, In { family: AF_INET, port: 0, addr: addr.v4_word(), zero: 0 }, 16)
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr::from_v4_word(field!(self.0, msg_src_ip4))
    }

    #[inline(always)]
    fn set_source(&self, addr: Addr) {
        set_field!(self.0, addr.v4_word(), msg_src_ip4);
    }
}

impl Socket for V6 {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }

    #[inline(always)]
    fn flow(&self) -> Flow {
        let words = [
            field!(self.0, user_ip6[0]),
            field!(self.0, user_ip6[1]),
            field!(self.0, user_ip6[2]),
            field!(self.0, user_ip6[3]),
        ];
        flow(&self.0, Addr::from_words(words))
    }

    #[inline(always)]
    fn set_peer(&self, peer: Peer) {
        let [a, b, c, d] = peer.addr.words();
        set_field!(self.0, a, user_ip6[0]);
        set_field!(self.0, b, user_ip6[1]);
        set_field!(self.0, c, user_ip6[2]);
        set_field!(self.0, d, user_ip6[3]);
        set_field!(self.0, u32::from(peer.port.raw()), user_port);
    }

    #[inline(always)]
    fn bound(&self) -> Addr {
        Addr::from_words([
            socket_field!(self.0, src_ip6[0]),
            socket_field!(self.0, src_ip6[1]),
            socket_field!(self.0, src_ip6[2]),
            socket_field!(self.0, src_ip6[3]),
        ])
    }

    #[inline(always)]
    fn bind(&self, addr: Addr) -> Origin {
        let addr = addr.words();
        bind(&self.0, In6 { family: AF_INET6, port: 0, flow: 0, addr, scope: 0 }, 28)
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr::from_words([
            field!(self.0, msg_src_ip6[0]),
            field!(self.0, msg_src_ip6[1]),
            field!(self.0, msg_src_ip6[2]),
            field!(self.0, msg_src_ip6[3]),
        ])
    }

    #[inline(always)]
    fn set_source(&self, addr: Addr) {
        let [a, b, c, d] = addr.words();
        set_field!(self.0, a, msg_src_ip6[0]);
        set_field!(self.0, b, msg_src_ip6[1]);
        set_field!(self.0, c, msg_src_ip6[2]);
        set_field!(self.0, d, msg_src_ip6[3]);
    }
}
