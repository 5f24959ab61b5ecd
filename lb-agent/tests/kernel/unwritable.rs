//! What an agent says while the kernel takes nothing from it, and that it goes on when it does again.
//!
//! A filter of system calls puts each bpf(2) of the agent before the test, which lets it pass, or
//! answers in the kernel's place.
#![expect(
    unsafe_code,
    reason = "seccomp(2) and its descriptor, and what is done between fork and exec"
)]

use std::{
    fs, io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    agent::{Agent, SIZES, command},
    connect::V4,
    flips::udp_backend,
    lbctl::ask,
    machine::{get, healthz, readyz},
    world::{World, backend4, some_day, soon},
    yaml,
};

/// The number of bpf(2).
#[expect(clippy::cast_possible_truncation, reason = "system calls have small numbers")]
const BPF: u32 = libc::SYS_bpf as u32;

/// The number under which the agent keeps the filter's descriptor over exec.
const LISTENER: RawFd = 100;

/// Puts the filter on this process. Only system calls, and nothing is allocated.
fn listen() -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k,
    };
    let is_bpf =
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, BPF) };
    let mut filter = [
        // The number of the call stands first.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        is_bpf,
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

/// Answers bpf(2) of an agent until it is dropped.
struct Kernel {
    /// The error that each call gives; 0: what the kernel says.
    errno: Arc<AtomicI32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kernel {
    fn between(agent: &Agent) -> Self {
        let pid = agent.pid();
        // SAFETY: numbers only.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(process >= 0, "{}", io::Error::last_os_error());
        // SAFETY: it is new, and nobody else's.
        let process = unsafe { OwnedFd::from_raw_fd(process.try_into().unwrap()) };
        // SAFETY: numbers only.
        let listener =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0) };
        assert!(listener >= 0, "{}", io::Error::last_os_error());
        // SAFETY: as before.
        let listener = unsafe { OwnedFd::from_raw_fd(listener.try_into().unwrap()) };
        let (errno, stop) = (Arc::new(AtomicI32::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (errno, stop) = (Arc::clone(&errno), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    answer(&listener, errno.load(Ordering::Relaxed));
                }
            }
        });
        Self { errno, stop, thread: Some(thread) }
    }

    fn says(&self, errno: i32) {
        self.errno.store(errno, Ordering::Relaxed);
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Answers one call, if there is one soon.
fn answer(listener: &OwnedFd, errno: i32) {
    let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(20u8)) != Ok(1) {
        return;
    }
    // SAFETY: plain numbers, which the kernel wants to be zero.
    let (mut call, mut reply): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { (zeroed(), zeroed()) };
    // SAFETY: the kernel writes a `seccomp_notif`.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if received != 0 {
        // It was killed meanwhile; do not turn in circles.
        thread::sleep(std::time::Duration::from_millis(5));
        return;
    }
    reply.id = call.id;
    reply.error = -errno;
    if errno == 0 {
        reply.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE.try_into().unwrap();
    }
    // SAFETY: the kernel reads a `seccomp_notif_resp`. It fails if the agent was killed meanwhile.
    let _ = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const reply)
    };
}

fn filtered(mut command: Command) -> Command {
    assert_eq!(size_of::<libc::seccomp_notif>(), 80);
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(listen) };
    command
}

fn is_served_by(to: &str, backend: u8) -> bool {
    udp_backend(to).is_ok_and(|addr| addr.ip() == backend4(backend))
}

#[test]
fn health_says_that_nothing_can_be_written() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::spawn(filtered(command(world, &SIZES)));
        let kernel = Kernel::between(&agent);
        agent.wait_for_start("in sync");
        assert!(soon(|| readyz().starts_with("200") && healthz().starts_with("200")));

        for (errno, text) in
            [(libc::ENOMEM, "Cannot allocate memory"), (libc::EPERM, "Operation not permitted")]
        {
            kernel.says(errno);
            yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
            yaml::put(world, "other", "10.96.0.11", &[backend4(3)]);
            for answer in [readyz, healthz] {
                assert!(soon(|| answer().starts_with("503")), "{}", answer());
                let answer = answer();
                assert!(answer.contains("takes nothing") && answer.contains(text), "{answer}");
            }
            let (code, status, _) = ask(world, "status");
            assert_eq!(code, 8, "{status}");
            assert!(status.contains("takes nothing") && status.contains(text), "{status}");
            let live = get("10256/livez");
            assert!(live.starts_with("200"), "{live}");
            agent.wait_for("the kernel takes nothing");
            assert!(is_served_by(V4, 1), "what was there stays");
            // It lasts as long as the trouble does, whatever is tried again.
            let tried = std::time::Instant::now();
            while tried.elapsed() < std::time::Duration::from_secs(3) {
                assert!(readyz().starts_with("503"), "{}", readyz());
                thread::sleep(std::time::Duration::from_millis(50));
            }

            kernel.says(0);
            assert!(some_day(|| readyz().starts_with("200") && healthz().starts_with("200")));
            assert!(soon(|| ask(world, "status").0 == 0), "{:?}", ask(world, "status"));
            assert!(is_served_by(V4, 2) && is_served_by("10.96.0.11:80", 3), "{}", agent.log());
            agent.wait_for("the kernel takes what is written again");
            yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
            fs::remove_file(yaml::objects(world).join("other.yaml")).unwrap();
            assert!(some_day(|| is_served_by(V4, 1) && !is_served_by("10.96.0.11:80", 3)));
        }
    });
}
