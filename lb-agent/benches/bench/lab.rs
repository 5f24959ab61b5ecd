//! Where the measurements take place: a mount namespace with its own bpffs, a network namespace with
//! no way out, another one with no way to anywhere, and child cgroups. All of it goes away with the
//! process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, ensure};
use lb_agent::mounts;
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    unistd::Pid,
};
use tempfile::TempDir;

/// The place. Of one thread only: namespaces and cgroups are entered by whoever makes it.
pub(crate) struct Lab {
    dir: TempDir,
    cgroup: PathBuf,
    /// The cgroup this process came from.
    home: PathBuf,
    network: File,
    void: File,
}

impl Lab {
    /// Enters new namespaces and makes a child cgroup below cgroup2's root.
    pub(crate) fn enter() -> Result<Self> {
        let root = mounts::first("cgroup2")?.context("cgroup2 is not mounted")?.path;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
        let home = root.join(own);
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("cannot make namespaces: run as root")?;
        let (nothing, nowhere) = (None::<&str>, None::<&Path>);
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        let dir = TempDir::with_prefix("socklb-bench-")?;
        let bpffs = dir.path().join("bpf");
        fs::create_dir(&bpffs)?;
        mount(nowhere, &bpffs, Some("bpf"), MsFlags::empty(), nothing).context("bpffs")?;
        // Every address of the benches is the machine itself, and there is no other interface.
        ip(&["link", "set", "lo", "up"])?;
        ip(&["route", "add", "local", "10.0.0.0/8", "dev", "lo"])?;
        ip(&["-6", "route", "add", "local", "fd00::/8", "dev", "lo"])?;
        let namespace = || File::open("/proc/thread-self/ns/net");
        let network = namespace()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let void = namespace()?;
        setns(&network, CloneFlags::CLONE_NEWNET)?;
        let cgroup = root.join(format!("socklb-bench-{}", process::id()));
        fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        Ok(Self { dir, cgroup, home, network, void })
    }

    /// Does something in a network namespace in which there is no way to anywhere: a connect() runs the
    /// programs, and then fails.
    pub(crate) fn in_the_void<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        setns(&self.void, CloneFlags::CLONE_NEWNET)?;
        let result = act();
        setns(&self.network, CloneFlags::CLONE_NEWNET)?;
        result
    }

    /// A directory for files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An empty directory in the private bpffs, to pin in.
    pub(crate) fn bpffs(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join("bpf").join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// A new child cgroup.
    pub(crate) fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What fails here leaves an empty directory behind, which is no reason to panic.
        drop(move_to(&self.home));
        for child in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            drop(fs::remove_dir(child.path()));
        }
        drop(fs::remove_dir(&self.cgroup));
        umount(&self.dir.path().join("bpf")).unwrap_or_default();
    }
}

/// Moves this process into a cgroup: the sockets it makes from now on belong to it.
pub(crate) fn move_to(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot enter {}", cgroup.display()))
}

/// Stays on the CPU with the highest number: interrupts like the first one.
pub(crate) fn pin_to_one_cpu() -> Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let mut cpus = CpuSet::new();
    cpus.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("sched_setaffinity")
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("cannot start `ip`")?;
    ensure!(status.success(), "`ip {}`: {status}", args.join(" "));
    Ok(())
}
