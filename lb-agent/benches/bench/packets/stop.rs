//! Whether somebody wants the measurements to end (Ctrl-C): they fail then, and what was made is removed.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use nix::sys::signal::{SigSet, Signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Takes the signals that ask for it. Before there are other threads; programs that are started have
/// them again.
pub(super) fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            ASKED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Fails if it was asked for.
pub(super) fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::Relaxed), "stopped; finished cells are kept");
    Ok(())
}
