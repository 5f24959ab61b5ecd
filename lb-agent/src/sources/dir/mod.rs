//! Services, EndpointSlices and Nodes from a directory of YAML and JSON files.
//!
//! Read are the files `*.yaml`, `*.yml` and `*.json` in the directory itself, hidden ones aside; links
//! are followed, so a mounted ConfigMap will do. A change is taken up as soon as its writer is done.
//!
//! Nothing is deleted on partial knowledge: while a file cannot be read, what it said last holds;
//! while the directory is away, all holds; and after a restart, nothing is said at all before each
//! file was read once.

mod away;
mod bounded;
mod files;
mod object;
mod parse;
mod reader;
mod strict;
mod waiting;
mod watch;

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

pub use self::files::{Files, Listing};
use self::{
    away::Away,
    reader::{LASTING, Reader},
    waiting::Waiting,
    watch::Watch,
};
use super::{Changes, Problems, Standstill, Trouble, Wait, Waits, lasting::Lasting};
use crate::model::Change;

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
pub async fn run(path: PathBuf, terms: Terms, changes: Changes, trouble: Trouble) -> Result<()> {
    let waiting = Waiting::default();
    let mut away = Away::new(path.clone());
    let mut follower = tokio::select! {
        () = changes.closed() => return Ok(()),
        follower = start(&path, &terms, &waiting, &mut away, &trouble) => follower?,
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
        tokio::select! {
            () = changes.closed() => return Ok(()),
            () = follower.watch.changed() => sleep(SETTLE).await,
            () = sleep(follower.pause()) => {}
        }
        let look = move || {
            let news = follower.look();
            (follower, news)
        };
        let news;
        (follower, news) = watched(&waiting, &trouble, PATIENCE, look).await?;
        send = match news {
            Ok(news) => {
                away.end(&trouble);
                news
            }
            Err(error) => {
                away.tell(&error, &trouble);
                false
            }
        };
    }
}

/// Begins as soon as the directory can be read.
async fn start(
    path: &PathBuf,
    terms: &Terms,
    waiting: &Waiting,
    away: &mut Away,
    trouble: &Trouble,
) -> Result<Follower> {
    loop {
        let (dir, waits) = (path.clone(), waiting.clone());
        let is_there = move || {
            let _waits = waits.begin(&dir);
            fs::read_dir(&dir).map(drop)
        };
        let mut result = watched(waiting, trouble, PATIENCE, is_there).await?.map(|()| None);
        if result.is_ok() {
            if away.end(trouble) {
                // Whoever makes a directory may not have put all files into it yet.
                sleep(LASTING).await;
            }
            let (dir, waits, terms) = (path.clone(), waiting.clone(), terms.clone());
            let start = move || Follower::start(dir, waits, terms).map(Some);
            result = watched(waiting, trouble, PATIENCE, start).await?;
        }
        match result {
            Ok(Some(follower)) => return Ok(follower),
            Ok(None) => {}
            Err(error) if terms.once => bail!("{}", away.explain(&error)),
            Err(error) => away.tell(&error, trouble),
        }
        sleep(RESCAN).await;
    }
}

/// Does work that asks the file system, beside the runtime. While there is no answer, which nobody can
/// end, it is a trouble.
async fn watched<T: Send + 'static>(
    waiting: &Waiting,
    trouble: &Trouble,
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
                trouble.send_replace(Some(Standstill { what, hangs: true }));
            }
        } else if hangs.end() {
            tracing::info!("the file system answers again");
            trouble.send_replace(None);
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
    watch: Watch,
    reader: Reader,
    files: Files,
    problems: Problems,
    /// The keys of `problems`.
    told: BTreeSet<String>,
    /// Whether each file was read once, or need not be.
    complete: bool,
    once: bool,
    waits: Waits,
}

