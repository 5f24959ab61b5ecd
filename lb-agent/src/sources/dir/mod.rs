//! Services, EndpointSlices and Nodes from a directory of YAML and JSON files.
//!
//! Read are the files `*.yaml`, `*.yml` and `*.json` in the directory itself, hidden ones aside; links
//! are followed, so a mounted ConfigMap will do. A change is taken up as soon as its writer is done.
//!
//! Nothing is deleted on partial knowledge: while a file cannot be read, what it said last holds;
//! while the directory is away, all holds; and after a restart, nothing is said at all before each
//! file was read once.

mod bounded;
mod files;
mod object;
mod parse;
mod reader;
mod waiting;
mod watch;

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{task::spawn_blocking, time::timeout};

pub use self::files::{Files, Listing};
use self::{reader::Reader, waiting::Waiting, watch::Watch};
use super::{Changes, Problems, Trouble};
use crate::model::Change;

/// From the first sign of a change to the look at the files: a burst of changes is one.
const SETTLE: Duration = Duration::from_millis(15);
/// How often the files are looked at without any sign: inotify may lose events, and knows nothing of
/// changes made by another machine.
const RESCAN: Duration = Duration::from_secs(2);
/// The same while a file is changing.
const RESCAN_CHANGING: Duration = Duration::from_millis(250);
/// How long a file system may take to answer before that is a trouble.
const PATIENCE: Duration = Duration::from_secs(10);

/// Follows the directory until the receiver is gone. Fails only if the directory cannot be read at
/// the start.
///
/// `in_force`: an earlier agent's maps are at work. Then nothing is said before each file was read
/// once, since what an unreadable one says may be in them. With `proxy_name`, only Services count that
/// ask for the proxy of that name. `trouble` is told while a file system does not answer.
pub async fn run(
    path: PathBuf,
    in_force: bool,
    proxy_name: Option<String>,
    changes: Changes,
    trouble: Trouble,
) -> Result<()> {
    let waiting = Waiting::default();
    let waits = waiting.clone();
    let start = move || Follower::start(path, waits, in_force, proxy_name);
    let mut follower = watched(&waiting, &trouble, PATIENCE, start).await??;
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
        let look = move || {
            let news = follower.look();
            (follower, news)
        };
        (follower, send) = watched(&waiting, &trouble, PATIENCE, look).await?;
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
    let mut stuck = None;
    loop {
        let end = timeout(patience, &mut work).await.ok();
        let path = waiting.longer_than(patience).filter(|_| end.is_none());
        match (&path, &stuck) {
            (Some(path), _) if Some(path) != stuck.as_ref() => {
                let (path, seconds) = (path.display(), patience.as_secs());
                let what = format!("{path}: its file system has not answered for {seconds} s");
                let remedy = "nothing in the directory is followed until it does: repair the mount, \
                              or remove the file and restart lb-agent";
                tracing::error!(remedy, "{what}");
                trouble.send_replace(Some(what));
            }
            (None, Some(path)) => {
                tracing::info!(path = %path.display(), "its file system answers again");
                trouble.send_replace(None);
            }
            _ => {}
        }
        stuck = path;
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
    away: bool,
    /// Whether each file was read once, or need not be.
    complete: bool,
}

impl Follower {
    fn start(
        path: PathBuf,
        waiting: Waiting,
        in_force: bool,
        proxy_name: Option<String>,
    ) -> Result<Self> {
        let remedy = "give --source dir:PATH a directory that is there and may be read";
        let watch = {
            let _waits = waiting.begin(&path);
            Watch::new(&path)
        };
        let mut reader = Reader::new(path.clone(), waiting.clone());
        let mut files = Files::new(proxy_name);
        reader
            .read_all(&mut files)
            .with_context(|| format!("cannot read the directory {}: {remedy}", path.display()))?;
        tracing::info!(path = %path.display(), files = files.len(), "directory");
        Ok(Self {
            path,
            waiting,
            watch,
            reader,
            files,
            problems: Problems::default(),
            told: BTreeSet::new(),
            away: false,
            complete: !in_force,
        })
    }

    /// Looks for changes; true if there are any.
    fn look(&mut self) -> bool {
        // The watch first: what happens after it is set up is seen by it, all before by the reader.
        let waits = self.waiting.begin(&self.path);
        self.watch.renew(&self.path);
        drop(waits);
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
                tracing::error!(files = ?unknown, remedy, "nothing is done before all files were read");
                return vec![];
            }
            self.complete = true;
        }
        Vec::from(listing.changes())
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
            let run = run(path.to_owned(), in_force, None, sender, trouble);
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
        let text = told.borrow_and_update().clone().unwrap();
        assert!(text.starts_with("/hung/a.yaml: its file system has not answered"), "{text}");
        answer.send(()).unwrap();
        timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
        assert_eq!(*told.borrow_and_update(), None);
        assert!(timeout(DEADLINE, look).await.unwrap().unwrap());
        assert!(told.changed().await.is_err(), "nothing more was told");
    }

    #[tokio::test]
    async fn a_directory_missing_at_the_start_is_an_error() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, service("a")).unwrap();
        for path in [dir.path().join("missing"), file] {
            let (sender, _receiver) = mpsc::channel(1);
            let (trouble, _) = watch::channel(None);
            let run = run(path.clone(), true, None, sender, trouble);
            let error = format!("{:#}", run.await.unwrap_err());
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains("give --source dir:PATH"), "{error}");
        }
    }
}
