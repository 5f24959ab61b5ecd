//! What the random histories have found, in short.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{self, Backend, ServiceKey};
use lb_core::{
    memory::Memory,
    model::{Endpoint, Frontend, ObjectRef, PortRef, Protocol, Service, ServicePort},
    store::Snapshot,
};

use super::{
    damage::repair,
    history::ip,
    truth::Edit,
    world::{World, small},
};

fn web(created: i64, ip: IpAddr, number: u16) -> Service {
    let port = ServicePort::new("http", Protocol::Tcp, number);
    Service { created, cluster_ips: vec![ip], ports: vec![port], ..Service::default() }
}

fn of(name: &str, service: impl Into<Option<Service>>) -> Edit {
    Edit::Service(ObjectRef::new("default", name), service.into())
}

fn say(world: &mut World, edits: impl IntoIterator<Item = Edit>) {
    edits.into_iter().for_each(|edit| world.edit(edit));
}

/// The readers of the agent before us: what it gave up is not written to before a grace period.
#[test]
fn a_block_given_up_before_a_restart_is_not_overwritten() {
    let mut world = World::new(8, 8, true);
    say(&mut world, [of("a", web(1, ip("10.96.0.1"), 80))]);
    world.sync(0, false);
    say(&mut world, [of("a", None), of("b", web(1, ip("10.96.0.2"), 80))]);
    world.sync(u64::MAX << 1, false);
    world.restart(None, true);
    let report = world.sync(0, true);
    assert_eq!(report.sockets.failed.len(), 1, "without a grace period there is no room");
    assert!(world.sync(0, false).sockets.failed.is_empty());
    world.finish();
}

#[test]
fn a_frontend_whose_new_owner_does_not_fit_stays_with_the_old_one() {
    let mut world = World::new(8, 3, false);
    let slice = |of: &str, last: std::ops::Range<u8>| {
        let mut slice = small().slices.pop_first().unwrap().1;
        slice.service = ObjectRef::new("default", of);
        let template = slice.endpoints.remove(0);
        slice.endpoints.extend(
            last.map(|n| Endpoint { addr: IpAddr::from([10, 1, 0, n]), ..template.clone() }),
        );
        Edit::Slice(ObjectRef::new("default", of), Some(slice))
    };
    say(&mut world, [of("b", web(2, ip("10.96.0.1"), 80)), slice("b", 0..2)]);
    assert!(world.sync(0, false).sockets.failed.is_empty());
    say(&mut world, [of("a", web(1, ip("10.96.0.1"), 80)), slice("a", 0..2)]);
    for _ in 0..2 {
        let failed: Vec<ObjectRef> = world.sync(0, false).sockets.failed.into_keys().collect();
        assert_eq!(failed, [ObjectRef::new("default", "a")]);
    }
    // It gives up: nothing is left of it, and b has what it had.
    say(&mut world, [of("a", None)]);
    assert_eq!(world.sync(0, false).sockets.ops, 0);
    // It fits: b's block is given up, and its name.
    say(&mut world, [of("a", web(1, ip("10.96.0.1"), 80)), slice("a", 0..1)]);
    assert!(world.sync(0, false).sockets.failed.is_empty());
    world.finish();
}

#[test]
fn two_services_swap_their_addresses_without_a_gap() {
    let mut world = World::new(2, 8, true);
    let [first, second] = [ip("10.96.0.1"), ip("10.96.0.2")];
    say(&mut world, [of("a", web(1, first, 80)), of("b", web(1, second, 80))]);
    world.sync(0, false);
    say(&mut world, [of("a", web(1, second, 80)), of("b", web(1, first, 80))]);
    world.sync(0, false);
    world.finish();
}

#[test]
fn what_a_service_gives_up_makes_room_for_what_it_gets() {
    let mut world = World::new(1, 1, true);
    say(&mut world, [of("a", web(1, ip("10.96.0.1"), 80))]);
    world.sync(0, false);
    say(&mut world, [of("a", web(1, ip("10.96.0.1"), 81))]);
    world.sync(0, false);
    world.finish();
}

#[test]
fn who_lost_a_frontend_is_told_the_name_of_its_owner() {
    let mut world = World::new(8, 8, true);
    let address = ip("10.96.0.1");
    say(
        &mut world,
        [("a", 1), ("b", 1), ("c", 0)].map(|(name, age)| of(name, web(age, address, 80))),
    );
    let owners: Vec<ObjectRef> =
        world.sync(0, false).lost.into_values().flatten().map(|lost| lost.owner).collect();
    assert_eq!(owners, vec![ObjectRef::new("default", "c"); 2]);
}

/// Neither are four thousand million ids taken down as free, nor does the id after the last exist.
#[test]
fn an_id_out_of_all_proportion_is_only_an_id() {
    let port = |name| PortRef {
        service: ObjectRef::new("default", name),
        port: "http".into(),
        protocol: Protocol::Tcp,
    };
    let names = [(u32::MAX, port("a")), (u32::MAX - 1, port("b")), (7, port("b"))];
    let snapshot = Snapshot {
        max_services: 4,
        max_backends: 4,
        names: names.into_iter().collect(),
        ..Snapshot::default()
    };
    let edits = [of("a", web(1, ip("10.96.0.1"), 80)), of("b", web(1, ip("10.96.0.2"), 80))];
    repair(&snapshot, &edits, &[]);
}

