//! The other side: the program of `oracle/`, one process for many cases.

use std::{
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::Deserialize;

use super::case::Case;

/// The variable that names it.
pub(crate) const PROGRAM: &str = "SOCKLB_ORACLE";

/// What kube-proxy would do after a step.
#[derive(Debug, Deserialize)]
pub(crate) struct View {
    pub(crate) frontends: Vec<Frontend>,
    pub(crate) health: Vec<Health>,
    #[serde(rename = "noLocal")]
    pub(crate) no_local: Vec<NoLocal>,
}

/// See `Frontend` in `oracle/proxier.go`.
#[derive(Debug, Deserialize)]
pub(crate) struct Frontend {
    pub(crate) service: String,
    pub(crate) port: String,
    pub(crate) protocol: String,
    pub(crate) family: String,
    pub(crate) kind: Kind,
    pub(crate) address: String,
    pub(crate) number: u16,
    pub(crate) endpoints: Vec<String>,
    pub(crate) empty: Option<Empty>,
    pub(crate) affinity: u32,
    #[serde(default)]
    pub(crate) sources: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub(crate) enum Kind {
    Address,
    OwnNode,
    OtherNode,
}

/// What an empty list of endpoints means (F1, F2).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Empty {
    Refuse,
    Drop,
}

/// See `Health` in `oracle/proxier.go`.
#[derive(Debug, Deserialize)]
pub(crate) struct Health {
    pub(crate) service: String,
    pub(crate) family: String,
    pub(crate) port: u16,
    pub(crate) local: usize,
}

/// See `NoLocal` in `oracle/proxier.go`.
#[derive(Debug, Deserialize)]
pub(crate) struct NoLocal {
    pub(crate) service: String,
    pub(crate) family: String,
    pub(crate) internal: usize,
    pub(crate) external: usize,
}

pub(crate) struct Program {
    child: Child,
    to: Option<BufWriter<ChildStdin>>,
    from: BufReader<ChildStdout>,
    line: String,
}

impl Program {
    /// The one that [`PROGRAM`] names.
    pub(crate) fn start() -> Self {
        let path = std::env::var_os(PROGRAM).expect("it was looked at before");
        let mut child = Command::new(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the oracle can be started");
        let to = child.stdin.take().map(BufWriter::new);
        let from = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, to, from, line: String::new() }
    }

    /// One view for each step.
    pub(crate) fn ask(&mut self, case: &Case) -> Vec<View> {
        let to = self.to.as_mut().expect("it is open until the end");
        serde_json::to_writer(&mut *to, case).expect("the oracle listens");
        to.write_all(b"\n").and_then(|()| to.flush()).expect("the oracle listens");
        let mut views = Vec::with_capacity(case.steps.len());
        for _ in &case.steps {
            self.line.clear();
            let read = self.from.read_line(&mut self.line).expect("the oracle answers");
            assert!(read > 0, "the oracle ended early, about\n{}", case.yaml());
            views.push(serde_json::from_str(&self.line).expect("the oracle's JSON"));
        }
        views
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // End of input ends it.
        drop(self.to.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the oracle: {error}");
        }
    }
}
