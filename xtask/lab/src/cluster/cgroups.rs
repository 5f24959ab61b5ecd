//! The cgroup of a box in every hierarchy of the machine: kubelet wants one in each, and a box must
//! see itself as the root of all of them.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tools::wait::{Not, until};

use super::place::{NAME, home};

/// The controllers that the machine did not pass on before.
const LENT: &str = "controllers";
/// Most time that processes get to die, once killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cgroup file system that is mounted on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    pub(super) version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// With the options that mount the same hierarchy again.
    One(String),
    Two,
}

pub(super) struct Cgroups(Vec<Hierarchy>);

impl Cgroups {
    pub(super) fn find() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo")
            .context("cannot read /proc/self/mountinfo")?;
        let hierarchies = parse(&table);
        if !hierarchies.iter().any(|hierarchy| hierarchy.version == Version::Two) {
            bail!("cgroup2 is not mounted on this machine: `mount -t cgroup2 cgroup2 DIRECTORY`");
        }
        Ok(Self(hierarchies))
    }

    pub(super) fn hierarchies(&self) -> &[Hierarchy] {
        &self.0
    }

    /// Where cgroup2 is mounted.
    pub(super) fn two(&self) -> &Path {
        let mut two = self.0.iter().filter(|hierarchy| hierarchy.version == Version::Two);
        // `find` has seen one.
        two.next().map_or(Path::new("/sys/fs/cgroup"), |two| &two.mount)
    }

    /// Where a path below the cluster's directory is in cgroup2.
    pub(super) fn unified(&self, below: &str) -> PathBuf {
        self.two().join(NAME).join(below)
    }

    /// The directory of a box in each version 1 hierarchy.
    pub(super) fn legacy(&self, machine: &str) -> Vec<PathBuf> {
        let one = self.0.iter().filter(|hierarchy| hierarchy.version != Version::Two);
        one.map(|hierarchy| hierarchy.mount.join(NAME).join(machine)).collect()
    }

    /// The directories in which a process is to be that runs in a box, in `leaf` of its cgroup2.
    pub(super) fn of(&self, machine: &str, leaf: &str) -> Vec<PathBuf> {
        let mut all = self.legacy(machine);
        all.push(self.unified(machine).join(leaf));
        all
    }

    /// Makes the directories of a box.
    pub(super) fn make(&self, machine: &str) -> Result<()> {
        for Hierarchy { mount, version } in &self.0 {
            let cluster = mount.join(NAME);
            let own = cluster.join(machine);
            fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
            match version {
                // A new cpuset is empty, and nobody may join it.
                Version::One(_) if own.join("cpuset.cpus").exists() => {
                    for (from, to) in [(mount, &cluster), (&cluster, &own)] {
                        for file in ["cpuset.cpus", "cpuset.mems"] {
                            let value = fs::read_to_string(from.join(file))?;
                            fs::write(to.join(file), value.trim())
                                .with_context(|| format!("{}: {file}", to.display()))?;
                        }
                    }
                }
                Version::One(_) => {}
                Version::Two => {
                    note(&enable(mount, &cluster)?)?;
                    enable(&cluster, &own)?;
                }
            }
        }
        Ok(())
    }

    /// Ends every process in a directory of cgroup2 and below, and waits for it.
    pub(super) fn kill(&self, below: &str) -> Result<()> {
        let directory = self.unified(below);
        match fs::write(directory.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            killed => killed.with_context(|| format!("{}/cgroup.kill", directory.display()))?,
        }
        until("the end of all processes", PATIENCE, &[], || {
            if !is_populated(&directory) {
                return Ok(());
            }
            Err(Not::Yet(format!("some in {} live", directory.display())))
        })
    }

    /// Is there a process in this directory of cgroup2, or below?
    pub(super) fn is_populated(&self, below: &str) -> bool {
        is_populated(&self.unified(below))
    }

    /// How many processes there are in a directory of cgroup2 and below.
    pub(super) fn processes(&self, below: &str) -> usize {
        count(&self.unified(below))
    }

    /// Removes a directory below the cluster's, or that one (`""`), in every hierarchy, with all
    /// that is below.
    pub(super) fn remove(&self, below: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let directory = hierarchy.mount.join(NAME).join(below);
            remove_tree(&directory)
                .with_context(|| format!("cannot remove the cgroup {}", directory.display()))?;
        }
        Ok(())
    }

    /// Takes back from the children of the root what they did not have before. After all of the
    /// cluster's directories are gone, and before its notes are.
    pub(super) fn take_back(&self) {
        let lent = fs::read_to_string(home(LENT)).unwrap_or_default();
        let control = self.two().join("cgroup.subtree_control");
        let lent: BTreeSet<_> = lent.split_whitespace().collect();
        for controller in lent {
            // Somebody else may be using it by now.
            if let Err(error) = fs::write(&control, format!("-{controller}")) {
                eprintln!("{}: cannot disable {controller}: {error}", control.display());
            }
        }
    }

    /// The cluster's directories that there are.
    pub(super) fn present(&self) -> Vec<PathBuf> {
        let directories = self.0.iter().map(|hierarchy| hierarchy.mount.join(NAME));
        directories.filter(|directory| directory.exists()).collect()
    }
}

