//! The processes of the node that are not where the programs are attached: a canary, which is sent
//! there, cannot see that there is more of the node elsewhere.

use std::{fmt, fs, path::Path};

use super::location::Location;

/// More processes than are looked at.
const MOST: usize = 1 << 15;
/// More generations than a process has ancestors.
const GENERATIONS: usize = 1 << 10;

/// What was seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outside {
    /// How many processes.
    pub count: usize,
    /// One of them.
    pub example: Example,
}

/// A process that is elsewhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Example {
    pid: u32,
    name: String,
    cgroup: Location,
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) in the cgroup {}", self.pid, self.name, self.cgroup)
    }
}

/// The descendants of PID 1 that are outside of this cgroup. One that came from outside of its PID
/// namespace, as by nsenter(1), is not the node's; neither are the kernel's threads.
pub(super) fn find(proc: &Path, served: &Location) -> Option<Outside> {
    let mut found: Option<Outside> = None;
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.take(MOST) {
        let directory = proc.join(pid.to_string());
        let Ok(text) = fs::read_to_string(directory.join("cgroup")) else { continue };
        let Some(cgroup) = Location::of_process(&text) else { continue };
        if cgroup.from(served).is_some() || !descends(proc, pid) {
            continue;
        }
        if let Some(found) = &mut found {
            found.count += 1;
        } else {
            let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
            let name = name.trim_end().to_owned();
            found = Some(Outside { count: 1, example: Example { pid, name, cgroup } });
        }
    }
    found
}

/// Whether PID 1 is among the ancestors of a process that lives, or is that process.
pub(super) fn descends(proc: &Path, pid: u32) -> bool {
    let mut next = pid;
    for _ in 0..GENERATIONS {
        if next <= 1 {
            return next == 1;
        }
        let Ok(status) = fs::read_to_string(proc.join(next.to_string()).join("status")) else {
            return false;
        };
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if next == pid && field("State:").is_none_or(|state| state.starts_with(['Z', 'X'])) {
            return false;
        }
        let Some(parent) = field("PPid:").and_then(|parent| parent.parse().ok()) else {
            return false;
        };
        next = parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, pid: u32, parent: u32, state: &str, cgroup: &str) {
        let directory = proc.join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        let status = format!("Name:\tx\nState:\t{state}\nPid:\t{pid}\nPPid:\t{parent}\n");
        fs::write(directory.join("status"), status).unwrap();
        fs::write(directory.join("cgroup"), format!("1:cpu:/x\n0::{cgroup}\n")).unwrap();
        fs::write(directory.join("comm"), format!("p{pid}\n")).unwrap();
    }

    #[test]
    fn who_counts() {
        let proc = tempfile::tempdir().unwrap();
        let proc = proc.path();
        let find = |served: &str| find(proc, &Location::parse(served).unwrap());
        process(proc, 1, 0, "S (sleeping)", "/../init.scope");
        process(proc, 20, 1, "S (sleeping)", "/../kubepods/a");
        process(proc, 21, 20, "R (running)", "/");
        assert_eq!(find("/.."), None);
        // Threads of the kernel, who has ended, who came from outside, and its child.
        process(proc, 2, 0, "I (idle)", "/../..");
        process(proc, 30, 2, "I (idle)", "/../..");
        process(proc, 31, 1, "Z (zombie)", "/../..");
        process(proc, 32, 0, "S (sleeping)", "/../../session");
        process(proc, 33, 32, "S (sleeping)", "/../../session");
        assert_eq!(find("/.."), None);

        let seen = find("/").unwrap();
        assert_eq!(seen.count, 2);
        assert!(
            [
                "process 1 (p1) in the cgroup /../init.scope",
                "process 20 (p20) in the cgroup /../kubepods/a"
            ]
            .contains(&&*seen.example.to_string()),
            "{seen:?}"
        );
        process(proc, 40, 21, "D (disk sleep)", "/../../other");
        assert_eq!(
            find("/..").unwrap().example.to_string(),
            "process 40 (p40) in the cgroup /../../other"
        );
    }
}
