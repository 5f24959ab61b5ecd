//! What an agent goes on from, and what it does not: maps that only look like its own, sets of maps
//! with names that no agent gives, programs of which not all can be attached.
#![expect(unsafe_code, reason = "bpf(2) as other tools call it, and limits between fork and exec")]

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    mem::size_of,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::Command,
};

use aya::maps::{MapData, MapInfo};
use lb_agent::{
    datapath::Datapath,
    pins::{PROGRAMS, Pins, open_link},
};
use nix::mount::MsFlags;

use super::{
    agent::{Agent, SIZES, command, output, refuses},
    connect::V4,
    control,
    flips::udp_backend,
    machine::readyz,
    restart::{a_while, under_load},
    world::{World, backend4, mount_bpffs, soon, take_away},
    yaml,
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_ATTACH: libc::c_long = 8;

/// `bpf_attr` of `BPF_OBJ_PIN`: the path, the descriptor, flags.
#[repr(C)]
struct ObjectPin(u64, u32, u32);

fn bpf<T>(call: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, which are as long as is said.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, call, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Puts a map of the same shape in the place of a pinned one, without what the kernel knows of its
/// types: it has no lock.
fn replace_by_plain(pin: &Path) {
    let info: MapInfo = MapData::from_pin(pin).unwrap().info().unwrap();
    let attributes = [
        info.map_type().unwrap() as u32,
        info.key_size(),
        info.value_size(),
        info.max_entries(),
        info.map_flags(),
    ];
    let fd = bpf(BPF_MAP_CREATE, &attributes).unwrap();
    // SAFETY: it is new, and nobody else's.
    let map = unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) };
    fs::remove_file(pin).unwrap();
    let path = CString::new(pin.as_os_str().as_bytes()).unwrap();
    let pin =
        ObjectPin(path.as_ptr().expose_provenance() as u64, map.as_raw_fd().cast_unsigned(), 0);
    bpf(BPF_OBJ_PIN, &pin).unwrap();
}

fn is_served_by(backend: u8) -> bool {
    udp_backend(V4).is_ok_and(|addr| addr.ip() == backend4(backend))
}

/// The agent serves, and goes on writing.
fn works(world: &World, agent: &Agent) {
    assert!(is_served_by(1), "{}", agent.log());
    assert!(soon(|| readyz().starts_with("200")), "{}", readyz());
    yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
    assert!(soon(|| is_served_by(2)), "{}", agent.log());
    assert!(!agent.log().contains("not written"), "{}", agent.log());
    yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
    assert!(soon(|| is_served_by(1)), "{}", agent.log());
}

#[test]
fn a_map_without_its_lock() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        Agent::start(world).kill();
        under_load(|load| {
            for name in ["services", "addresses", "affinity", "clients"] {
                replace_by_plain(&world.pins().maps().unwrap().unwrap().join(name));
                a_while(load);
                let agent = Agent::start(world);
                agent.wait_for(&format!("WARN the map {name} takes no write"));
                agent.wait_for("starting with empty maps");
                a_while(load);
                works(world, &agent);
                assert_eq!(world.pins().map_sets().unwrap().len(), 1);
                agent.kill();
            }
        });
    });
}

/// What lies beside the storage of sockets is made anew by itself; the set of maps stays.
#[test]
fn a_map_beside_the_storage_without_its_lock() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        Agent::start(world).kill();
        for name in ["heard", "held"] {
            replace_by_plain(&world.pins().storage(name));
        }
        under_load(|load| {
            a_while(load);
            let agent = Agent::start(world);
            for name in ["heard", "held"] {
                agent.wait_for(&format!("WARN the map {name} takes no write"));
            }
            assert!(!agent.log().contains("starting with empty maps"), "{}", agent.log());
            a_while(load);
            works(world, &agent);
        });
    });
}

#[test]
fn numbers_that_no_agent_gives() {
    World::run(|world| {
        let pins = world.pins();
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        Agent::start(world).kill();
        under_load(|load| {
            let mut strays = Vec::new();
            let mut starts = |sizes: &[&str], stray: Option<&str>| {
                if let Some(stray) = stray {
                    let stray = pins.root().join(stray);
                    fs::rename(pins.maps().unwrap().unwrap(), &stray).unwrap();
                    strays.push(stray);
                }
                a_while(load);
                let agent = Agent::start_with(world, sizes);
                for stray in &strays {
                    let remedy = format!("`rm -r {}`", stray.display());
                    assert!(agent.log().contains(&remedy), "{}", agent.log());
                }
                a_while(load);
                works(world, &agent);
                assert_eq!(pins.map_sets().unwrap().len(), 1);
                agent.kill();
            };
            for name in ["maps-4294967295", "maps-0", "maps-007", "maps-abc"] {
                starts(&SIZES, Some(name));
            }
            // Also where the maps are to be of another size, and so of another number.
            starts(&["--max-services=100", "--max-backends=300"], None);
        });
        let (success, text) = output(command(world, &["--cleanup"]));
        assert!(success && !pins.home().exists(), "{text}");
    });
}

/// How many links are pinned: all, or none.
fn pinned_links(pins: &Pins) -> usize {
    fs::read_dir(pins.links()).map_or(0, Iterator::count)
}

/// Programs of an agent that could not start: none is attached.
fn none_is_attached(world: &World) {
    assert_eq!(pinned_links(&world.pins()), 0);
    let error = udp_backend(V4).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
}

/// With these limits of open files, soft and hard.
fn with_open_files(mut command: Command, soft: u64, hard: u64) -> Command {
    let limits = move || {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the kernel reads the limits.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(limits) };
    command
}

/// With 64 of them half of the programs were attached once.
#[test]
fn too_few_open_files() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        for hard in [32, 64, 127] {
            let few = with_open_files(command(world, &SIZES), 32, hard);
            refuses(few, &[&format!("{hard} files"), "ulimit -Hn", "LimitNOFILE"]);
            none_is_attached(world);
        }
        // What may be raised is, and the least that is taken is enough.
        let agent = Agent::spawn(with_open_files(command(world, &SIZES), 32, 128));
        agent.wait_for_start("in sync");
        assert_eq!(pinned_links(&world.pins()), PROGRAMS.len());
        works(world, &agent);
    });
}

/// Somebody has one of the hooks for himself: a program that was attached as before there were several.
#[test]
fn a_hook_that_is_taken() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let second = world.dir().join("second");
        fs::create_dir(&second).unwrap();
        mount_bpffs(&second, MsFlags::empty());
        let pins = Pins::new(&second);
        let (mut datapath, _maps) = Datapath::load(&pins, control::SIZES).unwrap();
        let elsewhere = world.cgroup().with_extension("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        datapath.attach(&elsewhere).unwrap();
        // The last one.
        let id = open_link(&pins.link("sendmsg6")).unwrap().0.info().unwrap().program_id();
        drop(datapath);
        let mut loaded = aya::programs::loaded_programs().filter_map(Result::ok);
        let program = loaded.find(|info| info.id() == id).unwrap().fd().unwrap();
        let cgroup = File::open(world.cgroup()).unwrap();
        let attributes =
            [cgroup.as_raw_fd(), program.as_fd().as_raw_fd(), 15, 0].map(i32::cast_unsigned);
        bpf(BPF_PROG_ATTACH, &attributes).unwrap();
        take_away(&elsewhere);
        for _ in 0..2 {
            let words = ["cannot attach the program sendmsg6", world.cgroup().to_str().unwrap()];
            refuses(command(world, &SIZES), &words);
            none_is_attached(world);
        }
    });
}
