use std::{os::unix::fs::symlink, path::Path};

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
    assert!(bench.look(&gone("a.yaml")) && bench.files.is_empty() && !bench.reader.is_waiting());
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
        assert!(what(name).starts_with(&format!("file: cannot be read: {sort}")), "{problems:?}");
        assert!(what(name).contains("remove"), "{problems:?}");
    }
    // Who is not root may not open it.
    let kernel = ["it is a file of the kernel's", "Permission denied", "Operation not permitted"];
    assert!(kernel.iter().any(|it| what("e.yaml").contains(it)), "{problems:?}");

    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.write("a.yaml", "again");
    assert!(bench.look(&signs));
    assert_eq!(bench.services(), ["again"]);
}

#[test]
fn files_with_one_inode_inherit_one_each() {
    let mut bench = Bench::new(&[("a.yaml", "a")]);
    fs::hard_link(bench.path("a.yaml"), bench.path("b.yaml")).unwrap();
    assert!(bench.look(&done("b.yaml")));
    fs::write(bench.path("a.yaml"), "kind: [").unwrap();
    assert!(
        bench.look(&Signs {
            done: ["a.yaml", "b.yaml"].map(str::to_owned).into(),
            ..Signs::default()
        })
    );
    for (from, to) in [("a.yaml", "c.yaml"), ("b.yaml", "d.yaml")] {
        fs::rename(bench.path(from), bench.path(to)).unwrap();
    }
    assert!(
        bench.look(&Signs {
            gone: ["a.yaml", "b.yaml"].map(str::to_owned).into(),
            ..Signs::default()
        })
    );
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
