//! Whether an agent runs on the pins, by the lock it holds.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _};

use nix::sys::stat::{major, minor};
use serde::Serialize;

use crate::pins::Pins;

/// The agent that holds the lock.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Agent {
    pub(super) running: bool,
    /// Its process, unless that is hidden in another pid namespace.
    pub(super) pid: Option<u32>,
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.running, self.pid) {
            (false, _) => f.write_str("not running"),
            (true, None) => f.write_str("running"),
            (true, Some(pid)) => write!(f, "running (pid {pid})"),
        }
    }
}

/// Looks into `/proc/locks` first: trying the lock, for an instant, holds it, and an agent that
/// starts in that instant would take us for another one.
pub(super) fn find(pins: &Pins) -> io::Result<Agent> {
    let home = fs::metadata(pins.home())?;
    let file = format!("{:02x}:{:02x}:{}", major(home.dev()), minor(home.dev()), home.ino());
    let pid = fs::read_to_string("/proc/locks").ok().and_then(|text| holder(&text, &file));
    let running = pid.is_some() || pins.is_locked()?;
    Ok(Agent { running, pid })
}

/// The process that holds the exclusive lock, in a text such as
/// `1: FLOCK  ADVISORY  WRITE 1234 00:2b:18 0 EOF`.
fn holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| match *line.split_ascii_whitespace().collect::<Vec<_>>() {
        [_, "FLOCK", _, "WRITE", pid, at, ..] if at == file => pid.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_who_has_the_lock_not_who_waits_for_it() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:2b:18 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  12 00:2b:18 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 00:2b:18 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 14 00:2b:18 0 EOF\n";
        assert_eq!(holder(locks, "00:2b:18"), Some(13));
        assert_eq!(holder(locks, "00:2b:1"), None);
        assert_eq!(holder("", "00:2b:18"), None);
    }
}