/// A block that an entry without a name leads to is in use, until the entry is removed.
#[test]
fn an_entry_without_a_name_is_removed_and_its_block_is_not_leaked() {
    let addr = SocketAddr::new(ip("10.96.0.1"), 80);
    let key = ServiceKey::from(&Frontend::new(addr, Protocol::Tcp));
    let service = abi::Service { block: 0, count: 4, kept: 0, generation: 1, id: 3 };
    let snapshot = Snapshot {
        max_services: 4,
        max_backends: 4,
        services: [(key, service)].into(),
        blocks: [(0, vec![Backend::refuse().stamped(1, 3); 4])].into(),
        ..Snapshot::default()
    };
    let snapshot = Memory::from(&snapshot).snapshot();
    repair(&snapshot, &[], &[]);
    repair(&snapshot, &[of("a", web(1, ip("10.96.0.2"), 80))], &[]);
}

/// The wider block is given up and used again; the narrower one in it was right, and had to move.
#[test]
fn of_two_entries_with_overlapping_blocks_one_is_written_anew() {
    let key = |number| {
        let addr = SocketAddr::new(ip("10.96.0.9"), number);
        ServiceKey::from(&Frontend::new(addr, Protocol::Tcp))
    };
    let truth = small();
    let (name, service) = truth.services.first_key_value().unwrap();
    let mut service = service.clone();
    service.ports.push(ServicePort { number: 81, ..service.ports[0].clone() });
    let (slice_name, slice) = truth.slices.first_key_value().unwrap();
    let to =
        |last| Backend::forward(SocketAddr::from(([10, 1, 0, last], 8080)).into()).stamped(1, 0);
    let port = PortRef { service: name.clone(), port: "http".into(), protocol: Protocol::Tcp };
    let entry = |block, count| abi::Service { block, count, kept: 0, generation: 1, id: 0 };
    let snapshot = Snapshot {
        max_services: 4,
        max_backends: 4,
        services: [(key(80), entry(0, 2)), (key(81), entry(1, 1))].into(),
        names: [(0, port)].into(),
        blocks: [(0, vec![to(1), to(9)])].into(),
        ..Snapshot::default()
    };
    let edits = [
        Edit::Service(name.clone(), Some(service)),
        Edit::Slice(slice_name.clone(), Some(slice.clone())),
    ];
    let later = [of("a", web(1, ip("10.96.0.1"), 80)), of("b", web(1, ip("10.96.0.2"), 80))];
    repair(&Memory::from(&snapshot).snapshot(), &edits, &later);
}

/// The names map has room for the new id of a port beside the old one.
#[test]
fn a_port_is_renamed_in_full_maps() {
    let mut world = World::new(1, 2, true);
    let mut service = web(1, ip("10.96.0.1"), 80);
    say(&mut world, [of("a", service.clone())]);
    world.sync(0, false);
    service.ports[0].name = "web".into();
    say(&mut world, [of("a", service)]);
    world.sync(0, false);
    world.finish();
}

/// Ranges of an id that nobody has are not the next one's who gets it.
#[test]
fn ranges_of_nobody_let_nobody_in() {
    let stray = |range: &str| (0, range.parse().unwrap());
    let snapshot = Snapshot {
        max_services: 4,
        max_backends: 4,
        source_ranges: [stray("10.0.0.0/8"), stray("192.0.2.0/24")].into(),
        ..Snapshot::default()
    };
    let guarded = |range: &str| Service {
        load_balancer_ips: vec![ip("203.0.113.1")],
        source_ranges: vec![range.parse().unwrap()],
        ..web(1, ip("10.96.0.1"), 80)
    };
    repair(&snapshot, &[of("a", guarded("10.0.0.0/8"))], &[]);
    repair(&snapshot, &[of("a", guarded("2001:db8::/32"))], &[of("a", None)]);
}

/// What was marked when all ports were there is no longer marked when one does not fit.
#[test]
fn a_port_that_does_not_fit_is_not_refused() {
    let mut world = World::new(2, 8, false);
    let address = ip("10.96.0.1");
    say(&mut world, [of("a", web(1, address, 80))]);
    world.sync(0, false);
    assert_eq!(world.pipeline.store().addresses.len(), 1);
    let mut more = web(1, address, 80);
    more.ports.extend([81, 82].map(|n| ServicePort::new(n.to_string(), Protocol::Tcp, n)));
    say(&mut world, [of("a", more)]);
    assert_eq!(world.sync(0, false).sockets.failed.len(), 1);
    assert!(world.pipeline.store().addresses.is_empty());
    world.finish();
}

/// Who waits for a frontend's new owner to fit keeps the ranges that its entry asks for: without them
/// nobody could connect.
#[test]
fn a_frontend_that_is_left_to_its_old_owner_keeps_its_ranges() {
    let mut world = World::new(8, 2, false);
    let vip = ip("203.0.113.1");
    let guarded = Service {
        load_balancer_ips: vec![vip],
        source_ranges: vec!["10.0.0.0/8".parse().unwrap()],
        ..web(2, ip("10.96.0.2"), 80)
    };
    say(&mut world, [of("b", guarded)]);
    assert!(world.sync(0, false).sockets.failed.is_empty());
    say(&mut world, [of("a", web(1, vip, 80))]);
    assert_eq!(world.sync(0, false).sockets.failed.len(), 1, "no room for a block");
    assert_eq!(world.pipeline.store().source_ranges.len(), 1);
    // Now there is: the entry changes hands, and the ranges go.
    say(&mut world, [of("b", None)]);
    world.sync(0, false);
    assert!(world.pipeline.store().source_ranges.is_empty());
    world.finish();
}
