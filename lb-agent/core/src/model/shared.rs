//! What many objects repeat, kept once: 100,000 endpoints name a few thousand nodes.

use std::{collections::HashSet, hash::Hash, sync::Arc};

/// The values in use, and some that were.
#[derive(Debug)]
pub(super) struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// At this size the unused ones are dropped.
    limit: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: 64 }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// Exchanges the value for the equal one that all others have who came here.
    pub(super) fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(value) {
            *value = known.clone();
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.limit = self.known.len() * 2 + 64;
        }
        self.known.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_once_and_not_for_ever() {
        let mut shared = Shared::<str>::default();
        let [mut a, mut b]: [Arc<str>; 2] = ["node".into(), "node".into()];
        shared.share(&mut a);
        shared.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for i in 0..10_000 {
            shared.share(&mut format!("node-{i}").into());
        }
        let mut c: Arc<str> = "node".into();
        shared.share(&mut c);
        assert!(Arc::ptr_eq(&a, &c));
        assert!(shared.known.len() < 5_000, "{}", shared.known.len());
    }
}
