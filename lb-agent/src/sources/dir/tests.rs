//! A real directory, followed.

use std::os::unix::fs::symlink;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::sources::BACKLOG;

/// Much longer than anything should take: a machine may be slow, the answer must be right.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until this user may have some more inotify instances: all of his processes share 128.
pub(super) fn await_inotify() {
    const SPARE: usize = 4;
    let dir = TempDir::new().unwrap();
    let watch = |_| {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(dir.path(), AddWatchFlags::IN_MODIFY).map(|_| inotify)
    };
    let begun = Instant::now();
    while let Err(error) = (0..SPARE).map(watch).collect::<nix::Result<Vec<_>>>() {
        assert!(
            begun.elapsed() < 4 * DEADLINE,
            "this test needs inotify, and other processes of this user leave nothing of \
             fs.inotify.max_user_instances or max_user_watches: {error}"
        );
        thread::sleep(Duration::from_millis(100));
    }
}

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
    await_inotify();
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

    await_inotify();
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
        let long = || thread::sleep(Duration::from_millis(100));
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
    let made = Instant::now();
    fs::create_dir(&dir).unwrap();
    timeout(DEADLINE, told.changed()).await.unwrap().unwrap();
    assert_eq!(*told.borrow_and_update(), None);
    assert_eq!(running.next().await, [""; 0]);
    assert!(made.elapsed() >= LASTING, "{:?}", made.elapsed());
    fs::write(dir.join("a.yaml"), service("a")).unwrap();
    running.reaches(&["a"], &[&[]]).await;
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
