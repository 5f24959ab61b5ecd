use std::os::unix::fs::{PermissionsExt as _, symlink};

use nix::sys::statfs::statfs;
use tempfile::TempDir;

use super::*;

/// A place that passes for a bpffs: whoever runs the tests need not be root.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn home(&self) -> PathBuf {
        self.path().join(NAME)
    }

    fn open(&self, purpose: Purpose) -> Result<Option<Home>, HomeError> {
        Home::open_on(self.path(), purpose, statfs(self.path()).unwrap().filesystem_type())
    }

    fn own(&self) -> Home {
        self.open(Purpose::Own).unwrap().unwrap()
    }

    fn mode(&self) -> u32 {
        fs::metadata(self.home()).unwrap().permissions().mode() & 0o7777
    }

    fn refusal(&self, purpose: Purpose) -> String {
        self.open(purpose).unwrap_err().to_string()
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn it_is_made_for_root_alone_and_removed() {
    let place = Place::new();
    for purpose in [Purpose::Look, Purpose::Remove] {
        assert!(place.open(purpose).unwrap().is_none() && !place.home().exists());
    }
    let home = place.own();
    assert_eq!(place.mode(), 0o700);
    assert_eq!(shown(&home.path().join("v1/links")), place.home().join("v1/links"));
    assert_eq!(shown(&home.path()), place.home());
    assert!(home.remove().unwrap() && !place.home().exists());
    assert!(!home.remove().unwrap(), "somebody else did");
}

/// An agent of an earlier version left it readable for all.
#[test]
fn it_is_tightened_by_its_owner() {
    let place = Place::new();
    fs::create_dir(place.home()).unwrap();
    chmod(&place.home(), 0o755);
    drop(place.open(Purpose::Look).unwrap().unwrap());
    assert_eq!(place.mode(), 0o755, "who looks changes nothing");
    drop(place.own());
    assert_eq!(place.mode(), 0o700);
}

#[test]
fn what_others_could_have_made_is_refused() {
    let place = Place::new();
    let elsewhere = TempDir::new().unwrap();
    let all = [Purpose::Look, Purpose::Remove, Purpose::Own];
    symlink(elsewhere.path(), place.home()).unwrap();
    for purpose in all {
        let text = place.refusal(purpose);
        assert!(text.contains("socklb is a symbolic link") && text.contains("`rm /"), "{text}");
    }
    fs::remove_file(place.home()).unwrap();
    fs::write(place.home(), "").unwrap();
    for purpose in all {
        assert!(place.refusal(purpose).contains("is no directory"));
    }
    fs::remove_file(place.home()).unwrap();
    fs::create_dir(place.home()).unwrap();
    for mode in [0o777, 0o1777, 0o770, 0o702] {
        chmod(&place.home(), mode);
        for purpose in all {
            let text = place.refusal(purpose);
            assert!(text.contains(&format!("has the mode {mode:04o}")), "{text}");
            assert!(text.contains("`chmod 0700 /") && text.contains("`rm -r /"), "{text}");
        }
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    let text = Home::open(place.path(), Purpose::Own).unwrap_err().to_string();
    assert!(text.contains("is not in a bpf file system"), "{text}");
}

#[test]
fn whose_it_is() {
    let place = Place::new();
    drop(place.own());
    let mut seen = nix::sys::stat::stat(&place.home()).unwrap();
    let path = Path::new("/b/socklb");
    seen.st_uid = 0;
    assert_eq!(judge(&seen, 7, path), Ok(()));
    assert_eq!(judge_parent(&seen, 7, path), Ok(()));
    seen.st_uid = 7;
    assert_eq!(judge(&seen, 7, path), Ok(()));
    assert_eq!(judge_parent(&seen, 7, path), Ok(()));
    for own in [0, 8] {
        let text = judge(&seen, own, path).unwrap_err();
        assert!(
            text.contains("belongs to the user 7") && text.contains("rm -r /b/socklb"),
            "{text}"
        );
        let text = judge_parent(&seen, own, Path::new("/b")).unwrap_err();
        assert!(text.contains("belongs to the user 7") && text.contains("chown 0 /b"), "{text}");
    }
}

/// Without the sticky bit, whoever may write there may move what is another's.
#[test]
fn a_place_where_all_may_move_all() {
    let place = Place::new();
    drop(place.own());
    for mode in [0o777, 0o770, 0o722] {
        chmod(place.path(), mode);
        let text = place.refusal(Purpose::Own);
        assert!(text.contains("without the sticky bit") && text.contains("mode=0700"), "{text}");
        drop(place.open(Purpose::Look).unwrap().unwrap());
        drop(place.open(Purpose::Remove).unwrap().unwrap());
    }
    for mode in [0o700, 0o755, 0o1777] {
        chmod(place.path(), mode);
        drop(place.own());
    }
}

#[test]
fn one_has_the_lock() {
    let place = Place::new();
    let home = place.own();
    for purpose in [Purpose::Remove, Purpose::Own] {
        let error = place.open(purpose).unwrap_err();
        let HomeError::Held { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(holder.pid, Some(std::process::id()));
        let words = format!("the process {} (", std::process::id());
        assert!(error.to_string().contains(&words), "{error}");
    }
    assert_eq!(locked_by(&place.home()).unwrap().unwrap().pid, Some(std::process::id()));
    let looks = place.open(Purpose::Look).unwrap().unwrap();
    drop(home);
    assert_eq!(locked_by(&looks.path()).unwrap(), None);
}

#[test]
fn a_lock_is_on_the_directory_that_is_there() {
    let place = Place::new();
    let held = place.own();
    let lock = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(PATIENCE / 4);
            held.remove().unwrap();
            drop(held);
        });
        // An agent that starts meanwhile: it finds the directory, and waits.
        place.own()
    });
    assert!(
        locked_by(&place.home()).unwrap().is_some(),
        "another agent would start beside this one"
    );
    assert!(lock.is_at(place.path()));
    // The directory is removed, moved, made again by others.
    let moved = place.path().join("moved");
    fs::rename(place.home(), &moved).unwrap();
    assert!(!lock.is_at(place.path()));
    let next = place.own();
    assert!(lock.is_beside(&next) && !lock.is_at(place.path()) && next.is_at(place.path()));
    assert_eq!(shown(&lock.path()), moved);
    fs::remove_dir(&moved).unwrap();
    assert!(!lock.is_beside(&next));
}

