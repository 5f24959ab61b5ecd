//! The other side: the program of `xtask/oracle/`, one process for many cases.

use std::{
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    net::{IpAddr, SocketAddr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    case::{Config, Op},
    outcome::Packet,
};

/// The variable that names it.
pub(crate) const PROGRAM: &str = "SOCKLB_ORACLE";

/// See `Request` in `xtask/oracle/main.go`.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Request<'a> {
    Start(&'a Config),
    Step(&'a [Op]),
    Begin(&'a [Begin]),
    Ask(&'a [Question]),
}

/// See `State` in `xtask/oracle/state.go`.
#[derive(Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) claims: Vec<Claim>,
    pub(crate) health: Vec<Health>,
    #[serde(rename = "noLocal")]
    pub(crate) no_local: Vec<NoLocal>,
    pub(crate) flows: Vec<Lasting>,
}

/// See `Flow` in `xtask/oracle/flows.go`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Begin {
    pub(crate) source: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) to: IpAddr,
    pub(crate) port: u16,
    pub(crate) node: String,
    pub(crate) endpoint: String,
}

/// See `Lasting` there.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lasting {
    pub(crate) source_port: u16,
    #[serde(default)]
    pub(crate) stale: bool,
    #[serde(default)]
    pub(crate) orphan: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Claim {
    /// Namespace and name.
    pub(crate) service: String,
    pub(crate) protocol: String,
    pub(crate) family: String,
    pub(crate) kind: Right,
    pub(crate) address: String,
    pub(crate) number: u16,
}

/// By which right a Service claims a frontend.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Right {
    Cluster,
    Balancer,
    External,
    Node,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Health {
    pub(crate) service: String,
    pub(crate) family: String,
    pub(crate) port: u16,
    pub(crate) local: usize,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NoLocal {
    pub(crate) family: String,
    pub(crate) internal: usize,
    pub(crate) external: usize,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// A pod of the node.
    Pod,
    /// The node itself.
    Host,
    /// Another machine, or a pod there.
    Outside,
}

/// See `Question` in `xtask/oracle/trace.go`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Question {
    pub(crate) known: bool,
    pub(crate) now: u64,
    pub(crate) gets: String,
    pub(crate) from: Place,
    pub(crate) source: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
    pub(crate) only: String,
    #[serde(rename = "knowsPods")]
    pub(crate) knows_pods: bool,
}

impl Question {
    /// Whether the packet is the one that is asked about.
    pub(crate) fn is_to(&self, packet: &Packet) -> bool {
        (self.to, self.port) == (packet.to.ip(), packet.to.port())
    }
}

/// See `Answer` in `xtask/oracle/trace.go`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    pub(crate) node: String,
    pub(crate) verdict: Verdict,
    #[serde(default)]
    pub(crate) by: String,
    #[serde(default)]
    pub(crate) reached: Vec<Reached>,
    pub(crate) here: Option<Vec<SocketAddr>>,
    #[serde(default)]
    pub(crate) spared: String,
    #[serde(default)]
    pub(crate) affinity: u32,
    #[serde(default)]
    pub(crate) timeout: u32,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    None,
    Forward,
    Reject,
    Drop,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reached {
    pub(crate) endpoint: SocketAddr,
    #[serde(default)]
    pub(crate) then: String,
    #[serde(default)]
    pub(crate) masquerade: bool,
    #[serde(default)]
    pub(crate) by_address: bool,
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

    /// A cluster without objects.
    pub(crate) fn begin(&mut self, config: &Config) {
        self.say(&Request::Start(config));
    }

    /// Tells it what the API server says.
    pub(crate) fn step(&mut self, ops: &[Op]) -> State {
        self.say(&Request::Step(ops));
        self.hear()
    }

    /// UDP flows that are there from now on.
    pub(crate) fn begin_flows(&mut self, flows: &[Begin]) {
        self.say(&Request::Begin(flows));
    }

    /// What becomes of each packet.
    pub(crate) fn ask(&mut self, questions: &[Question]) -> Vec<Answer> {
        self.say(&Request::Ask(questions));
        let answers: Vec<Answer> = self.hear();
        assert_eq!(answers.len(), questions.len(), "the oracle answers what it was asked");
        answers
    }

    fn say(&mut self, request: &Request<'_>) {
        let to = self.to.as_mut().expect("it is open until the end");
        serde_json::to_writer(&mut *to, request).expect("the oracle listens");
        to.write_all(b"\n").and_then(|()| to.flush()).expect("the oracle listens");
    }

    fn hear<T: DeserializeOwned>(&mut self) -> T {
        self.line.clear();
        let read = self.from.read_line(&mut self.line).expect("the oracle answers");
        assert!(read > 0, "the oracle ended early");
        serde_json::from_str(&self.line).expect("the oracle's JSON")
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
