//! The requests of the client pod. Each has a connection of its own: it is connect() that chooses.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tools::wait::{Not, until};

use super::{place::within, spread::Spread};
use crate::kubectl::Kubectl;

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
    /// How many were made until now.
    made: Arc<AtomicUsize>,
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
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        Ok(Self { kubectl, made, lines: thread::spawn(move || read(stdout, &counter)) })
    }

    /// Waits until it makes requests.
    pub(super) fn await_requests(&self, patience: Duration) -> Result<()> {
        until("the load", patience, &[], || match self.made.load(Ordering::Relaxed) {
            made if made < REQUESTS => Err(Not::Yet(format!("it has made {made} requests"))),
            _ => Ok(()),
        })
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

fn read(stdout: ChildStdout, made: &AtomicUsize) -> Result<String> {
    let mut lines = String::new();
    let mut stdout = BufReader::new(stdout);
    while stdout.read_line(&mut lines).context("the load does not print text")? > 0 {
        made.fetch_add(1, Ordering::Relaxed);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_has_begun_when_it_has_made_requests() {
        let kubectl = |script: &str| Kubectl::new(["sh", "-c", script, "kubectl"]);
        let late = kubectl("sleep 1; for i in $(seq 120); do echo web-a 200 0; done");
        let load = Load::start(&late).unwrap();
        load.await_requests(Duration::from_secs(60)).unwrap();
        assert!(load.made.load(Ordering::Relaxed) >= REQUESTS);
        assert_eq!(load.stop(&late).unwrap().total(), 120);
        let mute = Load::start(&kubectl("true")).unwrap();
        mute.await_requests(Duration::ZERO).unwrap_err();
    }
}
