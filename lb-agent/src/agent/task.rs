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

    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn is_due(&self, after: Duration) -> bool {
        self.begun.is_none_or(|begun| begun.elapsed() > after)
    }

    /// What came of it; none if it panicked, which is told. Never ends while nothing is under way. To
    /// be dropped and called again at will.
    pub(super) async fn result(&mut self) -> Option<T> {
        let Some(task) = &mut self.running else { return pending().await };
        let result = task.await;
        self.running = None;
        match result {
            Ok(result) => Some(result),
            Err(error) => {
                tracing::error!("work beside the loop has died, and will be tried again: {error}");
                None
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A log to be read.
    #[derive(Clone, Default)]
    pub(in crate::agent) struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub(in crate::agent) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Runs something, and shows it its log.
    pub(in crate::agent) fn logged(work: impl AsyncFnOnce(&Log)) {
        let log = Log::default();
        let writer = log.clone();
        let told = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tracing::subscriber::with_default(told, || runtime.block_on(work(&log)));
    }

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn work_that_panics_is_told_and_done_again() {
        logged(async |log| {
            let mut task = Task::new();
            task.begin(|| -> u32 { panic!("a bug") });
            assert_eq!(task.result().await, None);
            let text = log.text();
            assert!(text.contains("ERROR") && text.contains("a bug"), "{text}");
            assert!(!task.is_due(Duration::from_secs(3600)), "not over and over again");
            assert!(task.is_due(Duration::ZERO));
            task.begin(|| 7);
            assert_eq!(task.result().await, Some(7));
            // Who asks for what is not under way does not spin.
            let nothing = tokio::time::timeout(Duration::ZERO, task.result()).await;
            assert!(nothing.is_err());
        });
    }
}
