//! The verifier takes every program. What it says of them is printed, so that growth is seen.

use std::{fs::File, hint::black_box};

use lb_agent::datapath::{effective::Query, trials};

use super::{control::Control, world::World};

/// The verifier gives up on programs at a million; ours are to stay readable to it on any kernel.
const LIMIT: u32 = 200_000;
/// `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: u32 = 10;

/// `cargo xtask kernels` reads these lines.
#[test]
fn all_load_and_stay_small() {
    println!();
    let mut refused = Vec::new();
    for trial in trials().unwrap() {
        match trial.verdict {
            Ok(count) => {
                println!("program {}: {count} instructions", trial.name);
                assert!(count < LIMIT, "{}: {count}", trial.name);
            }
            Err(reason) => {
                println!("program {}: refused: {reason}", trial.name);
                refused.push(trial.name);
            }
        }
    }
    assert_eq!(refused, [""; 0]);
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
