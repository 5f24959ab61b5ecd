//! Which files are there, which of them changed, and when it is safe to read them.
//!
//! A file that is read while it is written says less than it should, and what is missing would be
//! deleted. So a change counts at once only if the watch saw its writer finish; otherwise when it
//! has been the same for a while.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{files::Files, parse::Format, watch::Signs};

/// How long a change without a sign of its end must have lasted.
const LASTING: Duration = Duration::from_secs(3);
/// The same for a file that became empty: a shell empties it long before the program writes.
const LASTING_EMPTY: Duration = Duration::from_secs(60);
/// The largest file that is read, bytes. The objects of a large cluster have 50 MB.
const LARGEST: u64 = 256 << 20;

/// What tells one content from another without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file that is there.
struct Found {
    stamp: Stamp,
    link: bool,
}

/// A file that was read, or could not be.
struct Known {
    stamp: Option<Stamp>,
    readable: bool,
}

/// A change that is not believed yet; `None`: the file is away.
struct Pending {
    stamp: Option<Stamp>,
    since: Instant,
}

/// The directory's files, as they were read last.
pub(super) struct Reader {
    path: PathBuf,
    known: BTreeMap<String, Known>,
    pending: BTreeMap<String, Pending>,
}

/// What is known of a file's writer.
pub(super) trait Writers {
    /// Whether somebody is writing the file at this moment.
    fn is_writing(&self, file: &str) -> bool;
    /// Nobody is, whatever was seen.
    fn give_up_writer(&self, file: &str);
}

impl Writers for super::watch::Watch {
    fn is_writing(&self, file: &str) -> bool {
        Self::is_writing(self, file)
    }

    fn give_up_writer(&self, file: &str) {
        Self::give_up_writer(self, file);
    }
}

impl Reader {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, known: BTreeMap::new(), pending: BTreeMap::new() }
    }

    /// Whether a change waits to be believed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads all there is, as it is.
    pub(super) fn read_all(&mut self, files: &mut Files) -> io::Result<()> {
        for (name, found) in list(&self.path)? {
            if self.read(&name, found, files, || false).is_none() {
                files.fail(&name, "file", "is being written");
            }
        }
        Ok(())
    }

    /// Reads what changed; true if anything did.
    pub(super) fn look(
        &mut self,
        signs: &Signs,
        writers: &impl Writers,
        now: Instant,
        files: &mut Files,
    ) -> io::Result<bool> {
        let found = list(&self.path)?;
        let mut changed = self.take_away(&found, signs, now, files);
        for (name, found) in found {
            let known = self.known.get(&name);
            let stamp = found.as_ref().ok().map(|found| found.stamp);
            if known.is_some_and(|known| known.readable && known.stamp == stamp) {
                self.pending.remove(&name);
                continue;
            }
            let ended = !writers.is_writing(&name)
                && (signs.done.contains(&name)
                    || (signs.linked && found.as_ref().is_ok_and(|found| found.link)));
            let retry = known.is_some_and(|known| !known.readable && known.stamp == stamp);
            if !(ended || retry || self.lasts(&name, stamp, now)) {
                continue;
            }
            // It may have been opened again since.
            let changing = || ended && writers.is_writing(&name);
            if let Some(news) = self.read(&name, found, files, changing) {
                changed |= news;
                writers.give_up_writer(&name);
                self.pending.remove(&name);
            }
        }
        Ok(changed)
    }

    /// Forgets the files that are not there any more.
    fn take_away(
        &mut self,
        found: &Listed,
        signs: &Signs,
        now: Instant,
        files: &mut Files,
    ) -> bool {
        let away: Vec<_> =
            self.known.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        let mut changed = false;
        for name in away {
            let inode = self.known.get(&name).and_then(|known| known.stamp).map(|s| s.file);
            let heir = found.iter().find(|(heir, found)| {
                let here = found.as_ref().ok().map(|found| found.stamp.file);
                !self.known.contains_key(*heir) && here.is_some() && here == inode
            });
            if let Some((heir, _)) = heir
                && let Some(known) = self.known.remove(&name)
            {
                // It may be broken, and its last good content goes with it.
                files.rename(&name, heir);
                self.known.insert(heir.clone(), known);
            } else if signs.gone.contains(&name) || self.lasts(&name, None, now) {
                files.remove(&name);
                self.known.remove(&name);
            } else {
                continue;
            }
            self.pending.remove(&name);
            changed = true;
        }
        let known = &self.known;
        self.pending.retain(|name, _| known.contains_key(name) || found.contains_key(name));
        changed
    }

    /// Whether a change has lasted long enough to be believed; begins to count, if it is new.
    fn lasts(&mut self, name: &str, stamp: Option<Stamp>, now: Instant) -> bool {
        let long = if stamp.is_some_and(|stamp| stamp.len == 0) { LASTING_EMPTY } else { LASTING };
        match self.pending.get(name) {
            Some(pending) if pending.stamp == stamp => now.duration_since(pending.since) >= long,
            _ => {
                self.pending.insert(name.to_owned(), Pending { stamp, since: now });
                false
            }
        }
    }

    /// Reads a file; true if that changed anything, none if it was changing meanwhile.
    fn read(
        &mut self,
        name: &str,
        found: io::Result<Found>,
        files: &mut Files,
        changing: impl Fn() -> bool,
    ) -> Option<bool> {
        let stamp = found.as_ref().ok().map(|found| found.stamp);
        let content = found.and_then(|_| content(&self.path.join(name)));
        if changing() {
            return None;
        }
        let (known, changed) = match content {
            Ok((content, stamp)) => {
                files.put(name, &content);
                (Known { stamp: Some(stamp), readable: true }, true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => {
                let changed = files.fail(name, "file", format!("cannot be read: {error}"));
                (Known { stamp, readable: false }, changed)
            }
        };
        self.known.insert(name.to_owned(), known);
        Some(changed)
    }
}

type Listed = BTreeMap<String, io::Result<Found>>;

fn list(path: &Path) -> io::Result<Listed> {
    let mut listed = Listed::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(ToOwned::to_owned) else { continue };
        if Format::of(&name).is_none() {
            continue;
        }
        let found = fs::metadata(entry.path());
        // It may be gone by now, unless it is a link that leads nowhere.
        let gone = found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let link = match fs::symlink_metadata(entry.path()) {
            Ok(file) => file.is_symlink(),
            Err(_) if gone => continue,
            Err(_) => false,
        };
        match found {
            // Directories, pipes, sockets.
            Ok(file) if !file.is_file() => {}
            found => {
                let found = found.map(|file| Found { stamp: Stamp::from(&file), link });
                listed.insert(name, found);
            }
        }
    }
    Ok(listed)
}

