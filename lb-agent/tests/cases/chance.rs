//! Failures and orders, by chance.

use lb_common::abi::Backend;
use lb_core::{
    memory::Memory,
    op::Op,
    store::{Snapshot, Store, StoreError},
};

/// Memory that fails every tenth time or so; a failed op leaves it as it was.
pub(crate) struct Faulty {
    pub(crate) memory: Memory,
    pub(crate) random: Random,
    pub(crate) failed: usize,
}

impl Faulty {
    fn fail(&mut self) -> Result<(), StoreError> {
        if self.random.below(10) > 0 {
            return Ok(());
        }
        self.failed += 1;
        Err(StoreError::Kernel { call: "update", map: "any", error: "injected".to_owned() })
    }
}

impl Store for Faulty {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        self.fail()?;
        self.memory.apply(op)
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        self.memory.reserve(generation)
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        self.memory.read()
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        self.memory.records(block, count)
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        self.fail()?;
        self.memory.grace_period()
    }
}

/// splitmix64: the same numbers on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1);
            items.swap(i, usize::try_from(j).unwrap());
        }
    }
}
