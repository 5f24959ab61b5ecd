//! A machine with other work: what `test --busy` has beside the tests.

use std::{
    fs::{self, File},
    hint::spin_loop,
    io::{Seek as _, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tools::{cargo::workspace, turn::Turn};

/// How many threads do nothing but take a CPU.
const LOOPS: usize = 4;
/// What the disk gets before it is waited for, in chunks of [`CHUNK`] bytes.
const CHUNKS: usize = 64;
const CHUNK: usize = 1 << 20;

/// Runs `job` beside [`LOOPS`] busy loops and a file that is written and synced over and over. There
/// is one such load on a machine, however many suites ask for it: the others wait for their turn.
pub(super) fn beside<T>(job: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let over = &over;
    thread::scope(|scope| {
        scope.spawn(move || {
            let Some(_turn) = turn(over) else { return };
            eprintln!("{LOOPS} busy loops and a disk load run beside the tests");
            thread::scope(|loads| {
                for _ in 0..LOOPS {
                    loads.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            spin_loop();
                        }
                    });
                }
                if let Err(error) = write_until(over, &workspace().join("target")) {
                    eprintln!("the disk load has ended: {error:#}");
                }
            });
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

/// `None` if the tests were over first.
fn turn(over: &AtomicBool) -> Option<Turn> {
    while !over.load(Ordering::Relaxed) {
        match Turn::wait("socklb-busy", Duration::from_secs(1)) {
            Ok(None) => {}
            Ok(turn) => return turn,
            Err(error) => {
                eprintln!("the tests run without a load beside them: {error:#}");
                return None;
            }
        }
    }
    None
}

/// The file has no name: it goes with whoever has it.
fn write_until(over: &AtomicBool, directory: &Path) -> Result<()> {
    let path = directory.join(".busy");
    let mut file =
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::remove_file(&path)?;
    let chunk = vec![0xa5; CHUNK];
    while !over.load(Ordering::Relaxed) {
        file.rewind()?;
        for _ in 0..CHUNKS {
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_ends_with_the_tests_however_they_end() {
        assert_eq!(beside(|| 1), 1);
        thread::spawn(|| beside(|| panic!("a test run that panics"))).join().unwrap_err();
    }
}
