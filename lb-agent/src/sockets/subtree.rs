//! Which cgroups lie at or below the one that the programs are attached to.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::node_cgroup::ROOT;

/// A cgroup and those below it, by id. The id is the number of the directory's inode, is not used
/// again, and cannot move to another parent: an answer once given stays true.
#[derive(Debug)]
pub(super) struct Subtree {
    top: PathBuf,
    known: HashMap<u64, Side>,
    walked: bool,
    /// The top is the root.
    everything: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Inside,
    /// Not found once: it may have been made a moment later.
    Unclear,
    Outside,
}

impl Subtree {
    /// Of this cgroup. Nothing is read yet.
    pub(super) fn new(top: &Path) -> Self {
        Self { top: top.to_owned(), known: HashMap::new(), walked: false, everything: false }
    }

    /// What follows is asked at another time: cgroups may have been made meanwhile.
    pub(super) const fn renew(&mut self) {
        self.walked = false;
    }

    /// Whether the cgroup with this id is in it. Reads the directories, once after each renewal, when
    /// it does not know. A cgroup that was removed while a socket of it lives on is outside.
    pub(super) fn contains(&mut self, cgroup: u64) -> bool {
        // 0: the kernel does not tell.
        if self.everything || cgroup == 0 {
            return cgroup != 0;
        }
        let before = self.known.get(&cgroup).copied();
        match before {
            Some(Side::Inside) => return true,
            Some(Side::Outside) => return false,
            Some(Side::Unclear) | None if self.walked => {
                self.known.insert(cgroup, Side::Unclear);
                return false;
            }
            Some(Side::Unclear) | None => {}
        }
        self.walked = true;
        if let Err(error) = self.walk() {
            tracing::warn!(cgroup = %self.top.display(), %error, "cannot read the cgroups");
            return false;
        }
        let unknown = if before.is_none() { Side::Unclear } else { Side::Outside };
        self.everything || *self.known.entry(cgroup).or_insert(unknown) == Side::Inside
    }

    fn walk(&mut self) -> io::Result<()> {
        let top = fs::metadata(&self.top)?.ino();
        self.everything = top == ROOT;
        if self.everything {
            return Ok(());
        }
        self.known.retain(|_, place| *place == Side::Outside);
        self.known.insert(top, Side::Inside);
        let mut open = vec![self.top.clone()];
        while let Some(directory) = open.pop() {
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    self.known.insert(entry.ino(), Side::Inside);
                    open.push(entry.path());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_at_and_below() {
        let dir = tempfile::TempDir::new().unwrap();
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        let (inside, outside) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(inside.join("x/y")).unwrap();
        fs::create_dir(&outside).unwrap();
        let mut subtree = Subtree::new(&inside);
        assert!(subtree.contains(id(&inside)));
        assert!(subtree.contains(id(&inside.join("x/y"))));
        assert!(!subtree.contains(id(&outside)));
        assert!(!subtree.contains(id(dir.path())));

        // Made after the directories were read, and asked about too early.
        let later = inside.join("x/later");
        fs::create_dir(&later).unwrap();
        assert!(!subtree.contains(id(&later)));
        subtree.renew();
        assert!(subtree.contains(id(&later)));
        assert!(!subtree.contains(id(&outside)));
        assert_eq!(subtree.known.get(&id(&outside)), Some(&Side::Unclear));
        subtree.renew();
        assert!(!subtree.contains(id(&outside)));
        assert_eq!(subtree.known.get(&id(&outside)), Some(&Side::Outside));
        assert!(!subtree.contains(0), "a kernel that does not tell");
    }
}
