//! The settings of connection tracking that kube-proxy makes at its start, and others came to rely on
//! (L5): flows that are not translated by sockets still are by somebody's firewall.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
};

/// Entries for each CPU, at least, at most.
const PER_CPU: u64 = 32_768;
const FLOOR: u64 = 131_072;
const CEILING: u64 = 1_048_576;
/// Flows for each bucket of the hash table.
const PER_BUCKET: u64 = 4;
/// Seconds: a day, and an hour.
const TIMEOUTS: [(&str, u64); 2] =
    [("tcp_timeout_established", 24 * 3600), ("tcp_timeout_close_wait", 3600)];

/// A setting that was changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SysctlChange {
    /// The file.
    pub path: PathBuf,
    /// What it said.
    pub before: u64,
    /// What it says.
    pub after: u64,
}

/// Why settings are not as they should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {path} to {wanted}: {error}; set it by hand, or give {flag}=false")]
pub struct ApplyError {
    path: PathBuf,
    wanted: u64,
    error: io::Error,
    /// Who asks for it.
    flag: &'static str,
}

/// Has connection tracking take TCP segments outside of a connection's window for a part of it.
pub fn be_liberal(proc: &Path) -> Result<Option<SysctlChange>, ApplyError> {
    let path = proc.join("sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    let wanted = 1;
    let set =
        fs::metadata(&path).and_then(|_| set(&path, wanted, |before, wanted| before == wanted));
    match set {
        Ok(before) => Ok(before.map(|before| SysctlChange { path, before, after: wanted })),
        Err(error) => Err(ApplyError { path, wanted, error, flag: "--conntrack-tcp-be-liberal" }),
    }
}

/// Makes the settings below `proc` and `sys`, where these file systems are mounted. Says what it
/// changed, and what it could not change; nothing where there is no connection tracking.
///
/// The sizes are only raised: someone who gave more meant it. kube-proxy would lower the number of
/// entries, too.
pub fn apply(proc: &Path, sys: &Path) -> (Vec<SysctlChange>, Option<ApplyError>) {
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    apply_for(proc, sys, online(sys).unwrap_or(cpus))
}

fn apply_for(proc: &Path, sys: &Path, cpus: u64) -> (Vec<SysctlChange>, Option<ApplyError>) {
    let entries = entries(cpus);
    let at_least = |before, wanted| before >= wanted;
    let exactly = |before, wanted| before == wanted;
    let netfilter = proc.join("sys/net/netfilter");
    let timeout = |(name, seconds)| {
        (netfilter.join(format!("nf_conntrack_{name}")), seconds, exactly as fn(u64, u64) -> bool)
    };
    let [established, close_wait] = TIMEOUTS.map(timeout);
    let mut changes = Vec::new();
    let mut failed = None;
    for (path, wanted, suffices) in [
        (netfilter.join("nf_conntrack_max"), entries, at_least as fn(u64, u64) -> bool),
        (sys.join("module/nf_conntrack/parameters/hashsize"), entries / PER_BUCKET, at_least),
        established,
        close_wait,
    ] {
        match set(&path, wanted, suffices) {
            Ok(Some(before)) => changes.push(SysctlChange { path, before, after: wanted }),
            Ok(None) => {}
            // The first one says what is wrong with all of them.
            Err(error) => {
                let flag = "--conntrack-sysctls";
                failed.get_or_insert(ApplyError { path, wanted, error, flag });
            }
        }
    }
    (changes, failed)
}

fn entries(cpus: u64) -> u64 {
    cpus.saturating_mul(PER_CPU).clamp(FLOOR, CEILING)
}

/// The value before, if it had to be changed. What is not there is no setting.
fn set(path: &Path, wanted: u64, suffices: fn(u64, u64) -> bool) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let before = text.trim().parse().map_err(io::Error::other)?;
    if suffices(before, wanted) {
        return Ok(None);
    }
    fs::write(path, wanted.to_string())?;
    Ok(Some(before))
}

