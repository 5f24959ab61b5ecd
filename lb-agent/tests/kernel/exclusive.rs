//! One agent at a time, and `--cleanup`, whatever becomes of the pins meanwhile.

use std::fs;

use nix::mount::{MntFlags, MsFlags, umount2};

use super::{
    agent::{Agent, SIZES, command, output, refuses},
    connect::V4,
    control::pinned,
    flips::udp_backend,
    restart::{content, links},
    world::{World, backend4, mount_bpffs, soon},
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

/// An agent under which somebody has done something to its pins; afterwards it is the only one all the
/// same, and nobody removes what it has pinned anew.
fn is_alone_after(meddle: impl FnOnce(&World) + Send) {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        meddle(world);
        agent.wait_for("pinned and attached again");
        assert!(soon(|| world.pins().holder().is_ok_and(|holder| holder.is_some())));
        let before = (content(&pinned(world)), links(world));
        refuses(command(world, &SIZES), &["another lb-agent is running", "(the process "]);
        refuses(command(world, &["--cleanup"]), &["an agent is running", "(the process "]);
        assert_eq!((content(&pinned(world)), links(world)), before);
        yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
        assert!(soon(|| udp_backend(V4).is_ok_and(|addr| addr.ip() == backend4(2))));
        // And what was pinned anew is enough for the next one.
        agent.kill();
        assert!(udp_backend(V4).is_ok());
        let agent = Agent::start(world);
        assert!(agent.log().contains("going on from the pinned maps"), "{}", agent.log());
        agent.kill();
        let (success, text) = output(command(world, &["--cleanup"]));
        assert!(success && !world.pins().home().exists(), "{text}");
    });
}

#[test]
fn after_its_pins_were_removed() {
    is_alone_after(|world| fs::remove_dir_all(world.pins().home()).unwrap());
}

#[test]
fn after_its_pins_were_moved() {
    is_alone_after(|world| {
        let home = world.pins().home().to_owned();
        fs::rename(&home, home.with_file_name("socklb-old")).unwrap();
    });
}

#[test]
fn after_its_pins_were_replaced() {
    is_alone_after(|world| {
        let home = world.pins().home().to_owned();
        fs::remove_dir_all(&home).unwrap();
        fs::create_dir(&home).unwrap();
    });
}

#[test]
fn after_the_bpffs_was_mounted_anew() {
    is_alone_after(|world| {
        umount2(&world.bpffs(), MntFlags::MNT_DETACH).unwrap();
        mount_bpffs(&world.bpffs(), MsFlags::empty());
    });
}
