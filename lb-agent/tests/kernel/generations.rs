//! What flows remember outlives every set of maps: no generation is given twice while one may.

use std::fs;

use lb_agent::datapath::Sizes;

use super::{
    connect::{MAPPED, V4, V6},
    control::{Control, SIZES},
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
