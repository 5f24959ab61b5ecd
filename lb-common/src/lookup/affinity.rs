//! With which backend a client stays.

use super::{Caller, Prior, Set, Tables};
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
pub fn bind(tables: &impl Tables, caller: &impl Caller, set: &Set, chosen: &mut Prior) -> bool {
    let family = if chosen.backend.addr.is_v4() { 4 } else { 6 };
    let key = AffinityKey { netns: caller.netns(), service: set.service, family };
    let now = caller.now();
    let timeout = u64::from(set.affinity).wrapping_mul(NANOSECONDS);
    let mut before = tables.bond(&key);
    let mut attempt = 0;
    while attempt < BONDS {
        let mut bond = Bond::new(now, chosen.backend);
        // Another CPU's clock may be a little ahead.
        if before.is_made() && now.saturating_sub(before.used) < timeout {
            match tables.find(set.range, &before.backend) {
                Some(true) => bond.backend = before.backend,
                Some(false) => {}
                None => return false,
            }
        }
        // Who cannot get there is refused, and neither makes a bond nor renews one.
        if caller.is_confined_from(&bond.backend) || caller.bind(&key, &before, &mut bond) {
            chosen.backend = bond.backend;
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
        super::fake::{Fake, backend, fake, record},
        *,
    };
    use crate::abi::Service;

    const TIMEOUT: u32 = 10;

    /// The fake service with affinity.
    fn sticky() -> Fake {
        let mut fake = fake();
        for record in &mut fake.records {
            record.affinity = TIMEOUT;
        }
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
