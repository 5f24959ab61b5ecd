//! A box: a machine made of namespaces. To everything inside it is one: process 1 is its init, which
//! reaps orphans; its cgroups are the roots of all hierarchies; /var, /run, /tmp, /sys, the BPF file
//! system and the network are its own. The rest of the root file system is the machine's.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tools::{
    exec::{answer_to, show},
    wait::{Not, tail, until},
};

use super::{
    cgroups::{Cgroups, Version},
    place::{home, var},
};

/// Where a box has the programs of the cluster.
pub(super) const PROGRAMS: &str = "/run/programs";
/// Where programs of the machine are, for root.
pub(super) const PATH: &str = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In cgroup2 nobody may be in a directory that passes controllers on. So init, services and
/// visitors have directories of their own, named as systemd names them.
const INIT: &str = "init.scope";
const SERVICES: &str = "system.slice";
const VISITORS: &str = "user.slice";
/// Of processes that are no part of a box: those which wait for the end of one, and those which would
/// make no sense without the cluster.
pub(super) const KEEPERS: &str = "keepers";
const BOOTED: &str = "booted";

/// Joins the cgroups before `--`, then runs the command behind it. What the caller has open, such as a
/// lock of flock(1), is not for a box to keep; sh knows files by one digit.
const JOIN: &str = r#"exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 125; shift; done
shift; exec "$@""#;

/// `$1` name, `$2` state, `$3` programs, `$4` the cgroup of init, then `TYPE OPTIONS DIRECTORY` of
/// each cgroup mount.
///
/// The mounts that the box has inherited of /proc and /sys would show the machine's, below its own.
/// kubelet sets some kernel parameters that are one for the whole machine; it finds them set, in
/// files that it cannot tell from the real ones.
const BOOT: &str = r#"set -eu
name=$1 state=$2 programs=$3 init=$4; shift 4
umount -n -l -R /sys
umount -n -l /proc
mount -n -t proc proc /proc
echo "$name" >/proc/sys/kernel/hostname
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
mount -n -t sysfs sysfs /sys
mount -n -t bpf -o mode=0700 bpf /sys/fs/bpf
for line; do case $line in *' /sys/fs/cgroup/'*)
    mount -n -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup; break
esac; done
for line; do
    set -- $line; mkdir -p "$3"; mount -n -t "$1" -o "$2" "$1" "$3"
done
mkdir -p "$init"; echo 1 >"$init/cgroup.procs"
mount -n -t tmpfs -o mode=0755 tmpfs "$state/run"
mkdir "$state/run/programs" "$state/run/sysctl" "$state/run/lock"
mount -n --bind "$programs" "$state/run/programs"
mount -n --move "$state/run" /run
mount -n --bind "$state/var" /var
mount -n -t tmpfs -o mode=1777 tmpfs /tmp
for set in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000
do
    [ -e "/proc/sys/${set%=*}" ] || continue
    file=/run/sysctl/$(echo "${set%=*}" | tr / .); echo "${set#*=}" >"$file"
    mount -n --bind "$file" "/proc/sys/${set%=*}"
done
mount -n --make-rshared /
echo booted
exec sh -c 'trap "" HUP INT QUIT TERM; while :; do sleep 86400 & wait; done' init >/dev/null 2>&1
"#;

pub(crate) struct Machine {
    pub(super) name: String,
}

