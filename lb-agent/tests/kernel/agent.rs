//! The real `lb-agent`, as a process.
#![expect(unsafe_code, reason = "something is done between fork and exec")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::{
    world::{World, soon},
    yaml,
};

/// As small as in `control::SIZES`.
pub(crate) const SIZES: [&str; 2] = ["--max-services=64", "--max-backends=256"];

/// `lb-agent` on the world's bpffs, cgroup and directory of objects; it serves sockets only, unless it is
/// told otherwise.
pub(crate) fn command(world: &World, more: &[&str]) -> Command {
    let mut command = command_of(Path::new(env!("CARGO_BIN_EXE_lb-agent")), world, more);
    if !is_given(more, "--packets") {
        command.arg("--packets=off");
    }
    command
}

fn is_given(arguments: &[&str], flag: &str) -> bool {
    arguments.iter().any(|argument| argument.starts_with(flag))
}

/// The same of another `lb-agent`, which serves what it serves.
pub(crate) fn command_of(program: &Path, world: &World, more: &[&str]) -> Command {
    let mut source = std::ffi::OsString::from("dir:");
    source.push(yaml::objects(world));
    let mut command = Command::new(program);
    command.arg("--source").arg(source).arg("--bpffs").arg(world.bpffs());
    command.args(["--node-name=test", "--log=info"]);
    if !is_given(more, "--cgroup") {
        command.arg("--cgroup").arg(world.cgroup());
    }
    command.args(more);
    command
}

/// An agent at work; killed when it is dropped.
pub(crate) struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Agent {
    /// Started, and in sync.
    pub(crate) fn start(world: &World) -> Self {
        Self::start_with(world, &SIZES)
    }

    pub(crate) fn start_with(world: &World, more: &[&str]) -> Self {
        let agent = Self::spawn(command(world, more));
        agent.wait_for_start("in sync");
        agent
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        // A test that is killed takes its agents along.
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        // Of a group of its own: it may be stopped, and an orphaned group with a stopped process is hung up.
        command.process_group(0);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let copy = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = copy.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log, reader: Some(reader) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for words in its log.
    pub(crate) fn wait_for(&self, words: &str) {
        soon(|| self.has_ended() || self.log().contains(words));
        self.assert_said(words);
    }

    /// The same of words that it says when it starts: the kernel verifies its programs before.
    pub(crate) fn wait_for_start(&self, words: &str) {
        soon(|| self.has_ended() || self.log().contains(words));
        self.assert_said(words);
    }

    fn has_ended(&self) -> bool {
        self.reader.as_ref().unwrap().is_finished()
    }

    fn assert_said(&self, words: &str) {
        let log = self.log();
        assert!(log.contains(words), "the agent did not say {words:?}:\n{log}");
    }

    /// As `kill -9` does it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As a supervisor does it.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(soon(|| self.child.try_wait().unwrap().is_some()), "it goes on:\n{}", self.log());
        self.child.wait().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// What an agent says that is not to stay: it has to end by itself. Success, and both streams.
pub(crate) fn output(mut command: Command) -> (bool, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = soon(|| child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(ended, "it did not end by itself:\n{text}");
    (status.success(), text)
}

/// The agent fails to start, and says all of these words.
pub(crate) fn refuses(command: Command, words: &[&str]) {
    let (success, text) = output(command);
    println!("{}", text.trim());
    assert!(!success, "it started:\n{text}");
    for word in words {
        assert!(text.contains(word), "it does not say {word:?}:\n{text}");
    }
}
