//! What only one may do at a time on a machine.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::exec::say;

/// As long as somebody who was just killed may have it.
pub const MOMENT: Duration = Duration::from_secs(2);

/// The right to do it. The kernel takes it back from whoever dies.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not used")] UnixListener);

impl Turn {
    /// `None` if somebody else has it all the time.
    pub fn wait(name: &str, patience: Duration) -> Result<Option<Self>> {
        let start = Instant::now();
        loop {
            let turn = Self::take(name)?;
            if turn.is_some() || start.elapsed() > patience {
                return Ok(turn);
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// The same, and says for whom it waits when that takes longer than a [`MOMENT`].
    pub fn wait_long(name: &str, patience: Duration, who: &str) -> Result<Option<Self>> {
        let turn = Self::wait(name, MOMENT)?;
        if turn.is_some() {
            return Ok(turn);
        }
        say!(
            "{who} is at work on this machine: waiting for its end, {} s at most",
            patience.as_secs()
        );
        Self::wait(name, patience)
    }

    fn take(name: &str) -> Result<Option<Self>> {
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            listener => Ok(Some(Self(listener.context("cannot lock")?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_s_turn_until_one_is_done() {
        let name = format!("socklb-turn-{}", std::process::id());
        let turn = Turn::wait(&name, Duration::ZERO).unwrap();
        assert!(turn.is_some());
        assert!(Turn::wait(&name, Duration::ZERO).unwrap().is_none());
        drop(turn);
        assert!(Turn::wait(&name, Duration::ZERO).unwrap().is_some());
    }
}
