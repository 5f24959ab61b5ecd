//! cgroup2: which sockets a program sees.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use super::sandbox::{own_name, remove_stale};

/// A child of the cgroup2 root with this process in it. Never the root itself: a program attached
/// there would see all sockets of the machine.
pub(super) struct Cgroup {
    directory: PathBuf,
    /// Where this process was before.
    before: PathBuf,
}

impl Cgroup {
    pub(super) fn enter(name: &str) -> Self {
        let (root, before) = (root(), of_this_process());
        remove_stale(&root);
        let directory = root.join(format!("{}-{name}", own_name()));
        fs::create_dir(&directory).expect("a cgroup");
        let new = Self { directory, before };
        join(&new.directory, process::id()).expect("this process in the new cgroup");
        new
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = join(&self.before, process::id()) {
            eprintln!("cannot go back to {}: {error}", self.before.display());
        }
        let mut removed = fs::remove_dir(&self.directory);
        // A process that was killed leaves its cgroup a moment after it was waited for.
        for _ in 0..100 {
            if removed.is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
            removed = fs::remove_dir(&self.directory);
        }
        eprintln!("{} stays behind: {removed:?}", self.directory.display());
    }
}

/// Moves a process.
pub(super) fn join(cgroup: &Path, process: u32) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), process.to_string())
}

/// The cgroup that this process is in.
pub(super) fn of_this_process() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").expect("the cgroups of this process");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    root().join(own.expect("no cgroup2 is in use"))
}

/// On a hybrid machine cgroup2 is not where it is on most others.
fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("the table of mounts");
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let directory = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(directory))
    });
    root.expect("no cgroup2 is mounted: mount -t cgroup2 none DIR")
}
