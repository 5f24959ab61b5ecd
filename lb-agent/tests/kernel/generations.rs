//! What flows remember outlives every set of maps: no generation is given twice while one may.

use std::{collections::BTreeSet, fs};

use lb_agent::datapath::Sizes;
use lb_core::pipeline::NodeConfig;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    connect::{MAPPED, V4, V6},
    control::{Control, SIZES, pinned, ready, serve, service},
    pods::{Pods, at, client},
    world::{World, backend4, backend6},
};

const IPS: [&str; 2] = ["10.96.0.10", "fd00:96::a"];

/// A Service is deleted and made again with another endpoint; in between the agent is started anew, and
/// this happens to its maps. Sockets that sent to the Service before go to the new endpoint.
fn made_again(between: fn(&World) -> Sizes) {
    World::run(|world| {
        let pods = Pods::start(1..=2);
        let clients = [V4, V6, MAPPED].map(at).map(|to| (client(to.is_ipv4()), to));
        let mut endpoint = 1;
        let mut control = Control::start(world);
        for round in 0..3 {
            control.put("web", &IPS, 80, &[backend4(endpoint), backend6(endpoint)]);
            for (client, to) in &clients {
                for _ in 0..2 {
                    client.send_to(b"hello", *to).unwrap();
                    let pod = pods.take().pod.ip();
                    let expected = [backend4(endpoint), backend6(endpoint)];
                    assert!(expected.contains(&pod), "round {round}, {to}: {pod}");
                }
            }
            control.delete("web");
            drop(control);
            let sizes = between(world);
            control = Control::start_with(world, sizes);
            endpoint = 3 - endpoint;
        }
    });
}

#[test]
fn maps_of_another_size() {
    made_again(|world| {
        let larger = world.pins().maps().unwrap().unwrap().ends_with("maps-2");
        Sizes { services: if larger { 64 } else { 100 }, ..SIZES }
    });
}

#[test]
fn maps_thrown_away_for_a_damaged_pin() {
    made_again(|world| {
        let maps = world.pins().maps().unwrap().unwrap();
        fs::remove_file(maps.join("names")).unwrap();
        SIZES
    });
}

/// Where nobody knows the last one, it goes on somewhere else.
#[test]
fn the_last_generation_is_lost_too() {
    made_again(|world| {
        let maps = world.pins().maps().unwrap().unwrap();
        fs::remove_file(maps.join("names")).unwrap();
        let kept = world.pins().storage("generations");
        if kept.exists() {
            fs::remove_file(kept).unwrap();
        }
        SIZES
    });
}

/// What may happen to the maps.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The set of the Service changes.
    Change,
    /// The agent is started anew.
    Restart,
    /// With maps of another size.
    Resize,
    /// A pin is gone, and so the maps are made anew.
    Damage,
    /// The maps are read anew, as after somebody has meddled with them.
    ReadAnew,
    /// All pins are another layout's.
    Layout,
}

/// The generation of each frontend's set.
fn given(world: &World) -> BTreeSet<u32> {
    pinned(world).services.values().map(|service| service.generation).collect()
}

/// Whatever happens in the life of the maps, a new set has a generation that none had before.
fn live(world: &World, events: &[Event]) {
    let mut sizes = SIZES;
    let mut control = start(world, sizes, 1);
    let (mut past, mut endpoint) = (BTreeSet::new(), 1);
    for event in events {
        past.extend(given(world));
        let mut are_new = true;
        match event {
            Event::Change => {
                endpoint = endpoint % 20 + 1;
                control.put("web", &IPS, 80, &[backend4(endpoint), backend6(endpoint)]);
            }
            Event::ReadAnew => {
                control.pipeline.adopt().unwrap();
                control.sync();
                are_new = false;
            }
            Event::Restart | Event::Resize => {
                if matches!(event, Event::Resize) {
                    sizes.services = 164 - sizes.services;
                }
                drop(control);
                control = start(world, sizes, endpoint);
                are_new = false;
            }
            Event::Damage => {
                drop(control);
                fs::remove_file(world.pins().maps().unwrap().unwrap().join("names")).unwrap();
                control = start(world, sizes, endpoint);
            }
            Event::Layout => {
                drop(control);
                fs::rename(world.pins().root(), world.pins().home().join("v0")).unwrap();
                control = start(world, sizes, endpoint);
            }
        }
        let now = given(world);
        assert!(!now.is_empty(), "{event:?}");
        assert_eq!(now.is_disjoint(&past), are_new, "{event:?}: {now:?} after {past:?}");
    }
}

/// On what is pinned, with one endpoint in each family.
fn start(world: &World, sizes: Sizes, endpoint: u8) -> Control {
    let endpoints = [backend4(endpoint), backend6(endpoint)].map(ready).to_vec();
    let objects = serve("web", &service(&IPS, 80), endpoints);
    Control::start_as(world, sizes, NodeConfig::default(), objects)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 30,
        ..ProptestConfig::with_cases(4)
    })]

    #[test]
    fn none_is_given_twice(events in vec(select(&[
        Event::Change, Event::Restart, Event::Resize, Event::Damage, Event::ReadAnew, Event::Layout,
    ][..]), 12)) {
        World::run(|world| live(world, &events));
    }
}
