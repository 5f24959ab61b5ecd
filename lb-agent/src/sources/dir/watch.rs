//! What inotify tells of the directory: which files are whole, which are being written, which are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::{super::lasting::Lasting, parse::Syntax};

/// Whoever keeps a file open without writing to it is waited for no longer.
const WRITING: Duration = Duration::from_secs(60);

/// Who knows what happened to the files.
pub(super) trait Writers {
    /// What has happened until now.
    fn signs(&mut self) -> &mut Signs;
}

/// What happened to the files.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Signs {
    /// Whole: closed by their writer, or put in place by name. Until the next look.
    pub(super) done: BTreeSet<String>,
    /// Taken away. Until the next look.
    pub(super) gone: BTreeSet<String>,
    /// Written to, and not closed since; when that was last.
    pub(super) writing: BTreeMap<String, Instant>,
}

impl Signs {
    /// Whether somebody is writing the file at this moment.
    pub(super) fn is_writing(&self, file: &str, now: Instant) -> bool {
        let last = self.writing.get(file);
        last.is_some_and(|last| now.saturating_duration_since(*last) < WRITING)
    }

    /// What happened to one of our files.
    fn take(&mut self, file: &str, what: AddWatchFlags, now: Instant) {
        let of = |events: AddWatchFlags| what.intersects(events);
        if of(AddWatchFlags::IN_MODIFY) {
            self.writing.insert(file.to_owned(), now);
        } else if of(!AddWatchFlags::IN_ATTRIB) {
            self.writing.remove(file);
        }
        for (among, events) in [
            (&mut self.done, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO),
            (&mut self.gone, AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM),
        ] {
            if of(events) {
                among.insert(file.to_owned());
            } else if of(!AddWatchFlags::IN_ATTRIB) {
                among.remove(file);
            }
        }
    }
}

/// A watch on the directory. Without inotify it never says anything.
#[derive(Debug, Default)]
pub(super) struct DirectoryWatch {
    /// The directory that the watch is on: another one may have its name by now.
    on: Option<(Identity, Inotify)>,
    signs: Signs,
    failing: Lasting,
}

type Identity = (u64, u64);

impl DirectoryWatch {
    pub(super) fn new(path: &Path) -> Self {
        let mut watch = Self::default();
        watch.renew(path);
        watch
    }

    /// Watches the directory that has this path now.
    pub(super) fn renew(&mut self, path: &Path) {
        let Ok(now) = fs::metadata(path).map(|dir| (dir.dev(), dir.ino())) else { return };
        if self.on.as_ref().is_some_and(|(on, _)| *on == now) {
            return;
        }
        match begin(path) {
            Ok(inotify) => {
                self.signs = Signs::default();
                self.on = Some((now, inotify));
                if self.failing.end() {
                    tracing::info!(path = %path.display(), "the directory is watched by inotify now");
                }
            }
            Err(errno) => {
                let Some((what, remedy)) = explain(errno) else { return };
                let path = path.display();
                let what = format!("cannot watch the directory {path} by inotify: {what}");
                if self.failing.is_due(&what, Instant::now()) {
                    tracing::warn!(
                        remedy,
                        "{what}; it is looked at every few seconds, so changes take longer"
                    );
                }
            }
        }
    }

    /// Waits until there is a file to look at, or for so long.
    pub(super) fn wait(&mut self, at_most: Duration) {
        let begun = Instant::now();
        while self.signs().done.is_empty() && self.signs.gone.is_empty() {
            let left = at_most.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            let Some((_, inotify)) = &self.on else { return thread::sleep(left) };
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // Interrupted, or for another file, it is waited on.
            let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }

    /// What has happened until now is of no use any more.
    pub(super) fn forget(&mut self) {
        let signs = self.signs();
        signs.done.clear();
        signs.gone.clear();
    }

    /// What has happened until now.
    pub(super) fn signs(&mut self) -> &mut Signs {
        while let Some((_, inotify)) = &self.on
            && let Ok(events) = inotify.read_events()
        {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    // The directory was removed. Another one may get its number.
                    self.on = None;
                    break;
                }
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.signs = Signs::default();
                }
                let name = event.name.as_deref().and_then(|name| name.to_str());
                if let Some(name) = name.filter(|name| Syntax::of(name).is_some()) {
                    self.signs.take(name, event.mask, Instant::now());
                }
            }
        }
        &mut self.signs
    }
}

