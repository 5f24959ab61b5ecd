//! Programs of an agent before us, with maps of their own: they stay as long as ours could do less.

use std::{fs, net::IpAddr, thread, time::Duration};

use super::{
    agent::{Agent, command},
    connect::V4,
    control::Control,
    flips::udp_backend,
    world::{World, backend4, soon},
    yaml,
};

/// Longer than they may stay.
const PATIENCE: Duration = Duration::from_secs(120);
const ATTACHED: &str = "INFO attached";

/// Programs at work that lead to the first backend, with a layout that is not ours; and an agent that
/// leads to the second one, but cannot write all that there is.
fn start(world: &World) -> Agent {
    let pins = world.pins();
    let mut control = Control::start(world);
    control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
    drop(control);
    fs::rename(pins.root(), pins.home().join("v0")).unwrap();
    yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
    for n in 1..=4 {
        yaml::put(world, &format!("z-{n}"), &format!("10.96.0.2{n}"), &[backend4(3)]);
    }
    let agent = Agent::spawn(command(world, &["--max-services=4", "--max-backends=256"]));
    agent.wait_for_start("the programs at work stay");
    agent
}

fn backend() -> IpAddr {
    udp_backend(V4).unwrap().ip()
}

#[test]
fn they_stay_until_all_fits() {
    World::run(|world| {
        let agent = start(world);
        assert_eq!(backend(), backend4(1));
        for n in 1..=3 {
            fs::remove_file(yaml::objects(world).join(format!("z-{n}.yaml"))).unwrap();
        }
        agent.wait_for(ATTACHED);
        assert_eq!(backend(), backend4(2));
        assert!(!world.pins().home().join("v0").exists());
    });
}

/// Nor do they stay for ever: what they know grows old.
#[test]
fn they_go_although_not_all_fits() {
    World::run(|world| {
        let agent = start(world);
        // What is new is not written for them.
        yaml::put(world, "web", "10.96.0.10", &[backend4(4)]);
        let began = std::time::Instant::now();
        while !agent.log().contains(ATTACHED) && began.elapsed() < PATIENCE {
            assert!([1, 4].map(backend4).contains(&backend()));
            thread::sleep(Duration::from_millis(50));
        }
        agent.wait_for(ATTACHED);
        assert!(soon(|| backend() == backend4(4)));
        assert!(!agent.log().contains("written after all"), "{}", agent.log());
    });
}
