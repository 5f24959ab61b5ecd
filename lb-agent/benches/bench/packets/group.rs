//! The memory of a proxy, of all it starts, and of what these have the kernel make: a control group, of
//! either version, below the first.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const NAME: &str = "socklb-bench-packets-";
/// How long processes may take to end: one that writes rules does not before it has written them.
const ENDS: Duration = Duration::from_secs(600);

/// Where the memory controller's files are, and how they are called.
#[derive(Clone, Copy)]
struct Files {
    limit: &'static str,
    peak: &'static str,
    kernel: &'static str,
    /// Before the figure, in the file of the last.
    field: Option<&'static str>,
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    kernel: "memory.kmem.usage_in_bytes",
    field: None,
};
const VERSION_2: Files = Files {
    limit: "memory.max",
    peak: "memory.peak",
    kernel: "memory.stat",
    field: Some("kernel "),
};

/// It, until it is dropped.
pub(super) struct Group {
    path: PathBuf,
    files: Files,
}

impl Group {
    /// Half of the machine's memory is the most that is taken.
    pub(super) fn new() -> Result<Self> {
        let (root, files) = controller()?;
        remove_stale(&root);
        let group = Self { path: root.join(format!("{NAME}{}", process::id())), files };
        fs::create_dir(&group.path)
            .with_context(|| format!("cannot make {}", group.path.display()))?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total = total.and_then(|line| line.trim().strip_suffix(" kB")).context("MemTotal")?;
        let half = total.trim().parse::<u64>()? * 1024 / 2;
        fs::write(group.path.join(files.limit), half.to_string()).context("a limit of memory")?;
        Ok(group)
    }

    /// Whoever writes his number there is in it.
    pub(super) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The most that there was of everything, in MB.
    pub(super) fn peak(&self) -> Result<f64> {
        self.read(self.files.peak, None)
    }

    /// What the kernel has in memory for it, in MB.
    pub(super) fn kernel(&self) -> Result<f64> {
        self.read(self.files.kernel, self.files.field)
    }

    /// Ends whoever is still in it: a proxy leaves the tools behind that it has started.
    pub(super) fn empty(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let processes = fs::read_to_string(self.processes())?;
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes.lines() {
                let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
            }
            ensure!(start.elapsed() < ENDS, "processes of a proxy do not end");
            sleep(Duration::from_millis(50));
        }
    }

    fn read(&self, file: &str, field: Option<&str>) -> Result<f64> {
        let text = fs::read_to_string(self.path.join(file)).with_context(|| file.to_owned())?;
        let figure = field.map_or_else(
            || text.lines().next(),
            |field| text.lines().find_map(|line| line.strip_prefix(field)),
        );
        Ok(figure.context("no figure")?.trim().parse::<f64>()? / 1e6)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.empty().and_then(|()| Ok(fs::remove_dir(&self.path)?)) {
            eprintln!("{} stays behind: {error:#}", self.path.display());
        }
    }
}

fn controller() -> Result<(PathBuf, Files)> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let first = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
        let counts = kind == "cgroup" && options.split(',').any(|option| option == "memory");
        counts.then(|| PathBuf::from(path))
    });
    if let Some(root) = first {
        return Ok((root, VERSION_1));
    }
    let root = lb_agent::mounts::first("cgroup2")?.context("cgroup2 is not mounted")?.path;
    let shared = fs::read_to_string(root.join("cgroup.subtree_control"))?;
    let counts = shared.split_whitespace().any(|controller| controller == "memory");
    counts.then_some((root, VERSION_2)).context("no control group counts memory")
}

/// Those of earlier runs that were killed.
fn remove_stale(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(NAME)) else { continue };
        if !Path::new("/proc").join(owner).exists() {
            drop(fs::remove_dir(entry.path()));
        }
    }
}
