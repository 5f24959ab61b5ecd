//! The properties.

use lb_core::model::ObjectRef;
use proptest::{collection::vec, prelude::*};

use super::{
    damage::{damaged, repair},
    history::{Step, edit, step},
    truth::Edit,
    world::{World, small},
};

fn run(mut world: World, steps: Vec<Step>) {
    for step in steps {
        world.step(step);
    }
    world.finish();
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 1_000,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn histories_with_room(steps in vec(step(), 1..40)) {
        run(World::new(64, 2048, true), steps);
    }

    #[test]
    fn histories_in_small_maps(
        max_services in 2..8u32,
        max_backends in 2..20u32,
        steps in vec(step(), 1..40),
    ) {
        run(World::new(max_services, max_backends, false), steps);
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn damaged_maps_are_repaired(
        snapshot in damaged(64, 256),
        edits in vec(edit(), 0..12),
        later in vec(edit(), 0..4),
    ) {
        repair(&snapshot, &edits, &later);
    }

    #[test]
    fn maps_full_of_damage_are_repaired(snapshot in damaged(8, 16)) {
        let of_c = small().services.pop_first().map(|service| service.1);
        let slice = small().slices.pop_first().map(|slice| slice.1);
        let small = [
            Edit::Service(ObjectRef::new("default", "c"), of_c),
            Edit::Slice(ObjectRef::new("default", "z"), slice),
        ];
        repair(&snapshot, &[], &small);
        repair(&snapshot, &small, &[]);
    }
}
