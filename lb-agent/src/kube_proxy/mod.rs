//! What a kube-proxy left on this node, found and removed (M7).
//!
//! Its rules would go on translating what socklb does not, to endpoints that are long gone, and what
//! is forwarded by them depends on a mark and on chains that nobody keeps up to date.

mod command;
mod iptables;
mod ipvs;

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write},
    net::IpAddr,
    path::Path,
};

use anyhow::{Result, bail};
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};

use self::command::run;

/// The name of the process, of its tables in nftables, and what others call it.
const NAME: &str = "kube-proxy";
/// Each family's tools to save and to restore, of each of the two kernel interfaces; those without
/// an interface in their names are one of the others, and may be all that there is.
const IPTABLES: [(&str, &str); 6] = [
    ("iptables-nft-save", "iptables-nft-restore"),
    ("iptables-legacy-save", "iptables-legacy-restore"),
    ("iptables-save", "iptables-restore"),
    ("ip6tables-nft-save", "ip6tables-nft-restore"),
    ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
    ("ip6tables-save", "ip6tables-restore"),
];

/// What there is of a kube-proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Active {
    /// It runs, as this process.
    Running(u32),
    /// What it has made is there; who made it runs where we cannot see it, or does not run.
    Left(&'static str),
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(pid) => write!(f, "{NAME} is running (process {pid})"),
            Self::Left(what) => write!(f, "{NAME} is running, or has left {what}"),
        }
    }
}

/// What there is of a kube-proxy in this network namespace, if anything is. Runs tools, so waits.
pub fn active() -> Option<Active> {
    if let Some(pid) = running() {
        return Some(Active::Running(pid));
    }
    if device_exists() {
        return Some(Active::Left("IPVS servers"));
    }
    if nft_tables().is_ok_and(|tables| tables.is_some_and(|tables| !tables.is_empty())) {
        return Some(Active::Left("tables in nftables"));
    }
    let saved = |save| saved(save, &["-t", "nat"]).ok().flatten();
    let has_chains = |save| saved(save).is_some_and(|text| text.contains("\n:KUBE-SERVICES "));
    IPTABLES.iter().any(|(save, _)| has_chains(save)).then_some(Active::Left("chains in iptables"))
}

/// Removes what kube-proxy left, and writes down what. Fails, having done what it could, if something
/// could not be removed; does nothing while kube-proxy runs.
pub fn cleanup(out: &mut impl Write) -> Result<()> {
    if let Some(pid) = running() {
        bail!(
            "{NAME} is running (process {pid}) and would make it all anew: remove it first, as in \
             `kubectl -n kube-system delete daemonset {NAME}`"
        );
    }
    let mut cleanup = Cleanup { out, something: false, failed: Vec::new(), unseen: Vec::new() };
    cleanup.nftables()?;
    // The sets say which node ports there were, and are used by chains.
    cleanup.ipvs()?;
    cleanup.iptables()?;
    cleanup.sets()?;
    let Cleanup { something, failed, unseen, .. } = cleanup;
    for unseen in unseen {
        writeln!(out, "not looked at: {unseen}")?;
    }
    if !something && failed.is_empty() {
        writeln!(out, "nothing of {NAME} to remove")?;
    }
    if !failed.is_empty() {
        bail!("not all of {NAME} could be removed:\n{}", failed.join("\n"));
    }
    Ok(())
}

struct Cleanup<'a, W> {
    out: &'a mut W,
    something: bool,
    failed: Vec<String>,
    unseen: Vec<String>,
}

