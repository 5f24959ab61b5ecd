//! Which files are there, which of them changed, and when it is safe to read them.
//!
//! A file that is read while it is written says less than it should, and what is missing would be
//! deleted. So a change counts at once only if the watch saw its writer finish, or somebody put the file
//! in place; otherwise when it has been the same for a while, and nobody is seen writing.
//!
//! Only a file system that does not answer keeps the reader waiting: see [`Waiting`], and for what has a
//! file's name and is none [`content`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    content::{self, Stamp},
    files::Files,
    parse::Syntax,
    waiting::Waiting,
    watch::Writers,
};

/// How long a change without a sign of its end must have lasted.
pub(super) const LASTING: Duration = Duration::from_secs(3);
/// The same for a file that became empty: a shell empties it long before the program writes.
const LASTING_EMPTY: Duration = Duration::from_secs(60);

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
            let stamp = fs::metadata(&path).and_then(|file| content::regular(&file));
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
            content::read(&path)
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

#[cfg(test)]
mod tests;
