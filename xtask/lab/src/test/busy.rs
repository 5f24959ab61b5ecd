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
/// 64 MB that is written and waited for over and over. The shell ends with this program, and the loops with
/// the shell, which they ask for at each turn.
const LOAD: &str = r#"
for _ in 1 2 3 4; do while kill -0 $$; do :; done 2>/dev/null & done
while dd if=/dev/zero of="$0" bs=1M count=64 conv=fsync 2>/dev/null; do :; done
"#;
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
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    /// How many processes of a session are there, by /proc.
    fn processes(session: &str) -> usize {
        let stats = fs::read_dir("/proc").unwrap().flatten();
        let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
        // Behind the name, which may hold anything: state, parent, group, session.
        let is_of = |stat: &String| {
            let of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(3));
            of == Some(session)
        };
        stats.filter(is_of).count()
    }

    #[test]
    fn the_load_ends_with_the_tests_however_they_end() {
        assert_eq!(beside(|| 1), 1);
        thread::spawn(|| beside(|| panic!("a test run that panics"))).join().unwrap_err();
    }

    #[test]
    fn nothing_of_the_load_is_left() {
        let file = std::env::temp_dir().join(format!("socklb-busy-{}", std::process::id()));
        let mut load = start(&file).unwrap();
        let (session, begun) = (load.id().to_string(), Instant::now());
        // The shell and its loops, at the least.
        while processes(&session) < 5 && begun.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
        let count = processes(&session);
        load.kill().unwrap();
        load.wait().unwrap();
        while processes(&session) > 0 && begun.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
        let left = processes(&session);
        fs::remove_file(&file).unwrap();
        assert!(count >= 5 && left == 0, "{count} processes, {left} of them left");
    }
}
