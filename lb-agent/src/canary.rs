//! Whether the programs are in force, as a process sees it that lives where they should be.
//!
//! That links exist proves little: the agent may see another cgroup2 than the pods are in, or hold
//! links that somebody has detached. So a child process goes into a cgroup of its own below the
//! attached one and tries to reach [`SENTINELS`], at which the maps refuse everything, a connect() of
//! UDP included, which no lack of a port or of endpoints refuses. Without the programs nothing refuses: a UDP socket
//! that is connected sends no packet.
#![expect(
    unsafe_code,
    reason = "the child must do no more than system calls between fork and exit"
)]

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    process, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendto,
            setsockopt, socket, sockopt::BindToDevice,
        },
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, getpid, getppid, write},
};

use crate::node_cgroup;

/// Addresses at which the maps refuse every port, and that nobody else uses: one of the loopback
/// range, and one of those whose packets are to be discarded (RFC 6666). They spell `slb`.
pub const SENTINELS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 115, 108, 98)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0x73, 0x6c, 0x62)),
];
/// The port for discarding.
const PORT: u16 = 9;
/// What the names of the cgroups begin with; the number of the process follows.
const PREFIX: &str = "socklb-canary-";
/// How long the child may take, which needs some microseconds.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CanaryError {
    /// The system calls of a process in the cgroup are not refused.
    #[error("{0}")]
    NotInForce(String),
    /// There was no way to find out.
    #[error("cannot tell whether the programs are in force: {0}")]
    Unknown(String),
}

/// Whether connect4, connect6, sendmsg4 and sendmsg6 are in force for a process below this cgroup.
/// Waits, up to two seconds.
pub fn check(cgroup: &Path) -> Result<(), CanaryError> {
    sweep(cgroup);
    let place = cgroup.join(format!("{PREFIX}{}", process::id()));
    let unknown = |what: &'static str| {
        let place = place.display().to_string();
        move |error: io::Error| CanaryError::Unknown(format!("{what} {place}: {error}"))
    };
    match fs::create_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(unknown("cannot make the cgroup"))?,
    }
    let seen = observe(&place).map_err(unknown("no child process in"));
    remove(&place);
    judge(&place, seen?)
}

/// What a child process in the cgroup is told by the kernel, for each of [`TRIES`].
type Errnos = [i32; TRIES.len()];

const TRIES: [(&str, &str, IpAddr); 4] = [
    ("connect4", "connect to", SENTINELS[0]),
    ("sendmsg4", "sendto", SENTINELS[0]),
    ("connect6", "connect to", SENTINELS[1]),
    ("sendmsg6", "sendto", SENTINELS[1]),
];

/// There are no sockets of that family.
const NO_FAMILY: i32 = -1;

const fn is_refused(errno: i32) -> bool {
    errno == Errno::ECONNREFUSED as i32 || errno == NO_FAMILY
}

