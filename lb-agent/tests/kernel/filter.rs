//! The filter speaks for the addresses that are there, and the clients are those that were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::maps::{Array, Map, MapData};
use lb_agent::{
    datapath::MAX_NODE_ADDRESSES,
    maps::{Access, Pinned},
};
use lb_common::abi::{Addr, Address, ClientKey, FILTER, FILTER_WORDS, SourceAddress};
use lb_core::{
    model::{Cidr, Service},
    op::{AddressUse, Op},
    store::Store as _,
};

use super::{
    control::{Control, SIZES, ips, ready, serve, service},
    world::{World, backend4},
};

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

/// The bits that are set.
fn bits(world: &World) -> Vec<u32> {
    let dir = world.pins().maps().unwrap().unwrap();
    let map = MapData::from_pin(dir.join(FILTER)).unwrap();
    let map: Array<MapData, u64> = Array::try_from(Map::Array(map)).unwrap();
    let is_set = |bit: &u32| map.get(&(bit / 64), 0).unwrap() >> (bit % 64) & 1 == 1;
    (0..FILTER_WORDS * 64).filter(is_set).collect()
}

/// What somebody else may do to the filter.
pub(crate) fn overwrite(world: &World, value: impl Fn(u32) -> u64) {
    let dir = world.pins().maps().unwrap().unwrap();
    let map = MapData::from_pin(dir.join(FILTER)).unwrap();
    let mut map: Array<MapData, u64> = Array::try_from(Map::Array(map)).unwrap();
    for index in 0..FILTER_WORDS {
        map.set(index, &value(index), 0).unwrap();
    }
}

fn of(addrs: &[&str]) -> Vec<u32> {
    let mut bits: Vec<u32> = addrs.iter().map(|text| addr(text).filter_bit()).collect();
    bits.sort_unstable();
    bits.dedup();
    bits
}

fn put(addr: Addr, flags: u32) -> Op {
    Op::PutAddress { addr, known: AddressUse { flags, netns: 0 } }
}

#[test]
fn a_bit_lasts_as_long_as_an_address_behind_it() {
    World::run(|world| {
        let mut control = Control::start(world);
        let maps = control.pipeline.store_mut();
        assert_eq!(bits(world), of(&[]));
        let (a, neighbour, far) = ("10.96.0.1", "10.96.0.2", "fd00::1");
        for text in [a, neighbour, far] {
            maps.apply(&put(addr(text), Address::CLUSTER_IP)).unwrap();
        }
        // Another meaning is not another address.
        maps.apply(&put(addr(a), Address::OWN_NODE)).unwrap();
        assert_eq!(bits(world), of(&[a, far]));
        maps.apply(&Op::DeleteAddress { addr: addr(a) }).unwrap();
        // What is gone already is not counted twice.
        maps.apply(&Op::DeleteAddress { addr: addr(a) }).unwrap();
        assert_eq!(bits(world), of(&[neighbour, far]));
        maps.apply(&Op::DeleteAddress { addr: addr(neighbour) }).unwrap();
        assert_eq!(bits(world), of(&[far]));
    });
}

/// Also one that nothing is known of but that a frontend is there.
#[test]
fn a_bit_lasts_as_long_as_a_frontend_at_its_address() {
    World::run(|world| {
        let mut control = Control::start(world);
        let (cluster, external) = ("10.96.0.1", ["203.0.113.1", "2001:db8:1::1"]);
        let one = Service {
            external_ips: ips(&external).collect(),
            ..service(&[cluster, "fd00:96::1"], 80)
        };
        let other =
            Service { external_ips: ips(&external[..1]).collect(), ..service(&[cluster], 81) };
        control.apply(serve("one", &one, vec![]));
        let all = of(&[cluster, "fd00:96::1", external[0], external[1]]);
        assert_eq!(bits(world), all);
        control.apply(serve("other", &other, vec![ready(backend4(1))]));
        // A value that changes is not another frontend.
        control.apply(serve("other", &other, vec![ready(backend4(2))]));
        assert_eq!(bits(world), all);
        control.delete("one");
        assert_eq!(bits(world), of(&[cluster, external[0]]));
        let dir = world.pins().maps().unwrap().unwrap();
        drop(Pinned::open(&dir, Access::Write).unwrap());
        assert_eq!(bits(world), of(&[cluster, external[0]]));
        control.delete("other");
        assert_eq!(bits(world), of(&[]));
    });
}

