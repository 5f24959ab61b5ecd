//! Services and EndpointSlices from a directory of YAML and JSON files.
//!
//! Read are the files `*.yaml`, `*.yml` and `*.json` in the directory itself, hidden ones aside; links
//! are followed, so a mounted ConfigMap will do. A change is taken up as soon as its writer is done.
//!
//! Nothing is deleted on partial knowledge: while a file cannot be read, what it said last holds;
//! while the directory is away, all holds; and before each file was read once, nothing is said at all.

mod files;
mod object;
mod parse;
mod reader;
mod watch;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub use self::{
    files::{Files, Listing},
    object::{Named, Object},
    parse::{Document, Format, ParseError, parse},
};
use self::{reader::Reader, watch::Watch};
use super::{Changes, Problems};
use crate::model::Change;

/// From the first sign of a change to the look at the files: a burst of changes is one.
const SETTLE: Duration = Duration::from_millis(15);
/// How often the files are looked at without any sign: inotify may lose events, and knows nothing of
/// changes made by another machine.
const RESCAN: Duration = Duration::from_secs(2);
/// The same while a file is changing.
const RESCAN_CHANGING: Duration = Duration::from_millis(250);

/// Follows the directory until the receiver is gone. Fails only if the directory cannot be read at
/// the start.
pub async fn run(path: PathBuf, changes: Changes) -> Result<()> {
    let mut follower = tokio::task::spawn_blocking(move || Follower::start(path))
        .await
        .context("reading the directory did not end")??;
    let mut send = true;
    loop {
        if send {
            for change in follower.listing() {
                if changes.send(change).await.is_err() {
                    return Ok(());
                }
            }
        }
        tokio::select! {
            () = changes.closed() => return Ok(()),
            () = follower.watch.changed() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(follower.pause()) => {}
        }
        (follower, send) = tokio::task::spawn_blocking(move || {
            let news = follower.look();
            (follower, news)
        })
        .await
        .context("reading the directory did not end")?;
    }
}

/// The directory, as far as it is known.
struct Follower {
    path: PathBuf,
    watch: Watch,
    reader: Reader,
    files: Files,
    problems: Problems,
    /// The keys of `problems`.
    told: BTreeSet<String>,
    away: bool,
    /// Whether each file was read once.
    complete: bool,
}

impl Follower {
    fn start(path: PathBuf) -> Result<Self> {
        let remedy = "give --source dir:PATH a directory that is there and may be read";
        let watch = Watch::new(&path);
        let mut reader = Reader::new(path.clone());
        let mut files = Files::default();
        reader
            .read_all(&mut files)
            .with_context(|| format!("cannot read the directory {}: {remedy}", path.display()))?;
        tracing::info!(path = %path.display(), files = files.len(), "directory");
        Ok(Self {
            path,
            watch,
            reader,
            files,
            problems: Problems::default(),
            told: BTreeSet::new(),
            away: false,
            complete: false,
        })
    }

    /// Looks for changes; true if there are any.
    fn look(&mut self) -> bool {
        // The watch first: what happens after it is set up is seen by it, all before by the reader.
        self.watch.renew(&self.path);
        let signs = self.watch.signs();
        match self.reader.look(&signs, &self.watch, Instant::now(), &mut self.files) {
            Ok(changed) => {
                if std::mem::take(&mut self.away) {
                    tracing::info!(path = %self.path.display(), "the directory is back");
                }
                changed
            }
            Err(error) => {
                if !std::mem::replace(&mut self.away, true) {
                    let remedy = "all that its files said last stays in force: put it back";
                    let path = self.path.display();
                    tracing::error!(%path, remedy, "cannot read the directory: {error}");
                }
                false
            }
        }
    }

    fn pause(&self) -> Duration {
        if self.reader.is_waiting() { RESCAN_CHANGING } else { RESCAN }
    }

    /// What is to be said now. What is wrong is logged.
    fn listing(&mut self) -> Vec<Change> {
        let mut listing = self.files.listing();
        let problems = std::mem::take(&mut listing.problems);
        let told = std::mem::replace(&mut self.told, problems.keys().cloned().collect());
        for label in told.difference(&self.told) {
            if self.files.has(label) {
                self.problems.set(label, vec![]);
            } else {
                self.problems.forget(label);
            }
        }
        for (label, problems) in problems {
            self.problems.set(&label, problems);
        }

        if !self.complete {
            let unknown: Vec<_> = self.files.unknown().collect();
            if !unknown.is_empty() {
                let remedy = "what they say may be in force already: correct or remove them";
                tracing::error!(files = ?unknown, remedy, "nothing is done before all files were read");
                return vec![];
            }
            self.complete = true;
        }
        Vec::from(listing.changes())
    }
}
