//! The sockets of the hooks that choose, and what the lookup asks of them.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    Addr, Caller, Flow, Origin,
    abi::{AffinityKey, Bond, Peer},
    pick,
};

use crate::{connection, heard, maps};

/// A socket in one of the hooks that choose.
pub(crate) trait Hook {
    /// Whether it is a connect(), and no datagram.
    const CONNECTS: bool;
    /// What the helpers take.
    fn context(&self) -> &SockAddrContext;
    /// 32 random bits, for the choice of a backend.
    fn random(&self, flow: &Flow) -> u32;
    /// See [`Caller::source`].
    fn source(&self) -> Addr;
    /// See [`Caller::come_from`].
    fn come_from(&self, addr: Addr) -> Origin;
    /// The address that was given.
    fn dialled(&self) -> Addr;
}

/// A function of its own, for what is rare.
#[inline(never)]
fn is_from_loopback<H: Hook>(hook: &H) -> bool {
    hook.source().is_loopback()
}

/// The socket of a hook, as the lookup asks it.
pub(crate) struct Asker<'a, H>(pub(crate) &'a H);

impl<H: Hook> Caller for Asker<'_, H> {
    #[inline(always)]
    fn is_confined(&self, _: &Flow) -> bool {
        let dialled = self.0.dialled();
        (dialled.is_loopback() || dialled.is_unspecified()) && is_from_loopback(self.0)
    }

    #[inline(always)]
    fn is_connected_to(&self, peer: &Peer) -> bool {
        !H::CONNECTS && connection::is_peer(self.0.context(), peer)
    }

    #[inline(always)]
    fn answers(&self, flow: &Flow) -> bool {
        heard::answers(self.0.context(), flow)
    }

    #[inline(always)]
    fn index(&self, flow: &Flow, count: u32) -> u32 {
        pick(self.0.random(flow), count)
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        maps::netns(self.0.context())
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        self.0.source()
    }

    #[inline(always)]
    fn come_from(&self, addr: Addr) -> Origin {
        self.0.come_from(addr)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        maps::now()
    }

    #[inline(always)]
    fn bind(&self, key: &AffinityKey, before: &Bond, bond: &mut Bond) -> bool {
        maps::bind(key, before, bond)
    }
}
