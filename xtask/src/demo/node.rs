//! The node at work: its backends, the agent, requests from the client, questions to lbctl.

use std::{
    env,
    fs::{self, File},
    net::SocketAddrV4,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    slice::from_ref,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tools::{
    exec::{answer, show},
    wait::{Not, until},
};

use super::{
    client::Outcome,
    myself,
    network::{self, NODE, NODE_ADDRESS, Pod},
    place::{Cgroups, home, make_home},
    services::{self, NODE_NAME, NODE_PORT, SERVICE, TARGET_PORT},
    spread::Spread,
};

/// What must become so, must be so by then. Usually it is at once; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// With so many requests for each backend, one that is never chosen is not chosen by rule: among
/// five backends that would be bad luck of 1 in 10^47.
pub(super) const REQUESTS: usize = 100;

/// Where the node's neighbour asks for the Service.
pub(super) const AT_NODE: SocketAddrV4 = SocketAddrV4::new(NODE_ADDRESS, NODE_PORT);

pub(super) struct Node {
    program: PathBuf,
    agent_program: PathBuf,
    lbctl: PathBuf,
    cgroup: PathBuf,
    agent: Option<Child>,
    requests: usize,
}

impl Node {
    /// Cgroups, network, backends, a Service without endpoints; no agent yet.
    pub(super) fn make(agent: PathBuf, lbctl: PathBuf) -> Result<Self> {
        make_home()?;
        let cgroup = Cgroups::make()?.node();
        fs::create_dir(home("bpf"))?;
        let mut mount = Command::new("mount");
        answer(mount.args(["-t", "bpf", "-o", "mode=0700", "socklb-demo"]).arg(home("bpf")))?;
        let backends = Pod::backends(5);
        let mut pods = backends.clone();
        pods.push(Pod::client());
        network::make(&pods, &cgroup)?;
        services::make()?;

        let program = myself()?;
        let mut node =
            Self { program, agent_program: agent, lbctl, cgroup, agent: None, requests: 0 };
        for Pod { name, .. } in &backends {
            let mut backend = network::inside(name, &node.program);
            background(backend.args(["demo", "backend", name]))?;
        }
        for backend in backends {
            let address = SocketAddrV4::new(backend.address, TARGET_PORT);
            node.settle(address, 1, |spread| spread.is_over(from_ref(&backend)))?;
        }
        Ok(node)
    }

    /// Returns its command line, in two parts.
    pub(super) fn start_agent(&mut self) -> Result<[String; 2]> {
        let mut agent = network::inside(NODE, &self.agent_program);
        let source = format!("dir:{}", services::directory().display());
        agent.arg("--source").arg(source).arg("--bpffs").arg(home("bpf"));
        agent.arg("--cgroup").arg(&self.cgroup).args(["--node-name", NODE_NAME]);
        agent.args(["--packets", "external"]);
        // The demo is the same whatever the caller has in store for other agents.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("SOCKLB_") {
                agent.env_remove(name);
            }
        }
        self.agent = Some(background(&mut agent)?);
        let words: Vec<_> = agent.get_args().skip(3).map(|word| word.to_string_lossy()).collect();
        let (first, second) = words.split_at(4);
        Ok([format!("lb-agent {}", first.join(" ")), second.join(" ")])
    }

    /// With SIGKILL. Returns the process it was.
    pub(super) fn kill_agent(&mut self) -> Result<u32> {
        let mut agent = self.agent.take().context("no agent was started")?;
        agent.kill()?;
        agent.wait()?;
        Ok(agent.id())
    }

    /// Requests to the Service at the node's address, from its neighbour: as [`Self::spread_over`].
    pub(super) fn spread_from_outside_over(&mut self, count: u8) -> Result<Spread> {
        let pods = Pod::backends(count);
        self.settle(AT_NODE, REQUESTS * pods.len(), |spread| spread.is_over(&pods))
    }

    /// Requests to the Service: each of the first `count` backends answers, and nobody else. From
    /// now on; the change may take a moment, in which requests may fail.
    pub(super) fn spread_over(&mut self, count: u8) -> Result<Spread> {
        self.arrive_at(count, |_| Ok(()))
    }

    /// The same for a Service that works already: no request fails in that moment.
    pub(super) fn spread_smoothly_over(&mut self, count: u8) -> Result<Spread> {
        self.arrive_at(count, Spread::all_answered)
    }

    fn arrive_at(
        &mut self,
        count: u8,
        on_the_way: fn(&Spread) -> Result<(), String>,
    ) -> Result<Spread> {
        let pods = Pod::backends(count);
        let mut failed = None;
        self.settle(SERVICE, REQUESTS / 2 * pods.len(), |spread| {
            failed = failed.take().or(on_the_way(spread).err());
            spread.is_over(&pods)
        })?;
        if let Some(reason) = failed {
            bail!("while the backends became {count}: {reason}");
        }
        let spread = self.request(SERVICE, REQUESTS * pods.len())?;
        match spread.is_over(&pods) {
            Ok(()) => Ok(spread),
            Err(reason) => bail!("with {count} backends: {reason}\n{spread}"),
        }
    }

    /// Makes batches of requests until one of them is as it should be; an error if none is in time.
    pub(super) fn settle(
        &mut self,
        to: SocketAddrV4,
        requests: usize,
        mut check: impl FnMut(&Spread) -> Result<(), String>,
    ) -> Result<Spread> {
        until(&format!("requests to {to}"), PATIENCE, &[], || {
            let spread = self.request(to, requests)?;
            let Err(reason) = check(&spread) else { return Ok(spread) };
            let ended = self.agent.as_mut().map_or(Ok(None), Child::try_wait);
            match ended.context("cannot ask for lb-agent")? {
                Some(status) => Err(Not::Ever(format!("lb-agent has ended: {status}"))),
                None => Err(Not::Yet(format!("{reason}\n{spread}"))),
            }
        })
    }

    fn request(&mut self, to: SocketAddrV4, requests: usize) -> Result<Spread> {
        let mut client = if to == AT_NODE {
            network::outside(&self.program)
        } else {
            network::inside(&Pod::client().name, &self.program)
        };
        client.args(["demo", "client", &to.to_string(), "--requests", &requests.to_string()]);
        let output = client.output().context("cannot start the client")?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("the client, asking {to}: {}", reason.trim());
        }
        self.requests += requests;
        let outcomes: Result<Vec<Outcome>> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::parse).collect();
        Ok(Spread::of(&outcomes?, to.into()))
    }

    /// How many requests were made.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Waits until `lbctl status` finds nothing wrong: a moment after the first sync, the agent has not
    /// seen its programs at work yet.
    pub(super) fn until_healthy(&self) -> Result<()> {
        until("lbctl status", PATIENCE, &[], || {
            let output = self.lbctl().arg("status").output().context("cannot start lbctl")?;
            if output.status.success() {
                return Ok(());
            }
            Err(Not::Yet(String::from_utf8_lossy(&output.stdout).into_owned()))
        })
    }

    pub(super) fn lbctl(&self) -> Command {
        let mut lbctl = Command::new(&self.lbctl);
        lbctl.arg("--bpffs").arg(home("bpf"));
        lbctl
    }
}

/// What the agent says, and whatever else stays in the background.
pub(super) fn log() -> PathBuf {
    home("log")
}

/// Starts what stays. In a process group of its own, or it would be told of the end of the terminal
/// that the demo was started from.
fn background(command: &mut Command) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log())?;
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).spawn();
    child.with_context(|| format!("cannot start `{}`", show(command)))
}
