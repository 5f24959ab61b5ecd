//! What may stand where a file of the directory should, and must not stop the agent from following
//! the others: FIFOs, files that wait, file systems that do not answer.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd as _, unix::fs::symlink},
    path::Path,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    agent::{Agent, command},
    connect::V4,
    flips::udp_backend,
    machine::get,
    world::{World, backend4, soon},
    yaml,
};

/// A FUSE file system that answers nothing; whoever waits for it gets an error when the file is closed.
fn hung(at: &Path) -> File {
    fs::create_dir(at).unwrap();
    hung_over(at)
}

/// The same over a directory that is there.
fn hung_over(at: &Path) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("hung"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
    device
}

#[test]
fn what_is_no_file_is_told_and_the_others_are_followed() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        let dir = yaml::objects(world);
        nix::unistd::mkfifo(&dir.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/proc/kmsg", dir.join("kmsg.yaml")).unwrap();
        fs::create_dir(dir.join("dir.yaml")).unwrap();
        for what in [
            "pipe.yaml: file: cannot be read: it is a FIFO",
            "dir.yaml: file: cannot be read: it is a directory",
            "kmsg.yaml: file: cannot be read: it is a file of the kernel's",
        ] {
            assert!(soon(|| agent.log().contains(what)), "{what}: {}", agent.log());
        }
        yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
        assert!(soon(|| udp_backend(V4).is_ok_and(|to| to.ip() == backend4(2))), "{}", agent.log());
        assert_eq!(agent.log().matches("it is a FIFO").count(), 1, "{}", agent.log());
        assert!(get("10256/livez").starts_with("200"), "{}", get("10256/livez"));
    });
}

#[test]
fn a_file_system_that_does_not_answer_fails_the_probes_until_it_does() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        let mounted = world.dir().join("hung");
        let device = hung(&mounted);
        symlink(mounted.join("a.yaml"), yaml::objects(world).join("z.yaml")).unwrap();
        let all = || ["livez", "readyz", "healthz"].map(|it| get(&format!("10256/{it}")));
        let fails = |answers: &[String]| {
            answers.iter().all(|it| {
                it.starts_with("503") && it.contains("z.yaml: its file system has not answered")
            })
        };
        assert!(soon(|| fails(&all())), "{:?}\n{}", all(), agent.log());
        let told = "nothing in the directory is followed until it does";
        agent.wait_for(told);
        assert_eq!(agent.log().matches(told).count(), 1, "{}", agent.log());
        assert!(udp_backend(V4).is_ok(), "what is written serves");

        drop(device);
        let well = |answers: &[String]| answers.iter().all(|it| it.starts_with("200"));
        assert!(soon(|| well(&all())), "{:?}\n{}", all(), agent.log());
        yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
        assert!(soon(|| udp_backend(V4).is_ok_and(|to| to.ip() == backend4(2))), "{}", agent.log());
        agent.wait_for("z.yaml: file: cannot be read");
    });
}

/// The directory itself hangs, and comes back.
#[test]
fn a_directory_that_does_not_answer() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        let dir = yaml::objects(world);
        let device = hung_over(&dir);
        let fails = || {
            let live = get("10256/livez");
            live.starts_with("503") && live.contains("objects: its file system has not answered")
        };
        assert!(soon(fails), "{}\n{}", get("10256/livez"), agent.log());
        assert!(udp_backend(V4).is_ok(), "what is written serves");

        drop(device);
        umount2(&dir, MntFlags::MNT_DETACH).unwrap();
        assert!(soon(|| get("10256/livez").starts_with("200")), "{}", agent.log());
        yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
        assert!(soon(|| udp_backend(V4).is_ok_and(|to| to.ip() == backend4(2))), "{}", agent.log());
    });
}

/// A hung file at the start: nothing is known, and the probes say why.
#[test]
fn a_file_system_that_does_not_answer_at_the_start() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let mounted = world.dir().join("hung");
        let device = hung(&mounted);
        symlink(mounted.join("a.yaml"), yaml::objects(world).join("z.yaml")).unwrap();
        let agent = Agent::spawn(command(world, &super::agent::SIZES));
        assert!(soon(|| get("10256/livez").starts_with("503")), "{}", agent.log());
        drop(device);
        agent.wait_for_start("in sync");
        assert!(soon(|| get("10256/livez").starts_with("200")), "{}", agent.log());
    });
}
