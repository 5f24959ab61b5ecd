//! Takes a cluster away, whatever is left of it, and proves that nothing is.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tools::wait::{Not, until};

use super::{
    cgroups::Cgroups,
    machine::KEEPERS,
    place::{HOME, NAME},
};

/// What is asked of a process's directory in /proc.
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "uts"];
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes away all there is of a cluster; false if there was nothing.
pub(crate) fn sweep() -> Result<bool> {
    let cgroups = Cgroups::find()?;
    let home = Path::new(HOME);
    if cgroups.present().is_empty() && !home.exists() {
        return Ok(false);
    }
    let namespaces = namespaces()?;
    let others = Others::look()?;
    cgroups.kill("")?;
    // Processes that were killed in one hierarchy are dead in all.
    cgroups.remove("")?;
    cgroups.take_back();
    match fs::remove_dir_all(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.with_context(|| format!("cannot remove {HOME}"))?,
    }
    until("the cluster to be gone", PATIENCE, &[], || {
        let mut left = leftovers()?;
        left.extend(holders(&namespaces, &others)?);
        if left.is_empty() {
            return Ok(true);
        }
        Err(Not::Yet(format!("this is left of it:\n{}", left.join("\n"))))
    })
}

/// What there is of a cluster on this machine. A link or a BPF program cannot be left without one
/// of these: a link lives in a namespace, a program is attached to a cgroup, a pin is in a mount.
pub(super) fn leftovers() -> Result<Vec<String>> {
    let mut left = Vec::new();
    for process in processes()? {
        let Ok(cgroup) = fs::read_to_string(process.join("cgroup")) else { continue };
        if is_ours(&cgroup) {
            left.push(format!("process {}", name(&process)));
        } else if let Ok(mounts) = fs::read_to_string(process.join("mountinfo")) {
            let mounts = mounts.lines().filter(|line| mounts_ours(line)).count();
            if mounts > 0 {
                left.push(format!("{mounts} mounts of process {}", name(&process)));
            }
        }
    }
    let cgroups = Cgroups::find()?.present();
    left.extend(cgroups.iter().map(|directory| format!("cgroup {}", directory.display())));
    if Path::new(HOME).exists() {
        left.push(format!("directory {HOME}"));
    }
    Ok(left)
}

/// The namespaces that processes of boxes are in, and this process is not.
fn namespaces() -> Result<HashSet<PathBuf>> {
    let mut all = HashSet::new();
    for process in processes()? {
        if fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroup| is_in_box(&cgroup)) {
            all.extend(NAMESPACES.iter().filter_map(|kind| namespace(&process, kind)));
        }
    }
    let own = Path::new("/proc/self");
    for namespace in NAMESPACES.iter().filter_map(|kind| namespace(own, kind)) {
        all.remove(&namespace);
    }
    Ok(all)
}

/// What there is on the machine before the sweep.
struct Others {
    /// Each with the time at which it started.
    processes: HashSet<(PathBuf, String)>,
    mounts: HashSet<String>,
}

impl Others {
    fn look() -> Result<Self> {
        let processes = processes()?.into_iter().filter_map(with_start).collect();
        Ok(Self { processes, mounts: mounts()?.lines().map(ToOwned::to_owned).collect() })
    }
}

fn mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")
}

fn with_start(process: PathBuf) -> Option<(PathBuf, String)> {
    let started = start(&fs::read_to_string(process.join("stat")).ok()?)?.to_owned();
    Some((process, started))
}

/// The time in a /proc/PID/stat. The name before may have anything in it.
fn start(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)
}

/// Who is in one of these namespaces, or keeps it by a mount. Only who was there before: the number
/// of a namespace that is gone is soon another one's.
fn holders(namespaces: &HashSet<PathBuf>, others: &Others) -> Result<Vec<String>> {
    let mut holders = BTreeMap::new();
    let there = processes()?.into_iter().filter_map(with_start);
    for (process, _) in there.filter(|process| others.processes.contains(process)) {
        for namespace in NAMESPACES.iter().filter_map(|kind| namespace(&process, kind)) {
            if namespaces.contains(&namespace) {
                let name = name(&process);
                holders.insert(name.clone(), format!("{} of process {name}", namespace.display()));
            }
        }
    }
    for line in mounts()?.lines().filter(|line| others.mounts.contains(*line)) {
        let root = line.split(' ').nth(3).unwrap_or_default();
        if namespaces.contains(Path::new(root)) {
            holders.insert(root.to_owned(), format!("{root}, mounted: {line}"));
        }
    }
    Ok(holders.into_values().collect())
}

fn namespace(process: &Path, kind: &str) -> Option<PathBuf> {
    fs::read_link(process.join("ns").join(kind)).ok()
}

/// The directories of all processes.
fn processes() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let is_number = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok())
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_number).collect())
}

fn name(process: &Path) -> String {
    let number = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("{number} ({})", name.trim())
}

/// Is a process with this /proc/PID/cgroup one of the cluster's, by any hierarchy?
fn is_ours(cgroup: &str) -> bool {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| path.split('/').nth(1) == Some(NAME))
}

/// The same of a box. Who only goes with the cluster is in the namespaces of somebody else.
fn is_in_box(cgroup: &str) -> bool {
    is_ours(cgroup) && !cgroup.lines().any(|line| line.ends_with(&format!(":/{NAME}/{KEEPERS}")))
}

/// Is this line of a mountinfo of something in the cluster's directory?
fn mounts_ours(line: &str) -> bool {
    let mut fields = line.split(' ').skip(3);
    let paths = [fields.next(), fields.next()];
    paths.into_iter().flatten().any(|path| Path::new(path).starts_with(HOME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_the_cluster_by_any_of_its_cgroups() {
        assert!(is_ours("4:memory:/socklb-cluster/n1\n0::/\n"));
        assert!(is_ours("0::/socklb-cluster/n1/kubepods/besteffort/pod1/x\n"));
        assert!(is_ours("0::/socklb-cluster\n"));
        assert!(!is_ours("0::/socklb-cluster-of-mine/x\n1:name=systemd:/user/socklb-cluster\n"));
        assert!(!is_ours("0::/\n"));
        let keeper = "4:memory:/\n0::/socklb-cluster/keepers\n";
        assert!(is_ours(keeper) && !is_in_box(keeper));
        assert!(is_in_box("4:memory:/\n0::/socklb-cluster/n1/init.scope\n"));
    }

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 45080 868";
        assert_eq!(start(stat), Some("4711"));
        let own = with_start("/proc/self".into()).unwrap();
        assert!(own.1.parse::<u64>().unwrap() > 0, "{own:?}");
    }

    #[test]
    fn a_mount_belongs_to_the_cluster_by_what_it_shows_or_by_where_it_is() {
        let var = "90 80 254:0 /var/lib/socklb-cluster/n1/var /var rw - ext4 /dev/vda rw";
        let run = "91 80 0:61 / /var/lib/socklb-cluster/n1/run rw - tmpfs tmpfs rw";
        assert!(mounts_ours(var) && mounts_ours(run));
        assert!(!mounts_ours("22 27 0:21 / /proc rw,relatime - proc proc rw"));
        assert!(!mounts_ours("22 27 0:21 / /var/lib/socklb-cluster-2 rw - tmpfs tmpfs rw"));
    }
}
