//! A real agent that serves a cluster from files, until it is dropped.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::Resource;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Services in one file.
pub(crate) const SERVICES_PER_FILE: usize = 100;
/// The agent that was built with this program.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_lb-agent");
/// How long the agent may take until the maps are complete.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long it may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// The agent as a process; stopped when dropped. What it attached stays.
pub(crate) struct Agent(Child);

impl Agent {
    /// Starts `program`, any lb-agent that has these flags.
    pub(crate) fn start(program: &Path, files: &Path, bpffs: &Path, cgroup: &Path) -> Result<Self> {
        Self::start_with(program, files, bpffs, cgroup, &[])
    }

    /// The same with more flags.
    pub(crate) fn start_with(
        program: &Path,
        files: &Path,
        bpffs: &Path,
        cgroup: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let mut source = OsString::from("dir:");
        source.push(files);
        let mut agent = Command::new(program);
        agent.arg("--source").arg(source).arg("--bpffs").arg(bpffs).arg("--cgroup").arg(cgroup);
        agent
            .args(["--node-name", "bench"])
            .args(["--log", "warn"])
            .args(more)
            .stdin(Stdio::null());
        let agent = agent.spawn();
        Ok(Self(agent.with_context(|| format!("cannot start {}", program.display()))?))
    }

    /// Waits until it is `done`.
    pub(crate) fn until(&mut self, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done()? {
            if let Some(status) = self.0.try_wait()? {
                bail!("lb-agent ended: {status}");
            }
            if start.elapsed() > PATIENCE {
                bail!("lb-agent is not ready after {} s", PATIENCE.as_secs());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A field of `/proc/PID/status`, in MB.
    pub(crate) fn status(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no such field")?;
        Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Asked to end, it removes the cgroup of its canary.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < ENDING {
            sleep(Duration::from_millis(10));
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Writes a cluster as multi-document files, each with [`SERVICES_PER_FILE`] Services and with their
/// slices.
pub(crate) fn write(cluster: &Cluster, dir: &Path) -> Result<()> {
    let slices = cluster.slices.len() / cluster.services.len().max(1);
    let services = cluster.services.chunks(SERVICES_PER_FILE);
    let slices = cluster.slices.chunks(SERVICES_PER_FILE * slices.max(1));
    for (n, (services, slices)) in services.zip(slices).enumerate() {
        let mut text = String::new();
        for service in services {
            text.push_str(&document(service)?);
        }
        for slice in slices {
            text.push_str(&document(slice)?);
        }
        // As an editor saves: the new file takes the place of the old one at once.
        let fresh = dir.join(format!(".{n:04}"));
        fs::write(&fresh, text)?;
        fs::rename(fresh, dir.join(format!("{n:04}.yaml")))?;
    }
    Ok(())
}

fn document<T: Resource + serde::Serialize>(object: &T) -> Result<String> {
    let mut value = serde_json::to_value(object)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("apiVersion".to_owned(), json!(T::API_VERSION));
        fields.insert("kind".to_owned(), json!(T::KIND));
    }
    Ok(format!("---\n{}", serde_saphyr::to_string(&value)?))
}
