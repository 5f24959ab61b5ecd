//! The verifier takes every program. What it says of them is printed, so that growth is seen.

use lb_agent::pins::{PROGRAMS, open_link};

use super::{control::Control, world::World};

/// The verifier gives up on programs at a million; ours are to stay readable to it on any kernel.
const LIMIT: u32 = 200_000;

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
