//! Services, EndpointSlices and Nodes from a directory of YAML and JSON files.
//!
//! Read are the files `*.yaml`, `*.yml` and `*.json` in the directory itself, hidden ones aside; links
//! are followed, so a mounted ConfigMap will do.
//!
//! Whoever writes a file writes it under another name in the same file system, and renames it: so nobody
//! ever sees half of it, and it counts at once. One that is written in place counts when its writer
//! closes it, as far as inotify tells that; else when it has not changed for three seconds, or a minute
//! if it is empty.
//!
//! Nothing is deleted on partial knowledge: while a file cannot be read, what it said last holds;
//! while the directory is away, all holds; and after a restart, nothing is said at all before each
//! file was read once.

mod away;
mod content;
mod files;
mod object;
mod parse;
mod reader;
mod strict;
mod waiting;
mod watch;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_core::model::Change;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

pub use self::files::{Files, Listing};
use self::{
    away::Away,
    reader::{LASTING, Reader},
    waiting::Waiting,
    watch::DirectoryWatch,
};
use super::{Changes, Problems, Standstill, Standstills, Wait, Waits, lasting::Lasting};

/// From the first sign of a change to the look at the files: a burst of changes is one.
const SETTLE: Duration = Duration::from_millis(15);
/// How often the files are looked at without any sign: inotify may lose events, and knows nothing of
/// changes made by another machine.
const RESCAN: Duration = Duration::from_secs(2);
/// The same while a file is changing.
const RESCAN_CHANGING: Duration = Duration::from_millis(250);
/// How many of several files are named.
const NAMED: usize = 5;
/// How long a file system may take to answer before that is a trouble.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a directory is followed.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// An earlier agent's maps are at work. Then nothing is said before each file was read once,
    /// since what an unreadable one says may be in them.
    pub in_force: bool,
    /// Nobody waits for what cannot be read now: it is an error.
    pub once: bool,
    /// Only Services that ask for the proxy of this name.
    pub proxy_name: Option<String>,
    /// Is told which files were never read.
    pub waits: Waits,
}

/// Follows the directory until the receiver is gone. `trouble` is told while it cannot be read, or a
/// file system does not answer.
pub async fn run(
    path: PathBuf,
    terms: Terms,
    changes: Changes,
    standstills: Standstills,
) -> Result<()> {
    let waiting = Waiting::default();
    let mut away = Away::new(path.clone());
    let mut follower = tokio::select! {
        () = changes.closed() => return Ok(()),
        follower = start(&path, &terms, &waiting, &mut away, &standstills) => follower?,
    };
    let mut send = true;
    loop {
        if send {
            for change in follower.listing()? {
                if changes.send(change).await.is_err() {
                    return Ok(());
                }
            }
        }
        let look = move || {
            follower.wait();
            let news = follower.look();
            (follower, news)
        };
        let news;
        (follower, news) = tokio::select! {
            () = changes.closed() => return Ok(()),
            looked = watched(&waiting, &standstills, PATIENCE, look) => looked?,
        };
        send = match news {
            Ok(news) => {
                away.end(&standstills);
                news
            }
            Err(error) => {
                away.tell(&error, &standstills);
                false
            }
        };
    }
}

/// Begins as soon as the directory can be read.
async fn start(
    path: &Path,
    terms: &Terms,
    waiting: &Waiting,
    away: &mut Away,
    standstills: &Standstills,
) -> Result<Follower> {
    loop {
        let (dir, waits) = (path.to_owned(), waiting.clone());
        let is_there = move || {
            let _waits = waits.begin(&dir);
            fs::read_dir(&dir).map(drop)
        };
        let mut result = watched(waiting, standstills, PATIENCE, is_there).await?.map(|()| None);
        if result.is_ok() {
            if away.end(standstills) {
                // Whoever makes a directory may not have put all files into it yet.
                sleep(LASTING).await;
            }
            let (dir, waits, terms) = (path.to_owned(), waiting.clone(), terms.clone());
            let start = move || Follower::start(dir, waits, terms).map(Some);
            result = watched(waiting, standstills, PATIENCE, start).await?;
        }
        match result {
            Ok(Some(follower)) => return Ok(follower),
            Ok(None) => {}
            Err(error) if terms.once => bail!("{}", away.explain(&error)),
            Err(error) => away.tell(&error, standstills),
        }
        sleep(RESCAN).await;
    }
}

