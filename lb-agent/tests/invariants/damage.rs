//! Maps that somebody else has been at.

use std::net::SocketAddr;

use lb_common::abi::{self, Backend, PortOptions, ServiceKey};
use lb_core::{
    memory::Memory,
    model::{Change, ObjectRef, PortRef},
    op::AddressUse,
    store::Snapshot,
};
use proptest::{collection::vec, prelude::*, sample::select as one_of};

use super::{
    history::{ip, port_name, protocol, range, service_name},
    truth::{Edit, Sets, Truth, wanted},
    watched::Watched,
    world::{World, pipeline},
};

fn number(sensible: std::ops::Range<u32>) -> impl Strategy<Value = u32> {
    prop_oneof![8 => sensible, 1 => one_of(vec![0, u32::MAX - 1, u32::MAX])]
}

fn key() -> impl Strategy<Value = ServiceKey> {
    let ips =
        vec![ip("10.96.0.1"), ip("10.96.0.2"), ip("10.96.0.3"), ip("fd00::1"), ip("10.9.9.9")];
    let protocols = vec![abi::TCP, abi::TCP, abi::TCP, abi::UDP, 132];
    let scope = prop_oneof![9 => Just(0), 1 => Just(1u8)];
    (one_of(ips), one_of(vec![80u16, 81]), one_of(protocols), scope).prop_map(
        |(ip, port, protocol, scope)| ServiceKey {
            peer: SocketAddr::new(ip, port).into(),
            protocol,
            scope,
        },
    )
}

prop_compose! {
    pub(super) fn damaged(max_services: u32, max_backends: u32)(
        services in vec((key(), number(0..12), number(1..4), 0..3u32, number(1..4), number(0..4)), 0..16),
        names in vec((number(0..4), service_name(), port_name(), protocol()), 0..6),
        records in vec(((any::<bool>(), 0..4u8), number(0..4), number(0..4), 0..5u8, number(0..4)), 16),
        ports in vec((number(0..4), 0..3u32, 0..2u8), 0..4),
        source_ranges in vec((number(0..6), range()), 0..6),
        addresses in vec((key(), 0..9u32, 0..2u64), 0..4),
    ) -> Snapshot {
        let records = records.into_iter().map(|((refuse, last), generation, service, flags, backend)| {
            let record = if refuse {
                Backend::refuse()
            } else {
                Backend::forward(SocketAddr::from(([10, 1, 0, last], 8080)).into())
            };
            Backend { flags, backend, ..record }.stamped(generation, service)
        });
        let services = services.into_iter().map(|(key, block, count, kept, generation, id)| {
            (key, abi::Service { block, count, kept, generation, id })
        });
        let names = names.into_iter().map(|(id, service, port, protocol)| {
            (id, PortRef { service, port: port.into(), protocol })
        });
        let snapshot = Snapshot {
            max_services,
            max_backends,
            last_generation: 0,
            last_backend: 0,
            written: true,
            services: services.take(max_services as usize).collect(),
            names: names.collect(),
            ports: ports
                .into_iter()
                .map(|(id, affinity, flags)| (id, PortOptions { affinity, flags, ..Default::default() }))
                .collect(),
            source_ranges: source_ranges.into_iter().collect(),
            addresses: addresses
                .into_iter()
                .map(|(key, flags, netns)| (key.peer.addr, AddressUse { flags, netns }))
                .collect(),
            blocks: [(0, records.take(max_backends as usize).collect())].into(),
        };
        Memory::from(&snapshot).snapshot()
    }
}

/// Whatever stands in the maps: the agent makes of it what is wanted, and nothing later goes wrong.
pub(super) fn repair(snapshot: &Snapshot, edits: &[Edit], later: &[Edit]) {
    let store = Watched::blind(Memory::from(snapshot));
    let (truth, told) = (Truth::default(), Truth::default());
    let pipeline = pipeline(store, snapshot);
    let mut world = World { truth, told, pipeline, roomy: false };
    // The API server's last endpoints stay: from damaged maps, that is not foreseeable.
    let kubernetes = ObjectRef::new("default", "kubernetes");
    for edit in edits {
        if !matches!(edit, Edit::Service(name, _) if *name == kubernetes) {
            world.edit(edit.clone());
        }
    }
    world.pipeline.change(Change::ListedNodes(world.truth.nodes.clone()));
    world.pipeline.change(Change::ListedServices(world.truth.services.clone()));
    world.pipeline.change(Change::ListedSlices(world.truth.slices.clone()));
    for _ in 0..4 {
        world.pipeline.sync();
    }
    assert!(!world.pipeline.is_dirty(), "it does not converge");

    world.pipeline.store_mut().watch();
    // It was told of addresses of its node that went before the lists came.
    assert_eq!(world.pipeline.store().sets(), wanted(&world.told, &Sets::new()));
    world.sync(0, false);
    world.pipeline.reclaim().unwrap();
    for edit in later {
        world.edit(edit.clone());
        world.sync(0, false);
    }
    world.restart(None, true);
    world.finish();
}
