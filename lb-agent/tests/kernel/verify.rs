//! What others do to the programs while an agent runs is seen, and undone where that is possible (M6).
#![expect(unsafe_code, reason = "bpf(2) as bpftool calls it")]

use std::{
    fs::{self, File},
    os::fd::{BorrowedFd, RawFd},
    path::{Path, PathBuf},
};

use aya::programs::links::FdLink;
use lb_agent::{
    canary::{self, CanaryError, SENTINELS},
    datapath::{Datapath, Defect, Finding},
    maps::Pinned,
    pins::{PROGRAMS, Pins, open_link},
};
use lb_core::{
    model::Change,
    pipeline::{NodeConfig, Pipeline},
    socket_engine::SocketSettings,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    connect::V4,
    control::{SIZES, object, service, slice},
    flips::udp_backend,
    world::{World, backend4, mount_bpffs, take_away},
};

/// An agent of which only the programs are of interest.
struct Subject {
    datapath: Datapath,
    cgroup: PathBuf,
    _pipeline: Pipeline<Pinned>,
}

impl Subject {
    fn start(pins: &Pins, cgroup: &Path) -> Self {
        let (mut datapath, maps) = Datapath::load(pins, SIZES).unwrap();
        datapath.attach(cgroup).unwrap();
        let snapshot = maps.snapshot().unwrap();
        let view = NodeConfig {
            sockets: SocketSettings { reserved: SENTINELS.to_vec(), ..SocketSettings::default() },
            ..NodeConfig::default()
        };
        let mut pipeline = Pipeline::with_config(view, maps, &snapshot);
        let web = (object("web"), service(&["10.96.0.10"], 80));
        pipeline.change(Change::ListedNodes([].into()));
        pipeline.change(Change::ListedServices([web].into()));
        let slice = (object("web-1"), slice("web", &[backend4(1)]));
        pipeline.change(Change::ListedSlices([slice].into()));
        assert!(pipeline.sync().sockets.failed.is_empty());
        Self { datapath, cgroup: cgroup.to_owned(), _pipeline: pipeline }
    }

    fn problems(&self) -> Vec<(&'static str, Defect)> {
        let findings = self.datapath.verify(&self.cgroup).unwrap();
        findings.into_iter().map(|Finding { name, problem }| (name, problem)).collect()
    }

    fn canary(&self) -> Result<(), CanaryError> {
        let result = canary::check(&self.cgroup);
        let left = fs::read_dir(&self.cgroup).unwrap().flatten();
        let left = left.filter(|entry| entry.file_name().to_string_lossy().contains("canary"));
        assert_eq!(left.count(), 0, "the canary cleans up");
        result
    }

    fn is_well(&self) -> bool {
        self.canary() == Ok(()) && self.problems().is_empty()
    }

    fn repair(&mut self) {
        self.datapath.repair(&self.cgroup).unwrap();
        assert_eq!(self.problems(), []);
        assert_eq!(self.canary(), Ok(()));
    }
}

/// The canary's words, which name all of these programs.
fn names(result: Result<(), CanaryError>, programs: &[&str]) {
    let Err(CanaryError::NotInForce(text)) = result else { panic!("{result:?}") };
    println!("{text}");
    for program in ["connect4", "connect6", "sendmsg4", "sendmsg6"] {
        assert_eq!(text.contains(program), programs.contains(&program), "{program}: {text}");
    }
}

/// `BPF_LINK_DETACH`, which `bpftool link detach` calls.
pub(crate) fn detach(pin: &Path) {
    let (link, _) = open_link(pin).unwrap();
    let id = link.info().unwrap().id();
    let wanted = format!("link_id:\t{id}\n");
    let fd: RawFd = fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .flatten()
        .find(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(&wanted)))
        .and_then(|entry| entry.file_name().to_str()?.parse().ok())
        .unwrap();
    // SAFETY: `link` keeps it open, or else the agent does.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let attributes = [u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&fd)).unwrap()];
    // SAFETY: the kernel reads the attributes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 34, attributes.as_ptr(), 4) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_canary_sings_only_where_the_programs_are_in_force() {
    World::run(|world| {
        let before = canary::check(world.cgroup());
        names(before, &["connect4", "connect6", "sendmsg4", "sendmsg6"]);
        let subject = Subject::start(&world.pins(), world.cgroup());
        assert!(subject.is_well());
        let beside = world.cgroup().with_extension("beside");
        fs::create_dir(&beside).unwrap();
        let result = canary::check(&beside);
        fs::remove_dir(&beside).unwrap();
        names(result, &["connect4", "connect6", "sendmsg4", "sendmsg6"]);
    });
}

