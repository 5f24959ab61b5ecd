//! A kernel in QEMU, by software emulation and without a network, and what is heard of it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tools::exec::announce;

use super::{
    arch::Arch,
    console::{Heard, News},
};

/// How many of the last lines are shown when a kernel does not come to its end.
const TAIL: usize = 20;

/// QEMU with a kernel and its files. It ends when the kernel does.
pub(super) fn qemu(arch: &Arch, kernel: &Path, initramfs: &Path) -> Command {
    // It ends with us, also if we are killed.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"]).arg(arch.qemu).args(arch.machine).args([
        "-accel",
        "tcg,thread=multi",
        "-smp",
        "2",
        "-m",
        "1536",
    ]);
    qemu.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]);
    qemu.args(["-net", "none"]).arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    let console = arch.console;
    qemu.arg("-append");
    qemu.arg(format!("console={console} quiet panic=-1 oops=panic rdinit=/init"));
    qemu
}

/// Runs it to its end, however long that takes. Fails, with the last lines of its console, if it stops
/// before or says nothing for as long as `patience`; `heard` has what it said until then, and `log` is a
/// file of all of it.
pub(super) fn listen(
    mut qemu: Command,
    patience: Duration,
    log: &Path,
    heard: &mut Heard,
    tell: impl Fn(&News<'_>),
) -> Result<()> {
    let line = announce(&qemu);
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut guest = Guest(child.with_context(|| format!("cannot start `{line}`"))?);
    let mut stdout = BufReader::new(guest.0.stdout.take().context("stdout is piped")?);
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        while stdout.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    let mut last = VecDeque::new();
    let ending = loop {
        match lines.recv_timeout(patience) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                tell(&heard.hear(&line));
                last.push_back(line);
                if last.len() > TAIL {
                    last.pop_front();
                }
            }
            Err(RecvTimeoutError::Disconnected) => break "it stopped before its end".to_owned(),
            Err(RecvTimeoutError::Timeout) => {
                break format!("nothing was heard of it for {} s", patience.as_secs());
            }
        }
    };
    if heard.ended {
        return Ok(());
    }
    let reason = heard.panic.as_ref().map_or(ending, |panic| format!("kernel panic: {panic}"));
    let last = last.iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n");
    bail!("{reason}; the last lines of its console (all of them: {}):\n{last}", log.display())
}

/// Ended when nobody listens any more.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tools::cache::Scratch;

    const LONG: Duration = Duration::from_secs(60);

    fn hear(script: &str, patience: Duration) -> (Result<()>, Heard) {
        let scratch = Scratch::new(&std::env::temp_dir()).unwrap();
        let mut heard = Heard::default();
        let mut guest = Command::new("sh");
        guest.args(["-c", script]);
        (listen(guest, patience, &scratch.0.join("log"), &mut heard, |_| {}), heard)
    }

    #[test]
    fn a_kernel_that_does_not_end_well_is_told_with_its_last_words() {
        let (result, heard) = hear("echo '@@ passed 1 a'; echo '@@ end'", LONG);
        result.unwrap();
        assert_eq!(heard.tests.len(), 1);
        let why = |script: &str, patience| hear(script, patience).0.unwrap_err().to_string();
        let stopped = why("echo '@@ kernel 6.1'; echo odd", LONG);
        assert!(stopped.starts_with("it stopped before its end"), "{stopped}");
        assert!(stopped.ends_with("\n  | @@ kernel 6.1\n  | odd"), "{stopped}");
        let panic = why("echo 'Kernel panic - not syncing: VFS'", LONG);
        assert!(panic.starts_with("kernel panic: VFS"), "{panic}");
        let late = why("exec sleep 60", Duration::from_millis(100));
        assert!(late.starts_with("nothing was heard of it for 0 s"), "{late}");
    }
}
