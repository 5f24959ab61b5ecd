//! One agent at a time, and `--cleanup`.

use super::{
    agent::{Agent, SIZES, command, output, refuses},
    connect::V4,
    control::pinned,
    flips::udp_backend,
    restart::{content, links},
    world::{World, backend4},
    yaml,
};

#[test]
fn a_second_agent_is_refused() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let first = Agent::start(world);
        let before = (content(&pinned(world)), links(world));
        // Other sizes too: it has to find out before it touches anything.
        for sizes in [SIZES, ["--max-services=100", "--max-backends=100"]] {
            refuses(command(world, &sizes), &["another lb-agent is running", "--bpffs"]);
        }
        assert_eq!((content(&pinned(world)), links(world)), before);
        first.kill();
        let second = Agent::start(world);
        assert!(second.terminate().success());
    });
}

#[test]
fn cleanup_removes_every_trace() {
    World::run(|world| {
        let (success, text) = output(command(world, &["--cleanup"]));
        assert!(success && text.contains("nothing to remove"), "{text}");

        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        refuses(command(world, &["--cleanup"]), &["an agent is running", "stop it"]);
        assert!(udp_backend(V4).is_ok());

        agent.kill();
        assert!(udp_backend(V4).is_ok());
        let (success, text) = output(command(world, &["--cleanup"]));
        assert!(success && text.contains("removed"), "{text}");
        assert!(!world.pins().home().exists());
        let untranslated = udp_backend(V4).unwrap_err();
        assert_eq!(untranslated.raw_os_error(), Some(libc::ENETUNREACH));
        // And it can be begun anew.
        let _agent = Agent::start(world);
        assert!(udp_backend(V4).is_ok());
    });
}