/// The CPUs of the machine. This process may be confined to some of them.
fn online(sys: &Path) -> Option<u64> {
    let text = fs::read_to_string(sys.join("devices/system/cpu/online")).ok()?;
    text.trim().split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn liberal_or_who_asked_for_it() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("sys/net/netfilter/nf_conntrack_tcp_be_liberal");
        let error = be_liberal(root.path()).unwrap_err().to_string();
        assert!(error.contains("--conntrack-tcp-be-liberal=false"), "{error}");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "0\n").unwrap();
        let change = be_liberal(root.path()).unwrap().unwrap();
        assert_eq!((change.before, change.after), (0, 1));
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        assert_eq!(be_liberal(root.path()).unwrap(), None);
    }

    const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
    const ESTABLISHED: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    const CLOSE_WAIT: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
    const ALL: [&str; 4] = [MAX, HASHSIZE, ESTABLISHED, CLOSE_WAIT];

    fn tree(files: &[(&str, &str)]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn apply(dir: &TempDir, cpus: u64) -> (Vec<SysctlChange>, Option<String>) {
        let (proc, sys) = (dir.path().join("proc"), dir.path().join("sys"));
        let (changes, error) = apply_for(&proc, &sys, cpus);
        (changes, error.map(|error| error.to_string()))
    }

    fn values(dir: &TempDir) -> [u64; 4] {
        ALL.map(|path| fs::read_to_string(dir.path().join(path)).unwrap().trim().parse().unwrap())
    }

    #[test]
    fn as_kube_proxy_has_it() {
        for (cpus, wanted) in
            [(1, 131_072), (4, 131_072), (8, 262_144), (32, 1_048_576), (256, 1_048_576)]
        {
            assert_eq!(entries(cpus), wanted, "{cpus}");
        }
        let defaults = [
            (MAX, "65536\n"),
            (HASHSIZE, "16384\n"),
            (ESTABLISHED, "432000\n"),
            (CLOSE_WAIT, "60\n"),
        ];
        let dir = tree(&defaults);
        let (changes, error) = apply(&dir, 8);
        assert_eq!((changes.len(), error), (4, None));
        assert_eq!(changes[0].before, 65_536);
        assert_eq!(values(&dir), [262_144, 65_536, 86_400, 3_600]);
        assert_eq!(apply(&dir, 8), (vec![], None), "once");
    }

    #[test]
    fn who_gave_more_keeps_it() {
        let dir = tree(&[
            (MAX, "2000000\n"),
            (HASHSIZE, "500000\n"),
            (ESTABLISHED, "86400\n"),
            (CLOSE_WAIT, "3600\n"),
        ]);
        assert_eq!(apply(&dir, 8), (vec![], None));
        // The table is judged by itself.
        fs::write(dir.path().join(HASHSIZE), "1000").unwrap();
        assert_eq!(apply(&dir, 8).0.len(), 1);
        assert_eq!(values(&dir), [2_000_000, 65_536, 86_400, 3_600]);
    }

    #[test]
    fn without_connection_tracking_nothing_is_done() {
        assert_eq!(apply(&tree(&[]), 8), (vec![], None));
    }

    #[test]
    fn what_cannot_be_set_is_said_once() {
        // Root may write to what is read-only, but not to a directory, nor read a number from words.
        let dir = tree(&[(MAX, "many"), (HASHSIZE, "x"), (CLOSE_WAIT, "60")]);
        fs::create_dir(dir.path().join(ESTABLISHED)).unwrap();
        let (changes, error) = apply(&dir, 8);
        assert_eq!(changes.len(), 1, "the others are made all the same");
        let error = error.unwrap();
        assert!(
            error.contains("nf_conntrack_max to 262144") && error.contains("=false"),
            "{error}"
        );
    }

    #[test]
    fn cpus_are_counted() {
        let online = |text: &str| online(tree(&[("devices/system/cpu/online", text)]).path());
        assert_eq!(online("0\n"), Some(1));
        assert_eq!(online("0-3,8,10-11\n"), Some(7));
        assert_eq!(online("none\n"), None);
        assert_eq!(online("3-0\n"), None);
    }
}