/// Does work that asks the file system, beside the runtime. While there is no answer, which nobody can
/// end, it is a trouble.
async fn watched<T: Send + 'static>(
    waiting: &Waiting,
    standstills: &Standstills,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let mut work = spawn_blocking(work);
    let mut hangs = Lasting::default();
    loop {
        let end = timeout(patience, &mut work).await.ok();
        if let Some(path) = waiting.longer_than(patience).filter(|_| end.is_none()) {
            let (path, seconds) = (path.display(), patience.as_secs());
            let what = format!("{path}: its file system has not answered for {seconds} s");
            if hangs.is_due(&what, Instant::now()) {
                let remedy = "nothing in the directory is followed until it does: repair the mount, \
                              or remove the file and restart lb-agent";
                tracing::error!(remedy, "{what}");
                standstills.send_replace(Some(Standstill { what, hangs: true }));
            }
        } else if hangs.end() {
            tracing::info!("the file system answers again");
            standstills.send_replace(None);
        }
        if let Some(end) = end {
            return end.context("the work on the directory died");
        }
    }
}

/// The directory, as far as it is known.
struct Follower {
    path: PathBuf,
    waiting: Waiting,
    watch: DirectoryWatch,
    reader: Reader,
    files: Files,
    problems: Problems,
    /// Whether each file was read once, or need not be.
    complete: bool,
    once: bool,
    waits: Waits,
}

impl Follower {
    fn start(path: PathBuf, waiting: Waiting, terms: Terms) -> io::Result<Self> {
        let watch = {
            let _waits = waiting.begin(&path);
            DirectoryWatch::new(&path)
        };
        let mut reader = Reader::new(path.clone(), waiting.clone());
        let mut files = Files::new(terms.proxy_name);
        reader.read_all(&mut files)?;
        tracing::info!(path = %path.display(), files = files.len(), "directory");
        Ok(Self {
            path,
            waiting,
            watch,
            reader,
            files,
            problems: Problems::default(),
            complete: !terms.in_force,
            once: terms.once,
            waits: terms.waits,
        })
    }

    /// Looks for changes; true if there are any.
    fn look(&mut self) -> io::Result<bool> {
        // The watch first: what happens after it is set up is seen by it, all before by the reader.
        let waits = self.waiting.begin(&self.path);
        self.watch.renew(&self.path);
        drop(waits);
        let news = self.reader.look(&mut self.watch, Instant::now(), &mut self.files);
        if news.is_err() {
            // The directory is away, and its files are not gone.
            self.watch.forget();
        }
        news
    }

    /// Waits until it is time to look.
    fn wait(&mut self) {
        self.watch.wait(if self.reader.is_waiting() { RESCAN_CHANGING } else { RESCAN });
        thread::sleep(SETTLE);
    }

    /// What is to be said now. What is wrong is logged.
    fn listing(&mut self) -> Result<Vec<Change>> {
        let mut listing = self.files.listing();
        self.problems.set_all(std::mem::take(&mut listing.problems));
        if !self.complete {
            let unknown: Vec<_> = self.files.unknown().collect();
            if !unknown.is_empty() {
                let remedy = "what they say may be in force already: correct or remove them";
                let what = "nothing is done before all files were read";
                if self.once {
                    bail!("{what}, and these could not be: {}; {remedy}", unknown.join(", "));
                }
                tracing::error!(files = ?unknown, remedy, "{what}");
                let named = &unknown[..unknown.len().min(NAMED)];
                let more = if named.len() < unknown.len() { " and others" } else { "" };
                let why = format!("{named:?}{more} cannot be read, and never were");
                let wait = Wait { why, remedy: remedy.to_owned() };
                self.waits.send_modify(|waits| drop(waits.insert("files", wait)));
                return Ok(vec![]);
            }
            self.waits.send_modify(|waits| drop(waits.remove("files")));
            self.complete = true;
        }
        Ok(Vec::from(listing.changes()))
    }
}

#[cfg(test)]
mod tests;
