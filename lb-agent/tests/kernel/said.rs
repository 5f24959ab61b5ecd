//! What the kernel says to an agent, said by a test in its place.
//!
//! A filter of system calls puts each call of some kind before the test, which lets it pass, or answers.
#![expect(
    unsafe_code,
    reason = "seccomp(2) and its descriptor, and what is done between fork and exec"
)]

use std::{
    ffi::c_int,
    io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::agent::Agent;

/// The calls that are put before the test.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Calls {
    /// bpf(2).
    Bpf,
    /// What is sent to netfilter, nftables and connection tracking: sendto(2) of such sockets.
    Netfilter,
    /// The making of such sockets: socket(2).
    NetfilterSockets,
}

impl Calls {
    fn number(self) -> u32 {
        let number = match self {
            Self::Bpf => libc::SYS_bpf,
            Self::Netfilter => libc::SYS_sendto,
            Self::NetfilterSockets => libc::SYS_socket,
        };
        number.try_into().unwrap()
    }

    /// Whether a call of this number, by a process, is one of them.
    fn are(self, process: &OwnedFd, call: &libc::seccomp_data) -> bool {
        let netfilter = [libc::AF_NETLINK, libc::NETLINK_NETFILTER];
        let [first, _, third, ..] = call.args.map(|arg| c_int::try_from(arg).unwrap_or(-1));
        match self {
            Self::Bpf => true,
            Self::Netfilter => descriptor(process, first).is_ok_and(|socket| {
                [libc::SO_DOMAIN, libc::SO_PROTOCOL].map(|what| option(&socket, what)) == netfilter
            }),
            Self::NetfilterSockets => [first, third] == netfilter,
        }
    }
}

/// The number under which the agent keeps the filter's descriptor over exec.
const LISTENER: RawFd = 100;

/// An agent's command whose calls wait for a [`Kernel`].
pub(crate) fn filtered(mut command: Command, calls: Calls) -> Command {
    assert_eq!(size_of::<libc::seccomp_notif>(), 80);
    let number = calls.number();
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(move || listen(number)) };
    command
}

/// Puts the filter on this process. Only system calls, and nothing is allocated.
fn listen(number: u32) -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k,
    };
    let is_it = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut filter = [
        // The number of the call stands first.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(is_it, number) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads the program.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let kept = if fd < 0 {
        -1
    } else {
        // SAFETY: numbers only; the copy stays open over exec.
        unsafe { libc::dup2(RawFd::try_from(fd).unwrap_or(-1), LISTENER) }
    };
    if kept < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Answers the calls of an agent and of its children, as long as one of them lives: whoever waited for an
/// answer that does not come would not end.
pub(crate) struct Kernel {
    /// The error that each call gives; 0: what the kernel says.
    errno: Arc<AtomicI32>,
}

impl Kernel {
    /// Lets all calls pass until it is told otherwise.
    pub(crate) fn between(agent: &Agent, calls: Calls) -> Self {
        Self::saying(agent, calls, 0)
    }

    /// Gives this error from the first call on.
    pub(crate) fn saying(agent: &Agent, calls: Calls, errno: i32) -> Self {
        // SAFETY: numbers only.
        let process =
            owned(unsafe { libc::syscall(libc::SYS_pidfd_open, agent.pid(), 0) }).unwrap();
        let listener = descriptor(&process, LISTENER).unwrap();
        let said = Arc::new(AtomicI32::new(errno));
        let errno = Arc::clone(&said);
        thread::spawn(move || {
            let error = |call: &libc::seccomp_data| {
                let errno = said.load(Ordering::Relaxed);
                if errno == 0 || calls.are(&process, call) { errno } else { 0 }
            };
            while answer(&listener, error) {}
        });
        Self { errno }
    }

    /// From now on each call gives this error; 0: what the kernel says.
    pub(crate) fn says(&self, errno: i32) {
        self.errno.store(errno, Ordering::Relaxed);
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.says(0);
    }
}

/// Answers one call with this error. False if nobody is left who could make one.
fn answer(listener: &OwnedFd, error: impl Fn(&libc::seccomp_data) -> i32) -> bool {
    let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let said = poll(&mut ready, PollTimeout::NONE).ok().and_then(|_| ready[0].revents());
    let said = said.unwrap_or(PollFlags::empty());
    if !said.contains(PollFlags::POLLIN) {
        return !said.contains(PollFlags::POLLHUP);
    }
    // SAFETY: plain numbers, which the kernel wants to be zero.
    let (mut call, mut reply): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { (zeroed(), zeroed()) };
    // SAFETY: the kernel writes a `seccomp_notif`.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if received != 0 {
        // It was killed meanwhile; do not turn in circles.
        thread::sleep(Duration::from_millis(5));
        return true;
    }
    let errno = error(&call.data);
    reply.id = call.id;
    reply.error = -errno;
    if errno == 0 {
        reply.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE.try_into().unwrap();
    }
    // SAFETY: the kernel reads a `seccomp_notif_resp`. It fails if the agent was killed meanwhile.
    let _ = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const reply)
    };
    true
}

/// A descriptor of a process, as one of our own.
fn descriptor(process: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// What a system call returned that makes a descriptor.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
    // SAFETY: it is new, and nobody else's.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).ok_or_else(io::Error::last_os_error)
}

/// A number of a socket's, of the level `SOL_SOCKET`; -1 if it is no socket.
fn option(socket: &OwnedFd, what: c_int) -> c_int {
    let (mut value, mut len) = (-1, libc::socklen_t::try_from(size_of::<c_int>()).unwrap());
    // SAFETY: the kernel writes one number.
    let _ = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            what,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    value
}