impl Follower {
    fn start(path: PathBuf, waiting: Waiting, terms: Terms) -> io::Result<Self> {
        let watch = {
            let _waits = waiting.begin(&path);
            Watch::new(&path)
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
            told: BTreeSet::new(),
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
        let signs = self.watch.signs();
        self.reader.look(&signs, &self.watch, Instant::now(), &mut self.files)
    }

    fn pause(&self) -> Duration {
        if self.reader.is_waiting() { RESCAN_CHANGING } else { RESCAN }
    }

    /// What is to be said now. What is wrong is logged.
    fn listing(&mut self) -> Result<Vec<Change>> {
        let mut listing = self.files.listing();
        let problems = std::mem::take(&mut listing.problems);
        let told = std::mem::replace(&mut self.told, problems.keys().cloned().collect());
        let mut over = told.difference(&self.told).peekable();
        let there = if over.peek().is_some() { self.files.labels() } else { HashSet::new() };
        for label in over {
            if there.contains(label) {
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
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use tempfile::TempDir;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::sources::BACKLOG;

    /// Much longer than anything should take: a machine may be slow, the answer must be right.
    const DEADLINE: Duration = Duration::from_secs(30);

    fn service(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    }

    struct Running {
        receiver: mpsc::Receiver<Change>,
        task: tokio::task::JoinHandle<Result<()>>,
    }

    impl Running {
        fn start(path: &Path) -> Self {
            Self::start_with(path, true)
        }

        fn start_with(path: &Path, in_force: bool) -> Self {
            let (sender, receiver) = mpsc::channel(BACKLOG);
            let (trouble, _) = watch::channel(None);
            let terms = Terms { in_force, ..Terms::default() };
            let run = run(path.to_owned(), terms, sender, trouble);
            Self { receiver, task: tokio::spawn(run) }
        }

        /// The names of the next list of Services, with the list of slices behind it.
        async fn next(&mut self) -> Vec<String> {
            let nodes = timeout(DEADLINE, self.receiver.recv()).await.unwrap();
            assert!(matches!(nodes, Some(Change::ListedNodes(_))), "{nodes:?}");
            let services = timeout(DEADLINE, self.receiver.recv()).await.unwrap();
            let slices = timeout(DEADLINE, self.receiver.recv()).await.unwrap();
            assert!(matches!(slices, Some(Change::ListedSlices(_))), "{slices:?}");
            let Some(Change::ListedServices(services)) = services else { panic!("{services:?}") };
            services.keys().map(|name| name.name.to_string()).collect()
        }

        /// Waits for this list; each one before it must be in `passing`.
        async fn reaches(&mut self, wanted: &[&str], passing: &[&[&str]]) {
            loop {
                let now = self.next().await;
                if now == wanted {
                    return;
                }
                assert!(passing.iter().any(|names| now == *names), "{now:?}, not {wanted:?}");
            }
        }
    }

    #[tokio::test]
    async fn changes_are_taken_up_through_inotify() {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.yaml"), service("a")).unwrap();
        let mut running = Running::start(dir.path());
        assert_eq!(running.next().await, ["a"]);

        fs::write(
            path("b.json"),
            r#"{"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "b"}, "spec": {"clusterIP": "10.0.0.2"}}"#,
        )
        .unwrap();
        running.reaches(&["a", "b"], &[&["a"]]).await;

        // In place: never seen empty, though the file was for a moment.
        fs::write(path("a.yaml"), service("a") + &service("a2")).unwrap();
        running.reaches(&["a", "a2", "b"], &[&["a", "b"]]).await;

        // Renamed over, as careful writers do.
        fs::write(path(".a.yaml.new"), service("a3")).unwrap();
        fs::rename(path(".a.yaml.new"), path("a.yaml")).unwrap();
        running.reaches(&["a3", "b"], &[&["a", "a2", "b"]]).await;

        // Broken, then removed: the other file's change shows that nothing was lost meanwhile.
        fs::write(path("a.yaml"), "kind: [").unwrap();
        fs::write(path("b.json"), "").unwrap();
        running.reaches(&["a3"], &[&["a3", "b"]]).await;
        fs::write(path("a.yaml"), service("a4")).unwrap();
        running.reaches(&["a4"], &[&["a3"]]).await;
        fs::remove_file(path("a.yaml")).unwrap();
        running.reaches(&[], &[&["a4"]]).await;

        for (target, name) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(path(target)).unwrap();
            fs::write(path(target).join("c.yaml"), service(name)).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/c.yaml", path("c.yaml")).unwrap();
        running.reaches(&["one"], &[&[]]).await;
        symlink("..2", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        running.reaches(&["two"], &[&["one"]]).await;

        drop(running.receiver);
        timeout(DEADLINE, running.task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_writer_that_takes_its_time_is_waited_for() {
        use std::io::Write as _;

        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.yaml"), service("a")).unwrap();
        let mut running = Running::start(dir.path());
        assert_eq!(running.next().await, ["a"]);
        let mut slow = fs::File::create(path("a.yaml")).unwrap();
        slow.write_all(service("b").as_bytes()).unwrap();
        // Another file makes the reader look meanwhile.
        fs::write(path("z.yaml"), service("z")).unwrap();
        running.reaches(&["a", "z"], &[&["a"]]).await;
        slow.write_all(service("c").as_bytes()).unwrap();
        drop(slow);
        running.reaches(&["b", "c", "z"], &[&["a", "z"]]).await;
    }

    #[tokio::test]
    async fn a_broken_file_holds_up_the_others_only_where_it_may_be_in_force() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        fs::write(dir.path().join("b.yaml"), "kind: [").unwrap();
        let mut fresh = Running::start_with(dir.path(), false);
        assert_eq!(fresh.next().await, ["a"]);
        let mut restarted = Running::start_with(dir.path(), true);
        fs::write(dir.path().join("b.yaml"), service("b")).unwrap();
        assert_eq!(restarted.next().await, ["a", "b"], "nothing was said before");
        fresh.reaches(&["a", "b"], &[&["a"]]).await;
    }

    #[tokio::test]
    async fn a_directory_that_comes_back_is_followed_again() {
        let parent = TempDir::new().unwrap();
        let (dir, away) = (parent.path().join("dir"), parent.path().join("away"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), service("a")).unwrap();
        let mut running = Running::start(&dir);
        assert_eq!(running.next().await, ["a"]);
        fs::rename(&dir, &away).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("b.yaml"), service("b")).unwrap();
        running.reaches(&["b"], &[&["a"], &["a", "b"]]).await;
        fs::write(dir.join("b.yaml"), service("c")).unwrap();
        running.reaches(&["c"], &[&["b"]]).await;
    }

    #[tokio::test]
    async fn nothing_is_said_before_all_files_were_read() {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.yaml"), service("a")).unwrap();
        fs::write(path("b.yaml"), "kind: [").unwrap();
        let mut running = Running::start(dir.path());
        let early = timeout(SETTLE * 10, running.receiver.recv()).await;
        assert!(early.is_err(), "{early:?}");
        fs::write(path("b.yaml"), service("b")).unwrap();
        assert_eq!(running.next().await, ["a", "b"]);
    }

    #[tokio::test]
    async fn a_file_system_that_does_not_answer_is_told_until_it_does() {
        let waiting = Waiting::default();
        let (trouble, mut told) = watch::channel(None);
        let (answer, answered) = std::sync::mpsc::channel::<()>();
        let waits = waiting.clone();
        let work = move || {
            let _waits = waits.begin(Path::new("/hung/a.yaml"));
            answered.recv().is_ok()
        };
        let look = tokio::spawn(async move {
            let ended = watched(&waiting, &trouble, Duration::from_millis(20), work).await.unwrap();
            // Work that takes long, but waits for nobody, is no trouble.
            let long = || std::thread::sleep(Duration::from_millis(100));
            watched(&waiting, &trouble, Duration::from_millis(20), long).await.unwrap();
            ended
        });
        let next = timeout(DEADLINE, told.changed()).await.unwrap();
        next.unwrap();
        let Standstill { what, hangs } = told.borrow_and_update().clone().unwrap();
        assert!(what.starts_with("/hung/a.yaml: its file system has not answered"), "{what}");
        assert!(hangs);
        answer.send(()).unwrap();
        timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
        assert_eq!(*told.borrow_and_update(), None);
        assert!(timeout(DEADLINE, look).await.unwrap().unwrap());
        assert!(told.changed().await.is_err(), "nothing more was told");
    }

    #[tokio::test]
    async fn a_directory_missing_at_the_start_is_waited_for_or_an_error() {
        let dir = TempDir::new().unwrap();
        let (missing, file) = (dir.path().join("missing"), dir.path().join("a.yaml"));
        fs::write(&file, service("a")).unwrap();
        for (path, cause) in [(&missing, "No such file"), (&file, "Not a directory")] {
            let (sender, mut receiver) = mpsc::channel(BACKLOG);
            let (trouble, _) = watch::channel(None);
            let terms = Terms { once: true, ..Terms::default() };
            let error = run(path.clone(), terms, sender.clone(), trouble).await.unwrap_err();
            let wanted = format!("cannot read the directory {}: {cause}", path.display());
            let error = error.to_string();
            assert!(error.starts_with(&wanted) && error.contains("--source dir:"), "{error}");

            let (trouble, mut told) = watch::channel(None);
            let task = tokio::spawn(run(path.clone(), Terms::default(), sender, trouble));
            timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
            let Standstill { what, hangs } = told.borrow_and_update().clone().unwrap();
            assert!(what.starts_with(&wanted) && !hangs, "{what}");
            assert!(receiver.try_recv().is_err(), "nothing is known of it");
            drop(receiver);
            timeout(DEADLINE, task).await.unwrap().unwrap().unwrap();
        }
    }

    /// Who makes it takes a moment to fill it: nothing is said of it before, lest all be deleted.
    #[tokio::test]
    async fn a_directory_that_appears_later_is_followed_when_it_is_filled() {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("dir");
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let (trouble, mut told) = watch::channel(None);
        let run = run(dir.clone(), Terms::default(), sender, trouble);
        let mut running = Running { receiver, task: tokio::spawn(run) };
        timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
        assert!(told.borrow_and_update().is_some());
        fs::create_dir(&dir).unwrap();
        timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
        assert_eq!(*told.borrow_and_update(), None);
        fs::write(dir.join("a.yaml"), service("a")).unwrap();
        assert_eq!(running.next().await, ["a"]);
        fs::write(dir.join("b.yaml"), service("b")).unwrap();
        running.reaches(&["a", "b"], &[&["a"]]).await;

        fs::rename(&dir, parent.path().join("away")).unwrap();
        timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
        let text = told.borrow_and_update().clone().unwrap().what;
        assert!(text.contains("cannot read the directory"), "{text}");
    }

    #[tokio::test]
    async fn who_does_not_wait_is_told_which_files_are_unknown() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        fs::write(dir.path().join("b.yaml"), "kind: [").unwrap();
        let (sender, _receiver) = mpsc::channel(BACKLOG);
        let (trouble, _) = watch::channel(None);
        let terms = Terms { in_force: true, once: true, ..Terms::default() };
        let error = run(dir.path().to_owned(), terms, sender, trouble).await.unwrap_err();
        let error = error.to_string();
        assert!(error.contains("could not be: b.yaml; what they say"), "{error}");
    }
}