fn begin(path: &Path) -> Result<Inotify, Errno> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let events = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(path, events)?;
    Ok(inotify)
}

/// What is wrong, and the remedy; none if whoever reads the directory says it.
fn explain(errno: Errno) -> Option<(&'static str, &'static str)> {
    match errno {
        Errno::ENOSPC => Some((
            "this user has no watch left",
            "raise fs.inotify.max_user_watches: `sysctl fs.inotify.max_user_watches=1048576`",
        )),
        // Not the files that this process may have open: see `host::raise_open_files`.
        Errno::EMFILE => Some((
            "this user has no inotify instance left",
            "raise fs.inotify.max_user_instances: `sysctl fs.inotify.max_user_instances=8192`",
        )),
        Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES => None,
        other => Some((other.desc(), "use a file system that inotify works on")),
    }
}

impl Writers for DirectoryWatch {
    fn signs(&mut self) -> &mut Signs {
        self.signs()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::{super::tests::await_inotify, *};

    /// A directory, and the watch on it.
    fn watched() -> (tempfile::TempDir, DirectoryWatch) {
        await_inotify();
        let dir = tempfile::TempDir::new().unwrap();
        let watch = DirectoryWatch::new(dir.path());
        assert!(watch.on.is_some(), "inotify");
        (dir, watch)
    }

    fn of(file: &str) -> BTreeSet<String> {
        [file.to_owned()].into()
    }

    #[test]
    fn a_file_is_done_when_its_writer_closes_it() {
        let (dir, mut watch) = watched();
        let path = dir.path().join("a.yaml");
        let now = Instant::now();
        let mut file = File::create(&path).unwrap();
        file.write_all(b"a").unwrap();
        assert!(watch.signs().done.is_empty() && watch.signs().is_writing("a.yaml", now));
        let late = Instant::now() + WRITING;
        assert!(!watch.signs().is_writing("a.yaml", late), "for ever");
        drop(file);
        assert!(watch.signs().done == of("a.yaml") && !watch.signs().is_writing("a.yaml", now));
        // Emptied, by who writes it anew.
        let file = File::create(&path).unwrap();
        assert!(watch.signs().done.is_empty() && watch.signs().is_writing("a.yaml", now));
        drop(file);
        let begun = Instant::now();
        assert_eq!(watch.signs().done, of("a.yaml"));
        watch.wait(Duration::from_secs(3600));
        assert!(begun.elapsed() < Duration::from_secs(3600), "there is something to look at");
    }

    #[test]
    fn a_file_that_is_put_in_place_is_done_and_one_written_anew_is_not_gone() {
        let (dir, mut watch) = watched();
        let path = |name: &str| dir.path().join(name);
        fs::write(path(".a"), "a").unwrap();
        fs::rename(path(".a"), path("a.yaml")).unwrap();
        assert_eq!(*watch.signs(), Signs { done: of("a.yaml"), ..Signs::default() });
        fs::rename(path("a.yaml"), path("a.yaml~")).unwrap();
        assert_eq!(*watch.signs(), Signs { gone: of("a.yaml"), ..Signs::default() });
        fs::write(path("a.yaml"), "b").unwrap();
        assert_eq!(*watch.signs(), Signs { done: of("a.yaml"), ..Signs::default() });
        fs::remove_file(path("a.yaml")).unwrap();
        assert_eq!(*watch.signs(), Signs { gone: of("a.yaml"), ..Signs::default() });
        for name in [".a.yaml.swp", "a.txt"] {
            fs::write(path(name), "").unwrap();
        }
        assert_eq!(watch.signs().done, [].into());
    }

    #[test]
    fn the_watch_moves_to_the_directory_that_has_the_path() {
        await_inotify();
        let parent = tempfile::TempDir::new().unwrap();
        let path = parent.path().join("dir");
        fs::create_dir(&path).unwrap();
        let mut watch = DirectoryWatch::new(&path);
        fs::rename(&path, parent.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        watch.renew(&path);
        fs::write(path.join("a.yaml"), "").unwrap();
        assert_eq!(watch.signs().done, of("a.yaml"));
        // Whatever number the next one has.
        fs::remove_dir_all(&path).unwrap();
        watch.signs();
        fs::create_dir(&path).unwrap();
        watch.renew(&path);
        fs::write(path.join("b.yaml"), "").unwrap();
        assert_eq!(watch.signs().done, of("b.yaml"));
    }
}