impl<W: Write> Cleanup<'_, W> {
    fn nftables(&mut self) -> io::Result<()> {
        match nft_tables() {
            Ok(None) => self.unseen.push("nftables, as `nft` is not installed".to_owned()),
            Ok(Some(tables)) => {
                for table in tables {
                    let result = run("nft", &["delete", "table", table, NAME], "");
                    self.done(result, format_args!("the nftables table {table} {NAME}"))?;
                }
            }
            Err(error) => self.failed.push(error),
        }
        Ok(())
    }

    fn iptables(&mut self) -> io::Result<()> {
        let mut found = false;
        // Tools without an interface in their names see again what others have told of.
        let mut told = BTreeSet::new();
        for (save, restore) in IPTABLES {
            let saved = match saved(save, &[]) {
                Ok(None) => continue,
                Ok(Some(saved)) => saved,
                Err(error) => {
                    self.failed.push(error);
                    continue;
                }
            };
            found = true;
            let removal = iptables::removal(&saved);
            let family = save.split('-').next().unwrap_or(save);
            for (table, chain, user) in removal.kept {
                let line = format!("kept the chain {chain} of the table {table}: {user} uses it");
                if told.insert((family, line.clone())) {
                    writeln!(self.out, "{line} ({family})")?;
                }
            }
            let foreign = saved.lines().filter(|line| line.starts_with("# Table"));
            for line in foreign.filter(|line| line.contains("incompatible")) {
                if told.insert((family, line.to_owned())) {
                    self.unseen.push(format!("parts of iptables; {save} says: {}", &line[2..]));
                }
            }
            if removal.script.is_empty() {
                continue;
            }
            let result = run(restore, &["--noflush", "--wait", "5"], &removal.script);
            for (table, count) in &removal.chains {
                let what = format_args!("{count} chains of the table {table} ({save})");
                self.done(result.clone(), what)?;
            }
        }
        if !found {
            self.unseen.push("iptables, as `iptables-save` is not installed".to_owned());
        }
        Ok(())
    }

    fn ipvs(&mut self) -> io::Result<()> {
        let servers = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
        let (of_device, of_machine) = addresses();
        if servers.lines().any(|line| ["TCP", "UDP", "SCTP"].iter().any(|p| line.starts_with(p))) {
            let sets = run("ipset", &["save"], "").ok().flatten().unwrap_or_default();
            match run("ipvsadm", &["--save", "-n"], "") {
                Ok(None) => {
                    self.unseen.push("IPVS servers, as `ipvsadm` is not installed".to_owned());
                }
                Ok(Some(saved)) => {
                    let ports = ipvs::node_ports(&sets);
                    for [kind, server] in
                        ipvs::virtual_servers(&saved, &of_device, &of_machine, &ports)
                    {
                        let result = run("ipvsadm", &["-D", kind, server], "");
                        self.done(result, format_args!("the IPVS server {server}"))?;
                    }
                }
                Err(error) => self.failed.push(error),
            }
        }
        if device_exists() {
            let result = run("ip", &["link", "delete", ipvs::DEVICE], "");
            self.done(result, format_args!("the device {}", ipvs::DEVICE))?;
        }
        Ok(())
    }

    fn sets(&mut self) -> io::Result<()> {
        let names = match run("ipset", &["list", "-n"], "") {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => {
                // There is no such thing in the kernel, or no permission, of which others have told.
                tracing::debug!(error, "no ipset");
                return Ok(());
            }
        };
        for name in ipvs::sets(&names) {
            self.done(run("ipset", &["destroy", name], ""), format_args!("the ipset {name}"))?;
        }
        Ok(())
    }

    fn done(
        &mut self,
        result: Result<Option<String>, String>,
        what: fmt::Arguments<'_>,
    ) -> io::Result<()> {
        self.something = true;
        match result {
            Ok(Some(_)) => writeln!(self.out, "removed {what}")?,
            Ok(None) => self.failed.push(format!("{what} stays: its tool is not installed")),
            Err(error) => self.failed.push(format!("{what} stays: {error}")),
        }
        Ok(())
    }
}

/// What a tool saves. Asking for the old interface would load its modules, if it is not in use.
fn saved(save: &str, arguments: &[&str]) -> Result<Option<String>, String> {
    if save.contains("legacy") {
        let family = if save.starts_with("ip6") { "ip6" } else { "ip" };
        let names = format!("/proc/thread-self/net/{family}_tables_names");
        if fs::read_to_string(names).unwrap_or_default().trim().is_empty() {
            return Ok(None);
        }
    }
    run(save, arguments, "")
}

/// The families in which nftables has a table of kube-proxy. None without `nft`.
fn nft_tables() -> Result<Option<Vec<&'static str>>, String> {
    let Some(tables) = run("nft", &["list", "tables"], "")? else { return Ok(None) };
    let has = |family: &str| tables.lines().any(|line| line == format!("table {family} {NAME}"));
    Ok(Some(["ip", "ip6"].into_iter().filter(|family| has(family)).collect()))
}

fn device_exists() -> bool {
    if_nametoindex(ipvs::DEVICE).is_ok()
}

/// The addresses of kube-proxy's device, and of all others.
fn addresses() -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let (mut of_device, mut of_machine) = (BTreeSet::new(), BTreeSet::new());
    for interface in getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()));
        let v6 = address.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip()));
        let is_its = interface.interface_name == ipvs::DEVICE;
        (if is_its { &mut of_device } else { &mut of_machine }).extend(v4.or(v6));
    }
    (of_device, of_machine)
}

/// The process that is a kube-proxy of this network namespace.
fn running() -> Option<u32> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        is_kube_proxy(&entry.path(), own.as_deref()).then_some(pid)
    })
}

/// Of a process by its directory. Whose namespace we may not know counts, to be on the safe side.
fn is_kube_proxy(process: &Path, own: Option<&Path>) -> bool {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    name.trim_end() == NAME
        && fs::read_link(process.join("ns/net")).map_or(true, |net| Some(net.as_path()) == own)
}
