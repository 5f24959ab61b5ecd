//! One node: a cgroup with this process in it, a bpffs, and the agent under test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use serde::Deserialize;

use super::{
    cgroup::Cgroup,
    eventually, http,
    process::Process,
    sandbox::Sandbox,
    sockets::{self, Flow},
};

/// How long it may take from a change in the API to the maps; on a busy machine, too.
const CONVERGES: Duration = Duration::from_secs(100);
/// Where the agent says how it is.
const HEALTH: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10256);

/// A node without an agent.
pub(crate) struct Node {
    // Dropped in this order: without its pins the datapath is detached.
    bpffs: Bpffs,
    cgroup: Cgroup,
    directory: PathBuf,
}

impl Node {
    /// Makes it, and moves this process onto it: from now on its sockets are the node's.
    pub(crate) fn new(sandbox: &Sandbox, name: &str) -> Self {
        let directory = sandbox.directory().join(name);
        fs::create_dir(&directory).expect("a directory");
        Self { bpffs: Bpffs::mount(&directory), cgroup: Cgroup::enter(name), directory }
    }

    /// Connects from this node and returns who answered.
    #[expect(clippy::unused_self, reason = "nobody dials a Service without being on a node")]
    pub(crate) fn ask(&self, address: &str) -> io::Result<String> {
        sockets::ask(address)
    }

    /// Who answers when asked `times` times; panics if anybody does not. Of two backends, 50 times leave
    /// one out once in 10^14, and of three, 70 times once in 10^11.
    pub(crate) fn spread(&self, address: &str, times: usize) -> BTreeSet<String> {
        let ask =
            |_| self.ask(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        (0..times).map(ask).collect()
    }

    /// A client on this node that connects to one address again and again, until it is stopped.
    #[expect(clippy::unused_self, reason = "nobody dials a Service without being on a node")]
    pub(crate) fn flow(&self, address: &str) -> Flow {
        Flow::start(address)
    }

    /// Starts the agent; it has done nothing yet.
    pub(crate) fn agent(&self, kubeconfig: &Path) -> Agent {
        self.agent_called("n1", kubeconfig)
    }

    /// The same on a node of that name.
    pub(crate) fn agent_called(&self, name: &str, kubeconfig: &Path) -> Agent {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        command.args(["--source", "kubernetes", "--node-name", name, "--kubeconfig"]);
        command.arg(kubeconfig).arg("--cgroup").arg(self.cgroup.directory());
        command.arg("--bpffs").arg(&self.bpffs.0);
        Agent(Process::start("lb-agent", &self.directory, &mut command))
    }

    /// What `lbctl get services` says, by frontend.
    pub(crate) fn services(&self) -> Result<BTreeMap<String, Frontend>, String> {
        let mut lbctl = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        lbctl.arg("--bpffs").arg(&self.bpffs.0).args(["get", "services", "-o", "json"]);
        let output = lbctl.output().expect("lbctl");
        if !output.status.success() {
            return Err(format!("lbctl: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let list: ServiceList = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stdout)))?;
        assert_eq!((list.api_version.as_str(), list.kind.as_str()), ("socklb/v1", "ServiceList"));
        Ok(list.items.into_iter().map(|item| (item.address.clone(), item)).collect())
    }

    /// Waits until the frontend's backends are these, and the agent serves; none at all is a frontend
    /// without any.
    pub(crate) fn await_backends<'a>(
        &self,
        frontend: &str,
        backends: impl IntoIterator<Item = &'a String>,
    ) -> Frontend {
        let wanted: Vec<_> = backends.into_iter().cloned().collect();
        eventually(CONVERGES, || {
            let mut services = self.services()?;
            let found = services.remove(frontend).ok_or_else(|| {
                format!("no frontend {frontend} among {:?}", services.keys().collect::<Vec<_>>())
            })?;
            if found.backends != wanted {
                return Err(format!("{found:?}, not {wanted:?}"));
            }
            // The first programs are attached when the maps are complete, and that is a moment later.
            is_ready().map(|()| found)
        })
    }

    /// Waits until there is no such frontend.
    pub(crate) fn await_absence(&self, frontend: &str) {
        eventually(CONVERGES, || match self.services()?.remove(frontend) {
            None => Ok(()),
            Some(found) => Err(format!("{found:?} is still there")),
        });
    }
}

/// Whether the agent says that it serves: maps, programs, and a canary that has been back.
fn is_ready() -> Result<(), String> {
    let answer = http::get(HEALTH.into(), "/readyz").map_err(|error| format!("readyz: {error}"))?;
    if answer.status == 200 { Ok(()) } else { Err(format!("not ready: {}", answer.body)) }
}

/// `lbctl get services -o json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceList {
    api_version: String,
    kind: String,
    items: Vec<Frontend>,
}

/// An item of it: one frontend.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub(crate) struct Frontend {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: String,
    pub(crate) protocol: String,
    #[serde(rename = "frontend")]
    pub(crate) address: String,
    pub(crate) id: u32,
    pub(crate) block: u32,
    pub(crate) count: u32,
    pub(crate) generation: u32,
    /// Sorted by the address as a number.
    pub(crate) backends: Vec<String>,
}

/// An agent that runs.
pub(crate) struct Agent(Process);

impl Agent {
    pub(crate) fn stop(mut self, signal: Signal) -> ExitStatus {
        self.0.stop(signal)
    }

    /// Suspends it, as a machine that sleeps; connections do not notice.
    pub(crate) fn suspend(&self) {
        self.0.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.0.signal(Signal::SIGCONT);
    }

    pub(crate) fn log(&self) -> String {
        self.0.log()
    }

    /// Waits until it has said one line with all of these words in it.
    pub(crate) fn await_line(&self, words: &[&str]) {
        eventually(CONVERGES, || {
            let log = self.log();
            let said = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
            if said { Ok(()) } else { Err(format!("no line with all of {words:?} in\n{log}")) }
        });
    }
}

/// A bpffs that nobody else sees.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(directory: &Path) -> Self {
        let path = directory.join("bpf");
        fs::create_dir(&path).expect("a directory");
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");
        Self(path)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // What is pinned goes away with it: the programs are detached.
        if let Err(error) = umount2(&self.0, MntFlags::empty()) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}
