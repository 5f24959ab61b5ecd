//! What is missing or in the way is named together with the remedy, and nothing is lost.
#![expect(unsafe_code, reason = "capabilities are dropped between fork and exec")]

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use aya::{
    maps::{Map, MapData},
    programs::links::FdLink,
};
use nix::mount::{MsFlags, mount};

use super::{
    agent::{Agent, SIZES, command, refuses},
    connect::V4,
    control::pinned,
    flips::udp_backend,
    restart::{a_while, content, links, under_load},
    world::{World, backend4, mount_bpffs, take_away},
    yaml,
};

const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
const LAST: u32 = 40;

/// Root without these capabilities.
fn without(mut command: Command, dropped: impl IntoIterator<Item = u32>) -> Command {
    let dropped: Vec<_> = dropped.into_iter().collect();
    let drop = move || {
        for capability in &dropped {
            // SAFETY: prctl(2) with numbers only.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*capability)) } != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it allocates nothing unless it fails.
    unsafe { command.pre_exec(drop) };
    command
}

fn web(world: &World) {
    yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
}

#[test]
fn capabilities() {
    World::run(|world| {
        web(world);
        let all = without(command(world, &SIZES), [NET_ADMIN, SYS_ADMIN, PERFMON, BPF]);
        refuses(all, &["not permitted", "lack of CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON", "sudo"]);
        let one = without(command(world, &SIZES), [NET_ADMIN, SYS_ADMIN]);
        refuses(one, &["lack of CAP_NET_ADMIN:", "run as root"]);
        // The remedy it names is enough.
        let others =
            (0..=LAST).filter(|capability| ![NET_ADMIN, PERFMON, BPF].contains(capability));
        let agent = Agent::spawn(without(command(world, &SIZES), others));
        agent.wait_for_start("in sync");
        assert!(udp_backend(V4).is_ok());
    });
}

/// The plan is one against what is pinned, so it has to be read.
#[test]
fn a_dry_run_that_may_not_read_what_is_pinned() {
    World::run(|world| {
        web(world);
        Agent::start(world).kill();
        // Nobody else may come to where the tests are built.
        let (program, open) = (world.dir().join("lb-agent"), fs::Permissions::from_mode(0o755));
        fs::copy(env!("CARGO_BIN_EXE_lb-agent"), &program).unwrap();
        fs::set_permissions(world.dir(), open).unwrap();
        let mut nobody = Command::new(program);
        nobody.uid(65534).gid(65534).arg("--dry-run").arg("--bpffs").arg(world.bpffs());
        nobody.arg(format!("--source=dir:{}", yaml::objects(world).display()));
        let home = world.bpffs().join("socklb").display().to_string();
        let words = [&*home, "Permission denied", "sudo lb-agent --dry-run"];
        refuses(nobody, &words);
    });
}

#[test]
fn no_cgroup2_and_no_bpffs() {
    World::run(|world| {
        web(world);
        let dir = world.dir().to_str().unwrap();
        let cgroup = command(world, &[&format!("--cgroup={dir}")]);
        refuses(cgroup, &[dir, "is not a cgroup2 directory", "--cgroup"]);
        let none = command(world, &["--cgroup=/nowhere"]);
        refuses(none, &["--cgroup /nowhere", "No such file"]);
        // The last flag counts, so `--bpffs` of `command` cannot be overridden: build it anew.
        let on = |bpffs: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
            let source = format!("dir:{}", yaml::objects(world).display());
            command.args(["--source", &source, "--bpffs", bpffs, "--cgroup"]).arg(world.cgroup());
            command
        };
        refuses(on(dir), &[dir, "is not in a bpf file system", "mount -t bpf bpf"]);
        refuses(on("/nowhere"), &["--bpffs /nowhere", "No such file"]);
        assert!(!world.pins().home().exists());
    });
}

#[test]
fn a_read_only_bpffs() {
    World::run(|world| {
        web(world);
        let path = world.bpffs();
        let remount =
            |flags| mount(None::<&str>, &path, None::<&str>, flags, None::<&str>).unwrap();
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        refuses(command(world, &SIZES), &["is read-only", "remount,rw", path.to_str().unwrap()]);
        remount(MsFlags::MS_REMOUNT);
        let agent = Agent::start(world);

        // Later, with an agent before us: what is attached goes on, and the next start works.
        agent.kill();
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        refuses(command(world, &SIZES), &["is read-only", "remount,rw"]);
        assert!(udp_backend(V4).is_ok());
        remount(MsFlags::MS_REMOUNT);
        let _agent = Agent::start(world);
    });
}

/// Moves a pin to another place on the same bpffs: a map of another shape, but a real one.
fn swap(one: &Path, other: &Path) {
    let aside = one.with_file_name("aside");
    fs::rename(one, &aside).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(aside, other).unwrap();
}

/// Each foreign pin is named; once it is gone all is as it was.
#[test]
fn foreign_pins() {
    World::run(|world| {
        web(world);
        Agent::start(world).kill();
        let before = (content(&pinned(world)), links(world));
        let (pins, maps) = (world.pins(), world.pins().map_set(1));
        under_load(|load| {
            for (one, other) in [("services", "names"), ("services", "backends")] {
                swap(&maps.join(one), &maps.join(other));
                let words = ["maps-1", "of this version of socklb", "--cleanup", "--bpffs"];
                refuses(command(world, &SIZES), &words);
                swap(&maps.join(one), &maps.join(other));
                a_while(load);
            }
            swap(&pins.sockets(), &maps.join("names"));
            refuses(command(world, &SIZES), &["is not one of this version of socklb"]);
            swap(&pins.sockets(), &maps.join("names"));

            let (link, aside) = (pins.link("connect4"), pins.link("aside"));
            fs::rename(&link, &aside).unwrap();
            fs::create_dir(&link).unwrap();
            refuses(command(world, &SIZES), &["links/connect4", "is not a link of ours"]);
            fs::remove_dir(&link).unwrap();
            let names = MapData::from_pin(maps.join("names")).unwrap();
            Map::HashMap(names).pin(&link).unwrap();
            refuses(
                command(world, &SIZES),
                &["links/connect4", "is not a link of ours", "--cleanup"],
            );
            fs::remove_file(&link).unwrap();
            fs::rename(&aside, &link).unwrap();
        });
        assert_eq!(content(&pinned(world)), before.0);
        let ids = |links: &[(u32, u32)]| links.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&links(world)), ids(&before.1));
        let agent = Agent::start(world);
        assert!(agent.log().contains("ops=0"), "{}", agent.log());
    });
}

