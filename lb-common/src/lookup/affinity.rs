//! With which backend a client stays.

use super::{Caller, Flow, ReadMaps, Selection, is_elsewhere};
use crate::abi::{AffinityKey, Bond};

/// How often a client's bond is read anew when another program changes it at the same time.
const BONDS: u32 = 3;

const NANOSECONDS: u64 = 1_000_000_000;

/// The second half of [`select`](super::select), if the set has an affinity: replaces `chosen` by the
/// backend that the client is bound to, if it went to one of the set not long ago; else binds it to
/// that one (kube-proxy H). False if the block is of another generation by now.
///
/// A function of its own in the programs: their stack has 512 bytes.
#[inline(never)]
pub(super) fn bind(
    choice: &mut Selection,
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
) -> bool {
    let chosen = &mut choice.to.backend;
    let family = if chosen.addr.is_v4() { 4 } else { 6 };
    let key = AffinityKey { netns: caller.netns(), service: choice.service, family };
    let now = caller.now();
    let timeout = u64::from(choice.affinity).wrapping_mul(NANOSECONDS);
    let mut before = maps.bond(&key);
    let mut attempt = 0;
    while attempt < BONDS {
        let mut bond = Bond::new(now, *chosen);
        // Another CPU's clock may be a little ahead.
        if before.is_made() && now.saturating_sub(before.used) < timeout {
            match maps.find(choice.range, &before.backend) {
                Some(true) => bond.backend = before.backend,
                Some(false) => {}
                None => return false,
            }
        }
        // Who cannot get there is refused, and neither makes a bond nor renews one.
        let is_confined = caller.is_confined(flow) && is_elsewhere(maps, &bond.backend);
        if is_confined || caller.bind(&key, &before, &mut bond) {
            *chosen = bond.backend;
            return true;
        }
        before = bond;
        attempt += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{Fake, backend, fake, flow, record, select},
        *,
    };
    use crate::{
        Refusal, Verdict,
        abi::{Backend, PortOptions, Service},
    };

    const TIMEOUT: u32 = 10;

    /// The fake service with affinity.
    fn sticky() -> Fake {
        let mut fake = fake();
        for record in &mut fake.records {
            record.flags = Backend::OPTIONS;
        }
        fake.options = PortOptions::with_affinity(TIMEOUT);
        fake
    }

    #[test]
    fn a_client_stays_with_its_backend_until_it_was_away_for_the_timeout() {
        let fake = sticky();
        let first = backend(&fake, 0);
        let timeout = u64::from(TIMEOUT) * NANOSECONDS;
        // Each connection renews the bond.
        for _ in 0..3 {
            fake.now.set(fake.now.get() + timeout - 1);
            assert_eq!(backend(&fake, u32::MAX), first);
        }
        fake.now.set(fake.now.get() + timeout);
        let second = backend(&fake, u32::MAX);
        assert_ne!(second, first);
        assert_eq!(backend(&fake, 0), second);
        // The monotonic clock of another CPU may be a little behind.
        fake.now.set(fake.now.get() - 5);
        assert_eq!(backend(&fake, 0), second);
    }

    #[test]
    fn a_bond_with_a_backend_that_left_the_set_is_made_anew() {
        let mut fake = sticky();
        let gone = backend(&fake, 0);
        for (record, generation) in fake.records[3..].iter_mut().zip([11; 3]) {
            record.generation = generation;
        }
        fake.service = Service { block: 3, count: 2, kept: 1, generation: 11, id: 9 };
        let next = backend(&fake, 0);
        assert_ne!(next, gone);
        assert_eq!(backend(&fake, u32::MAX), next);
        // A kept backend is for flows that are there already.
        let bond = Bond { used: 1, backend: fake.records[5].peer, reserved: [0; 6] };
        fake.bond.borrow_mut().as_mut().unwrap().1 = bond;
        assert_eq!(backend(&fake, 0), next);
    }

    /// The record that is drawn is still there; those among which the bond's is looked for are not.
    #[test]
    fn a_set_that_is_replaced_before_the_client_is_bound_is_not_chosen_from() {
        let mut fake = sticky();
        let gone = backend(&fake, 0);
        fake.records[3].generation = 11;
        for record in &mut fake.records[5..] {
            record.generation = 11;
        }
        fake.stale_readings.set(1);
        fake.service = Service { block: 5, count: 2, kept: 0, generation: 11, id: 9 };
        let next = backend(&fake, 0);
        assert_eq!(next, fake.records[5].peer);
        assert_ne!(next, gone);
        assert_eq!(backend(&fake, u32::MAX), next, "it is bound");
        // Where that happens each time, it is refused.
        fake.stale_readings.set(u32::MAX);
        assert_eq!(select(&fake, &flow("10.96.0.10:80", 6), 0), Verdict::Fail(Refusal::Unstable));
    }

    #[test]
    fn of_two_that_bind_a_client_at_once_the_second_takes_what_the_first_chose() {
        let fake = sticky();
        let rival = Bond { used: 1, backend: record(4, 7).peer, reserved: [0; 6] };
        fake.rival.replace(Some(rival));
        assert_eq!(backend(&fake, 0), rival.backend);
        // Also if there was a bond that is over.
        fake.now.set(u64::MAX / 2);
        let rival = Bond { used: u64::MAX / 2, backend: record(3, 7).peer, reserved: [0; 6] };
        fake.rival.replace(Some(rival));
        assert_eq!(backend(&fake, 0), rival.backend);
    }
}
