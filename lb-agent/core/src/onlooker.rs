//! A look at what the programs would decide.

use lb_common::{
    Addr, Caller, Flow, Origin,
    abi::{AffinityKey, Bond},
};

/// A socket that asks and leaves no trace. By default it is one of whom nothing is known.
#[derive(Clone, Copy, Debug)]
pub struct Onlooker {
    /// Which record of a set it takes; the last one, if there are not that many.
    pub index: u32,
    /// The cookie of its network namespace.
    pub netns: u64,
    /// The address that its packets come from; the unspecified one: it is bound to none.
    pub source: Addr,
    /// Its time, in nanoseconds of the monotonic clock.
    pub now: u64,
}

impl Default for Onlooker {
    fn default() -> Self {
        Self { index: 0, netns: 0, source: Addr::from_words([0; 4]), now: 0 }
    }
}

impl Caller for Onlooker {
    fn index(&self, _: &Flow, count: u32) -> u32 {
        self.index.min(count.saturating_sub(1))
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn source(&self) -> Addr {
        self.source
    }

    fn come_from(&self, _: Addr) -> Origin {
        Origin::Settled
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn bind(&self, _: &AffinityKey, _: &Bond, _: &mut Bond) -> bool {
        true
    }
}
