//! Which network namespaces are gone.
//!
//! The kernel tells nobody that a namespace ends, and has no list of them. So it is gone if it was found
//! nowhere, twice in a row: no thread is in it, no process whose open files may be listed has one of it
//! (without CAP_DAC_READ_SEARCH root may list those of its own processes only), it is mounted at none of
//! the places that are known, and no process of those whose namespaces are asked about hides. What that
//! does not find is a namespace that lives on by a socket alone, or by a mount elsewhere with nobody in it.
//! It must cost such a namespace little to be taken for gone.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::namespaces::{cookies, is_hidden};

/// How often one that ends just then may get into the way of a look.
const ATTEMPTS: usize = 3;

/// What the last look has missed.
#[derive(Debug, Default)]
pub struct Gone {
    missed: HashSet<u64>,
}

impl Gone {
    /// Those of these namespaces that are gone, by their cookies; none if it cannot be told. All that the
    /// namespaces belong to are processes of a cgroup, or of those below it.
    pub fn among(&mut self, cgroup: &Path, asked: HashSet<u64>) -> Option<HashSet<u64>> {
        if asked.is_empty() {
            self.missed.clear();
            return Some(asked);
        }
        let found = match look(cgroup) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("cannot tell which network namespaces are gone: {error}");
                None
            }
        };
        self.judge(asked, found.as_ref())
    }

    fn judge(&mut self, asked: HashSet<u64>, found: Option<&HashSet<u64>>) -> Option<HashSet<u64>> {
        let before = std::mem::take(&mut self.missed);
        self.missed = asked;
        match found {
            Some(found) => self.missed.retain(|netns| !found.contains(netns)),
            None => self.missed.clear(),
        }
        found.map(|_| self.missed.intersection(&before).copied().collect())
    }
}

/// The cookies of all namespaces; none if there may be others.
fn look(cgroup: &Path) -> io::Result<Option<HashSet<u64>>> {
    if !sees_all(cgroup)? {
        return Ok(None);
    }
    for _ in 0..ATTEMPTS {
        if let Some(cookies) = cookies()? {
            return Ok(Some(cookies));
        }
    }
    Ok(None)
}

/// Whether all processes in a cgroup, and below it, are in sight and show their namespaces: one in a PID
/// namespace that is not in sight, as the others on a node are for a container without `hostPID`, is 0.
fn sees_all(cgroup: &Path) -> io::Result<bool> {
    let mut left = vec![PathBuf::from(cgroup)];
    while let Some(directory) = left.pop() {
        match fs::read_to_string(directory.join("cgroup.procs")) {
            Ok(processes) if processes.lines().any(|pid| pid == "0" || is_hidden(pid)) => {
                return Ok(false);
            }
            Ok(_) => {}
            // Removed meanwhile; or threaded, and its processes are shown further up.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
                ) => {}
            Err(error) => return Err(error),
        }
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Removed meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_two_looks_in_a_row() {
        let set = |all: &[u64]| all.iter().copied().collect::<HashSet<_>>();
        let mut gone = Gone::default();
        let mut judge =
            |asked: &[u64], found: Option<&[u64]>| gone.judge(set(asked), found.map(set).as_ref());
        assert_eq!(judge(&[1, 2, 3], Some(&[1, 9])), Some(set(&[])));
        assert_eq!(judge(&[1, 2, 3], Some(&[1, 3])), Some(set(&[2])));
        // One that nobody asked about in between, and one that is found again.
        assert_eq!(judge(&[1, 3], Some(&[])), Some(set(&[])));
        assert_eq!(judge(&[1, 2, 3], Some(&[1])), Some(set(&[3])));
        // A look that failed says nothing, and is none of the two.
        assert_eq!(judge(&[1, 2, 3], None), None);
        assert_eq!(judge(&[1, 2, 3], Some(&[])), Some(set(&[])));
        assert_eq!(judge(&[1, 2, 3], Some(&[])), Some(set(&[1, 2, 3])));
    }

    #[test]
    fn a_process_out_of_sight_is_seen_in_its_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        let own = std::process::id();
        fs::write(dir.path().join("cgroup.procs"), format!("{own}\n4194305\n")).unwrap();
        assert!(sees_all(dir.path()).unwrap());
        fs::write(below.join("cgroup.procs"), format!("{own}\n0\n")).unwrap();
        assert!(!sees_all(dir.path()).unwrap());
        assert!(sees_all(&dir.path().join("removed")).unwrap());
    }
}
