//! What an agent says while the kernel takes nothing from it, and that it goes on when it does again.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::{
    agent::{Agent, SIZES, command},
    connect::V4,
    flips::udp_backend,
    lbctl::ask,
    machine::{get, healthz, readyz},
    said::{Calls, Kernel, filtered},
    world::{World, backend4, soon},
    yaml,
};

fn is_served_by(to: &str, backend: u8) -> bool {
    udp_backend(to).is_ok_and(|addr| addr.ip() == backend4(backend))
}

#[test]
fn health_says_that_nothing_can_be_written() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::spawn(filtered(command(world, &SIZES), Calls::Bpf));
        let kernel = Kernel::between(&agent, Calls::Bpf);
        agent.wait_for_start("in sync");
        assert!(soon(|| readyz().starts_with("200") && healthz().starts_with("200")));

        for (errno, text) in
            [(libc::ENOMEM, "Cannot allocate memory"), (libc::EPERM, "Operation not permitted")]
        {
            kernel.says(errno);
            yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
            yaml::put(world, "other", "10.96.0.11", &[backend4(3)]);
            for answer in [readyz, healthz] {
                assert!(soon(|| answer().starts_with("503")), "{}", answer());
                let answer = answer();
                assert!(answer.contains("takes nothing") && answer.contains(text), "{answer}");
            }
            let (code, status, _) = ask(world, "status");
            assert_eq!(code, 8, "{status}");
            assert!(status.contains("takes nothing") && status.contains(text), "{status}");
            let live = get("10256/livez");
            assert!(live.starts_with("200"), "{live}");
            agent.wait_for("the kernel takes nothing");
            assert!(is_served_by(V4, 1), "what was there stays");
            // It lasts as long as the trouble does, whatever is tried again.
            let tried = Instant::now();
            while tried.elapsed() < Duration::from_secs(3) {
                assert!(readyz().starts_with("503"), "{}", readyz());
                thread::sleep(Duration::from_millis(50));
            }

            kernel.says(0);
            assert!(soon(|| readyz().starts_with("200") && healthz().starts_with("200")));
            assert!(soon(|| ask(world, "status").0 == 0), "{:?}", ask(world, "status"));
            assert!(is_served_by(V4, 2) && is_served_by("10.96.0.11:80", 3), "{}", agent.log());
            agent.wait_for("the kernel takes what is written again");
            yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
            fs::remove_file(yaml::objects(world).join("other.yaml")).unwrap();
            assert!(soon(|| is_served_by(V4, 1) && !is_served_by("10.96.0.11:80", 3)));
        }
    });
}
