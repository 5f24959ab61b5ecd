//! `bench`: what socklb costs, and what it is compared with, in one run each.
//!
//! The measurements are a program of lb-agent; here it is built, started as root, and what it says
//! is kept under `docs/bench`, with what somebody needs to judge the figures.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use tools::{
    cache::cache,
    cargo::{cargo, executables, workspace},
    exec::{announce, answer, ask},
    pins,
    root::{as_root, require_root},
    setup::{self, Scope},
};

use crate::{baseline::Baseline, lab};

/// Measure, and keep the reports under docs/bench. Wants a machine that does nothing else.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure [default: all].
    names: Vec<Name>,
    /// With `hook`: the programs of another commit too, in the same rounds.
    #[arg(long, value_name = "REV")]
    baseline: Vec<String>,
    /// With `hook`: how often each variant is measured [default: 200].
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// With `packets`: how many Services [default: 1000, 10000 and 30000].
    #[arg(long, value_name = "N")]
    services: Vec<u32>,
    /// With `packets`: who is measured: `socklb`, `nftables` or `iptables` (kube-proxy's modes), or `again`
    /// (socklb once more) [default: all]. What is kept of others is reported all the same.
    #[arg(long, value_name = "WHO")]
    proxy: Vec<String>,
    /// With `packets`: how long changes are made in each cell, up to 200 of each kind [default: 10].
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// With `packets`: measure once more what was measured of these programs on this machine before.
    #[arg(long)]
    again: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// What the programs add to a connect().
    Hook,
    /// From objects delivered to maps complete.
    Sync,
    /// Resident memory of the agent, and size of the maps.
    Memory,
    /// Packets from outside, beside kube-proxy's two modes: two hours. A run that was broken off goes on
    /// where it was.
    Packets,
}

impl Name {
    const fn text(self) -> &'static str {
        match self {
            Self::Hook => "hook",
            Self::Sync => "sync",
            Self::Memory => "memory",
            Self::Packets => "packets",
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[Scope::Agent, Scope::Programs, Scope::Network])?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "lb-agent", "--bench", "bench"]);
    let programs = executables(&mut build)?;
    let program = programs.iter().find(|program| program.kind == "bench");
    let program = &program.context("cargo built no benchmarks")?.path;
    let names = if args.names.is_empty() { Name::value_variants() } else { &args.names };
    let mut with_hook = Vec::new();
    if let Some(rounds) = args.rounds {
        with_hook.push(format!("--rounds={rounds}").into());
    }
    for revision in &args.baseline {
        let Baseline { commit, agent } = Baseline::build(revision)?;
        let mut argument = OsString::from(format!("--baseline={commit}="));
        argument.push(agent);
        with_hook.push(argument);
    }
    let mut with_packets = Vec::new();
    if names.iter().any(|name| matches!(name, Name::Packets)) {
        with_packets = of_packets(args)?;
    }
    require_root()?;
    for name in names {
        let mut bench = Command::new(program);
        bench.arg(name.text()).current_dir(workspace());
        bench.args(match name {
            Name::Hook => &with_hook[..],
            Name::Packets => &with_packets,
            Name::Sync | Name::Memory => &[],
        });
        let report = circumstances() + "\n" + &report(bench)?;
        let file = format!("docs/bench/{}.txt", name.text());
        let path = workspace().join(&file);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, report).with_context(|| format!("cannot write {file}"))?;
        eprintln!("kept in {file}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What `packets` is told besides. Builds kube-proxy unless it is there.
fn of_packets(args: &Args) -> Result<Vec<OsString>> {
    setup::ensure(&[Scope::Cluster])?;
    let kubernetes = answer(lab(["kube"]).stderr(Stdio::inherit()))?;
    let kept = cache()?.join("bench-packets");
    // As root it would be somebody else's.
    fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    let mut words = vec![
        OsString::from("--kubernetes"),
        kubernetes.trim_end().into(),
        "--kept".into(),
        kept.into(),
        "--commit".into(),
        commit().into(),
    ];
    words.extend(args.services.iter().map(|services| format!("--services={services}").into()));
    words.extend(args.proxy.iter().map(|proxy| format!("--proxy={proxy}").into()));
    words.extend(args.minutes.map(|minutes| format!("--minutes={minutes}").into()));
    words.extend(args.again.then(|| "--again".into()));
    Ok(words)
}

/// What a program says that runs as root, shown as it comes.
pub(crate) fn report(program: Command) -> Result<String> {
    let mut program = as_root(program);
    let line = announce(&program);
    let mut child = program.stdout(Stdio::piped()).spawn().with_context(|| format!("`{line}`"))?;
    let mut report = String::new();
    for line in BufReader::new(child.stdout.take().context("stdout is piped")?).lines() {
        let line = line?;
        println!("{line}");
        report.push_str(line.trim_end());
        report.push('\n');
    }
    let status = child.wait()?;
    ensure!(status.success(), "`{line}`: {status}");
    Ok(report)
}

/// Where and of what the figures are.
pub(crate) fn circumstances() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    let lock = read(&workspace().join("Cargo.lock").to_string_lossy());
    let version = |package| locked(&lock, package).unwrap_or("?");
    let date = ask(Command::new("date").args(["-u", "+%F"])).unwrap_or_default();
    format!(
        "date      {}\ncommit    {}\nkernel    {}\nCPU       {count} x {model}\nload      {load} before \
         the start\nversions  rust {}, {} for BPF, aya {}, aya-ebpf {}\n",
        date.trim(),
        commit(),
        read("/proc/sys/kernel/osrelease").trim(),
        pins::STABLE,
        pins::NIGHTLY,
        version("aya"),
        version("aya-ebpf"),
    )
}

fn commit() -> String {
    let git = |args: &[&str]| ask(Command::new("git").args(args).current_dir(workspace()));
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "none: not a git repository".to_owned();
    };
    // The reports of measurements made before are no difference.
    let changes = git(&["status", "--porcelain", "--", ".", ":!docs/bench"]).unwrap_or_default();
    let note = if changes.trim().is_empty() { "" } else { ", with changes" };
    format!("{}{note}", commit.trim())
}

/// The version of a package in Cargo.lock.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_version_is_that_of_the_package_itself() {
        let lock = "[[package]]\nname = \"aya-ebpf\"\nversion = \"0.3.0\"\n\n[[package]]\nname = \
                    \"aya\"\nversion = \"0.16.0\"\nsource = \"x\"\n";
        assert_eq!(locked(lock, "aya"), Some("0.16.0"));
        assert_eq!(locked(lock, "aya-ebpf"), Some("0.3.0"));
        assert_eq!(locked(lock, "ebpf"), None);
    }

    #[test]
    fn circumstances_are_known() {
        let text = circumstances();
        assert!(!text.contains('?') && !text.contains("unknown"), "{text}");
        assert_eq!(text.lines().count(), 6);
    }
}
