//! SIGTERM and SIGINT as a question that threads ask. PID 1 of a container has no other way: what
//! it does not handle is ignored.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal};

#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// To be called by the only thread.
    pub(crate) fn install() -> nix::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        let stop = Self(Arc::default());
        let raise = stop.clone();
        thread::spawn(move || {
            if signals.wait().is_ok() {
                raise.0.store(true, Ordering::Relaxed);
            }
        });
        Ok(stop)
    }

    /// As a signal does.
    #[cfg(test)]
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Has somebody asked to stop?
    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the question to stop. Did it sleep until then?
    pub(crate) fn sleep_until(&self, then: Instant) -> bool {
        loop {
            if self.asked() {
                return false;
            }
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}
