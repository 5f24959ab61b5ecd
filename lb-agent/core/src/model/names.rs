//! Names that many objects repeat, kept once: 100,000 endpoints name a few thousand nodes.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// The names in use, and some that were.
#[derive(Default)]
struct Names {
    known: HashSet<Arc<str>>,
    /// At this size the unused ones are dropped.
    limit: usize,
}

static NAMES: LazyLock<Mutex<Names>> = LazyLock::new(Mutex::default);

/// The name, in memory that all who use the same name share.
pub fn shared(name: &str) -> Arc<str> {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.known.get(name) {
        return known.clone();
    }
    if names.known.len() >= names.limit {
        names.known.retain(|name| Arc::strong_count(name) > 1);
        names.limit = names.known.len() * 2 + 64;
    }
    let name: Arc<str> = name.into();
    names.known.insert(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_kept_once_and_not_for_ever() {
        let a = shared("names-test");
        assert!(Arc::ptr_eq(&a, &shared("names-test")));
        for i in 0..10_000 {
            shared(&format!("names-test-{i}"));
        }
        assert!(Arc::ptr_eq(&a, &shared("names-test")));
        let known = NAMES.lock().unwrap().known.len();
        assert!(known < 5_000, "{known}");
    }
}
