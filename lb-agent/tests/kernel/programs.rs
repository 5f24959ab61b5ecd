//! The verifier takes every program. What it says of them is printed, so that growth is seen.

use std::{fs::File, hint::black_box};

use lb_agent::{
    datapath::effective::Query,
    pins::{PROGRAMS, open_link},
};

use super::{control::Control, world::World};

/// The verifier gives up on programs at a million; ours are to stay readable to it on any kernel.
const LIMIT: u32 = 200_000;
/// `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: u32 = 10;

#[test]
fn all_load_and_stay_small() {
    World::run(|world| {
        let _control = Control::start(world);
        // Those of others may be on their way out.
        let loaded: Vec<_> = aya::programs::loaded_programs().filter_map(Result::ok).collect();
        for name in PROGRAMS {
            let (link, _) = open_link(&world.pins().link(name)).unwrap();
            let id = link.info().unwrap().program_id();
            let info = loaded.iter().find(|info| info.id() == id).expect("its link has it");
            let verified = info.verified_instruction_count().unwrap_or(0);
            println!(
                "{name}: {verified} instructions verified, {} bytes translated, {} bytes of machine code",
                info.size_translated().unwrap_or(0),
                info.size_jitted()
            );
            assert!(verified < LIMIT, "{name}");
        }
    });
}

/// A kernel may write farther than the size that it is told, see [`Query`].
#[test]
fn who_asks_for_programs_has_room_for_the_answer() {
    #[repr(C)]
    struct Guarded<'a> {
        query: Query<'a>,
        guard: [u64; 32],
    }

    World::run(|world| {
        let _control = Control::start(world);
        let cgroup = File::open(world.cgroup()).unwrap();
        let mut ids = [0; 64];
        for room in [0, 1, ids.len()] {
            let query = Query::new(&cgroup, CONNECT4, &mut ids[..room]);
            let mut guarded = Guarded { query, guard: [u64::MAX; 32] };
            let found = guarded.query.ask().unwrap();
            assert!(found >= 1.min(room) && found <= room, "{found} of {room}");
            assert_eq!(black_box(&guarded).guard, [u64::MAX; 32]);
        }
    });
}
