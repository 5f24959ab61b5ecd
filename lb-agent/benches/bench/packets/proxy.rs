//! The proxies that are compared, each as a process on the node.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{
    group::Group,
    network::{Place, on_the_node},
    objects::NODE_NAME,
};
use crate::agent::OURS;

/// How long it may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// Where each tells its metrics.
const METRICS: u16 = 10249;
/// How long it took to write what was to be written: kube-proxy's name, and socklb's.
const SYNC: &str = "kubeproxy_sync_proxy_rules_duration_seconds";

/// Who is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Name {
    Socklb,
    /// Whose rules are nftables'.
    Nftables,
    /// Whose rules are iptables'.
    Iptables,
    /// The first once more: what differs between the two is chance.
    Again,
}

impl Name {
    /// In a column of its own.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Socklb => "socklb",
            Self::Nftables => "kube-proxy nftables",
            Self::Iptables => "kube-proxy iptables",
            Self::Again => "socklb again",
        }
    }

    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Socklb | Self::Again)
    }

    /// From one change to the next. kube-proxy writes once in a second at most (`minSyncPeriod`), and what
    /// it waits is not what it takes.
    pub(super) const fn pause(self) -> Duration {
        Duration::from_millis(if self.is_ours() { 20 } else { 1_100 })
    }
}

/// Where it is started.
pub(super) struct Site<'a> {
    pub(super) node: &'a Place,
    pub(super) group: &'a Group,
    /// For files.
    pub(super) dir: &'a Path,
    pub(super) api: SocketAddr,
    /// With Kubernetes' programs.
    pub(super) kubernetes: &'a Path,
    /// Of socklb: an empty cgroup, whose sockets it serves, and where it pins.
    pub(super) cgroup: &'a Path,
    pub(super) bpffs: &'a Path,
}

/// One of them at work; ended when dropped, also when this process ends.
pub(super) struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// Starts it, on behalf of the main thread: whoever it is started by must outlive it.
    pub(super) fn start(name: Name, site: &Site<'_>, more: &[&str]) -> Result<Self> {
        let kubeconfig = site.dir.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "bench", "cluster": { "server": format!("http://{}", site.api) } }],
            "users": [{ "name": "bench", "user": {} }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
            "current-context": "bench",
        });
        fs::write(&kubeconfig, config.to_string())?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", site.node.path().display()));
        command.args(["--", "setpriv", "--pdeathsig", "KILL", "--", "sh", "-c"]);
        command.args(["echo $$ >\"$0\" && exec \"$@\""]).arg(site.group.processes());
        match name {
            Name::Socklb | Name::Again => {
                command.arg(OURS).args(["--packets=external", "--source=kubernetes"]);
                command.arg("--cgroup").arg(site.cgroup).arg("--bpffs").arg(site.bpffs);
                command.args(["--node-name", NODE_NAME, "--conntrack-sysctls=false"]);
                command.args(["--log", "warn"]).args(more);
            }
            Name::Nftables | Name::Iptables => {
                let rules = if name == Name::Nftables { "nftables" } else { "iptables" };
                command.arg(site.kubernetes.join("kube-proxy"));
                command.args(["--hostname-override", NODE_NAME, "--proxy-mode", rules]);
                // What is the machine's stays as it is.
                command.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
                command.args(["--conntrack-tcp-timeout-established=0s"]);
                command.args(["--conntrack-tcp-timeout-close-wait=0s"]);
                // As socklb is told them.
                command.args(["--kube-api-content-type=application/json"]);
            }
        }
        command.arg("--kubeconfig").arg(&kubeconfig).arg("--nodeport-addresses=primary");
        let log = site.dir.join("log");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("cannot start `nsenter`")?;
        Ok(Self { child, log })
    }

    /// Fails, with its last words, if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        bail!("it ended: {status}\n{}", self.last_words());
    }

    /// The end of what it has said.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A field of `/proc/PID/status`, in MB.
    pub(super) fn status(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no such field")?;
        Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Asked to end, socklb removes the cgroup of its canary.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < ENDING {
            sleep(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How often it has written, and how long that took by its own account, in s.
#[derive(Clone, Copy)]
pub(super) struct Syncs {
    pub(super) count: f64,
    pub(super) seconds: f64,
}

impl Syncs {
    /// Of IPv4, so far.
    pub(super) fn of(node: &Place) -> Result<Self> {
        let text = node.within(|| {
            let mut stream = TcpStream::connect(on_the_node(METRICS)).context("its metrics")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let value = |name: &str| {
            let of = |line: &&str| line.starts_with(name) && !line.contains("IPv6");
            let line = text.lines().find(of)?;
            line.rsplit_once(' ')?.1.parse().ok()
        };
        let [count, seconds] =
            ["count", "sum"].map(|what| value(&format!("{SYNC}_{what}")).unwrap_or_default());
        Ok(Self { count, seconds })
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self { count: self.count - before.count, seconds: self.seconds - before.seconds }
    }
}
