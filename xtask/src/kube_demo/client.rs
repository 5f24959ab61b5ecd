//! The requests of the client pod. Each has a connection of its own: it is connect() that chooses.

use std::{
    io::Read as _,
    process::{Child, ChildStdout, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Kubectl, spread::Spread, stage::within};

/// One line for each request: who answered, the HTTP status, curl's own verdict.
const CURL: &str = r"curl --silent --max-time 10 --header 'Connection: close' \
    --write-out ' %{http_code} %{exitcode}\n'";
/// How many are made at a time.
const REQUESTS: usize = 100;
/// Ends the load.
const STOP: &str = "/stop";
/// Half a second each: a load that nobody stops ends after five minutes.
const MOST_BATCHES: usize = 600;

/// Some requests, one after the other.
pub(super) fn requests(kubectl: &Kubectl) -> Result<Spread> {
    let script = format!("{CURL} 'http://web/hostname?[1-{REQUESTS}]'; true");
    let lines = kubectl.answer(&within(&["exec", "client", "--", "sh", "-c", &script]))?;
    let spread = Spread::of(&lines)?;
    ensure!(spread.total() == REQUESTS, "{} of {REQUESTS} requests were made", spread.total());
    Ok(spread)
}

/// Requests all the time.
pub(super) struct Load {
    kubectl: Child,
    lines: JoinHandle<Result<String>>,
}

impl Load {
    pub(super) fn start(kubectl: &Kubectl) -> Result<Self> {
        let script = format!(
            "rm -f {STOP}; n=0; while [ ! -e {STOP} ] && [ $n -lt {MOST_BATCHES} ]; do
            {CURL} --rate 200/s 'http://web/hostname?[1-{REQUESTS}]'; n=$((n + 1)); done; true"
        );
        let mut command = kubectl.command(&within(&["exec", "client", "--", "sh", "-c", &script]));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut kubectl = command.spawn().context("cannot start kubectl")?;
        let stdout = kubectl.stdout.take().context("stdout is piped")?;
        Ok(Self { kubectl, lines: thread::spawn(move || read(stdout)) })
    }

    pub(super) fn stop(mut self, kubectl: &Kubectl) -> Result<Spread> {
        kubectl.answer(&within(&["exec", "client", "--", "touch", STOP]))?;
        let status = self.kubectl.wait()?;
        let Ok(lines) = self.lines.join() else { bail!("the reader of the load panicked") };
        ensure!(status.success(), "the load: {status}");
        let spread = Spread::of(&lines?)?;
        ensure!(spread.total() >= REQUESTS, "the load made only {} requests", spread.total());
        Ok(spread)
    }
}

fn read(mut stdout: ChildStdout) -> Result<String> {
    let mut lines = String::new();
    stdout.read_to_string(&mut lines).context("the load does not print text")?;
    Ok(lines)
}
