//! Waiting until every run of a BPF program that began earlier has ended.

use std::{thread, time::Duration};

use aya::util::online_cpus;
use rustix::thread::{MembarrierCommand, membarrier};

/// Longer than a program that cannot sleep ever takes, where the kernel offers nothing better.
const LONG: Duration = Duration::from_secs(1);

/// Waits for one RCU grace period, 10 to 40 ms.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()`, except that with one CPU online it returns at
/// once, and with `nohz_full` CPUs it is refused
/// (<https://github.com/torvalds/linux/blob/v6.12/kernel/sched/membarrier.c#L617-L623>).
pub(super) fn wait() {
    if membarrier(MembarrierCommand::Global).is_err() || is_single() {
        thread::sleep(LONG);
    }
}

/// Whether the machine has one CPU at work: what the kernel asks. A limit on this process, or a CPU
/// that it is bound to, is no matter. What cannot be known counts as one.
fn is_single() -> bool {
    online_cpus().map_or(true, |cpus| cpus.len() < 2)
}

#[cfg(test)]
mod tests {
    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };

    use super::*;

    /// Of an agent with a limit on its CPU time, std says the same.
    #[test]
    fn a_process_bound_to_one_cpu_of_several() {
        let all = online_cpus().unwrap().len();
        let of_a_thread = thread::spawn(|| {
            let this = Pid::from_raw(0);
            let allowed = sched_getaffinity(this).unwrap();
            let mut one = CpuSet::new();
            let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap());
            one.set(first.unwrap()).unwrap();
            sched_setaffinity(this, &one).unwrap();
            (thread::available_parallelism().unwrap().get(), is_single())
        });
        assert_eq!(of_a_thread.join().unwrap(), (1, all == 1));
    }
}
