//! Which backend a connection goes to.

mod addresses;
mod admission;
mod affinity;
mod caller;
#[cfg(test)]
mod fake;
mod search;
mod tables;
#[cfg(test)]
mod tests;

use addresses::{Meaning, by_address};
use admission::admits;
use search::still_there;

pub use self::{
    addresses::{is_confined, is_known, may_be_known},
    affinity::bind,
    caller::{Caller, Flow, Origin, Prior},
    search::{Range, find, flow_bits, pick},
    tables::Tables,
};
use bytemuck::Zeroable;

use crate::{
    abi::{Action, Backend, Service, ServiceKey},
    verdict::{Refusal, Verdict},
};

/// How often [`select`] reads the service anew when the record it names is of another generation.
///
/// A mismatch means that the agent replaced the set between the two reads, or that the hash element
/// was recycled under the reader; either lasts for nanoseconds.
pub const ATTEMPTS: u32 = 4;

/// The set that a backend was chosen from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Zeroable)]
#[repr(C)]
pub struct Set {
    /// The backends to choose from.
    pub range: Range,
    /// Id of the service port.
    pub service: u32,
    /// For how many seconds a client stays with its backend; 0: not at all.
    pub affinity: u32,
}

impl Set {
    /// Before one was chosen.
    pub const NONE: Self =
        Self { range: Range { first: 0, count: 0, generation: 0 }, service: 0, affinity: 0 };
}

/// Where the flow goes. One bit, one HASH and one ARRAY lookup; one bit alone where the address is
/// nobody's.
#[inline(always)]
pub fn select(tables: &impl Tables, caller: &impl Caller, flow: &Flow, prior: &Prior) -> Verdict {
    if !may_be_known(tables, flow.peer.addr) {
        return Verdict::Miss;
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let mut set = Set::NONE;
        match choose(tables, caller, flow, prior, &mut set) {
            Verdict::Forward(backend) if set.affinity != 0 => {
                let mut to = Prior { backend: backend.peer, generation: backend.generation };
                if bind(tables, caller, &set, &mut to) {
                    return Verdict::Forward(Backend { peer: to.backend, ..backend });
                }
            }
            verdict => return verdict,
        }
        attempt += 1;
    }
    Verdict::Fail(Refusal::Unstable)
}

/// The first half of [`select`], for an address that [may be known](may_be_known): any backend of the
/// set, whatever the client is bound to.
#[inline(always)]
pub fn choose(
    tables: &impl Tables,
    caller: &impl Caller,
    flow: &Flow,
    prior: &Prior,
    set: &mut Set,
) -> Verdict {
    let mut key = ServiceKey::new(flow.peer, flow.protocol);
    let mut service = tables.service(&key);
    if service.is_none() {
        match by_address(tables, caller, flow, &mut key) {
            Meaning::Nothing => return Verdict::Miss,
            Meaning::ClusterIp if caller.answers(flow) => return Verdict::Miss,
            Meaning::ClusterIp => return Verdict::Fail(Refusal::UnknownPort),
            Meaning::Reserved => return Verdict::Fail(Refusal::Reserved),
            Meaning::Key => service = tables.service(&key),
        }
    }
    if prior.generation == 0 && caller.answers(flow) {
        return Verdict::Miss;
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let Some(found) = service else { return Verdict::Miss };
        if let Some(verdict) = one_of(tables, caller, flow, &found, prior, set) {
            return verdict;
        }
        service = tables.service(&key);
        attempt += 1;
    }
    Verdict::Fail(Refusal::Unstable)
}

/// A backend of the set, or what happens without one; none if the block is of another generation.
#[inline(always)]
fn one_of(
    tables: &impl Tables,
    caller: &impl Caller,
    flow: &Flow,
    service: &Service,
    prior: &Prior,
    set: &mut Set,
) -> Option<Verdict> {
    if prior.generation != 0 {
        // Ranges hold for flows that are there already, too: any record of the set knows of them.
        let first = tables.backend(service.block).filter(|b| b.generation == service.generation)?;
        if first.flags & Backend::SOURCES != 0
            && let Err(refusal) = admits(tables, caller, flow, first.service, true)
        {
            return Some(Verdict::Fail(refusal));
        }
        if prior.generation == service.generation {
            return Some(Verdict::Stay);
        }
        if still_there(tables, service, &prior.backend)? {
            let record = Backend::forward(prior.backend);
            return Some(Verdict::Forward(record.stamped(service.generation, service.id)));
        }
    }
    let index = service.block.wrapping_add(pick(caller.random(flow), service.count));
    let backend = tables.backend(index).filter(|b| b.generation == service.generation)?;
    if backend.flags & Backend::SOURCES != 0 {
        let goes = backend.action() == Action::Forward;
        if let Err(refusal) = admits(tables, caller, flow, backend.service, goes) {
            return Some(Verdict::Fail(refusal));
        }
    }
    match backend.action() {
        Action::Refuse => Some(Verdict::Fail(Refusal::NoEndpoints)),
        Action::Unreachable => Some(Verdict::Fail(Refusal::Unreachable)),
        Action::Forward => {
            let Service { block: first, count, generation, .. } = *service;
            let Backend { service, affinity, .. } = backend;
            *set = Set { range: Range { first, count, generation }, service, affinity };
            Some(Verdict::Forward(backend))
        }
    }
}
