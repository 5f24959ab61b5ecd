//! The process itself, by the names that every Prometheus client uses.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus::{Counter, Gauge, IntGauge, Result};

use super::make::Make;

#[derive(Debug)]
pub(super) struct Process {
    cpu: Counter,
    resident: IntGauge,
    virtual_memory: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    start: Gauge,
}

impl Process {
    pub(super) fn new(make: &Make<'_>) -> Result<Self> {
        let process = Self {
            cpu: make.fraction_counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            resident: make
                .gauge("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            virtual_memory: make
                .gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            open_fds: make.gauge("process_open_fds", "Number of open file descriptors.")?,
            max_fds: make.gauge("process_max_fds", "Maximum number of open file descriptors.")?,
            start: make.fraction_gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
        };
        Ok(process)
    }

    /// Looks again. What cannot be read keeps its last value.
    pub(super) fn refresh(&self) {
        if let Some(now) = Look::now() {
            // A counter can only be added to, and another scrape may be under way.
            self.cpu.inc_by((now.cpu - self.cpu.get()).max(0.0));
            self.resident.set(now.resident);
            self.virtual_memory.set(now.virtual_memory);
            self.start.set(now.start);
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory itself.
            self.open_fds.set(i64::try_from(fds.count()).unwrap_or(i64::MAX) - 1);
        }
        if let Some(most) = max_fds() {
            self.max_fds.set(most);
        }
    }
}

fn max_fds() -> Option<i64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A look at `/proc/self/stat`.
struct Look {
    cpu: f64,
    start: f64,
    virtual_memory: i64,
    resident: i64,
}

impl Look {
    fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, the name, may hold anything. The third is the first one after it.
        let fields: Vec<i64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
        let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
        let seconds = |count: i64| {
            #[expect(clippy::cast_precision_loss, reason = "thousands of years in ticks")]
            let count = count as f64;
            count / f64::from(ticks)
        };
        let system = fs::read_to_string("/proc/stat").ok()?;
        let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(Self {
            cpu: seconds(field(14)? + field(15)?),
            start: boot.parse::<f64>().ok()? + seconds(field(22)?),
            virtual_memory: field(23)?,
            resident: field(24)? * page,
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn looks_at_itself() {
        let process = Process::new(&Make(&Registry::new())).unwrap();
        process.refresh();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!(process.start.get() > 1e9 && process.start.get() < now + 1.0);
        assert!(process.resident.get() > 1 << 20, "{}", process.resident.get());
        assert!(process.virtual_memory.get() > process.resident.get());
        assert!(process.open_fds.get() >= 3 && process.open_fds.get() <= process.max_fds.get());
        while process.cpu.get() <= 0.0 {
            process.refresh();
        }
    }
}
