//! What is remembered of the datagrams of a UDP socket, for as long as it lives.

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::SkStorage,
    helpers::{bpf_get_socket_cookie, bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    Flow, Prior,
    abi::Counter,
    flows::{self, Answered, Few, Many, Moment, Recorded},
};

use crate::{
    connection,
    maps::{count, current_cgroup, now, takes_more_flows},
};

/// What a UDP socket sends without being connected.
#[btf_map(name = "flows")]
static FLOWS: SkStorage<Few> = SkStorage::new();

#[btf_map(name = "more_flows")]
static MORE_FLOWS: SkStorage<Many> = SkStorage::new();

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
    if let Some((known, is_connected)) = connection::last_known(ctx) {
        if is_connected && known.is_to(&frontend) {
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

/// Whether the socket is a client of the flow's peer, a Service's: it is or was connected to it, or an
/// answer came from a backend. It then goes on asking, whatever somebody sends it under that address. Who
/// has only sent there may be a server that spoke too late, and is no longer taken for a client.
#[inline(never)]
pub(crate) fn is_client(ctx: &SockAddrContext, flow: &Flow) -> bool {
    let frontend = flow.peer;
    if let Some((known, is_connected)) = connection::last_known(ctx)
        && (known.frontend == frontend || (is_connected && known.is_to(&frontend)))
    {
        return true;
    }
    let few = FLOWS.get_ptr_mut(ctx);
    if few.is_null() {
        return false;
    }
    if locked!(few, |flows| flows::was_answered(&mut flows.sets[0], frontend)) {
        return true;
    }
    let Some(many) = more(ctx, few) else { return false };
    let set = flows::set(frontend);
    locked!(many, |flows| flows::was_answered(&mut flows.sets[set], frontend))
}

/// Takes in that a datagram of the flow goes where `to` says. False if there is no memory for it: the
/// answer may then carry another label than the address that was asked.
#[inline(never)]
pub(crate) fn sent(ctx: &SockAddrContext, flow: &Flow, to: &Prior) -> bool {
    let (frontend, to) = (flow.peer, *to);
    if let Some((known, true)) = connection::last_known(ctx)
        && known.is_to(&to.backend)
    {
        // The answer needs no label but the connection's.
        return true;
    }
    let few = FLOWS.get_or_insert_ptr_mut(ctx, None);
    if few.is_null() {
        return false;
    }
    let mut moment = Moment { now: now(), turn: 0 };
    let recorded = locked!(few, |few| {
        few.turn = few.turn.wrapping_add(1);
        moment.turn = few.turn;
        few.backends |= flows::backend_bit(to.backend);
        flows::record(&mut few.sets[0], frontend, to, moment, false)
    });
    if recorded != Recorded::Full {
        return true;
    }
    let recorded = if let Some(many) = further(ctx) {
        // SAFETY: not null, hence valid.
        unsafe { (*few).more = 1 };
        let set = flows::set(frontend);
        locked!(many, |flows| flows::record(&mut flows.sets[set], frontend, to, moment, true))
    } else {
        // The answer to the last question is worth more than those to questions before.
        locked!(few, |few| flows::record(&mut few.sets[0], frontend, to, moment, true))
    };
    if recorded == Recorded::InPlaceOfAnother {
        count(Counter::FlowForgotten);
    }
    true
}

/// The further flows, which are made if the socket's cgroup may have more of them.
#[inline(always)]
fn further(ctx: &SockAddrContext) -> Option<*mut Many> {
    let many = MORE_FLOWS.get_ptr_mut(ctx);
    if !many.is_null() {
        return Some(many);
    }
    let cgroup = current_cgroup();
    if !takes_more_flows(cgroup) {
        count(Counter::FlowsBounded);
        return None;
    }
    let many = MORE_FLOWS.get_or_insert_ptr_mut(ctx, None);
    if many.is_null() {
        count(Counter::NoSocketMemory);
        return None;
    }
    // SAFETY: not null, hence valid.
    unsafe { (*many).cgroup = cgroup };
    Some(many)
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
    if let Some((known, true)) = connection::last_known(ctx)
        && known.is_to(&backend)
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
