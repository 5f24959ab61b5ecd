//! New connections spread evenly over the backends.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::abi::{Backend, Service, ServiceKey};
use lb_core::{op::Op, store::Store as _};

use super::{
    connect::V4,
    control::{Control, pinned},
    raw::udp,
    world::{World, backend4},
};

pub(crate) const CONNECTS: u32 = 8_000;
/// How often a fair spread may be taken for a biased one.
pub(crate) const ALPHA: f64 = 1e-10;

fn count() -> BTreeMap<IpAddr, u32> {
    let mut counts: BTreeMap<_, _> = (1..=5).map(|n| (backend4(n), 0)).collect();
    for _ in 0..CONNECTS {
        let socket = udp(V4.parse().unwrap()).unwrap();
        *counts.get_mut(&socket.local_addr().unwrap().ip()).expect("not a backend") += 1;
    }
    counts
}

/// The probability that a fair choice among five spreads as unevenly as this: the upper tail of the
/// chi-square distribution with four degrees of freedom, which is exp(-x/2) (1 + x/2).
pub(crate) fn probability(counts: &BTreeMap<IpAddr, u32>) -> f64 {
    assert_eq!(counts.len(), 5);
    let expected = f64::from(CONNECTS) / 5.0;
    let square = |n: &u32| (f64::from(*n) - expected).powi(2) / expected;
    let half = counts.values().map(square).sum::<f64>() / 2.0;
    (-half).exp() * (1.0 + half)
}

#[test]
fn five_backends_are_served_alike() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[1, 2, 3, 4, 5].map(backend4));
        let counts = count();
        let p = probability(&counts);
        println!("{counts:?}, p = {p:.3}");
        assert!(p > ALPHA, "not a fair spread (p = {p:e}): {counts:?}");
    });
}

/// The same measurement finds out a set in which one backend of five stands twice: 1/3, not 1/5.
#[test]
fn a_biased_set_is_found_out() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[1, 2, 3, 4, 5].map(backend4));
        let snapshot = pinned(world);
        let (key, service) = snapshot
            .services
            .iter()
            .find(|(key, _)| key.protocol == lb_common::abi::UDP)
            .map(|(key, service)| (*key, *service))
            .unwrap();
        let mut records = snapshot.blocks[&service.block].clone();
        records.push(records[0]);
        let generation = snapshot.last_generation + 1;
        bias(&mut control, key, service, &records, generation);

        let counts = count();
        let p = probability(&counts);
        println!("{counts:?}, p = {p:e}");
        assert!(p < ALPHA, "a biased spread was accepted: {counts:?}");
    });
}

fn bias(
    control: &mut Control,
    key: ServiceKey,
    service: Service,
    records: &[Backend],
    generation: u32,
) {
    let block = 200;
    let records: Vec<_> = records.iter().map(|r| r.stamped(generation, service.id)).collect();
    let count = records.len().try_into().unwrap();
    let store = control.pipeline.store_mut();
    store.apply(&Op::WriteBlock { block, records }).unwrap();
    let service = Service { block, count, generation, ..service };
    store.apply(&Op::PutService { key, service }).unwrap();
}