/// Adds to what is to be taken back. Boxes are made at the same time, and each may have lent a part.
fn note(lent: &[String]) -> Result<()> {
    if lent.is_empty() {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().create(true).append(true).open(home(LENT))?;
    file.write_all(format!("{}\n", lent.join(" ")).as_bytes()).context("cannot take note")
}

/// Passes all controllers that `from` has on to its children, so that `to` has them too. On a
/// machine with version 1 hierarchies there are none.
fn enable(from: &Path, to: &Path) -> Result<Vec<String>> {
    let read = |path: &Path, file| fs::read_to_string(path.join(file));
    let mut missing = missing(&read(from, "cgroup.controllers")?, &read(to, "cgroup.controllers")?);
    missing.retain(|controller| {
        // One that cannot be passed on (threaded, busy) is one that kubelet can do without, or
        // complains of by name.
        let enabled = fs::write(from.join("cgroup.subtree_control"), format!("+{controller}"));
        if let Err(error) = &enabled {
            eprintln!("{}: cannot enable {controller}: {error}", from.display());
        }
        enabled.is_ok()
    });
    Ok(missing)
}

/// The controllers that one has and the other lacks.
fn missing(there: &str, here: &str) -> Vec<String> {
    let here: HashSet<_> = here.split_whitespace().collect();
    let missing = there.split_whitespace().filter(|controller| !here.contains(controller));
    missing.map(ToOwned::to_owned).collect()
}

fn is_populated(directory: &Path) -> bool {
    let events = fs::read_to_string(directory.join("cgroup.events"));
    events.is_ok_and(|events| events.contains("populated 1"))
}

fn count(directory: &Path) -> usize {
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    members.lines().count() + below.map(|entry| count(&entry.path())).sum::<usize>()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // A process that has just died may count for another moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(10));
            }
            removed => return removed,
        }
    }
}

/// The hierarchies in a `mountinfo`, each once, and only where their root is seen.
fn parse(table: &str) -> Vec<Hierarchy> {
    let mut seen = HashSet::new();
    let lines = table.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(2);
        let (device, root, mount) = (fields.next()?, fields.next()?, fields.next()?);
        let mut fields = source.split(' ');
        let version = match fields.next()? {
            "cgroup" => Version::One(again(fields.nth(1)?)),
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let fresh = root == "/" && seen.insert(device.to_owned());
        fresh.then(|| Hierarchy { mount: mount.into(), version })
    });
    lines.collect()
}

/// The options of a version 1 hierarchy as one has to say them: a named one without controllers
/// wants to hear that it has none.
fn again(options: &str) -> String {
    let options: Vec<_> = options.split(',').filter(|option| *option != "rw").collect();
    let none = options.iter().any(|option| option.starts_with("name="));
    let none = if none { "none," } else { "" };
    format!("{none}{}", options.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_one_directory_for_each_controller() {
        let table = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /elsewhere rw,relatime - cgroup2 cgroup2 rw
43 31 0:39 /some/container /private rw,relatime - cgroup2 cgroup2 rw
";
        let one = |mount: &str, options: &str| Hierarchy {
            mount: mount.into(),
            version: Version::One(options.to_owned()),
        };
        let two = Hierarchy { mount: "/sys/fs/cgroup/unified".into(), version: Version::Two };
        let expected = [
            one("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            one("/sys/fs/cgroup/systemd", "none,xattr,name=systemd"),
            two,
        ];
        assert_eq!(parse(table), expected);
        let cgroups = Cgroups(parse(table));
        let of: Vec<_> = cgroups.of("n1", "init.scope");
        assert_eq!(of[0], Path::new("/sys/fs/cgroup/cpu,cpuacct/socklb-cluster/n1"));
        assert_eq!(of[2], Path::new("/sys/fs/cgroup/unified/socklb-cluster/n1/init.scope"));
    }

    #[test]
    fn what_the_parent_has_and_the_child_lacks_is_enabled() {
        assert_eq!(missing("cpuset cpu io memory\n", "cpu memory\n"), ["cpuset", "io"]);
        assert!(missing("", "").is_empty());
    }
}
