//! Which files are there, which of them changed, and when it is safe to read them.
//!
//! A file that is read while it is written says less than it should, and what is missing would be
//! deleted. So a change counts at once only if the watch saw its writer finish, or somebody put the file
//! in place; otherwise when it has been the same for a while, and nobody is seen writing.
//!
//! Only regular files are read, and links to them. Nothing else keeps the reader waiting, save a file
//! system that does not answer: see [`Waiting`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File, FileType, Metadata},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::statfs::{
    CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC,
    fstatfs,
};

use super::{files::Files, parse::Syntax, waiting::Waiting, watch::Writers};

/// How long a change without a sign of its end must have lasted.
pub(super) const LASTING: Duration = Duration::from_secs(3);
/// The same for a file that became empty: a shell empties it long before the program writes.
const LASTING_EMPTY: Duration = Duration::from_secs(60);
/// The largest file that is read, bytes. The objects of a large cluster have 50 MB.
const LARGEST: u64 = 64 << 20;
/// File systems whose files are questions to the kernel. Some give an answer once, some wait for it.
const VIEWS: [FsType; 5] =
    [PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC, CGROUP2_SUPER_MAGIC];

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

/// The names that are there. An error, if no file that can be read has it.
type Listed = BTreeMap<String, io::Result<Stamp>>;

/// A file that was read, or could not be.
struct FileState {
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
    waiting: Waiting,
    known: BTreeMap<String, FileState>,
    pending: BTreeMap<String, Pending>,
}

impl Reader {
    /// `waiting` is told what the reader waits for.
    pub(super) const fn new(path: PathBuf, waiting: Waiting) -> Self {
        Self { path, waiting, known: BTreeMap::new(), pending: BTreeMap::new() }
    }

    /// Whether a change waits to be believed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads all there is, as it is.
    pub(super) fn read_all(&mut self, files: &mut Files) -> io::Result<()> {
        for (name, stamp) in self.list()? {
            if self.read(&name, stamp, files, || false).is_none() {
                files.fail(&name, "file", "is being written");
            }
        }
        Ok(())
    }

    /// Reads what changed; true if anything did.
    pub(super) fn look(
        &mut self,
        writers: &mut impl Writers,
        now: Instant,
        files: &mut Files,
    ) -> io::Result<bool> {
        // The signs first: of what happens while the files are listed, the next look hears.
        let signs = writers.signs();
        let (done, gone) = (std::mem::take(&mut signs.done), std::mem::take(&mut signs.gone));
        let found = self.list()?;
        let mut changed = self.take_away(&found, &gone, now, files);
        for (name, found) in found {
            let known = self.known.get(&name);
            let stamp = found.as_ref().ok().copied();
            if known.is_some_and(|known| known.readable && known.stamp == stamp) {
                self.pending.remove(&name);
                continue;
            }
            let retry = known.is_some_and(|known| !known.readable && known.stamp == stamp);
            if !(done.contains(&name) || retry || self.lasts(&name, stamp, now)) {
                continue;
            }
            // It may have been opened again since.
            let changing = || writers.signs().is_writing(&name, now);
            if let Some(news) = self.read(&name, found, files, changing) {
                changed |= news;
                self.pending.remove(&name);
            }
        }
        Ok(changed)
    }

