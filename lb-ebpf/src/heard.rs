//! What UDP sockets have just heard from the addresses of Services, and the answers to it.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::HashMap,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    Addr, Caller, Flow, Origin, Port,
    abi::{AffinityKey, Bond, Peer, UDP},
    heard::{self, Exchange, Heard, MAX_SLOTS, Slot},
    is_known,
};

use crate::{
    connection::{sk, sk_field, sk_words},
    maps::{Maps, netns, now},
    storage,
};

/// Not replaced when others change their size: what was heard is as true afterwards.
#[btf_map(name = "heard")]
static HEARD: HashMap<Slot, Heard, MAX_SLOTS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

static NOBODY: Heard = Heard::NOBODY;

/// Does something with the exchanges of a slot while no other thread can.
macro_rules! locked {
    ($slot:expr, |$places:ident| $do:expr) => {{
        let slot = $slot;
        // SAFETY: the pointer is valid while the program runs, and the lock is the element's.
        unsafe {
            bpf_spin_lock(core::ptr::addr_of_mut!((*slot).lock).cast());
            let $places = &mut (*slot).places;
            let result = $do;
            bpf_spin_unlock(core::ptr::addr_of_mut!((*slot).lock).cast());
            result
        }
    }};
}

/// A socket that is not about to send anything.
struct Receiving<'a>(&'a SockAddrContext);

impl Caller for Receiving<'_> {
    #[inline(always)]
    fn index(&self, _: &Flow, _: u32) -> u32 {
        0
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        netns(self.0)
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr::from_words([0; 4])
    }

    #[inline(always)]
    fn come_from(&self, _: Addr) -> Origin {
        Origin::Open
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }

    #[inline(always)]
    fn bind(&self, _: &AffinityKey, _: &Bond, _: &mut Bond) -> bool {
        true
    }
}

/// Who talks to whom; none if the socket has no port yet, and so was heard by nobody and heard nobody.
#[inline(always)]
fn exchange(ctx: &SockAddrContext, flow: &Flow) -> Option<Exchange> {
    let sk = sk!(ctx)?;
    #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    let port = sk_field!(sk, src_port) as u16;
    if port == 0 {
        return None;
    }
    let v4 = Addr::from_v4_word(sk_field!(sk, src_ip4));
    let v6 = sk_words!(sk, src_ip6);
    // An IPv6 socket has both, where it talks IPv4.
    let addr = if flow.peer.addr.is_v4() { v4 } else { v6 };
    let own = Peer { addr, port: Port::from_raw(port.to_be()) };
    Some(Exchange::new(netns(ctx), own, flow.peer))
}

/// Takes in that the socket received a datagram from the flow's peer that answers nothing. False if
/// there is no room for that: the answer will be taken for a question to a Service.
#[inline(never)]
pub(crate) fn hear(ctx: &SockAddrContext, flow: &Flow) -> bool {
    if !is_known(&Maps, &Receiving(ctx), flow) || storage::is_client(ctx, flow) {
        return true;
    }
    let Some(exchange) = exchange(ctx, flow) else { return true };
    let slot = HEARD.get_ptr_mut(&exchange.slot).or_else(|| {
        // Another thread may be faster.
        let _ = HEARD.insert(&exchange.slot, &NOBODY, BPF_NOEXIST.into());
        HEARD.get_ptr_mut(&exchange.slot)
    });
    let Some(slot) = slot else { return false };
    let now = now();
    locked!(slot, |places| heard::hear(places, &exchange, now));
    true
}

/// Whether what the socket sends to the flow's peer answers what was heard from there, by this socket
/// or another one at the same port.
#[inline(never)]
pub(crate) fn answers(ctx: &SockAddrContext, flow: &Flow) -> bool {
    if flow.protocol != UDP {
        return false;
    }
    let Some(exchange) = exchange(ctx, flow) else { return false };
    let Some(slot) = HEARD.get_ptr_mut(&exchange.slot) else { return false };
    let now = now();
    locked!(slot, |places| heard::answer(places, &exchange, now)) && !storage::is_client(ctx, flow)
}
