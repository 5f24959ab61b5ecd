//! A machine with other work: what `test --busy` has beside the tests.

use std::{
    fs, io,
    path::Path,
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tools::{cargo::workspace, turn::Turn};

/// In a session of its own, as what somebody else does on the machine: four busy loops, and a file of
/// 64 MB that is written and waited for over and over. All of it ends with this program.
const LOAD: &str = r"
for _ in 1 2 3 4; do setpriv --pdeathsig KILL sh -c 'while :; do :; done' & done
while dd if=/dev/zero of=$0 bs=1M count=64 conv=fsync 2>/dev/null; do :; done
";
/// How often it is seen to.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `job` beside the load. There is one on a machine, however many suites ask for it: the others wait
/// for their turn.
pub(super) fn beside<T>(job: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let over = &over;
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(error) = load_until(over) {
                eprintln!("the tests run without a load beside them: {error:#}");
            }
        });
        let _over = Over(over);
        job()
    })
}

/// Whatever becomes of the job, its load ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn load_until(over: &AtomicBool) -> Result<()> {
    let is_over = || over.load(Ordering::Relaxed);
    let turn = loop {
        match Turn::wait("socklb-busy", PAUSE)? {
            _ if is_over() => return Ok(()),
            None => {}
            turn => break turn,
        }
    };
    let file = workspace().join("target/.busy");
    eprintln!("four busy loops and a disk load run beside the tests");
    let mut load = start(&file)?;
    let ended = loop {
        match load.try_wait()? {
            None if is_over() => {
                load.kill()?;
                break None;
            }
            None => thread::sleep(PAUSE),
            ended => break ended,
        }
    };
    load.wait()?;
    drop(turn);
    match fs::remove_file(&file) {
        // It did not come that far.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.with_context(|| format!("cannot remove {}", file.display()))?,
    }
    ended.map_or(Ok(()), |status| Err(anyhow!("the load has ended: {status}")))
}

fn start(file: &Path) -> Result<Child> {
    let mut load = Command::new("setpriv");
    load.args(["--pdeathsig", "KILL", "setsid", "sh", "-c", LOAD]).arg(file);
    load.spawn().context("cannot start setpriv")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_ends_with_the_tests_however_they_end() {
        assert_eq!(beside(|| 1), 1);
        thread::spawn(|| beside(|| panic!("a test run that panics"))).join().unwrap_err();
    }

    #[test]
    fn nothing_of_the_load_is_left() {
        let file = std::env::temp_dir().join(format!("socklb-busy-{}", std::process::id()));
        let mut load = start(&file).unwrap();
        let loops = || {
            let of = load.id().to_string();
            let found = Command::new("ps").args(["-o", "pid=", "--ppid", &of]).output().unwrap();
            String::from_utf8(found.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
        };
        let mut all: Vec<String> = loops();
        while all.len() < 5 {
            thread::sleep(PAUSE);
            all = loops();
        }
        load.kill().unwrap();
        load.wait().unwrap();
        let lives = |pid: &String| {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.contains("(sh)") && !state.contains(") Z ")
        };
        while all.iter().any(lives) {
            thread::sleep(PAUSE);
        }
        fs::remove_file(&file).unwrap();
    }
}
