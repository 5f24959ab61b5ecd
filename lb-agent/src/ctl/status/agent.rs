//! Whether an agent runs on the pins, by the lock it holds.

use std::{fmt, io};

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

pub(super) fn find(pins: &Pins) -> io::Result<Agent> {
    let holder = pins.holder()?;
    Ok(Agent { running: holder.is_some(), pid: holder.and_then(|holder| holder.pid) })
}
