//! A program whose pin somebody removed: it works on, the agent holds it.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    agent::Agent,
    connect::V4,
    flips::udp_backend,
    lbctl::ask,
    world::{World, backend4, soon},
    yaml,
};

/// Not another agent's, and nothing to be cleaned up.
#[test]
fn status_knows_it_for_its_own() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        let status = || ask(world, "status").1;
        assert!(!status().contains("pin is gone"), "{}", status());
        // While it is stopped, it repairs nothing.
        let pid = Pid::from_raw(agent.pid().try_into().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        let pin = world.pins().link("connect4");
        fs::remove_file(&pin).unwrap();
        let said = status();
        assert!(udp_backend(V4).is_ok(), "it works on");
        assert!(
            said.contains("at work, but the pin is gone of: connect4; the agent pins"),
            "{said}"
        );
        for wrong in ["another bpf file system", "--cleanup", "not attached", "another program"] {
            assert!(!said.contains(wrong), "{wrong}: {said}");
        }
        let (_, _, notes) = ask(world, &format!("explain {V4}"));
        assert_eq!(notes, "", "what it explains is in force");
        // Nor if nothing tells where they are attached.
        fs::remove_dir_all(world.pins().links()).unwrap();
        let said = status();
        assert!(udp_backend(V4).is_ok(), "they work on");
        assert!(
            said.contains("at work, but the pin is gone of: connect4, connect6, getpeername4, "),
            "{said}"
        );
        let cgroup = world.cgroup().display().to_string();
        assert_eq!(said.matches(&format!("   unpinned   {cgroup}\n")).count(), 8, "{said}");
        assert!(!said.contains("not attached"), "{said}");
        kill(pid, Signal::SIGCONT).unwrap();
        assert!(soon(|| pin.exists()), "{}", agent.log());
        assert!(!status().contains("pin is gone"), "{}", status());
    });
}
