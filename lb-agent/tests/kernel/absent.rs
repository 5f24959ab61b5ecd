//! A directory that cannot be read, and inotify that has no room: the agent says what, where and what
//! to do, and goes on by itself as soon as it can.
#![expect(unsafe_code, reason = "a user namespace is made between fork and exec")]

use std::{fs, io, os::unix::process::CommandExt as _, process::Command};

use super::{
    agent::{Agent, SIZES, command, output},
    connect::V4,
    flips::udp_backend,
    machine::get,
    world::{World, backend4, soon},
    yaml,
};

#[test]
fn a_directory_that_is_not_there_yet() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let (dir, aside) = (yaml::objects(world), world.dir().join("aside"));
        fs::rename(&dir, &aside).unwrap();
        let start = command(world, &SIZES);
        // `command` has made it again.
        fs::remove_dir(&dir).unwrap();
        let agent = Agent::spawn(start);
        let what = format!("cannot read the directory {}: No such file", dir.display());
        agent.wait_for_start(&what);
        agent.wait_for("mkdir ");
        let readyz = || get("10256/readyz");
        assert!(soon(|| readyz().contains(&what)), "{}", readyz());
        assert!(readyz().starts_with("503"), "{}", readyz());
        assert!(get("10256/livez").starts_with("200"), "a restart makes no directory");
        assert_eq!(agent.log().matches(&what).count(), 1, "{}", agent.log());

        fs::rename(&aside, &dir).unwrap();
        agent.wait_for_start("the directory can be read now");
        agent.wait_for_start("in sync");
        assert!(soon(|| readyz().starts_with("200")), "{}\n{}", readyz(), agent.log());
        assert!(udp_backend(V4).is_ok());

        // Under way: what it said stays in force.
        fs::rename(&dir, &aside).unwrap();
        assert!(soon(|| readyz().contains(&what)), "{}", agent.log());
        assert!(udp_backend(V4).is_ok());
        fs::rename(&aside, &dir).unwrap();
        assert!(soon(|| readyz().starts_with("200")), "{}", agent.log());
    });
}

#[test]
fn inotify_without_room() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let source = format!("--source=dir:{}", yaml::objects(world).display());
        for limit in ["instances", "watches"] {
            let mut dry_run = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
            dry_run.args(["--dry-run", "--node-name=test", &source]);
            let path = format!("/proc/sys/user/max_inotify_{limit}");
            // The limits of a user namespace are its own.
            let no_room = move || {
                // SAFETY: unshare(2) with a number.
                if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                fs::write(&path, "0")
            };
            // SAFETY: the closure makes system calls only; a short path is not copied to the heap.
            unsafe { dry_run.pre_exec(no_room) };
            let (success, text) = output(dry_run);
            assert!(success, "the files are read all the same:\n{text}");
            assert!(text.contains("put service 10.96.0.10:80/tcp"), "{text}");
            let what = format!("cannot watch the directory {}", yaml::objects(world).display());
            assert_eq!(text.matches(&what).count(), 1, "{text}");
            assert!(text.contains(&format!("raise fs.inotify.max_user_{limit}")), "{text}");
        }
    });
}
