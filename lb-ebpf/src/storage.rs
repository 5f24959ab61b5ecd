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
    abi::{Counter, Peer},
    flows::{self, Answered, Datagram, FEW, Few, Many, ticks},
};

use crate::{
    connection,
    maps::{count, current_cgroup, now, takes_more_flows},
    words,
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
            // SAFETY: it is a field of a value that is stored for the socket, behind 20 bytes of it.
            let backend = unsafe { words::peer(&raw const known.backend) };
            *place = Prior { backend, generation: known.generation };
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
    let datagram = Datagram { frontend, to, now: now() };
    let place = locked!(few, |few| {
        few.backends |= flows::backend_bit(to.backend);
        let place = flows::record(&mut few.sets[0], &datagram, false);
        if few.more == 0 && !place.is_full() {
            few.ask(datagram.question(place.index()));
        }
        place
    });
    if !place.is_full() {
        // Once there are further flows, all questions are there, in one order.
        if let Some(many) = more(ctx, few) {
            locked!(many, |many| many.ask(datagram.question(place.index() | FEW)));
        }
        return true;
    }
    let place = if let Some(many) = further(ctx) {
        // SAFETY: not null, hence valid.
        unsafe { (*few).more = 1 };
        let set = flows::set(frontend);
        locked!(many, |many| {
            let place = flows::record(&mut many.sets[set], &datagram, true);
            many.ask(datagram.question(flows::place_in(set, place)));
            place
        })
    } else {
        // The answer to the last question is worth more than those to questions before.
        locked!(few, |few| {
            let place = flows::record(&mut few.sets[0], &datagram, true);
            few.ask(datagram.question(place.index()));
            place
        })
    };
    if place.was_another_s() {
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
    let now = ticks(now());
    let mut best = Answered::NOBODY;
    let via = flows::via(backend);
    locked!(few, |few| few.answered(via, now, &mut best));
    let many = more(ctx, few);
    if !best.is_found()
        && let Some(many) = many
    {
        locked!(many, |many| many.answered(via, now, &mut best));
        if best.is_of_few() {
            locked!(few, |few| few.name(&mut best));
        }
    }
    if !best.is_found() {
        unasked(few, many, backend, &mut best);
    }
    if !best.is_known() {
        return false;
    }
    answer.peer = best.frontend;
    if !best.is_found() {
        locked!(few, |few| flows::settle(&mut few.sets[0], best.frontend));
        if let Some(many) = many {
            let set = flows::set(best.frontend);
            locked!(many, |many| flows::settle(&mut many.sets[set], best.frontend));
        }
    }
    true
}

/// Whose a datagram may be that answers no question.
#[inline(always)]
fn unasked(few: *mut Few, many: Option<*mut Many>, backend: Peer, best: &mut Answered) {
    locked!(few, |few| flows::last_used(&few.sets[0], backend, best, words::anew));
    if let Some(many) = many {
        locked!(many, |many| flows::last_used(
            many.sets.as_flattened(),
            backend,
            best,
            words::anew
        ));
    }
    if !best.is_known() || !best.is_disordered() {
        return;
    }
    let frontend = best.frontend;
    let mut is_one_of_several =
        locked!(few, |few| flows::has_another(&few.sets[0], backend, frontend));
    if !is_one_of_several && let Some(many) = many {
        is_one_of_several = locked!(many, |many| {
            flows::has_another(many.sets.as_flattened(), backend, frontend)
        });
    }
    if is_one_of_several {
        *best = Answered::NOBODY;
    }
}

/// A number that no other socket has, as long as the machine runs.
#[inline(always)]
pub(crate) fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