/// The pin of one program's link stands where another's should be.
#[test]
fn links_that_changed_places() {
    World::run(|world| {
        web(world);
        Agent::start(world).kill();
        let pins = world.pins();
        swap(&pins.link("connect4"), &pins.link("getpeername4"));
        refuses(command(world, &SIZES), &["is not a link of ours", "another program", "--cleanup"]);
        swap(&pins.link("connect4"), &pins.link("getpeername4"));
        let _agent = Agent::start(world);
        assert!(udp_backend(V4).is_ok());
    });
}

/// A cgroup removed under the programs detaches them; the next agent attaches to the new one.
#[test]
fn another_cgroup() {
    World::run(|world| {
        web(world);
        let below = world.cgroup().join("below");
        let there = format!("--cgroup={}", below.display());
        let arguments = [SIZES[0], SIZES[1], &there];
        for _ in 0..2 {
            fs::create_dir(&below).unwrap();
            Agent::start_with(world, &arguments).kill();
            assert!(udp_backend(V4).is_err(), "attached to a cgroup that this process is not in");
            take_away(&below);
        }
        // From a cgroup that is gone, from one that is there, and back.
        Agent::start(world).kill();
        assert!(udp_backend(V4).is_ok());
        fs::create_dir(&below).unwrap();
        let agent = Agent::start_with(world, &arguments);
        agent.wait_for("moves to another cgroup");
        agent.kill();
        assert!(udp_backend(V4).is_err(), "the old cgroup is served no longer");
        Agent::start(world).kill();
        assert!(udp_backend(V4).is_ok());
        take_away(&below);
    });
}

/// A bpffs in a container often is one of its own, made anew with it.
#[test]
fn another_bpffs() {
    World::run(|world| {
        web(world);
        let _agent = Agent::start(world);
        let path = world.dir().join("second");
        fs::create_dir(&path).unwrap();
        mount_bpffs(&path, MsFlags::empty());
        let mut second = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        let source = format!("dir:{}", yaml::objects(world).display());
        second.args(["--source", &source, "--bpffs"]).arg(&path);
        second.arg("--cgroup").arg(world.cgroup());
        // Two agents on two sets of pins: links stack, the first one's program translates.
        let second = Agent::spawn(second);
        second.wait_for_start("in sync");
        assert!(udp_backend(V4).is_ok());
        second.kill();
        let link: FdLink = lb_agent::pins::open_link(&world.pins().link("connect4")).unwrap().0;
        assert!(link.info().is_ok());
    });
}
