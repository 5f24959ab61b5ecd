//! What `lbctl status` asks a running agent: is it ready, and if not, why, since when, and what helps?
//!
//! The answer is given on a Unix socket, so it needs none of the HTTP servers, which may be at any
//! address or nowhere. A bpffs takes no sockets: this one has an abstract name, in the agent's network
//! namespace, which says whose pins the agent has. Whoever connects gets one JSON document, a
//! [`Readiness`], and root alone gets it: it names files and servers.

use std::{
    fs,
    io::{self, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixListener as Listener},
        },
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Handle,
    task::AbortHandle,
    time::sleep,
};

use super::SharedHealth;

/// The pause after the name was taken, or nobody could be accepted.
const RETRY: Duration = Duration::from_secs(5);

/// Whether an agent does its work, as it sees it itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Readiness {
    /// The agent's version.
    pub version: String,
    /// As `/readyz` has it.
    pub ready: bool,
    /// Each thing that is wrong.
    pub reasons: Vec<Reason>,
    /// When the agent repaired the tables for packets last, which somebody else had changed: RFC 3339, in
    /// UTC. An agent of another version may not say it.
    #[serde(default)]
    pub tables_repaired: Option<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reason {
    /// The thing.
    pub what: String,
    /// RFC 3339, in UTC.
    pub since: String,
    /// What helps.
    pub remedy: String,
}

/// Where the agent answers that has this directory of pins.
pub fn address(home: &Path) -> io::Result<SocketAddr> {
    let home = fs::metadata(home)?;
    SocketAddr::from_abstract_name(format!("socklb/{:x}/{}", home.dev(), home.ino()))
}

/// The socket, and what answers there. Both end when this is dropped.
#[derive(Debug)]
pub(super) struct Desk {
    address: SocketAddr,
    task: AbortHandle,
}

impl Desk {
    pub(super) fn open(runtime: &Handle, address: SocketAddr, health: SharedHealth) -> Self {
        let task = runtime.spawn(run(address.clone(), health)).abort_handle();
        Self { address, task }
    }

    pub(super) fn is_at(&self, address: &SocketAddr) -> bool {
        self.address.as_abstract_name() == address.as_abstract_name()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(address: SocketAddr, health: SharedHealth) {
    let mut told = false;
    loop {
        match listen(&address) {
            Ok(listener) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => answer(stream, &health),
                    // Too many open files, say.
                    Err(_) => sleep(RETRY).await,
                }
            },
            // An agent that has just ended may leave it to a child for an instant.
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    let remedy =
                        "end the process that has the name of the socket: `ss -xlp | grep socklb`";
                    tracing::warn!(
                        remedy,
                        "`lbctl status` cannot ask this agent, which tries again: {error}"
                    );
                }
                sleep(RETRY).await;
            }
        }
    }
}

fn listen(address: &SocketAddr) -> io::Result<UnixListener> {
    let listener = Listener::bind_addr(address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn answer(stream: UnixStream, health: &SharedHealth) {
    let is_root = |uid| uid == 0 || uid == geteuid().as_raw();
    if !stream.peer_cred().is_ok_and(|peer| is_root(peer.uid())) {
        return;
    }
    let readiness = health.lock().readiness(Instant::now());
    // It fits into the socket, and whoever went away needs none.
    let _ =
        stream.into_std().and_then(|mut stream| stream.write_all(&serde_json::to_vec(&readiness)?));
}