/// The content of a file, and the stamp it has. `WouldBlock` if the file is changing.
fn content(path: &Path) -> io::Result<(Vec<u8>, Stamp)> {
    let mut file = File::open(path)?;
    let before = file.metadata()?;
    if before.len() > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {} MB, at most {} are read", before.len() >> 20, LARGEST >> 20),
        ));
    }
    let mut content = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0) + 1);
    file.by_ref().take(LARGEST + 1).read_to_end(&mut content)?;
    let (before, after) = (Stamp::from(&before), Stamp::from(&file.metadata()?));
    if before != after {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok((content, after))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;

    /// A directory and its reader; the clock and the watch are ours.
    struct Bench {
        dir: TempDir,
        reader: Reader,
        files: Files,
        now: Instant,
        writing: Writing,
    }

    #[derive(Default)]
    struct Writing(RefCell<BTreeSet<String>>);

    impl Writers for Writing {
        fn is_writing(&self, file: &str) -> bool {
            self.0.borrow().contains(file)
        }

        fn give_up_writer(&self, file: &str) {
            self.0.borrow_mut().remove(file);
        }
    }

    impl Bench {
        fn new(content: &[(&str, &str)]) -> Self {
            let dir = TempDir::new().unwrap();
            let reader = Reader::new(dir.path().to_owned());
            let (files, now) = (Files::default(), Instant::now());
            let mut bench = Self { dir, reader, files, now, writing: Writing::default() };
            for (name, service) in content {
                bench.write(name, service);
            }
            bench.reader.read_all(&mut bench.files).unwrap();
            bench
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// A Service of this name, or nothing.
        fn write(&self, file: &str, service: &str) {
            let text = match service {
                "" => String::new(),
                name => format!(
                    "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
                     spec: {{clusterIP: 10.0.0.1}}}}"
                ),
            };
            fs::write(self.path(file), text).unwrap();
        }

        fn look(&mut self, signs: &Signs) -> bool {
            self.reader.look(signs, &self.writing, self.now, &mut self.files).unwrap()
        }

        fn later(&mut self, by: Duration) -> bool {
            self.now += by;
            self.look(&Signs::default())
        }

        fn services(&self) -> Vec<String> {
            self.files.listing().services.keys().map(|name| name.name.to_string()).collect()
        }
    }

    fn done(name: &str) -> Signs {
        Signs { done: [name.to_owned()].into(), ..Signs::default() }
    }

    fn gone(name: &str) -> Signs {
        Signs { gone: [name.to_owned()].into(), ..Signs::default() }
    }

    #[test]
    fn a_change_with_a_sign_counts_at_once() {
        let mut bench = Bench::new(&[("a.yaml", "a"), ("skip.txt", "x")]);
        assert_eq!(bench.services(), ["a"]);
        assert!(!bench.look(&done("a.yaml")), "nothing changed");
        bench.write("a.yaml", "changed");
        assert!(bench.look(&done("a.yaml")));
        assert_eq!(bench.services(), ["changed"]);
        bench.write("a.yaml", "");
        assert!(bench.look(&done("a.yaml")));
        assert!(bench.services().is_empty());
        fs::remove_file(bench.path("a.yaml")).unwrap();
        assert!(
            bench.look(&gone("a.yaml")) && bench.files.is_empty() && !bench.reader.is_waiting()
        );
    }

    #[test]
    fn a_change_without_a_sign_must_last() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        bench.write("a.yaml", "changed");
        assert!(!bench.look(&done("b.yaml")) && bench.reader.is_waiting());
        assert!(!bench.later(LASTING / 2));
        bench.write("a.yaml", "changed-again");
        assert!(!bench.later(LASTING / 2) && !bench.later(LASTING / 2), "it counts anew");
        assert!(bench.later(LASTING / 2) && !bench.reader.is_waiting());
        assert_eq!(bench.services(), ["changed-again"]);

        bench.write("a.yaml", "");
        assert!(!bench.look(&Signs::default()) && !bench.later(LASTING));
        assert!(bench.later(LASTING_EMPTY), "an empty file has no objects");

        fs::remove_file(bench.path("a.yaml")).unwrap();
        assert!(!bench.look(&Signs::default()));
        assert!(bench.later(LASTING) && bench.files.is_empty());
    }

    #[test]
    fn a_file_being_written_is_left_alone() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        bench.writing.0.borrow_mut().insert("a.yaml".to_owned());
        bench.write("a.yaml", "");
        assert!(!bench.look(&done("a.yaml")));
        bench.write("a.yaml", "slow");
        assert!(!bench.look(&done("a.yaml")));
        assert_eq!(bench.services(), ["a"]);
        assert!(bench.later(LASTING), "its writer seems to keep it open for ever");
        assert_eq!(bench.services(), ["slow"]);
        assert!(bench.writing.0.borrow().is_empty());
    }

    #[test]
    fn a_broken_file_takes_its_last_good_content_along() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        fs::write(bench.path("a.yaml"), "kind: [").unwrap();
        assert!(bench.look(&done("a.yaml")));
        fs::rename(bench.path("a.yaml"), bench.path("b.yaml")).unwrap();
        bench.look(&Signs { gone: ["a.yaml".to_owned()].into(), ..done("b.yaml") });
        assert_eq!(bench.services(), ["a"]);
        assert_eq!(bench.files.listing().problems.keys().collect::<Vec<_>>(), ["b.yaml"]);
    }

    #[test]
    fn what_cannot_be_read_keeps_its_last_good_content() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        fs::remove_file(bench.path("a.yaml")).unwrap();
        symlink("nowhere", bench.path("a.yaml")).unwrap();
        assert!(bench.look(&done("a.yaml")));
        assert_eq!(bench.services(), ["a"]);
        assert!(!bench.later(LASTING) && !bench.later(LASTING), "nothing new");
        bench.write("nowhere", "b");
        assert!(bench.look(&done("a.yaml")));
        assert_eq!(bench.services(), ["b"]);

        // Not a file at all: not ours.
        fs::create_dir(bench.path("dir.yaml")).unwrap();
        nix::unistd::mkfifo(&bench.path("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!bench.look(&done("pipe.yaml")));
    }

    #[test]
    fn links_to_a_directory_that_is_exchanged() {
        let mut bench = Bench::new(&[]);
        for (dir, service) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(bench.path(dir)).unwrap();
            bench.write(&format!("{dir}/a.yaml"), service);
        }
        symlink("..1", bench.path("..data")).unwrap();
        symlink("..data/a.yaml", bench.path("a.yaml")).unwrap();
        bench.look(&done("a.yaml"));
        assert_eq!(bench.services(), ["one"]);
        symlink("..2", bench.path("..tmp")).unwrap();
        fs::rename(bench.path("..tmp"), bench.path("..data")).unwrap();
        assert!(bench.look(&Signs { linked: true, ..Signs::default() }));
        assert_eq!(bench.services(), ["two"]);
    }

    #[test]
    fn a_directory_that_is_away_changes_nothing() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        let away = bench.dir.path().with_extension("away");
        fs::rename(bench.dir.path(), &away).unwrap();
        let result =
            bench.reader.look(&gone("a.yaml"), &bench.writing, bench.now, &mut bench.files);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(bench.services(), ["a"]);
        fs::rename(&away, bench.dir.path()).unwrap();
        assert!(!bench.look(&Signs::default()) && !bench.reader.is_waiting());
    }
}