/// Frozen with the cgroup, the child says nothing; it is killed all the same.
#[test]
fn a_canary_that_is_frozen_ends() {
    World::run(|world| {
        let below = world.cgroup().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.freeze"), "1").unwrap();
        let result = canary::check(&below);
        fs::write(below.join("cgroup.freeze"), "0").unwrap();
        assert!(
            matches!(&result, Err(CanaryError::Unknown(text)) if text.contains("timed out")),
            "{result:?}"
        );
        let _ = fs::remove_dir(below.join(format!("socklb-canary-{}", std::process::id())));
        take_away(&below);
    });
}

#[test]
fn links_unpinned_by_hand() {
    World::run(|world| {
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        for name in ["connect4", "recvmsg6"] {
            fs::remove_file(world.pins().link(name)).unwrap();
        }
        let lost = [("recvmsg6", Defect::Unpinned), ("connect4", Defect::Unpinned)];
        assert_eq!(subject.problems(), lost);
        assert_eq!(subject.canary(), Ok(()), "the agent keeps them attached");
        assert!(udp_backend(V4).is_ok());
        subject.repair();
        drop(subject);
        assert!(udp_backend(V4).is_ok(), "the pins do");
    });
}

/// Everything below the bpffs, as `rm -r` does it.
#[test]
fn all_pins_removed_by_hand() {
    World::run(|world| {
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        fs::remove_dir_all(world.pins().home()).unwrap();
        let problems = subject.problems();
        assert!(problems.contains(&("services", Defect::MapUnpinned)), "{problems:?}");
        assert!(problems.contains(&("sockets", Defect::MapUnpinned)), "{problems:?}");
        assert!(problems.contains(&("connect4", Defect::Unpinned)), "{problems:?}");
        assert!(udp_backend(V4).is_ok());
        subject.repair();
        drop(subject);
        assert!(udp_backend(V4).is_ok());
        let next = Subject::start(&world.pins(), world.cgroup());
        assert!(next.datapath.is_adopted() && next.is_well());
    });
}

#[test]
fn links_detached_by_hand() {
    World::run(|world| {
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        detach(&world.pins().link("connect4"));
        assert!(udp_backend(V4).is_err());
        assert_eq!(subject.problems(), [("connect4", Defect::Detached)]);
        names(subject.canary(), &["connect4"]);
        subject.repair();
        assert!(udp_backend(V4).is_ok());
        for name in PROGRAMS {
            detach(&world.pins().link(name));
        }
        assert_eq!(subject.problems().len(), PROGRAMS.len());
        subject.repair();
        // Detached, and the pin removed as well.
        detach(&world.pins().link("sendmsg6"));
        fs::remove_file(world.pins().link("sendmsg6")).unwrap();
        assert_eq!(subject.problems(), [("sendmsg6", Defect::Detached)]);
        names(subject.canary(), &["sendmsg6"]);
        subject.repair();
    });
}

#[test]
fn another_program_in_our_link() {
    World::run(|world| {
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        // A second agent that does not respect the lock: its programs go into the links.
        let second = Subject::start(&world.pins(), world.cgroup());
        let problems = subject.problems();
        assert_eq!(problems.len(), PROGRAMS.len());
        assert!(problems.iter().all(|(_, problem)| matches!(problem, Defect::Replaced(_))));
        assert!(second.is_well());
        subject.repair();
        assert_eq!(second.problems().len(), PROGRAMS.len());
    });
}

