//! A look at what the programs would decide.

use lb_common::{
    Addr, Caller, Flow, Origin,
    abi::{AffinityKey, Bond},
};

/// A socket that asks, is bound to no address and leaves no trace. By default it is one of whom nothing is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Onlooker {
    /// The random bits it draws.
    pub random: u32,
    /// The cookie of its network namespace.
    pub netns: u64,
    /// Its time, in nanoseconds of the monotonic clock.
    pub now: u64,
}

impl Caller for Onlooker {
    fn random(&self, _: &Flow) -> u32 {
        self.random
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn source(&self) -> Addr {
        Addr::from_words([0; 4])
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