    /// Forgets the files that are not there any more.
    fn take_away(
        &mut self,
        found: &Listed,
        gone: &BTreeSet<String>,
        now: Instant,
        files: &mut Files,
    ) -> bool {
        // The new names of each file, the last one first.
        let mut heirs: HashMap<(u64, u64), Vec<&String>> = HashMap::new();
        for (name, found) in found.iter().rev().filter(|(name, _)| !self.known.contains_key(*name))
        {
            if let Ok(stamp) = found {
                heirs.entry(stamp.file).or_default().push(name);
            }
        }
        let away: Vec<_> =
            self.known.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        let mut changed = false;
        for name in away {
            let stamp = self.known.get(&name).and_then(|known| known.stamp);
            let heir = stamp.and_then(|stamp| heirs.get_mut(&stamp.file)?.pop());
            if let Some(heir) = heir
                && let Some(known) = self.known.remove(&name)
            {
                // It may be broken, and its last good content goes with it.
                files.rename(&name, heir);
                self.known.insert(heir.clone(), known);
            } else if gone.contains(&name) || self.lasts(&name, None, now) {
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

    /// The names that are ours.
    fn list(&self) -> io::Result<Listed> {
        let waiting = self.waiting.begin(&self.path);
        let mut listed = Listed::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            if Syntax::of(&name.to_string_lossy()).is_none() {
                continue;
            }
            let Ok(name) = name.into_string() else {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let stamp = Err(io::Error::other("its name is no UTF-8: rename it"));
                listed.insert(name, stamp);
                continue;
            };
            waiting.at(&path);
            let stamp = fs::metadata(&path).and_then(|file| regular(&file));
            let gone = stamp.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            // It may be gone by now, unless it is a link that leads nowhere.
            if !gone || entry.file_type()?.is_symlink() {
                listed.insert(name, stamp);
            }
        }
        Ok(listed)
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
        found: io::Result<Stamp>,
        files: &mut Files,
        changing: impl FnOnce() -> bool,
    ) -> Option<bool> {
        let stamp = found.as_ref().ok().copied();
        let content = found.and_then(|_| {
            let path = self.path.join(name);
            let _waiting = self.waiting.begin(&path);
            content(&path)
        });
        if changing() {
            return None;
        }
        let (known, changed) = match content {
            Ok(None) => return None,
            Ok(Some((content, stamp))) => {
                files.put(name, &content);
                (FileState { stamp: Some(stamp), readable: true }, true)
            }
            Err(error) => {
                let changed = files.fail(name, "file", format!("cannot be read: {error}"));
                (FileState { stamp, readable: false }, changed)
            }
        };
        self.known.insert(name.to_owned(), known);
        Some(changed)
    }
}

/// What a regular file looks like; any other sort is an error.
fn regular(metadata: &Metadata) -> io::Result<Stamp> {
    let kind = metadata.file_type();
    if kind.is_file() { Ok(metadata.into()) } else { Err(io::Error::other(sort(kind))) }
}

fn sort(kind: FileType) -> String {
    let sort = match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    format!("it is {sort}; only regular files are read, and links to them")
}

/// The content of a file, and the stamp it has; none if the file is changing.
fn content(path: &Path) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    // What has the name may have changed since it was listed: a FIFO would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    let before = regular(&file.metadata()?)?;
    if VIEWS.contains(&fstatfs(&file)?.filesystem_type()) {
        return Err(io::Error::other("it is a file of the kernel's; only those on disks are read"));
    }
    if before.len > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {} MB, at most {} are read", before.len >> 20, LARGEST >> 20),
        ));
    }
    let mut content = Vec::with_capacity(usize::try_from(before.len).unwrap_or(0) + 1);
    // One byte more shows that there is more.
    file.by_ref().take(before.len + 1).read_to_end(&mut content)?;
    let after = Stamp::from(&file.metadata()?);
    if before != after {
        return Ok(None);
    }
    if u64::try_from(content.len()).is_ok_and(|len| len > before.len) {
        return Err(io::Error::other("it has more bytes than its size says"));
    }
    Ok(Some((content, after)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::{super::watch::Signs, *};

    /// A directory and its reader; the clock and the watch are ours.
    struct Bench {
        dir: TempDir,
        reader: Reader,
        files: Files,
        now: Instant,
        signs: Signs,
    }

    impl Writers for Signs {
        fn signs(&mut self) -> &mut Signs {
            self
        }
    }

    impl Bench {
        fn new(content: &[(&str, &str)]) -> Self {
            let dir = TempDir::new().unwrap();
            let reader = Reader::new(dir.path().to_owned(), Waiting::default());
            let (files, now) = (Files::default(), Instant::now());
            let mut bench = Self { dir, reader, files, now, signs: Signs::default() };
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
            self.signs.done.extend(signs.done.iter().cloned());
            self.signs.gone.extend(signs.gone.iter().cloned());
            self.reader.look(&mut self.signs, self.now, &mut self.files).unwrap()
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
        bench.signs.writing.insert("a.yaml".to_owned(), bench.now);
        bench.write("a.yaml", "");
        assert!(!bench.look(&done("a.yaml")) && !bench.later(LASTING));
        bench.write("a.yaml", "slow");
        assert!(!bench.look(&done("a.yaml")) && !bench.later(LASTING));
        assert_eq!(bench.services(), ["a"]);
        assert!(bench.later(LASTING_EMPTY), "its writer seems to keep it open for ever");
        assert_eq!(bench.services(), ["slow"]);
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
    }

    fn fifo(path: &Path) {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }

    /// Each is told once, and what a file said that had the name holds.
    #[test]
    fn what_is_no_regular_file_is_told_and_keeps_nobody_waiting() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        let all = ["a.yaml", "b.yaml", "c.yaml", "d.yaml", "e.yaml", "f.yaml"];
        fs::remove_file(bench.path("a.yaml")).unwrap();
        fifo(&bench.path("a.yaml"));
        fs::create_dir(bench.path("b.yaml")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(bench.path("c.yaml")).unwrap();
        // The second one is a regular file, of which each read takes a message away, or waits for one.
        symlink("/dev/zero", bench.path("d.yaml")).unwrap();
        symlink("/proc/kmsg", bench.path("e.yaml")).unwrap();
        symlink("f.yaml", bench.path("f.yaml")).unwrap();
        let signs = Signs { done: all.map(str::to_owned).into(), ..Signs::default() };
        assert!(bench.look(&signs));
        assert!(!bench.look(&signs) && !bench.later(LASTING) && !bench.reader.is_waiting());
        assert_eq!(bench.services(), ["a"]);
        let problems = bench.files.listing().problems;
        let what = |name: &str| problems[name][0].to_string();
        for (name, sort) in [
            ("a.yaml", "it is a FIFO"),
            ("b.yaml", "it is a directory"),
            ("c.yaml", "it is a socket"),
            ("d.yaml", "it is a device"),
            ("f.yaml", "Too many levels of symbolic links"),
        ] {
            assert!(
                what(name).starts_with(&format!("file: cannot be read: {sort}")),
                "{problems:?}"
            );
            assert!(what(name).contains("remove"), "{problems:?}");
        }
        // Who is not root may not open it.
        let kernel =
            ["it is a file of the kernel's", "Permission denied", "Operation not permitted"];
        assert!(kernel.iter().any(|it| what("e.yaml").contains(it)), "{problems:?}");

        fs::remove_file(bench.path("a.yaml")).unwrap();
        bench.write("a.yaml", "again");
        assert!(bench.look(&signs));
        assert_eq!(bench.services(), ["again"]);
    }

    /// Between the list and the reading the name may get another owner.
    #[test]
    fn what_is_opened_is_looked_at() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.yaml");
        fifo(&path);
        assert!(content(&path).unwrap_err().to_string().starts_with("it is a FIFO"));
        assert!(content(Path::new("/dev/null")).unwrap_err().to_string().contains("a device"));
        assert!(content(dir.path()).unwrap_err().to_string().contains("a directory"));
        let of_kernel = content(Path::new("/proc/self/mounts")).unwrap_err().to_string();
        assert!(of_kernel.contains("of the kernel's"), "{of_kernel}");
    }

    #[test]
    fn files_with_one_inode_inherit_one_each() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        fs::hard_link(bench.path("a.yaml"), bench.path("b.yaml")).unwrap();
        assert!(bench.look(&done("b.yaml")));
        fs::write(bench.path("a.yaml"), "kind: [").unwrap();
        assert!(bench.look(&Signs {
            done: ["a.yaml", "b.yaml"].map(str::to_owned).into(),
            ..Signs::default()
        }));
        for (from, to) in [("a.yaml", "c.yaml"), ("b.yaml", "d.yaml")] {
            fs::rename(bench.path(from), bench.path(to)).unwrap();
        }
        assert!(bench.look(&Signs {
            gone: ["a.yaml", "b.yaml"].map(str::to_owned).into(),
            ..Signs::default()
        }));
        assert_eq!((bench.files.len(), bench.services()), (2, vec!["a".to_owned()]));
        assert_eq!(bench.files.unknown().count(), 0, "each has its last good content");
    }

    /// Were the time to grow with the square of their number, this would take minutes.
    #[test]
    fn ten_thousand_files_come_and_go() {
        let mut bench = Bench::new(&[]);
        let name = |i: usize| format!("{i}.yaml");
        let all: BTreeSet<String> = (0..10_000).map(name).collect();
        for name in &all {
            fs::write(bench.path(name), "kind: [").unwrap();
        }
        bench.look(&Signs { done: all.clone(), ..Signs::default() });
        assert_eq!(bench.files.unknown().count(), all.len());
        for name in &all {
            fs::rename(bench.path(name), bench.path(&format!("x{name}"))).unwrap();
        }
        assert!(bench.look(&Signs { gone: all.clone(), ..Signs::default() }));
        assert_eq!(bench.files.unknown().count(), all.len());
        for name in &all {
            fs::remove_file(bench.path(&format!("x{name}"))).unwrap();
        }
        let gone = all.iter().map(|name| format!("x{name}")).collect();
        assert!(bench.look(&Signs { gone, ..Signs::default() }) && bench.files.is_empty());
    }

    #[test]
    fn a_name_that_is_no_utf_8_is_told() {
        use std::os::unix::ffi::OsStrExt as _;

        let mut bench = Bench::new(&[("a.yaml", "a")]);
        let name = std::ffi::OsStr::from_bytes(b"b\xff.yaml");
        fs::write(bench.dir.path().join(name), "").unwrap();
        assert!(!bench.look(&done("a.yaml")) && bench.later(LASTING) && !bench.later(LASTING));
        assert_eq!(bench.services(), ["a"]);
        let [(_, problems)] = &bench.files.listing().problems.into_iter().collect::<Vec<_>>()[..]
        else {
            panic!("one problem")
        };
        assert!(problems[0].what.contains("no UTF-8"), "{problems:?}");
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
        assert!(!bench.look(&Signs::default()) && bench.later(LASTING));
        assert_eq!(bench.services(), ["two"]);
    }

    #[test]
    fn a_directory_that_is_away_changes_nothing() {
        let mut bench = Bench::new(&[("a.yaml", "a")]);
        let away = bench.dir.path().with_extension("away");
        fs::rename(bench.dir.path(), &away).unwrap();
        bench.signs = gone("a.yaml");
        let result = bench.reader.look(&mut bench.signs, bench.now, &mut bench.files);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(bench.services(), ["a"]);
        fs::rename(&away, bench.dir.path()).unwrap();
        assert!(!bench.look(&Signs::default()) && !bench.reader.is_waiting());
    }
}
