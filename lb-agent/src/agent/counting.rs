//! Counting what is stored for sockets, again and again, whatever goes wrong.

use std::time::Duration;

use anyhow::Result;
use lb_common::abi::Held;

use super::task::Task;
use crate::sockets::Counted;

/// How often the sockets with further flows are counted; all that is stored, each sixth time.
const PERIOD: Duration = Duration::from_secs(10);
/// The same while a cgroup has half of what it may have.
const IN_HASTE: Duration = Duration::from_secs(1);

/// `S` is what it takes to count, [`Storage`](crate::sockets::Storage): opened when it is needed, and anew
/// after anything went wrong.
pub(super) struct Counting<S> {
    /// None while it is at work.
    storage: Option<S>,
    task: Task<Result<(S, Counted)>>,
    times: u32,
    in_haste: bool,
    /// What is wrong, as it was told.
    told: Option<String>,
}

impl<S: Send + 'static> Counting<S> {
    pub(super) const fn new() -> Self {
        Self { storage: None, task: Task::new(), times: 0, in_haste: false, told: None }
    }

    /// When it is due, counted from the last time.
    pub(super) const fn period(&self) -> Duration {
        if self.in_haste { IN_HASTE } else { PERIOD }
    }

    /// Begins if the last time was longer ago than `after`. `count` is told whether to count all.
    pub(super) fn begin(
        &mut self,
        after: Duration,
        open: impl FnOnce() -> Result<S> + Send + 'static,
        count: impl FnOnce(&mut S, bool) -> Result<Counted> + Send + 'static,
    ) {
        if self.task.is_running() || !self.task.is_due(after) {
            return;
        }
        let all = self.times.is_multiple_of(6);
        self.times = self.times.wrapping_add(1);
        let storage = self.storage.take();
        self.task.begin(move || {
            let mut storage = storage.map_or_else(open, Ok)?;
            let counted = count(&mut storage, all)?;
            Ok((storage, counted))
        });
    }

    /// What was counted; none if that went wrong, which is told when it begins. Never ends while nothing is
    /// under way. To be dropped and called again at will.
    pub(super) async fn result(&mut self) -> Option<Counted> {
        let result = self.task.result().await;
        self.in_haste = false;
        match result? {
            Ok((storage, counted)) => {
                self.storage = Some(storage);
                let most = counted.more_flows.values().max();
                self.in_haste = most.is_some_and(|most| *most > Held::MAX_MORE_FLOWS / 2);
                if self.told.take().is_some() {
                    tracing::info!("what is stored for sockets is counted again");
                }
                Some(counted)
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.told.as_ref() != Some(&error) {
                    tracing::warn!(
                        "what is stored for sockets is not counted, and a cgroup that has had {} sockets \
                         with many UDP flows gets no more of them: {error}",
                        Held::MAX_MORE_FLOWS
                    );
                }
                self.told = Some(error);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::{super::task::tests::logged, *};

    impl<S: Send + 'static> Counting<S> {
        /// Counts at once.
        async fn count(
            &mut self,
            open: impl FnOnce() -> Result<S> + Send + 'static,
            count: impl FnOnce(&mut S, bool) -> Result<Counted> + Send + 'static,
        ) -> Option<Counted> {
            self.begin(Duration::ZERO, open, count);
            assert!(self.task.is_running(), "it is not begun");
            self.result().await
        }
    }

    #[test]
    fn it_goes_on_whatever_goes_wrong() {
        logged(async |log| {
            let mut counting = Counting::<u32>::new();
            let all = Some(Counted::default());
            assert_eq!(counting.count(|| Ok(1), |_, _| panic!("a bug")).await, None);
            let text = log.text();
            assert!(text.contains("ERROR") && text.contains("a bug"), "{text}");
            // Not over and over again, and from the beginning.
            counting.begin(counting.period(), || panic!("too early"), |_, _| panic!());
            assert!(!counting.task.is_running());
            let change = |storage: &mut u32, _| {
                assert_eq!(std::mem::replace(storage, 3), 2);
                Ok(Counted::default())
            };
            assert_eq!(counting.count(|| Ok(2), change).await, all);
            // What is open stays open, until something goes wrong.
            let fail = |storage: &mut u32, _| bail!("no rights, {storage}");
            assert_eq!(counting.count(|| panic!("it is open"), fail).await, None);
            for _ in 0..2 {
                assert_eq!(counting.count(|| bail!("no rights, 3"), |_, _| panic!()).await, None);
            }
            assert_eq!(counting.count(|| Ok(4), |_, _| Ok(Counted::default())).await, all);
            let text = log.text();
            assert_eq!(text.matches("no rights, 3").count(), 1, "{text}");
            assert_eq!(text.matches("counted again").count(), 1, "{text}");
        });
    }

    #[test]
    fn all_is_counted_now_and_then_and_in_haste_where_a_bound_is_near() {
        logged(async |_| {
            let mut counting = Counting::<()>::new();
            let mut all = Vec::new();
            for n in 0..13u32 {
                let count = move |(): &mut (), all| {
                    let more_flows = [(1, Held::MAX_MORE_FLOWS / 2 + n % 2)].into();
                    Ok(Counted { bytes: [("all", usize::from(all))].into(), more_flows })
                };
                all.push(counting.count(|| Ok(()), count).await.unwrap().bytes["all"]);
                assert_eq!(counting.period(), if n % 2 == 1 { IN_HASTE } else { PERIOD });
            }
            assert_eq!(all, [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        });
    }
}
