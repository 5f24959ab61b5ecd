//! Whether an agent runs on the pins, by the lock it holds, and what it says of itself.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::{fd::AsRawFd as _, linux::net::SocketAddrExt as _, unix::net::UnixStream},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket,
            sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
    unistd::geteuid,
};
use serde::Serialize;

use crate::{
    admin::readiness::{self, Readiness, Reason},
    ctl::failure::Answer,
    pins::Pins,
    sockets,
};

/// How long the agent may take to answer, which needs microseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than it says.
const LONGEST: u64 = 1 << 20;
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The agent that holds the lock.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub(super) struct AgentStatus {
    pub(super) running: bool,
    /// Its process, unless that is hidden in another pid namespace.
    pub(super) pid: Option<u32>,
    /// Null if it does not say.
    pub(super) version: Option<String>,
    /// Whether it is ready; null if it does not say.
    pub(super) ready: Option<bool>,
    /// Why it is not ready.
    pub(super) reasons: Vec<Reason>,
    /// When it repaired the tables for packets last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tables_repaired: Option<String>,
    #[serde(skip)]
    pub(super) silence: Option<Silence>,
}

/// Why nobody knows whether the agent is ready.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Silence {
    /// It is stopped.
    Stopped,
    /// It does not answer.
    Hangs,
    /// Nobody is there to answer.
    Absent,
    /// It is in a network namespace that cannot be entered.
    Elsewhere(String),
    /// Somebody else answers.
    Usurped { pid: i32, uid: u32 },
    /// It cannot be asked, or what it says makes no sense.
    Failed(String),
}

impl fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.running {
            return f.write_str("not running");
        }
        f.write_str("running")?;
        if let Some(pid) = self.pid {
            write!(f, " (pid {pid})")?;
        }
        f.write_str(match self.ready {
            Some(true) => ", ready",
            Some(false) => ", not ready",
            None => ", not known whether ready",
        })?;
        match &self.version {
            Some(version) if version != OWN_VERSION => {
                write!(f, "; its version is {version}, this lbctl is {OWN_VERSION}")
            }
            _ => Ok(()),
        }
    }
}

impl AgentStatus {
    /// What is wrong with it, each with what follows from that.
    pub(super) fn problems(&self) -> Vec<(Answer, String)> {
        if !self.running {
            let text = "no agent is running: connections are translated as it left the maps, and nothing \
                        changes; start lb-agent";
            return vec![(Answer::Unattended, text.to_owned())];
        }
        if let Some(silence) = &self.silence {
            return vec![(Answer::Silent, self.silent(silence))];
        }
        let reasons = self.reasons.iter().map(|Reason { what, since, remedy }| {
            format!("the agent is not ready, since {since}: {what}; {remedy}")
        });
        reasons.map(|text| (Answer::NotReady, text)).collect()
    }

    /// Whether it is known not to do its work.
    pub(super) fn hangs(&self) -> bool {
        matches!(self.silence, Some(Silence::Stopped | Silence::Hangs))
    }

    fn silent(&self, silence: &Silence) -> String {
        let pid = self.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let still = "what is in the maps serves on, and nothing changes";
        match silence {
            Silence::Stopped => {
                let number = self.pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
                format!(
                    "the agent{pid} is stopped, by SIGSTOP or a debugger: {still}; let it go on with \
                     `kill -CONT {number}`"
                )
            }
            Silence::Hangs => format!(
                "the agent{pid} has not answered for {} s: {still}; see its log, and restart it if that \
                 lasts",
                PATIENCE.as_secs()
            ),
            Silence::Absent if self.pid.is_none() => {
                "whether the agent is ready is not known: it does not answer in this network namespace, \
                 and its process is not seen from here; run lbctl where the agent runs (`kubectl exec`)"
                    .to_owned()
            }
            Silence::Absent => format!(
                "whether the agent{pid} is ready is not known: it does not answer lbctl yet; it is \
                 starting, or of another version than this lbctl ({OWN_VERSION}): its log tells"
            ),
            Silence::Elsewhere(error) => format!(
                "whether the agent{pid} is ready is not known: it is in another network namespace, which \
                 cannot be entered: {error}; run lbctl as root, or in that namespace"
            ),
            Silence::Usurped { pid: other, uid } => format!(
                "whether the agent{pid} is ready is not known: the process {other} of the user {uid} \
                 answers in its place; end that process"
            ),
            Silence::Failed(error) => {
                format!("whether the agent{pid} is ready is not known: {error}; its log may tell")
            }
        }
    }
}

