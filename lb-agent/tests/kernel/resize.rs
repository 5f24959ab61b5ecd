//! Maps of another size: everything moves, nobody notices.

use std::num::NonZeroU32;

use lb_agent::datapath::{Datapath, Sizes};
use lb_core::{model::Service, store::max_names};

use super::{
    agent::{Agent, command, refuses},
    connect::V4,
    control::{Control, SIZES, pinned, ready, serve, service},
    flips::udp_backend,
    restart::{a_while, content, links, under_load},
    world::{World, backend4},
    yaml,
};

fn sizes(world: &World) -> (u32, u32) {
    let snapshot = pinned(world);
    (snapshot.max_services, snapshot.max_backends)
}

fn link_ids(world: &World) -> Vec<u32> {
    links(world).into_iter().map(|(link, _)| link).collect()
}

#[test]
fn larger_and_smaller() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2, 3].map(backend4));
        yaml::put(world, "other", "10.96.0.11", &[backend4(5)]);
        let mut agent = Agent::start(world);
        let (maps, ids) = (content(&pinned(world)), link_ids(world));
        under_load(|load| {
            for (number, (services, backends)) in [(2, (100, 5000)), (3, (4, 16)), (4, (64, 256))] {
                a_while(load);
                agent.kill();
                agent = Agent::start_with(
                    world,
                    &[&format!("--max-services={services}"), &format!("--max-backends={backends}")],
                );
                a_while(load);
                assert_eq!(sizes(world), (services, backends));
                assert_eq!(content(&pinned(world)), maps);
                assert_eq!(link_ids(world), ids);
                let sets: Vec<_> = world.pins().map_sets().unwrap().into_keys().collect();
                assert_eq!(sets, [number], "the old maps are gone");
            }
        });
    });
}

/// Ids of service ports that the smaller maps have no place for: until they have others, they are served
/// without what is true of them.
#[test]
fn ids_that_do_not_fit() {
    World::run(|world| {
        let mut control = Control::start(world);
        let mut others = Vec::new();
        for n in 1..=4 {
            others.push(format!("other-{n}"));
            control.put(&others[n - 1], &[&format!("10.96.1.{n}")], 80, &[backend4(1)]);
        }
        let affinity = NonZeroU32::new(600);
        let sticky = Service { affinity, ..service(&["10.96.0.10"], 80) };
        control.apply(serve("web", &sticky, vec![ready(backend4(1))]));
        for other in others {
            control.delete(&other);
        }
        drop(control);
        let smaller = Sizes { services: 4, ..SIZES };
        let snapshot = pinned(world);
        assert!(snapshot.services.values().all(|s| s.id >= max_names(smaller.services)));
        assert_eq!(snapshot.ports.len(), 2);
        Datapath::load(&world.pins(), smaller).unwrap().0.attach(world.cgroup()).unwrap();
        assert_eq!(pinned(world).max_services, 4);
        assert_eq!(udp_backend(V4).unwrap().ip(), backend4(1));
    });
}

#[test]
fn too_small_is_refused() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2, 3].map(backend4));
        yaml::put(world, "other", "10.96.0.11", &[backend4(5)]);
        let agent = Agent::start(world);
        let (maps, before) = (content(&pinned(world)), links(world));
        under_load(|load| {
            agent.kill();
            for (services, backends, flag) in
                [(3, 256, "--max-services"), (64, 3, "--max-backends"), (1, 1, "--max-")]
            {
                let sizes =
                    [format!("--max-services={services}"), format!("--max-backends={backends}")];
                let smaller = command(world, &sizes.each_ref().map(String::as_str));
                let moved = format!("to {services} and {backends}");
                refuses(smaller, &["cannot move the maps", "64 services and 256", &moved, flag]);
                a_while(load);
            }
            assert_eq!(links(world), before, "what was attached goes on");
            assert_eq!(content(&pinned(world)), maps);
            // With the old sizes all is as it was.
            let _agent = Agent::start(world);
            assert_eq!(content(&pinned(world)), maps);
            assert_eq!(world.pins().map_sets().unwrap().len(), 1);
            a_while(load);
        });
        assert_eq!(udp_backend("10.96.0.11:80").unwrap().ip(), backend4(5));
    });
}
