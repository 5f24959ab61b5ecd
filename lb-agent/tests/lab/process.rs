//! A child process that ends with the test, however the test ends, and whose output can be read.
#![expect(unsafe_code, reason = "something is done between fork and exec")]

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpid, getppid},
};

/// Lines of output shown when a test fails.
const TAIL: usize = 40;

pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Length of the log when this process started: what is before was said by a predecessor.
    start: u64,
}

impl Process {
    /// Starts it; both its outputs are appended to `NAME.log` in `directory`.
    pub(crate) fn start(name: &str, directory: &Path, command: &mut Command) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let start = output.metadata().expect("a log file").len();
        let errors = output.try_clone().expect("a log file");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // Of a group of its own: it may be stopped, and an orphaned group with a stopped process is hung up.
        command.process_group(0);
        let parent = getpid();
        // SAFETY: between fork and exec these are two system calls, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before it was asked to tell.
                if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
            });
        }
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}", command.get_program().to_string_lossy())
        });
        Self { name: name.to_owned(), child, log, start }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).expect("a process id"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Sends the signal and waits until the process has ended, which has to be soon.
    pub(crate) fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait(Duration::from_secs(60))
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return status;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{} has not ended after {limit:?}", self.name);
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child to wait for")
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(&self.log).expect("a log file");
        let start = usize::try_from(self.start).expect("a file that fits into memory");
        String::from_utf8_lossy(&text[start..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if it has ended already, which is as well.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!("--- the last that {} said ---\n{}\n---", self.name, tail.join("\n"));
        }
    }
}