impl Machine {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes the namespaces and starts init. The box has no link but `lo`, and that is down.
    pub(super) fn boot(&self, cgroups: &Cgroups, programs: &Path) -> Result<()> {
        let name = &self.name;
        cgroups.make(name)?;
        for directory in ["run", "var/lib", "var/log", "var/tmp"] {
            fs::create_dir_all(home(name).join(directory))?;
        }
        let run = var(name).join("run");
        if !run.is_symlink() {
            std::os::unix::fs::symlink("/run", run)?;
        }
        let mut unshare = Command::new("unshare");
        unshare.args(["--cgroup", "--mount", "--pid", "--fork", "--uts", "--ipc", "--net"]);
        unshare.args(["--kill-child", "--propagation", "private"]);
        unshare.args(["sh", "-c", BOOT, "init", name]).arg(home(name)).arg(programs);
        unshare.arg(cgroups.two().join(INIT));
        for hierarchy in cgroups.hierarchies() {
            let (kind, options) = match &hierarchy.version {
                Version::One(options) => ("cgroup", options.as_str()),
                Version::Two => ("cgroup2", "rw"),
            };
            unshare.arg(format!("{kind} {options} {}", hierarchy.mount.display()));
        }
        let mut command = joined(&cgroups.of(name, ""), &unshare);
        let log = File::create(self.log("boot"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut keeper = detached(&mut command).spawn().context("cannot start `unshare`")?;
        let mut line = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != BOOTED {
            bail!("the box {name} does not boot:\n{}", tail(&self.log("boot")));
        }
        // It stands in the directory that is the root of the box.
        keep(cgroups, keeper.id())
    }

    /// The process that is number 1 inside, by its number outside. None: the box is down.
    pub(super) fn init(&self, cgroups: &Cgroups) -> Option<u32> {
        let members = cgroups.unified(&self.name).join(INIT).join("cgroup.procs");
        let members = fs::read_to_string(members).ok()?;
        let mut members = members.lines().filter_map(|line| line.parse().ok());
        members.find(|process: &u32| {
            let status = fs::read_to_string(format!("/proc/{process}/status"));
            status.is_ok_and(|status| number_inside(&status) == Some(1))
        })
    }

    fn require_init(&self, cgroups: &Cgroups) -> Result<u32> {
        let name = &self.name;
        self.init(cgroups).with_context(|| {
            format!("the box {name} is down: `cargo xtask cluster status` shows what is there")
        })
    }

    /// A command that runs inside.
    pub(super) fn inside<S: AsRef<OsStr>>(
        &self,
        cgroups: &Cgroups,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        self.enter(cgroups, VISITORS, "--all", words)
    }

    /// A command that runs with the network of the box and with the files of the machine.
    pub(super) fn in_network<S: AsRef<OsStr>>(
        &self,
        cgroups: &Cgroups,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        self.enter(cgroups, VISITORS, "--net", words)
    }

    fn enter<S: AsRef<OsStr>>(
        &self,
        cgroups: &Cgroups,
        leaf: &str,
        namespaces: &str,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let init = self.require_init(cgroups)?;
        fs::create_dir_all(cgroups.unified(&self.name).join(leaf))?;
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &init.to_string(), namespaces, "--"]).args(words);
        let mut command = joined(&cgroups.of(&self.name, leaf), &nsenter);
        command.env("PATH", format!("{PROGRAMS}:{PATH}"));
        Ok(command)
    }

    /// Starts what stays, and has a log. Its parent is the init of the box.
    pub(super) fn start<S: AsRef<OsStr>>(
        &self,
        cgroups: &Cgroups,
        service: &str,
        words: impl IntoIterator<Item = S>,
    ) -> Result<()> {
        ensure!(!self.runs(cgroups, service), "{service} runs already on {}", self.name);
        let log = format!("exec \"$@\" >>/var/log/{service}.log 2>&1");
        let daemon = ["setsid", "--fork", "sh", "-c", &log, service].map(ToOwned::to_owned);
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        let words = daemon.into_iter().map(Into::into).chain(words);
        let leaf = format!("{SERVICES}/{service}.service");
        let mut command = self.enter(cgroups, &leaf, "--all", words)?;
        let path = command.get_envs().find_map(|(name, value)| (name == "PATH").then_some(value?));
        let path = path.map(ToOwned::to_owned).unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", "/root").stdin(Stdio::null());
        quietly(&mut command).with_context(|| format!("cannot start {service} on {}", self.name))
    }

    /// As a crash would.
    pub(super) fn kill_service(&self, cgroups: &Cgroups, service: &str) -> Result<()> {
        cgroups.kill(&self.service(service))
    }

