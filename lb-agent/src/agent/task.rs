//! Work that takes long, beside the loop.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, spawn_blocking};

/// Something that a thread does, and when it was begun last.
pub(super) struct Task<T> {
    begun: Option<Instant>,
    running: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Task<T> {
    pub(super) const fn new() -> Self {
        Self { begun: None, running: None }
    }

    /// Begins, if it is not under way.
    pub(super) fn begin(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        if self.running.is_none() {
            self.begun = Some(Instant::now());
            self.running = Some(spawn_blocking(work));
        }
    }

    pub(super) fn is_due(&self, after: Duration) -> bool {
        self.begun.is_none_or(|begun| begun.elapsed() > after)
    }

    /// What came of it; none if it panicked, which has been told. Never ends while nothing is under
    /// way. To be dropped and called again at will.
    pub(super) async fn result(&mut self) -> Option<T> {
        let Some(task) = &mut self.running else { return pending().await };
        let result = task.await;
        self.running = None;
        result.ok()
    }
}
