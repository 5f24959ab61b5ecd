//! Which endpoints a Service had at which time, as far as can be told from outside of the agent.

use std::{collections::BTreeSet, time::Instant};

/// Endpoints by their numbers.
pub(super) type Set = BTreeSet<u16>;

/// The sets of a Service, in the order in which they were put.
#[derive(Default)]
pub(super) struct Journal(Vec<Put>);

struct Put {
    set: Set,
    /// Not before that.
    from: Instant,
    /// Not after that: a later one was seen to be in force. None: none was.
    until: Option<Instant>,
}

impl Journal {
    /// It is about to be put.
    pub(super) fn put(&mut self, set: Set) {
        self.0.push(Put { set, from: Instant::now(), until: None });
    }

    /// The last one was seen to be in force.
    pub(super) fn is_in_force(&mut self) {
        let now = Instant::now();
        let before = self.0.split_last_mut().map(|(_, before)| before);
        for put in before.unwrap_or_default().iter_mut().rev().take_while(|put| put.until.is_none())
        {
            put.until = Some(now);
        }
    }

    /// Whether the set can be told from those that may be in force: who sees it knows that they are not.
    pub(super) fn is_another(&self, set: &Set) -> bool {
        self.0.iter().rev().take_while(|put| put.until.is_none()).all(|put| put.set != *set)
    }

    pub(super) fn last(&self) -> &Set {
        &self.0.last().unwrap().set
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the endpoint was in one of the sets that were in force at some time within these two.
    pub(super) fn allows(&self, endpoint: u16, [began, ended]: [Instant; 2]) -> bool {
        let first = self.0.partition_point(|put| put.until.is_some_and(|until| until < began));
        let valid = self.0[first..].iter().take_while(|put| put.from <= ended);
        valid.into_iter().any(|put| put.set.contains(&endpoint))
    }
}

#[test]
fn a_set_counts_until_another_one_is_seen() {
    let mut journal = Journal::default();
    let set = |n| Set::from([n]);
    journal.put(set(1));
    journal.is_in_force();
    let first = Instant::now();
    journal.put(set(2));
    journal.put(set(3));
    assert_eq!([1, 2, 3, 4].map(|n| journal.is_another(&set(n))), [false, false, false, true]);
    let second = Instant::now();
    journal.is_in_force();
    let third = Instant::now();
    let allowed = |times| [1, 2, 3].map(|n| journal.allows(n, times));
    assert_eq!(allowed([first; 2]), [true, false, false]);
    assert_eq!(allowed([first, second]), [true; 3]);
    assert_eq!(allowed([second; 2]), [true; 3]);
    assert_eq!(allowed([third; 2]), [false, false, true]);
    assert_eq!((journal.last(), journal.len()), (&set(3), 3));
}
