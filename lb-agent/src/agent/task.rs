//! Work that takes long, beside the loop.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// Something that a thread does, and when it was begun last.
pub(super) struct Task<T> {
    begun: Option<Instant>,
    running: bool,
    sender: mpsc::Sender<T>,
    results: mpsc::Receiver<T>,
}

impl<T: Send + 'static> Task<T> {
    pub(super) fn new() -> Self {
        let (sender, results) = mpsc::channel(1);
        Self { begun: None, running: false, sender, results }
    }

    /// Begins, if it is not under way.
    pub(super) fn begin(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        if self.running {
            return;
        }
        (self.begun, self.running) = (Some(Instant::now()), true);
        let sender = self.sender.clone();
        tokio::task::spawn_blocking(move || {
            // Nobody may be waiting any more.
            let _ = sender.blocking_send(work());
        });
    }

    pub(super) fn is_due(&self, after: Duration) -> bool {
        self.begun.is_none_or(|begun| begun.elapsed() > after)
    }

    /// What came of it. Never ends while nothing is under way.
    pub(super) async fn result(&mut self) -> Option<T> {
        let result = self.results.recv().await;
        self.running = false;
        result
    }
}
