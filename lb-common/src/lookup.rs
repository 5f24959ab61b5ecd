//! Which backend a connection goes to.

mod addresses;
mod admission;
mod affinity;
mod caller;
#[cfg(test)]
mod fake;
mod maps;
mod search;
#[cfg(test)]
mod tests;

use addresses::{Meaning, by_address, is_elsewhere, may_be_known};
use admission::admits;
use affinity::bind;
use search::still_there;

pub use self::{
    addresses::is_known,
    caller::{Caller, Flow, Origin, Prior},
    maps::ReadMaps,
    search::{Range, find, flow_bits, pick},
};
use bytemuck::Zeroable;

use crate::{
    abi::{Action, Backend, PortOptions, Service, ServiceKey},
    verdict::{Refusal, Verdict},
};

/// How often [`select`] reads the service anew when the record it names is of another generation.
///
/// A mismatch means that the agent replaced the set between the two reads, or that the hash element
/// was recycled under the reader; either lasts for nanoseconds.
pub const ATTEMPTS: u32 = 4;

/// Where a flow goes, and the set that its backend was chosen from: what [`select_into`] works on in place,
/// since the programs' stack has 512 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Zeroable)]
#[repr(C)]
pub struct Selection {
    /// Where it goes; before that is known, where earlier datagrams of the flow went.
    pub to: Prior,
    /// The backends to choose from; none, if the flow stays with its backend.
    pub range: Range,
    /// Id of the service port.
    pub service: u32,
    /// For how many seconds a client stays with its backend; 0: not at all.
    pub affinity: u32,
}

impl Selection {
    /// Nothing is chosen yet, for a flow whose earlier datagrams went there.
    #[inline(always)]
    pub const fn after(prior: Prior) -> Self {
        let range = Range { first: 0, count: 0, generation: 0 };
        Self { to: prior, range, service: 0, affinity: 0 }
    }
}

/// Where the flow goes. One bit, one HASH and one ARRAY lookup; one bit alone where the address is
/// nobody's.
#[inline(always)]
pub fn select(
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
    prior: &Prior,
) -> Verdict<Selection> {
    let mut choice = Selection::after(*prior);
    select_into(&mut choice, maps, caller, flow).map(|()| choice)
}

/// [`select`] in place: it begins with where earlier datagrams of the flow went, and ends with where it
/// goes.
#[inline(always)]
pub fn select_into(
    choice: &mut Selection,
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
) -> Verdict<()> {
    if !may_be_known(maps, flow.peer.addr) {
        return Verdict::Miss;
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        match choose(choice, maps, caller, flow) {
            verdict @ (Verdict::Stay | Verdict::Forward(())) => {
                if choice.affinity == 0 || bind(choice, maps, caller, flow) {
                    if caller.is_confined(flow) && is_elsewhere(maps, &choice.to.backend) {
                        return Verdict::Fail(Refusal::Confined);
                    }
                    return verdict;
                }
            }
            verdict => return verdict,
        }
        // The set was replaced, and what was chosen from it does not count.
        choice.to = Prior { backend: flow.peer, generation: 0 };
        choice.affinity = 0;
        attempt += 1;
    }
    Verdict::Fail(Refusal::Unstable)
}

/// The first half of [`select_into`], for an address that may be known: any backend of
/// the set, whatever the client is bound to.
///
/// A function of its own in the programs: their stack has 512 bytes. It returns nothing through memory:
/// the verifier takes the place's address, which LLVM leaves in the return register, for a leak.
#[inline(never)]
pub fn choose(
    choice: &mut Selection,
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
) -> Verdict<()> {
    let verdict = any(choice, maps, caller, flow);
    if verdict != Verdict::Miss && caller.is_connected_to(&flow.peer) {
        return Verdict::Miss;
    }
    verdict
}

/// Any backend of the set, and what happens without one.
#[inline(always)]
fn any(
    choice: &mut Selection,
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
) -> Verdict<()> {
    let mut key = ServiceKey::new(flow.peer, flow.protocol);
    let mut service = maps.service(&key);
    if service.is_none() {
        match by_address(maps, caller, flow, &mut key) {
            Meaning::Nothing => return Verdict::Miss,
            Meaning::ClusterIp if caller.answers(flow) => return Verdict::Miss,
            Meaning::ClusterIp => return Verdict::Fail(Refusal::UnknownPort),
            Meaning::Reserved => return Verdict::Fail(Refusal::Reserved),
            Meaning::Key => service = maps.service(&key),
        }
    }
    if choice.to.generation == 0 && caller.answers(flow) {
        return Verdict::Miss;
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let Some(found) = service else { return Verdict::Miss };
        if let Some(verdict) = one_of(choice, maps, caller, flow, &found) {
            return verdict;
        }
        service = maps.service(&key);
        attempt += 1;
    }
    Verdict::Fail(Refusal::Unstable)
}

/// A backend of the set, or what happens without one; none if the block is of another generation, or says
/// what nobody knows.
#[inline(always)]
fn one_of(
    choice: &mut Selection,
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
    service: &Service,
) -> Option<Verdict<()>> {
    let prior = &mut choice.to;
    if prior.generation != 0 {
        // Ranges hold for flows that are there already, too: any record of the set knows of them.
        let first = maps.backend(service.block).filter(|b| b.generation == service.generation)?;
        if !first.is_known() {
            return None;
        }
        if first.flags & Backend::SOURCE_RANGES != 0
            && let Err(refusal) = admits(maps, caller, flow, first.service, true)
        {
            return Some(Verdict::Fail(refusal));
        }
        if prior.generation == service.generation {
            return Some(Verdict::Stay);
        }
        if still_there(maps, service, &prior.backend)? {
            prior.generation = service.generation;
            choice.service = service.id;
            return Some(Verdict::Forward(()));
        }
    }
    let index = service.block.wrapping_add(caller.index(flow, service.count));
    let backend = maps.backend(index).filter(|b| b.generation == service.generation)?;
    let mut affinity = 0;
    if backend.flags != 0 {
        if !backend.is_known() {
            return None;
        }
        if backend.flags & Backend::OPTIONS != 0 {
            affinity = maps.port(backend.service).filter(PortOptions::is_known)?.affinity;
        }
    }
    if backend.flags & Backend::SOURCE_RANGES != 0 {
        let goes = backend.action() == Action::Forward;
        if let Err(refusal) = admits(maps, caller, flow, backend.service, goes) {
            return Some(Verdict::Fail(refusal));
        }
    }
    match backend.action() {
        Action::Refuse => Some(Verdict::Fail(Refusal::NoEndpoints)),
        Action::Unreachable => Some(Verdict::Fail(Refusal::Unreachable)),
        Action::Forward => {
            let Service { block: first, count, generation, .. } = *service;
            let Backend { peer, service, .. } = backend;
            let to = Prior { backend: peer, generation };
            *choice =
                Selection { to, range: Range { first, count, generation }, service, affinity };
            Some(Verdict::Forward(()))
        }
    }
}