#[test]
fn a_cgroup_removed_and_made_again() {
    World::run(|world| {
        let below = world.cgroup().join("below");
        fs::create_dir(&below).unwrap();
        let mut subject = Subject::start(&world.pins(), &below);
        assert!(subject.is_well());
        take_away(&below);
        assert!(subject.datapath.verify(&below).is_err(), "it is not there");
        assert!(matches!(canary::check(&below), Err(CanaryError::Unknown(_))));
        fs::create_dir(&below).unwrap();
        assert_eq!(subject.problems().len(), PROGRAMS.len());
        names(subject.canary(), &["connect4", "connect6", "sendmsg4", "sendmsg6"]);
        subject.repair();
        drop(subject);
        take_away(&below);
    });
}

/// Moved by somebody: another agent on the same pins, with another `--cgroup`.
#[test]
fn links_to_another_cgroup() {
    World::run(|world| {
        let below = world.cgroup().join("below");
        fs::create_dir(&below).unwrap();
        let id =
            std::os::unix::fs::MetadataExt::ino(&File::open(&below).unwrap().metadata().unwrap());
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        let second = Subject::start(&world.pins(), &below);
        assert!(subject.problems().contains(&("connect4", Defect::Elsewhere(id))));
        subject.repair();
        drop(second);
        drop(subject);
        take_away(&below);
    });
}

/// The programs of an agent on another bpffs were there first, and translate first.
#[test]
fn another_agent_s_programs_run_before() {
    World::run(|world| {
        let path = world.dir().join("second");
        fs::create_dir(&path).unwrap();
        mount_bpffs(&path, MsFlags::empty());
        let first = Subject::start(&Pins::new(&path), world.cgroup());
        let second = Subject::start(&world.pins(), world.cgroup());
        assert!(first.is_well());
        let findings = second.datapath.verify(world.cgroup()).unwrap();
        assert_eq!(findings.len(), PROGRAMS.len());
        let (link, _): (FdLink, _) = open_link(&Pins::new(&path).link("connect4")).unwrap();
        let id = link.info().unwrap().program_id();
        let wanted = Defect::Behind { id, name: Some("connect4".to_owned()) };
        let found = findings.iter().find(|finding| finding.name == "connect4").unwrap();
        assert_eq!(found.problem, wanted);
        assert!(found.to_string().contains("another lb-agent's: stop that one"), "{found}");
        // Those above run after ours.
        let below = world.cgroup().join("below");
        fs::create_dir(&below).unwrap();
        drop(second);
        lb_agent::datapath::cleanup(&world.bpffs()).unwrap();
        let mut third = Subject::start(&world.pins(), &below);
        assert!(third.is_well());
        third.repair();
        drop(third);
        take_away(&below);
    });
}

/// Where nothing can be pinned, nothing is touched.
#[test]
fn a_bpffs_that_is_gone() {
    World::run(|world| {
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        let path = world.bpffs();
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        assert!(!subject.problems().is_empty());
        let error = subject.datapath.repair(world.cgroup()).unwrap_err().to_string();
        assert!(error.contains("is no bpf file system any more"), "{error}");
        assert!(udp_backend(V4).is_ok());
        mount_bpffs(&path, MsFlags::empty());
        let remount =
            |flags| mount(None::<&str>, &path, None::<&str>, flags, None::<&str>).unwrap();
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        assert!(subject.datapath.repair(world.cgroup()).is_err());
        remount(MsFlags::MS_REMOUNT);
        subject.repair();
        drop(subject);
        assert!(udp_backend(V4).is_ok());
    });
}

#[test]
fn pins_of_others_are_left_alone() {
    World::run(|world| {
        let mut subject = Subject::start(&world.pins(), world.cgroup());
        let maps = world.pins().map_set(1);
        fs::rename(maps.join("names"), maps.join("aside")).unwrap();
        fs::rename(maps.join("services"), maps.join("names")).unwrap();
        let (link, aside) = (world.pins().link("connect4"), world.pins().link("aside"));
        fs::rename(&link, &aside).unwrap();
        fs::create_dir(&link).unwrap();
        let problems = subject.problems();
        let foreign = |problem: &Defect| matches!(problem, Defect::Foreign(_));
        assert!(problems.iter().any(|(name, problem)| *name == "connect4" && foreign(problem)));
        assert!(problems.contains(&("services", Defect::MapUnpinned)), "{problems:?}");
        assert!(subject.datapath.repair(world.cgroup()).is_err());
        assert!(link.is_dir() && udp_backend(V4).is_ok());
    });
}
