//! What the datapath's lookup can say of one flow.
//!
//! Nothing is computed here that `select` decides: the lookup runs over the live maps once for each
//! candidate, with random bits that lead to it, and what it read on the way is written down.

use std::cell::Cell;

use lb_common::{
    ATTEMPTS, Caller, Flow, Prior, Tables, Verdict,
    abi::{Addr, Address, AffinityKey, Backend, Bond, Client, Service, ServiceKey, SourceKey},
    select,
};

/// All that a connection may get.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// No Service's address.
    Miss,
    /// The entry that was hit, and each record it may lead to.
    Hit(Service, Vec<Candidate>),
}

/// One record, and what the lookup says if it picks that one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) index: u32,
    pub(super) verdict: Verdict,
    pub(super) probability: f64,
}

/// Tables that remember what was read last.
struct Traced<'a, T> {
    tables: &'a T,
    service: Cell<Option<Service>>,
    index: Cell<u32>,
}

impl<T: Tables> Tables for Traced<'_, T> {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.service.set(self.tables.service(key));
        self.service.get()
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.index.set(index);
        self.tables.backend(index)
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        self.tables.address(addr)
    }

    fn client(&self, netns: u64) -> Option<Client> {
        self.tables.client(netns)
    }

    fn allows(&self, client: &SourceKey) -> bool {
        self.tables.allows(client)
    }

    fn bond(&self, key: &AffinityKey) -> Bond {
        self.tables.bond(key)
    }
}

/// A client that nothing is known of.
struct Anybody(u32);

impl Caller for Anybody {
    fn random(&self, _: &Flow) -> u32 {
        self.0
    }

    fn netns(&self) -> u64 {
        0
    }

    fn now(&self) -> u64 {
        0
    }

    fn bind(&self, _: &AffinityKey, _: &Bond, _: &mut Bond) -> bool {
        true
    }
}

/// At most `limit` candidates: a damaged entry may claim billions.
pub(super) fn outcome(tables: &impl Tables, flow: &Flow, limit: u32) -> Outcome {
    let traced = Traced { tables, service: Cell::new(None), index: Cell::new(0) };
    let mut last = Outcome::Miss;
    // Again if the set was replaced between two candidates.
    for _ in 0..ATTEMPTS {
        let verdict = select(&traced, &Anybody(0), flow, &Prior::NONE);
        let Some(service) = traced.service.get().filter(|_| verdict != Verdict::Miss) else {
            return Outcome::Miss;
        };
        let count = service.count.max(1);
        let candidate = |i| {
            let (first, next) = (first_random(i, count), first_random(i + 1, count));
            let random = u32::try_from(first).unwrap_or(u32::MAX);
            let verdict = select(&traced, &Anybody(random), flow, &Prior::NONE);
            Candidate { index: traced.index.get(), verdict, probability: share(next - first) }
        };
        let candidates = (0..count.min(limit.max(1))).map(candidate).collect();
        last = Outcome::Hit(service, candidates);
        if traced.service.get() == Some(service) {
            break;
        }
    }
    last
}

/// The least number with which [`lb_common::pick`] picks `i` of `count`; 2^32 if `i` is `count`.
const fn first_random(i: u32, count: u32) -> u64 {
    ((i as u64) << 32).div_ceil(count as u64)
}

/// How likely one of so many 32-bit numbers is.
fn share(numbers: u64) -> f64 {
    const ALL: f64 = 4_294_967_296.0;
    #[expect(clippy::cast_precision_loss, reason = "at most 2^32, which an f64 holds exactly")]
    let numbers = numbers as f64;
    numbers / ALL
}

#[cfg(test)]
mod tests {
    use lb_common::pick;

    use super::*;
    use crate::{dump::sample, maps::Memory};

    #[test]
    fn random_bits_lead_to_the_candidate_they_are_made_for() {
        for count in [1, 2, 3, 7, 10, 1000, 65_537] {
            let mut total = 0;
            for i in 0..count {
                let (first, next) = (first_random(i, count), first_random(i + 1, count));
                assert_eq!(pick(u32::try_from(first).unwrap(), count), i);
                assert_eq!(pick(u32::try_from(next - 1).unwrap(), count), i);
                total += next - first;
            }
            assert!((share(total) - 1.0).abs() < f64::EPSILON);
        }
    }

    /// Tables in which the set is replaced after a few readings.
    struct Moving(Memory, Memory, Cell<u32>);

    impl Moving {
        fn current(&self) -> &Memory {
            self.2.set(self.2.get() + 1);
            if self.2.get() < 3 { &self.0 } else { &self.1 }
        }
    }

    impl Tables for Moving {
        fn service(&self, key: &ServiceKey) -> Option<Service> {
            Tables::service(self.current(), key)
        }
        fn backend(&self, index: u32) -> Option<Backend> {
            self.1.backend(index)
        }
        fn address(&self, addr: &Addr) -> Option<Address> {
            self.1.address(addr)
        }
        fn client(&self, netns: u64) -> Option<Client> {
            self.1.client(netns)
        }
        fn allows(&self, client: &SourceKey) -> bool {
            self.1.allows(client)
        }
        fn bond(&self, key: &AffinityKey) -> Bond {
            self.1.bond(key)
        }
    }

    #[test]
    fn candidates_are_all_of_one_set() {
        let old = sample::memory();
        let mut new = old.clone();
        let web = (0, "default", "web", "http");
        sample::put(&mut new, web, &["10.96.0.10:80"], 30, &["10.0.0.3:80", "10.0.0.4:80"]);
        let flow = Flow { peer: sample::peer("10.96.0.10:80"), protocol: 6 };
        let Outcome::Hit(service, candidates) = outcome(&Moving(old, new, Cell::new(0)), &flow, 64)
        else {
            unreachable!()
        };
        assert_eq!(service.block, 30);
        assert_eq!(candidates.iter().map(|c| c.index).collect::<Vec<_>>(), [30, 31]);
    }
}