fn judge(place: &Path, seen: Errnos) -> Result<(), CanaryError> {
    let wrong: Vec<String> = TRIES
        .iter()
        .zip(seen)
        .filter(|(_, errno)| !is_refused(*errno))
        .map(|((program, call, addr), errno)| {
            let result = match errno {
                0 => "success".to_owned(),
                errno => Errno::from_raw(errno).to_string(),
            };
            format!("{program} ({call} {addr} gave {result})")
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(CanaryError::NotInForce(format!(
        "not in force in {}: {}",
        place.display(),
        wrong.join(", ")
    )))
}

fn observe(place: &Path) -> io::Result<Errnos> {
    let open = || OpenOptions::new().write(true).open(place.join("cgroup.procs"));
    let seen = observe_in(Some(&open()?));
    match seen {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => delegated(open, error),
        seen => seen,
    }
}

/// With `nsdelegate`, which is how systemd mounts cgroup2, a process can be moved only by who opened
/// the file in a cgroup namespace that it came from and goes to.
fn delegated(
    open: impl FnOnce() -> io::Result<File> + Send,
    error: io::Error,
) -> io::Result<Errnos> {
    if let Ok(procs) = node_cgroup::within_init(open) {
        return observe_in(Some(&procs));
    }
    // Where this process is by itself, a refusal proves as much; that there is none proves nothing.
    let seen = observe_in(None)?;
    if seen.into_iter().all(is_refused) { Ok(seen) } else { Err(error) }
}

/// What a child process sees, in this cgroup or in our own.
fn observe_in(procs: Option<&File>) -> io::Result<Errnos> {
    let loopback = OsString::from("lo");
    let (mut reader, mut writer) = io::pipe()?;
    let parent = getpid();
    // SAFETY: the child makes system calls and nothing else, on memory that is there already.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            let mut said = [0; 1 + TRIES.len()];
            let entered = end_with(parent).and_then(|()| procs.map_or(Ok(()), enter));
            said[0] = entered.err().map_or(0, |errno| errno as i32);
            if said[0] == 0 {
                for ((program, _, addr), errno) in TRIES.iter().zip(&mut said[1..]) {
                    *errno = attempt(program.starts_with('c'), *addr, &loopback);
                }
            }
            let _ = writer.write_all(bytemuck::bytes_of(&said));
            // SAFETY: nothing of this process is needed any more, and nothing of its parent is flushed.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let said = listen(&mut reader);
    end(child);
    let [entered, seen @ ..] = said?;
    if entered == 0 { Ok(seen) } else { Err(io::Error::from_raw_os_error(entered)) }
}

/// Makes this process end with its parent: it has all that the parent had open, such as the lock on the
/// pins, and in a frozen cgroup it would keep that.
fn end_with(parent: Pid) -> Result<(), Errno> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Puts this process into the cgroup. It is one step for the socket, which remembers where it was made.
fn enter(procs: &File) -> Result<(), Errno> {
    write(procs, b"0").map(drop)
}

/// What connect(2) or sendto(2) says. Bound to `lo`, a datagram that nobody refuses stays here.
fn attempt(connects: bool, addr: IpAddr, loopback: &OsString) -> i32 {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = match socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Err(Errno::EAFNOSUPPORT) => return NO_FAMILY,
        Err(errno) => return errno as i32,
        Ok(socket) => socket,
    };
    let to = SockaddrStorage::from(SocketAddr::new(addr, PORT));
    let result = setsockopt(&socket, BindToDevice, loopback).and_then(|()| {
        if connects {
            connect(socket.as_raw_fd(), &to)
        } else {
            sendto(socket.as_raw_fd(), &[], &to, MsgFlags::MSG_DONTWAIT).map(drop)
        }
    });
    result.err().map_or(0, |errno| errno as i32)
}

fn listen(reader: &mut PipeReader) -> io::Result<[i32; 1 + TRIES.len()]> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut said = [0; 1 + TRIES.len()];
    reader.read_exact(bytemuck::bytes_of_mut(&mut said))?;
    Ok(said)
}

fn end(child: Pid) {
    // It has nothing left to do, and may be frozen with its cgroup.
    let _ = kill(child, Signal::SIGKILL);
    while waitpid(child, None) == Err(Errno::EINTR) {}
}

/// Removes the cgroup. A process that has ended may leave it a moment later.
fn remove(place: &Path) {
    let removed = (0..20).any(|_| {
        let removed = fs::remove_dir(place).is_ok();
        if !removed {
            thread::sleep(Duration::from_millis(5));
        }
        removed
    });
    if !removed {
        tracing::debug!(cgroup = %place.display(), "stays until the next check");
    }
}

/// Removes the cgroups of agents that were killed.
fn sweep(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // One with a process in it is still somebody's.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_said() {
        let refused = Errno::ECONNREFUSED as i32;
        let judge = |seen| judge(Path::new("/c"), seen).map_err(|failure| failure.to_string());
        assert_eq!(judge([refused; 4]), Ok(()));
        assert_eq!(judge([refused, refused, NO_FAMILY, NO_FAMILY]), Ok(()), "no IPv6");
        let text = judge([0, refused, refused, Errno::ENETUNREACH as i32]).unwrap_err();
        assert_eq!(
            text,
            "not in force in /c: connect4 (connect to 127.115.108.98 gave success), \
             sendmsg6 (sendto 100::73:6c:62 gave ENETUNREACH: Network is unreachable)"
        );
    }

    #[test]
    fn a_place_that_is_no_cgroup_is_no_proof() {
        let dir = tempfile::TempDir::new().unwrap();
        let left = dir.path().join(format!("{PREFIX}4194305"));
        fs::create_dir(&left).unwrap();
        assert!(matches!(check(dir.path()), Err(CanaryError::Unknown(_))));
        assert!(!left.exists(), "there is no such process");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let nowhere = check(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(nowhere.contains("cannot make the cgroup /nowhere/socklb-canary-"), "{nowhere}");
    }
}