pub(super) fn find(pins: &Pins) -> io::Result<AgentStatus> {
    let Some(holder) = pins.holder()? else { return Ok(AgentStatus::default()) };
    let agent = AgentStatus { running: true, pid: holder.pid, ..AgentStatus::default() };
    Ok(match ask(pins, holder.pid) {
        Ok(Readiness { version, ready, reasons, tables_repaired }) => AgentStatus {
            version: Some(version),
            ready: Some(ready),
            reasons,
            tables_repaired,
            ..agent
        },
        Err(silence) => AgentStatus { silence: Some(silence), ..agent },
    })
}

fn ask(pins: &Pins, pid: Option<u32>) -> Result<Readiness, Silence> {
    let failed = |error: io::Error| Silence::Failed(error.to_string());
    let address = readiness::address(pins.home()).map_err(failed)?;
    let name = UnixAddr::new_abstract(address.as_abstract_name().unwrap_or_default());
    let name = name.map_err(|errno| failed(errno.into()))?;
    if pid.is_some_and(is_stopped) {
        return Err(Silence::Stopped);
    }
    match pid {
        None => call(&name, None),
        Some(pid) => sockets::in_netns_of_process(pid, || call(&name, Some(pid)))
            .map_err(|error| Silence::Elsewhere(error.to_string()))?,
    }
}

/// Whether it is stopped by a signal or a debugger, by its state in /proc/PID/stat.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in front of it may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// In the network namespace of the agent.
fn call(name: &UnixAddr, pid: Option<u32>) -> Result<Readiness, Silence> {
    let failed = |errno: Errno| match errno {
        Errno::EAGAIN => Silence::Hangs,
        Errno::ECONNREFUSED => Silence::Absent,
        errno => Silence::Failed(errno.desc().to_owned()),
    };
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed)?;
    let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(&socket, SendTimeout, &patience).map_err(failed)?;
    setsockopt(&socket, ReceiveTimeout, &patience).map_err(failed)?;
    connect(socket.as_raw_fd(), name).map_err(failed)?;
    let peer = getsockopt(&socket, PeerCredentials).map_err(failed)?;
    let is_root = [0, geteuid().as_raw()].contains(&peer.uid());
    if !is_root || pid.is_some_and(|pid| u32::try_from(peer.pid()) != Ok(pid)) {
        return Err(Silence::Usurped { pid: peer.pid(), uid: peer.uid() });
    }
    let mut text = Vec::new();
    UnixStream::from(socket).take(LONGEST).read_to_end(&mut text).map_err(|error| {
        let is_late = error.kind() == io::ErrorKind::WouldBlock;
        if is_late { Silence::Hangs } else { Silence::Failed(error.to_string()) }
    })?;
    serde_json::from_slice(&text)
        .map_err(|error| Silence::Failed(format!("its answer is not understood ({error})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_silence_says_what_is_known_and_what_helps() {
        let text = |silence, pid| {
            let agent = AgentStatus {
                running: true,
                pid,
                silence: Some(silence),
                ..AgentStatus::default()
            };
            let [(Answer::Silent, text)] = &agent.problems()[..] else { unreachable!() };
            assert!(agent.to_string().ends_with(", not known whether ready"), "{agent}");
            text.clone()
        };
        assert_eq!(
            text(Silence::Stopped, Some(42)),
            "the agent (pid 42) is stopped, by SIGSTOP or a debugger: what is in the maps serves on, and \
             nothing changes; let it go on with `kill -CONT 42`"
        );
        assert!(text(Silence::Hangs, Some(42)).contains("has not answered for 5 s"));
        assert!(text(Silence::Absent, Some(42)).contains("it is starting, or of another version"));
        assert!(text(Silence::Absent, None).contains("run lbctl where the agent runs"));
        assert!(
            text(Silence::Elsewhere("no".into()), Some(42)).contains("entered: no; run lbctl as")
        );
        let usurped = text(Silence::Usurped { pid: 7, uid: 1000 }, Some(42));
        assert!(usurped.contains("the process 7 of the user 1000 answers"), "{usurped}");
    }

    #[test]
    fn another_version_is_told() {
        let agent = AgentStatus {
            running: true,
            ready: Some(true),
            version: Some("9.9.9".into()),
            ..AgentStatus::default()
        };
        let text = format!("running, ready; its version is 9.9.9, this lbctl is {OWN_VERSION}");
        assert_eq!(agent.to_string(), text);
        assert_eq!(agent.problems(), []);
    }

    #[test]
    fn who_runs_is_not_stopped() {
        assert!(!is_stopped(std::process::id()));
        assert!(!is_stopped(u32::MAX));
    }
}
