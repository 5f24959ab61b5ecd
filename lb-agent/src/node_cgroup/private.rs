//! cgroup2 mounted for this process alone: nobody else sees it, and it ends with the descriptor.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::location::Location;

/// The mount, whose root is that of the cgroup namespace of PID 1, and where PID 1 is below it. None if
/// PID 1 is not below it, or its cgroup was removed.
pub(super) fn of_init() -> io::Result<(OwnedFd, Option<Location>)> {
    within_init(|| {
        let context = open()?;
        let init = Location::of_process(&fs::read_to_string("/proc/1/cgroup")?);
        Ok((create(&context)?, init.filter(|init| init.up == 0)))
    })
}

/// The mount, whose root is that of the own cgroup namespace.
pub(super) fn own() -> io::Result<OwnedFd> {
    in_thread(|| create(&open()?))
}

/// Does something in the cgroup namespace of PID 1, which takes `CAP_SYS_PTRACE` and `CAP_SYS_ADMIN`.
pub(crate) fn within_init<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    in_thread(|| {
        setns(File::open("/proc/1/ns/cgroup")?, CloneFlags::CLONE_NEWCGROUP)?;
        work()
    })
}

/// A thread that has changed its namespace ends.
fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("cgroup2".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The mount to be: its root is that of the cgroup namespace that this is called in.
fn open() -> io::Result<OwnedFd> {
    Ok(fsopen(c"cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?)
}

/// Whoever mounts cgroup2 in the first cgroup namespace sets its options (`nsdelegate`,
/// `memory_recursiveprot`) for the whole machine, or with none given clears them
/// (`apply_cgroup_root_flags` in `kernel/cgroup/cgroup.c`). So this is done in one of its own.
fn create(context: &OwnedFd) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    fsconfig_create(context)?;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
