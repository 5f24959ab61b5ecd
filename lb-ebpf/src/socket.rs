//! The program's context as a [`Flow`], and back.
//!
//! Each field is read and written by itself, in its own size: the verifier refuses a pointer into
//! the middle of the context ("dereference of modified ctx ptr"), and LLVM makes one as soon as the
//! words of `user_ip6` are copied as an array or in a loop.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{Addr, Flow, Port, abi::Peer};

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
}
