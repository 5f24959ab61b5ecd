//! What inotify tells of the directory, boiled down to what a reader needs to know: which files are
//! done, which are being written, which are gone.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use notify::{
    ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode},
};

use super::{super::lasting::Lasting, parse::Format};

/// What happened since the last look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Signs {
    /// Files whose content is whole: closed by their writer, or put in place by name.
    pub(super) done: BTreeSet<String>,
    /// Files that were taken away.
    pub(super) gone: BTreeSet<String>,
    /// Something else got a name: links may lead to other files now.
    pub(super) linked: bool,
}

#[derive(Debug, Default)]
struct State {
    signs: Signs,
    /// Files changed by a writer that has not closed them yet.
    writing: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    signal: tokio::sync::Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is a single step: nobody can leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch on the directory. Without inotify it never says anything.
#[derive(Debug, Default)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    /// The directory that the watch is on: another one may have its name by now.
    on: Option<(Identity, RecommendedWatcher)>,
    failing: Lasting,
}

type Identity = (u64, u64);

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Watch {
    pub(super) fn new(path: &Path) -> Self {
        let mut watch = Self::default();
        watch.renew(path);
        watch
    }

    /// Watches the directory that has this path now.
    pub(super) fn renew(&mut self, path: &Path) {
        let Ok(now) = identity(path) else { return };
        if self.on.as_ref().is_some_and(|(on, _)| *on == now) {
            return;
        }
        match watch(path, &self.shared) {
            Ok(watcher) => {
                *self.shared.state() = State::default();
                self.on = Some((now, watcher));
                if self.failing.end() {
                    tracing::info!(path = %path.display(), "the directory is watched by inotify now");
                }
            }
            Err(error) => {
                let Some((what, remedy)) = explain(&error) else { return };
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

    /// Returns when there is something to look at.
    pub(super) async fn changed(&self) {
        self.shared.signal.notified().await;
    }

    /// What happened since the last call.
    pub(super) fn signs(&self) -> Signs {
        std::mem::take(&mut self.shared.state().signs)
    }

    /// Whether somebody is writing the file at this moment.
    pub(super) fn is_writing(&self, file: &str) -> bool {
        self.shared.state().writing.contains(file)
    }

    /// Nobody is writing the file, whatever was seen.
    pub(super) fn give_up_writer(&self, file: &str) {
        self.shared.state().writing.remove(file);
    }
}

/// What is wrong, and the remedy; none if whoever reads the directory says it.
fn explain(error: &notify::Error) -> Option<(String, &'static str)> {
    let (what, remedy) = match &error.kind {
        ErrorKind::MaxFilesWatch => (
            "this user has no watch left".to_owned(),
            "raise fs.inotify.max_user_watches: `sysctl fs.inotify.max_user_watches=1048576`",
        ),
        // Not the files that this process may have open: see `host::raise_open_files`.
        ErrorKind::Io(error) if error.raw_os_error() == Some(libc::EMFILE) => (
            "this user has no inotify instance left".to_owned(),
            "raise fs.inotify.max_user_instances: `sysctl fs.inotify.max_user_instances=8192`",
        ),
        ErrorKind::PathNotFound => return None,
        ErrorKind::Io(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::PermissionDenied => return None,
            _ => (error.to_string(), "use a file system that inotify works on"),
        },
        _ => (error.to_string(), "use a file system that inotify works on"),
    };
    Some((what, remedy))
}

fn watch(path: &Path, shared: &Arc<Shared>) -> notify::Result<RecommendedWatcher> {
    let (root, shared) = (path.to_owned(), Arc::clone(shared));
    let mut watcher = notify::recommended_watcher(move |event| take(&root, &shared, event))?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

fn take(root: &Path, shared: &Shared, event: notify::Result<Event>) {
    let urgent = match event {
        Ok(event) => {
            let mut state = shared.state();
            event
                .paths
                .iter()
                .map(|path| state.take(root, path, event.kind))
                // All paths are to be looked at: `any` would stop at the first one.
                .fold(event.need_rescan(), |urgent, of_path| urgent | of_path)
        }
        Err(error) => {
            tracing::warn!("watching the directory: {error}; it is looked at every few seconds");
            true
        }
    };
    if urgent {
        shared.signal.notify_one();
    }
}

impl State {
    /// Takes an event in; true if somebody should look at it.
    fn take(&mut self, root: &Path, path: &Path, kind: EventKind) -> bool {
        // We read files ourselves.
        let reading = matches!(kind, EventKind::Access(access)
            if access != AccessKind::Close(AccessMode::Write));
        if reading {
            return false;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| path.parent() == Some(root)) else {
            return true; // The directory itself.
        };
        let placed = matches!(
            kind,
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To))
        );
        if Format::of(name).is_none() {
            self.signs.linked |= placed;
            return placed;
        }
        match kind {
            // A link is whole at once; a new file is about to be written.
            EventKind::Create(CreateKind::File) if !is_link(path) => self.write(name),
            EventKind::Modify(ModifyKind::Data(_)) => self.write(name),
            EventKind::Access(_)
            | EventKind::Create(_)
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => self.done(name),
            EventKind::Remove(RemoveKind::File)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                self.signs.done.remove(name);
                self.writing.remove(name);
                self.signs.gone.insert(name.to_owned());
                true
            }
            // A new owner or mode: perhaps it can be read now.
            EventKind::Modify(ModifyKind::Metadata(_)) if !self.writing.contains(name) => {
                self.done(name)
            }
            _ => false,
        }
    }

    fn write(&mut self, name: &str) -> bool {
        self.signs.done.remove(name);
        self.signs.gone.remove(name);
        self.writing.insert(name.to_owned());
        false
    }

    fn done(&mut self, name: &str) -> bool {
        self.writing.remove(name);
        self.signs.gone.remove(name);
        self.signs.done.insert(name.to_owned());
        true
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink() || file.nlink() > 1)
}

#[cfg(test)]
mod tests {
    use notify::event::DataChange;

    use super::{super::tests::await_inotify, *};

    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const REMOVED: EventKind = EventKind::Remove(RemoveKind::File);
    const MOVED_IN: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));

    fn state(events: &[(&str, EventKind)]) -> (State, bool) {
        let mut state = State::default();
        let root = Path::new("/nowhere/at/all");
        let urgent = events
            .iter()
            .map(|(name, kind)| state.take(root, &root.join(name), *kind))
            .fold(false, |a, b| a | b);
        (state, urgent)
    }

    #[test]
    fn a_file_is_done_when_its_writer_closes_it() {
        let (open, urgent) = state(&[("a.yaml", CREATED), ("a.yaml", WRITTEN)]);
        assert_eq!((urgent, open.signs.done.len(), open.writing.len()), (false, 0, 1));
        let (closed, urgent) = state(&[("a.yaml", WRITTEN), ("a.yaml", CLOSED)]);
        assert_eq!((urgent, closed.signs.done.len(), closed.writing.len()), (true, 1, 0));
        let (again, _) = state(&[("a.yaml", CLOSED), ("a.yaml", WRITTEN)]);
        assert_eq!((again.signs.done.len(), again.writing.len()), (0, 1));
    }

    #[test]
    fn a_file_written_anew_is_not_gone() {
        let (state, _) = state(&[("a.yaml", REMOVED), ("a.yaml", CREATED)]);
        assert!(state.signs.gone.is_empty());
    }

    #[test]
    fn only_our_files_and_new_links_wake_the_reader() {
        assert!(
            !state(&[("a.yaml~", CREATED), (".a.yaml.swp", WRITTEN), ("a.txt", CLOSED)])
                .0
                .signs
                .done
                .contains("a.txt")
        );
        assert!(!state(&[("a.txt", CLOSED), ("a.txt", REMOVED)]).1);
        let (state, urgent) = state(&[("..data", MOVED_IN)]);
        assert!(urgent && state.signs.linked);
    }

    #[tokio::test]
    async fn the_watch_moves_to_the_directory_that_has_the_path() {
        await_inotify();
        let parent = tempfile::TempDir::new().unwrap();
        let path = parent.path().join("dir");
        fs::create_dir(&path).unwrap();
        let mut watch = Watch::new(&path);
        fs::rename(&path, parent.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        watch.renew(&path);
        fs::write(path.join("a.yaml"), "").unwrap();
        while !watch.signs().done.contains("a.yaml") {
            tokio::time::timeout(std::time::Duration::from_secs(30), watch.changed())
                .await
                .expect("no sign of the new directory");
        }
    }
}