/// Without its bits, no Service would be found.
#[test]
fn what_somebody_did_to_the_filter_is_undone_when_the_maps_are_read() {
    World::run(|world| {
        let mut control = Control::start(world);
        let cluster = "10.96.0.1";
        control.apply(serve("one", &service(&[cluster], 80), vec![ready(backend4(1))]));
        overwrite(world, |_| 0);
        control.pipeline.store_mut().read().unwrap();
        assert_eq!(bits(world), of(&[cluster]));
        control.delete("one");
        assert_eq!(bits(world), of(&[]));
    });
}

#[test]
fn an_agent_that_goes_on_makes_the_filter_exact() {
    World::run(|world| {
        let mut control = Control::start(world);
        let maps = control.pipeline.store_mut();
        maps.apply(&put(addr("10.96.0.1"), Address::CLUSTER_IP)).unwrap();
        drop(control);
        overwrite(world, u64::from);
        let dir = world.pins().maps().unwrap().unwrap();
        Pinned::open(&dir, Access::Read).unwrap();
        assert_ne!(bits(world), of(&["10.96.0.1"]), "who only looks changes nothing");
        let mut maps = Pinned::open(&dir, Access::Write).unwrap();
        assert_eq!(bits(world), of(&["10.96.0.1"]));
        maps.apply(&Op::DeleteAddress { addr: addr("10.96.0.1") }).unwrap();
        assert_eq!(bits(world), of(&[]));
    });
}

#[test]
fn an_address_without_room_leaves_the_others_alone() {
    World::run(|world| {
        let mut control = Control::start(world);
        let maps = control.pipeline.store_mut();
        let room = SIZES.services + MAX_NODE_ADDRESSES;
        let all: Vec<String> = (0..room).map(|n| format!("10.{}.{}.1", n >> 8, n & 255)).collect();
        for text in &all {
            maps.apply(&put(addr(text), Address::CLUSTER_IP)).unwrap();
        }
        let late = addr("192.0.2.1");
        let error = maps.apply(&put(late, Address::OWN_NODE)).unwrap_err().to_string();
        assert_eq!(error, "the addresses map is full; raise --max-services");
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let (wanted, set) = (of(&all), bits(world));
        assert!(wanted.iter().all(|bit| set.contains(bit)));
        maps.apply(&Op::DeleteAddress { addr: addr(all[0]) }).unwrap();
        maps.apply(&put(late, Address::OWN_NODE)).unwrap();
        maps.apply(&Op::DeleteAddress { addr: late }).unwrap();
        assert_eq!(bits(world), of(&all[1..]), "exact again");
    });
}

#[test]
fn clients_are_those_that_were_told_last() {
    World::run(|world| {
        let mut control = Control::start(world);
        let maps = control.pipeline.store_mut();
        let client = |netns, from: &str| {
            (
                ClientKey::general(netns, addr(from)),
                SourceAddress::new(addr(from), SourceAddress::SURE),
            )
        };
        let towards = |netns, to: &str, from: &str| {
            (ClientKey { netns, to: addr(to) }, SourceAddress::new(addr(from), 0))
        };
        let others =
            |(key, client)| (key, SourceAddress { flags: SourceAddress::OTHERS, ..client });
        for wanted in [
            BTreeMap::from([client(7, "10.2.0.7"), client(8, "10.2.0.8")]),
            BTreeMap::from([client(8, "10.2.0.80"), client(8, "fd00::8"), client(9, "10.2.0.9")]),
            BTreeMap::from([
                others(client(8, "10.2.0.80")),
                towards(8, "203.0.113.5", "10.2.0.8"),
                others(client(9, "10.2.0.9")),
                towards(9, "203.0.113.5", "10.2.0.8"),
            ]),
            BTreeMap::from([client(8, "10.2.0.8"), others(client(9, "10.2.0.9"))]),
            BTreeMap::new(),
        ] {
            assert!(maps.set_clients(&wanted).unwrap());
            assert_eq!(maps.clients().unwrap(), wanted);
        }
    });
}

#[test]
fn source_ranges_come_back_as_they_were_put() {
    World::run(|world| {
        let mut control = Control::start(world);
        let maps = control.pipeline.store_mut();
        let ranges =
            ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.7/32", "::/0", "2001:db8::/33", "::1/128"];
        let all = ranges.iter().flat_map(|range| [0, u32::MAX].map(|id| (id, range)));
        let all: BTreeSet<(u32, Cidr)> =
            all.map(|(id, range)| (id, range.parse().unwrap())).collect();
        for (id, range) in &all {
            maps.apply(&Op::PutSourceRange { id: *id, range: *range }).unwrap();
        }
        assert_eq!(maps.snapshot().unwrap().source_ranges, all);
        for (id, range) in &all {
            maps.apply(&Op::DeleteSourceRange { id: *id, range: *range }).unwrap();
        }
        assert!(maps.snapshot().unwrap().source_ranges.is_empty());
    });
}