    pub(super) fn runs(&self, cgroups: &Cgroups, service: &str) -> bool {
        cgroups.is_populated(&self.service(service))
    }

    fn service(&self, service: &str) -> String {
        format!("{}/{SERVICES}/{service}.service", self.name)
    }

    pub(crate) fn log(&self, service: &str) -> PathBuf {
        var(&self.name).join(format!("log/{service}.log"))
    }

    /// Pulls the plug: no process, no namespace, no cgroup is left of the box. Its /var stays.
    pub(super) fn kill(&self, cgroups: &Cgroups) -> Result<()> {
        cgroups.kill(&self.name)?;
        cgroups.remove(&self.name)
    }

    /// Waits until a service has done something, as long as it runs.
    pub(super) fn await_service(
        &self,
        cgroups: &Cgroups,
        service: &str,
        limit: Duration,
        mut check: impl FnMut() -> Result<(), String>,
    ) -> Result<()> {
        let log = self.log(service);
        until(&format!("{service} on {}", self.name), limit, &[&log], || match check() {
            Err(reason) if !self.runs(cgroups, service) => {
                Err(Not::Ever(format!("it has ended; {reason}")))
            }
            other => other.map_err(Not::Yet),
        })
    }
}

/// Makes a process one that goes with the cluster.
pub(super) fn keep(cgroups: &Cgroups, process: u32) -> Result<()> {
    let keepers = cgroups.unified(KEEPERS);
    fs::create_dir_all(&keepers)?;
    fs::write(keepers.join("cgroup.procs"), process.to_string())
        .with_context(|| format!("cannot join {}", keepers.display()))
}

/// The command, run after joining cgroups.
fn joined(directories: &[PathBuf], command: &Command) -> Command {
    let mut join = Command::new("sh");
    join.args(["-c", JOIN, "sh"]).args(directories).arg("--");
    join.arg(command.get_program()).args(command.get_args());
    join
}

/// In a process group of its own, or it would be told of the end of the terminal.
fn detached(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0)
}

/// Runs a command that has nothing to say unless it fails.
pub(super) fn quietly(command: &mut Command) -> Result<()> {
    answer(command).map(drop)
}

/// What a command says on stdout.
pub(super) fn answer(command: &mut Command) -> Result<String> {
    let line = short(command);
    answer_to(&line, command)
}

/// A command line without the way into the box.
fn short(command: &Command) -> String {
    let line = show(command);
    match line.rsplit_once(" -- ") {
        Some((_, inside)) => inside.to_owned(),
        None => line,
    }
}

/// The number of a process in the innermost of its namespaces.
fn number_inside(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let mut numbers = numbers.split_whitespace();
    // One number only: it is in no box.
    numbers.next()?;
    numbers.next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_who_is_number_1_inside() {
        assert_eq!(number_inside("Name:\tsh\nNSpid:\t4711\t1\nTgid:\t1\n"), Some(1));
        assert_eq!(number_inside("NSpid:\t4711\t23\n"), Some(23));
        assert_eq!(number_inside("NSpid:\t1\n"), None);
        assert_eq!(number_inside("Name:\tsh\n"), None);
    }

    #[test]
    fn a_lock_of_the_caller_stays_with_the_caller() {
        let outer = r#"exec 3</dev/null 9</dev/null; exec sh -c "$1" sh -- sh -c "$2""#;
        let inner = "test ! -e /proc/self/fd/3 && test ! -e /proc/self/fd/9";
        let mut check = Command::new("sh");
        assert!(check.args(["-c", outer, "sh", JOIN, inner]).status().unwrap().success());
    }

    #[test]
    fn the_scripts_are_scripts() {
        for script in [JOIN, BOOT] {
            let mut check = Command::new("sh");
            assert!(check.args(["-n", "-c", script]).status().unwrap().success(), "{script}");
        }
        let (run, var) = (BOOT.find("/run\" /run").unwrap(), BOOT.find("/var\" /var").unwrap());
        assert!(run < var, "the state is out of sight once /var is another one");
    }
}
