//! Maps of another size: everything moves, nobody notices.

use super::{
    agent::{Agent, command, refuses},
    control::pinned,
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
