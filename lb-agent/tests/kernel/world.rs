//! Where a test lives: a cgroup of its own, with this process in it; a network namespace with
//! addresses on `lo` and no way out; a bpffs of its own in a mount namespace of its own.
//!
//! The namespaces belong to the thread that runs the test and to what it starts. They end with it,
//! however it ends, and take the bpffs with all its pins along: nothing that was attached survives,
//! not even a killed run. What that may leave is empty cgroups and a directory of files, which the
//! next run removes.

use std::{
    env, fs,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lb_agent::{mounts, pins::Pins};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// The process is in one cgroup at a time, so one test is under way at a time.
static TURN: Mutex<()> = Mutex::new(());
const PREFIX: &str = "socklb-kernel-";

/// The port that backends listen on.
pub(crate) const PORT: u16 = 8080;
/// How many addresses `backend4` and `backend6` have.
pub(crate) const BACKENDS: u8 = 24;

pub(crate) struct World {
    cgroup: PathBuf,
    elsewhere: PathBuf,
    dir: PathBuf,
}

impl World {
    /// Runs a test in a world of its own.
    pub(crate) fn run(test: impl FnOnce(&Self) + Send) {
        assert!(
            Uid::effective().is_root(),
            "the kernel tests need root: `cargo xtask test kernel` (SOCKLB_SKIP_ROOT=1 leaves them out)"
        );
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        sweep(&cgroup2(), remove_cgroup);
        sweep(&env::temp_dir(), |dir| fs::remove_dir_all(dir));
        let prefix = format!("{PREFIX}{}-", process::id());
        // It outlives the mounts in it, and so can be removed.
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let result = thread::scope(|scope| scope.spawn(|| test(&Self::new(dir.path()))).join());
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    fn new(dir: &Path) -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        fs::create_dir(dir.join("bpf")).unwrap();
        mount_bpffs(&dir.join("bpf"), MsFlags::empty());
        network();

        let root = cgroup2();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let elsewhere = root.join(own);
        // The directory's name is unique, and says whose it is.
        let cgroup = root.join(dir.file_name().unwrap());
        fs::create_dir(&cgroup).unwrap();
        enter(&cgroup);
        Self { cgroup, elsewhere, dir: dir.to_owned() }
    }

    /// The cgroup of this process; programs may be attached to it.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A place for files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bpffs.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// What is pinned there.
    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.bpffs())
    }

    /// Does something with this process outside the cgroup; a socket belongs to the cgroup in which
    /// it was made.
    pub(crate) fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        enter(&self.elsewhere);
        let result = work();
        enter(&self.cgroup);
        result
    }
}

impl Drop for World {
    fn drop(&mut self) {
        enter(&self.elsewhere);
        // A process that was killed leaves its cgroup a moment later.
        let removed = soon(|| remove_cgroup(&self.cgroup).is_ok());
        assert!(removed || thread::panicking(), "somebody is left in {}", self.cgroup.display());
    }
}

fn cgroup2() -> PathBuf {
    mounts::first("cgroup2").unwrap().expect("cgroup2 is not mounted").path
}

/// Removes what killed runs have left.
fn sweep(place: &Path, remove: impl Fn(&Path) -> io::Result<()>) {
    for entry in fs::read_dir(place).unwrap().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // A cgroup with a process in it is still somebody's.
            let _ = remove(&entry.path());
        }
    }
}

/// Removes a cgroup and those below it. The files in it are the kernel's.
fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
}

/// Mounts a bpffs; only this world sees it.
pub(crate) fn mount_bpffs(at: &Path, flags: MsFlags) {
    mount(Some("bpf"), at, Some("bpf"), flags, None::<&str>).unwrap();
}

/// Addresses for the network namespace of this thread.
pub(crate) fn network() {
    let clients: [IpAddr; 2] = ["10.2.0.1".parse().unwrap(), "fd00:2::1".parse().unwrap()];
    let ips: Vec<_> =
        (1..=BACKENDS).flat_map(|n| [backend4(n), backend6(n)]).chain(clients).collect();
    let mut batch = b"link set lo up\n".to_vec();
    for ip in &ips {
        let (length, option) = if ip.is_ipv4() { (32, "") } else { (128, " nodad") };
        writeln!(batch, "address add {ip}/{length} dev lo{option}").unwrap();
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("`ip` of iproute2 is needed");
    ip.stdin.take().unwrap().write_all(&batch).unwrap();
    assert!(ip.wait().unwrap().success());
    // An IPv6 address is there at once, its route a moment later; packets until then are lost.
    for ip in ips {
        assert!(soon(|| hears_itself(ip).is_ok()), "{ip} does not work");
    }
}

/// Whether a datagram to this address of this network namespace arrives.
pub(crate) fn hears_itself(ip: IpAddr) -> io::Result<()> {
    hears_itself_at((ip, 0).into())
}

/// The same of an address with its link.
pub(crate) fn hears_itself_at(addr: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(addr)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    socket.send_to(&[1], socket.local_addr()?)?;
    socket.recv(&mut [0]).map(drop)
}

/// The address of an IPv4 backend, from 1 to [`BACKENDS`].
pub(crate) fn backend4(n: u8) -> IpAddr {
    [10, 1, 0, n].into()
}

/// The address of an IPv6 backend.
pub(crate) fn backend6(n: u8) -> IpAddr {
    [0xfd00, 1, 0, 0, 0, 0, 0, u16::from(n)].into()
}

/// Whether something becomes true. It may take long on a slow or busy machine; nobody asks how long.
pub(crate) fn soon(what: impl FnMut() -> bool) -> bool {
    within(Duration::from_secs(100), what)
}

/// In an emulated machine everything takes longer: so many times as long is waited.
const PATIENCE: &str = "SOCKLB_TEST_PATIENCE";

fn within(limit: Duration, mut what: impl FnMut() -> bool) -> bool {
    let times = env::var(PATIENCE).ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let deadline = Instant::now() + limit * times;
    while !what() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Removes a cgroup that nobody should be in any more: of an agent that was killed, a canary may still
/// be out.
pub(crate) fn take_away(cgroup: &Path) {
    assert!(soon(|| remove_cgroup(cgroup).is_ok()), "{} is in use", cgroup.display());
}
