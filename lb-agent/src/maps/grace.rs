//! Waiting until every run of a BPF program that began earlier has ended.
#![expect(unsafe_code, reason = "neither std nor nix has membarrier(2)")]

use std::{thread, time::Duration};

/// Longer than a program that cannot sleep ever takes, where the kernel offers nothing better.
const LONG: Duration = Duration::from_secs(1);

/// Waits for one RCU grace period, 10 to 40 ms.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()`, except that with one CPU online it returns at
/// once, and with `nohz_full` CPUs it is refused
/// (<https://github.com/torvalds/linux/blob/v6.12/kernel/sched/membarrier.c#L617-L623>).
pub(super) fn wait() {
    // SAFETY: the call has no pointer argument.
    let refused = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    let single = thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1);
    if refused != 0 || single {
        thread::sleep(LONG);
    }
}
