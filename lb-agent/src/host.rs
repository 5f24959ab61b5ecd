//! What the agent needs of the machine, and what to do where it is missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{config::Config, mounts, node_cgroup::Cgroup, pins};

/// `CAP_NET_ADMIN`, to attach the programs.
const NET_ADMIN: u32 = 12;
/// `CAP_SYS_ADMIN`, which stands for the others.
const SYS_ADMIN: u32 = 21;
/// `CAP_PERFMON`: without it the verifier allows less arithmetic on pointers than the programs do.
const PERFMON: u32 = 38;
/// `CAP_BPF`, to make maps and load programs.
const BPF: u32 = 39;

/// Fails if the process may not do what it is about to do.
pub fn check_capabilities() -> Result<()> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let missing = missing_capabilities(&status);
    if !missing.is_empty() {
        bail!(
            "not permitted, for lack of {}: run as root (sudo lb-agent ...), or give the process \
             CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
            missing.join(", ")
        );
    }
    Ok(())
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let has = |capability: u32| effective & (1 << capability) != 0;
    if has(SYS_ADMIN) {
        return Vec::new();
    }
    [(BPF, "CAP_BPF"), (NET_ADMIN, "CAP_NET_ADMIN"), (PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter_map(|(capability, name)| (!has(capability)).then_some(name))
        .collect()
}

/// The least number of files that an agent must be able to have open: programs, maps and links are some
/// 70, and each request to its servers is one more.
const OPEN_FILES: u64 = 128;

/// Lets this process have as many files open as it may; fails if that is too few, which would be found
/// out here and there, and half-way.
pub fn raise_open_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limits")?;
    if hard < OPEN_FILES {
        bail!(
            "this process may have {hard} files open, and lb-agent needs {OPEN_FILES}: raise the hard \
             limit (`ulimit -Hn`, LimitNOFILE of systemd)"
        );
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .context("cannot raise the limit of open files")?;
    }
    Ok(())
}

/// The bpffs to pin to: mounted, and writable.
pub fn bpffs(config: &Config) -> Result<PathBuf> {
    let path = bpffs_to_read(config)?;
    if let Some(mount) = mounts::of(&path)?
        && mount.read_only
    {
        let at = mount.path.display();
        bail!("the bpf file system at {at} is read-only: `mount -o remount,rw {at}`");
    }
    Ok(path)
}

/// The bpffs to look at.
pub fn bpffs_to_read(config: &Config) -> Result<PathBuf> {
    const MOUNT: &str = "mount -t bpf bpf";
    let path = match &config.bpffs {
        Some(path) => path.clone(),
        None => pins::default_bpffs()?.with_context(|| {
            format!("no bpf file system is mounted: `{MOUNT} /sys/fs/bpf -o mode=0700`, or name one by --bpffs")
        })?,
    };
    let mount = mounts::of(&path).with_context(|| format!("--bpffs {}", path.display()))?;
    if mount.is_none_or(|mount| mount.kind != "bpf") {
        bail!("{0} is not in a bpf file system: `{MOUNT} {0} -o mode=0700`", path.display());
    }
    Ok(path)
}

/// The cgroup to attach to.
pub fn cgroup(config: &Config) -> Result<Cgroup> {
    config.cgroup.as_deref().map_or_else(Cgroup::of_node, Cgroup::named)
}

/// Whether this process is in the network namespace of the machine, as far as can be seen.
pub fn is_in_host_network() -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).ok();
    let (own, first) = (namespace("self"), namespace("1"));
    own.is_some() && own == first
}

/// The name of this node, as kube-proxy forms it (B7).
pub fn node_name(config: &Config) -> Result<String> {
    let name = match &config.node_name {
        Some(name) if !name.is_empty() => name.clone(),
        _ => fs::read_to_string(Path::new("/proc/sys/kernel/hostname"))
            .context("cannot read the host name: give --node-name")?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the node has no name: give --node-name");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_bits_of_cap_eff() {
        let missing = |hex: &str| missing_capabilities(&format!("Name:\tx\nCapEff:\t{hex}\n"));
        assert_eq!(missing("000001ffffffffff"), [""; 0]);
        assert_eq!(missing("0000000000200000"), [""; 0], "CAP_SYS_ADMIN");
        assert_eq!(missing("000000c000001000"), [""; 0], "all three");
        assert_eq!(missing("000000c000000000"), ["CAP_NET_ADMIN"]);
        assert_eq!(missing("0000000000000000"), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
    }
}
