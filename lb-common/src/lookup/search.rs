//! One record of a block: any, or a certain one.

use bytemuck::Zeroable;

use super::{Flow, ReadMaps};
use crate::abi::{Action, Peer, Service, ServiceKey};

/// Halvings after which a search in the largest block has one record left.
const HALVINGS: u32 = 27;

/// Records of one block, in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Zeroable)]
#[repr(C)]
pub struct Range {
    /// Index of the first one.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// Their generation.
    pub generation: u32,
}

/// Whether a backend, told by its [`Peer::order`], is among the records; none if one of them is of
/// another generation.
#[inline(always)]
pub fn find(maps: &impl ReadMaps, range: Range, order: (u64, u64, u16)) -> Option<bool> {
    let (mut low, mut left) = (range.first, range.count);
    let mut halving = 0;
    while left > 0 && halving < HALVINGS {
        let half = left / 2;
        let middle = low.wrapping_add(half);
        let backend = maps.backend(middle).filter(|b| b.generation == range.generation)?;
        let here = backend.peer.order();
        if here == order {
            return Some(backend.action() == Action::Forward);
        }
        if here < order {
            low = middle.wrapping_add(1);
            left = left.wrapping_sub(half).wrapping_sub(1);
        } else {
            left = half;
        }
        halving += 1;
    }
    Some(false)
}

/// Whether the backend is one of the set, or was kept for flows that are there already.
#[inline(always)]
pub(super) fn still_there(maps: &impl ReadMaps, service: &Service, backend: &Peer) -> Option<bool> {
    let Service { block, count, kept, generation, .. } = *service;
    let kept = Range { first: block.wrapping_add(count), count: kept, generation };
    let chosen_from = Range { first: block, count, generation };
    Some(maps.find(chosen_from, backend)? || maps.find(kept, backend)?)
}

/// 32 bits that look random, always the same ones for the same flow of a socket: datagrams go to one
/// backend even if nothing is remembered of them.
#[inline(always)]
pub const fn flow_bits(socket_cookie: u64, flow: &Flow) -> u32 {
    let digest = ServiceKey::new(flow.peer, flow.protocol).digest() as u64;
    // The finalizer of MurmurHash3: each bit of the input changes each bit of the output half the time.
    let mut bits = socket_cookie ^ (digest << 32);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (bits >> 32) as u32
}

/// A number below `count` (0 for 0), uniform if `random` is: the high half of a 32 × 32 bit product,
/// since a division costs more and favours small numbers just as much.
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{
        super::fake::{fake, flow, record},
        *,
    };
    use crate::abi::Backend;

    proptest::proptest! {
        #[test]
        fn a_search_finds_what_is_there(present in proptest::array::uniform8(proptest::prelude::any::<bool>())) {
            let mut fake = fake();
            let all: [Backend; 8] = core::array::from_fn(|i| record(u8::try_from(i).unwrap(), 7));
            let mut count = 0;
            for (backend, present) in all.iter().zip(present) {
                if present {
                    fake.records[count] = *backend;
                    count += 1;
                }
            }
            let count = u32::try_from(count).unwrap();
            for (backend, present) in all.iter().zip(present) {
                let found = fake.find(Range { first: 0, count, generation: 7 }, &backend.peer);
                proptest::prop_assert_eq!(found, Some(present));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn pick_is_in_range_and_monotonic(a: u32, b: u32, count in 1u32..) {
            proptest::prop_assert!(pick(a, count) < count);
            proptest::prop_assert!((a <= b) == (pick(a, count) <= pick(b, count)) || pick(a, count) == pick(b, count));
        }
    }

    #[test]
    fn flows_of_many_sockets_spread_and_each_keeps_its_bits() {
        let to = [flow("10.96.0.10:53", 17), flow("10.96.0.11:53", 17)];
        let mut seen = [[0u32; 5]; 2];
        for cookie in 1..=5000 {
            for (flow, seen) in to.iter().zip(&mut seen) {
                assert_eq!(flow_bits(cookie, flow), flow_bits(cookie, flow));
                seen[pick(flow_bits(cookie, flow), 5) as usize] += 1;
            }
        }
        assert!(seen.iter().flatten().all(|&n| (880..=1120).contains(&n)), "{seen:?}");
        let both =
            (1..=5000).filter(|c| pick(flow_bits(*c, &to[0]), 5) == pick(flow_bits(*c, &to[1]), 5));
        assert!((880..=1120).contains(&both.count()), "the choices do not depend on each other");
    }

    #[test]
    fn pick_reaches_every_backend_equally_often() {
        let mut seen = [0u32; 5];
        for i in 0..5000u32 {
            seen[pick(i * (u32::MAX / 5000), 5) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (999..=1001).contains(&n)), "{seen:?}");
    }
}
