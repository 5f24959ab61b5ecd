//! What the reader waits for: a file system that does not answer keeps it for ever, and nobody can end
//! that. So somebody else must be able to see it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The path that the reader asks the file system about, and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<Mutex<Option<(PathBuf, Instant)>>>);

/// Until this is dropped, there is something to wait for.
pub(super) struct Begun<'a>(&'a Waiting);

impl Waiting {
    /// The file system is asked about this path now.
    pub(super) fn begin(&self, path: &Path) -> Begun<'_> {
        let begun = Begun(self);
        begun.at(path);
        begun
    }

    /// The path that the reader has been waiting for longer than that.
    pub(super) fn longer_than(&self, patience: Duration) -> Option<PathBuf> {
        let now = self.now();
        let (path, _) = now.as_ref().filter(|(_, since)| since.elapsed() > patience)?;
        Some(path.clone())
    }

    fn now(&self) -> MutexGuard<'_, Option<(PathBuf, Instant)>> {
        // Each change is a single assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Begun<'_> {
    /// The same goes on with another path.
    pub(super) fn at(&self, path: &Path) {
        *self.0.now() = Some((path.to_owned(), Instant::now()));
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        *self.0.now() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_seen_until_it_is_there() {
        let waiting = Waiting::default();
        let seen = |patience| waiting.longer_than(patience).map(|path| path.display().to_string());
        assert_eq!(seen(Duration::ZERO), None);
        let begun = waiting.begin(Path::new("a"));
        begun.at(Path::new("b"));
        assert_eq!(seen(Duration::ZERO).as_deref(), Some("b"));
        assert_eq!(seen(Duration::from_secs(3600)), None);
        drop(begun);
        assert_eq!(seen(Duration::ZERO), None);
    }
}