#[test]
fn the_holder_is_who_has_the_lock_not_who_waits_for_it() {
    let locks = "1: POSIX  ADVISORY  WRITE 11 00:2b:18 0 EOF\n\
                 2: FLOCK  ADVISORY  READ  12 00:2b:18 0 EOF\n\
                 3: FLOCK  ADVISORY  WRITE 13 00:2b:18 0 EOF\n\
                 3: -> FLOCK  ADVISORY  WRITE 14 00:2b:18 0 EOF\n";
    assert_eq!(pid_in(locks, "WRITE", "00:2b:18"), Some(13));
    assert_eq!(pid_in(locks, "READ", "00:2b:18"), Some(12));
    assert_eq!(pid_in(locks, "WRITE", "00:2b:1"), None);
    assert_eq!(pid_in("", "WRITE", "00:2b:18"), None);
}

#[test]
fn a_holder_is_named() {
    let holder =
        |name: &str, uid| Holder { pid: Some(7), name: Some(name.to_owned()), uid: Some(uid) };
    let path = Path::new("/b/socklb");
    let text = held(path, &holder("lb-agent", 0));
    assert!(
        text.starts_with(
            "another lb-agent is running on /b/socklb (the process 7 (lb-agent)): stop"
        )
    );
    let text = held(path, &holder("sleep", 65_534));
    assert!(
        text.starts_with("the process 7 (sleep) of the user 65534 has the lock of /b/socklb"),
        "{text}"
    );
    assert!(Holder::default().is_root(), "it is hidden, and likely an agent in another container");
}
