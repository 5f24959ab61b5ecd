//! A start that was interrupted at any point is completed by the next one.

use std::fs;

use aya::programs::links::{FdLink, PinnedLink};
use lb_agent::{
    datapath::{Datapath, Sizes},
    pins::PROGRAMS,
};

use super::{
    connect::V4,
    control::{Control, SIZES, pinned},
    flips::udp_backend,
    raw::udp_socket,
    restart::{a_while, content, under_load},
    world::{World, backend4},
};

const OTHER: Sizes = Sizes { services: 100, backends: 100, affinity: 1024 };

/// What is to be found in the links' directory, and nothing else.
fn only_the_links(world: &World) {
    let mut names: Vec<_> = fs::read_dir(world.pins().links())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut programs = PROGRAMS;
    programs.sort_unstable();
    assert_eq!(names, programs);
}

/// The first start, with some of the maps made; then the maps in force, with some of them gone.
#[test]
fn half_a_set_of_maps() {
    World::run(|world| {
        let pins = world.pins();
        for missing in
            [&["names"][..], &["services", "backends"], &["services", "names", "backends"]]
        {
            drop(Datapath::load(&pins, SIZES).unwrap());
            for set in [pins.staging(), pins.map_set(1)] {
                for name in missing {
                    fs::remove_file(set.join(name)).unwrap();
                }
                let mut control = Control::start(world);
                control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
                assert!(udp_backend(V4).is_ok());
            }
            lb_agent::datapath::cleanup(&world.bpffs()).unwrap();
        }
    });
}

/// Whoever made maps and did not live to fill them: the programs at work stay, with their own.
#[test]
fn maps_that_were_never_filled() {
    World::run(|world| {
        let pins = world.pins();
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        drop(control);
        // Another layout, as an agent before an upgrade leaves it.
        fs::rename(pins.root(), pins.home().join("v0")).unwrap();
        for _ in 0..2 {
            let (datapath, _) = Datapath::load(&pins, SIZES).unwrap();
            assert!(!datapath.is_adopted(), "nothing was ever in them");
            assert!(datapath.others_at_work());
            assert!(udp_backend(V4).is_ok());
        }
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        assert!(udp_backend(V4).is_ok());
        assert!(!pins.home().join("v0").exists());
    });
}

/// A resize that was interrupted: new maps, half full or whole, and the links not moved yet.
#[test]
fn two_sets_of_maps() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[1, 2].map(backend4));
        let before = content(&pinned(world));
        drop(control);
        under_load(|load| {
            for missing in [None, Some("names")] {
                for next in [SIZES, OTHER, SIZES] {
                    let interrupted = Sizes { services: 70, backends: 77, affinity: 1024 };
                    drop(Datapath::load(&world.pins(), interrupted).unwrap());
                    let staging = world.pins().staging();
                    if let Some(missing) = missing {
                        fs::remove_file(staging.join(missing)).unwrap();
                    } else {
                        let (last, _) = world.pins().map_sets().unwrap().pop_last().unwrap();
                        fs::rename(staging, world.pins().map_set(last + 1)).unwrap();
                    }
                    a_while(load);
                    let (mut datapath, _) = Datapath::load(&world.pins(), next).unwrap();
                    datapath.attach(world.cgroup()).unwrap();
                    a_while(load);
                    assert_eq!(world.pins().map_sets().unwrap().len(), 1);
                    assert_eq!(content(&pinned(world)), before);
                    assert_eq!(pinned(world).max_services, next.services);
                }
            }
        });
    });
}

/// A link that was pinned under its first name, and not renamed.
#[test]
fn a_link_not_in_its_place() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let (links, pins) = (world.pins().links(), world.pins());
        fs::rename(pins.link("connect4"), links.join("connect4_new")).unwrap();
        Datapath::load(&pins, SIZES).unwrap().0.attach(world.cgroup()).unwrap();
        only_the_links(world);
        assert!(udp_backend(V4).is_ok());
        assert_eq!(udp_socket(true).connect(V4).map_err(|e| e.raw_os_error()), Ok(()));
    });
}

/// A move to another cgroup that was interrupted, and then called off.
#[test]
fn a_link_to_a_cgroup_that_was_given_up() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let pins = world.pins();
        let elsewhere = world.cgroup().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        // All links at the other cgroup, then one of them as it would be just before its renaming.
        Datapath::load(&pins, SIZES).unwrap().0.attach(&elsewhere).unwrap();
        let moved: FdLink = PinnedLink::from_pin(pins.link("connect4")).unwrap().into();
        Datapath::load(&pins, SIZES).unwrap().0.attach(world.cgroup()).unwrap();
        moved.pin(pins.links().join("connect4_new")).unwrap();

        Datapath::load(&pins, SIZES).unwrap().0.attach(world.cgroup()).unwrap();
        only_the_links(world);
        assert!(udp_backend(V4).is_ok());
        fs::remove_dir(&elsewhere).unwrap();
    });
}
