//! Which parts of the backends array are in use: contiguous blocks, handed out best fit.
//!
//! A block that no service names any more is *retired*: a reader may still be in it. Only
//! [`Blocks::reclaim`], called after a grace period, makes it free again.

use std::collections::{BTreeMap, BTreeSet};

/// A range of records.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Extent {
    len: u32,
    start: u32,
}

/// The blocks of an array of fixed size.
#[derive(Clone, Debug)]
pub struct Blocks {
    capacity: u32,
    /// By size, for the best fit, and by place, to join neighbours.
    free_by_len: BTreeSet<Extent>,
    free_by_start: BTreeMap<u32, u32>,
    used: BTreeMap<u32, Used>,
    retired: Vec<Extent>,
    /// Records of all in `used`, and of all in `retired`.
    records: (u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct Used {
    len: u32,
    /// How many services name the block.
    names: u32,
}

impl Blocks {
    /// An array with nothing in it.
    pub fn new(capacity: u32) -> Self {
        let mut blocks = Self {
            capacity,
            free_by_len: BTreeSet::new(),
            free_by_start: BTreeMap::new(),
            used: BTreeMap::new(),
            retired: Vec::new(),
            records: (0, 0),
        };
        blocks.put_free(0, capacity);
        blocks
    }

    /// Number of records in the array.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Number of records that are neither free nor retired.
    pub const fn used(&self) -> u32 {
        self.records.0
    }

    /// Number of records that a grace period would set free.
    pub const fn retired(&self) -> u32 {
        self.records.1
    }

    /// Where a block of `len` records would be placed next.
    pub fn find(&self, len: u32) -> Option<u32> {
        self.free_by_len.range(Extent { len, start: 0 }..).next().map(|extent| extent.start)
    }

    /// Whether [`Blocks::reclaim`] would make room for a block of `len` records.
    pub fn would_fit(&self, len: usize) -> bool {
        let Ok(len) = u32::try_from(len) else { return false };
        if self.retired.is_empty() {
            return false;
        }
        let mut reclaimed = Self {
            free_by_len: self.free_by_len.clone(),
            free_by_start: self.free_by_start.clone(),
            retired: self.retired.clone(),
            ..Self::new(0)
        };
        reclaimed.reclaim();
        reclaimed.find(len).is_some()
    }

    /// Marks a block as written, with no name yet. False if part of it is not free.
    #[must_use]
    pub fn take(&mut self, start: u32, len: u32) -> bool {
        let Some((&at, &free)) = self.free_by_start.range(..=start).next_back() else {
            return false;
        };
        let (Some(end), free_end) = (start.checked_add(len), at + free) else { return false };
        if len == 0 || end > free_end {
            return false;
        }
        self.remove_free(at, free);
        self.put_free(at, start - at);
        self.put_free(end, free_end - end);
        self.used.insert(start, Used { len, names: 0 });
        self.records.0 += len;
        true
    }

    /// A service names the block now.
    pub fn name(&mut self, start: u32) {
        if let Some(used) = self.used.get_mut(&start) {
            used.names += 1;
        }
    }

    /// A service no longer names the block; with its last name it is retired: true.
    pub fn unname(&mut self, start: u32) -> bool {
        let Some(used) = self.used.get_mut(&start) else { return false };
        used.names = used.names.saturating_sub(1);
        let is_last = used.names == 0;
        if is_last {
            let extent = Extent { start, len: used.len };
            self.records.0 -= extent.len;
            self.records.1 += extent.len;
            self.retired.push(extent);
            self.used.remove(&start);
        }
        is_last
    }

    /// Frees a block that never had a name, at once: no reader can have seen it. False if it had one.
    pub fn discard(&mut self, start: u32) -> bool {
        let Some(Used { len, names: 0 }) = self.used.get(&start).copied() else { return false };
        self.used.remove(&start);
        self.records.0 -= len;
        self.put_free(start, len);
        true
    }

    /// Frees the retired blocks. Only after a grace period that began after the last `unname`.
    pub fn reclaim(&mut self) {
        self.records.1 = 0;
        for Extent { start, len } in std::mem::take(&mut self.retired) {
            self.put_free(start, len);
        }
    }

    /// Retires all that is free: whoever had the array before may have freed it a moment ago.
    pub fn retire_free(&mut self) {
        self.free_by_len.clear();
        let free = std::mem::take(&mut self.free_by_start);
        self.records.1 += free.values().sum::<u32>();
        self.retired.extend(free.into_iter().map(|(start, len)| Extent { len, start }));
    }

    /// Number of records of a block in use.
    pub fn len(&self, start: u32) -> Option<u32> {
        self.used.get(&start).map(|used| used.len)
    }

    fn put_free(&mut self, mut start: u32, mut len: u32) {
        if len == 0 {
            return;
        }
        if let Some((&before, &before_len)) = self.free_by_start.range(..start).next_back()
            && before + before_len == start
        {
            self.remove_free(before, before_len);
            start = before;
            len += before_len;
        }
        if let Some(&after_len) = self.free_by_start.get(&(start + len)) {
            self.remove_free(start + len, after_len);
            len += after_len;
        }
        self.free_by_start.insert(start, len);
        self.free_by_len.insert(Extent { len, start });
    }

    fn remove_free(&mut self, start: u32, len: u32) {
        self.free_by_start.remove(&start);
        self.free_by_len.remove(&Extent { len, start });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retired_block_is_not_handed_out_before_reclaim() {
        let mut blocks = Blocks::new(4);
        assert!(blocks.take(0, 4));
        blocks.name(0);
        blocks.unname(0);
        assert_eq!((blocks.find(1), blocks.retired()), (None, 4));
        blocks.reclaim();
        assert_eq!((blocks.find(4), blocks.retired()), (Some(0), 0));
    }

    #[test]
    fn a_block_with_two_names_stays_until_both_are_gone() {
        let mut blocks = Blocks::new(4);
        assert!(blocks.take(0, 2));
        blocks.name(0);
        blocks.name(0);
        blocks.unname(0);
        assert_eq!((blocks.used(), blocks.retired()), (2, 0));
        blocks.unname(0);
        assert_eq!((blocks.used(), blocks.retired()), (0, 2));
    }

    #[test]
    fn a_block_is_placed_where_it_fits_best() {
        let mut blocks = Blocks::new(8);
        assert!(blocks.take(3, 1));
        assert_eq!(blocks.find(2), Some(0), "3 records, rather than 4");
        assert!(blocks.take(0, 2));
        assert_eq!((blocks.find(1), blocks.find(2), blocks.find(5)), (Some(2), Some(4), None));
        assert!(!blocks.take(2, 2), "3 is in use");
    }

    #[test]
    fn room_that_a_grace_period_would_make() {
        let mut blocks = Blocks::new(8);
        for start in [0, 2, 4] {
            assert!(blocks.take(start, 2));
            blocks.name(start);
        }
        assert!(!blocks.would_fit(2), "nothing is retired");
        blocks.unname(4);
        assert!(blocks.would_fit(4), "with the free records behind it");
        assert!(!blocks.would_fit(5));
        blocks.unname(0);
        assert!(!blocks.would_fit(5), "not in a row");
        assert_eq!((blocks.used(), blocks.retired()), (2, 4), "only asked");
    }

    proptest! {
        /// Against a plain list of flags: blocks never overlap, nothing is lost, all comes back, and what is
        /// counted is what is there.
        #[test]
        fn extents_agree_with_flags(steps in prop::collection::vec((1u32..9, 0..4u8, any::<prop::sample::Index>()), 1..200)) {
            let mut blocks = Blocks::new(64);
            let mut flags = [false; 64];
            let mut live: Vec<(u32, u32)> = vec![];
            let mut retired = 0;
            for (len, what, index) in steps {
                if what == 0 {
                    // Nobody has seen it.
                    if let Some(start) = blocks.find(len) {
                        prop_assert!(blocks.take(start, len));
                        prop_assert_eq!(blocks.used() as usize, flags.iter().filter(|f| **f).count() + len as usize);
                        blocks.discard(start);
                    }
                } else if what == 1 {
                    blocks.reclaim();
                    retired = 0;
                } else if what == 2 {
                    if let Some(start) = blocks.find(len) {
                        prop_assert!(blocks.take(start, len));
                        blocks.name(start);
                        for flag in &mut flags[start as usize..(start + len) as usize] {
                            prop_assert!(!*flag);
                            *flag = true;
                        }
                        live.push((start, len));
                    } else if retired == 0 {
                        prop_assert!(!flags.windows(len as usize).any(|w| w.iter().all(|f| !f)));
                    }
                } else if !live.is_empty() {
                    let (start, len) = live.swap_remove(index.index(live.len()));
                    blocks.unname(start);
                    retired += len;
                    flags[start as usize..(start + len) as usize].fill(false);
                }
                prop_assert_eq!(blocks.used() as usize, flags.iter().filter(|f| **f).count());
                prop_assert_eq!(blocks.retired(), retired);
            }
            for (start, _) in live {
                blocks.unname(start);
            }
            blocks.reclaim();
            prop_assert_eq!(blocks.find(64), Some(0));
        }
    }
}
