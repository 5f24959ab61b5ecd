//! What packets from elsewhere get.

use std::{collections::BTreeMap, sync::Arc};

use lb_core::{
    decider::Decider,
    engine::Engine as _,
    model::{Change, ObjectRef},
    packets::{self, MemoryTable, PacketEngine},
    policy::Served,
};

use super::case::Case;

/// What packets from elsewhere get: decided, and in a table in memory.
pub(crate) struct Outside {
    decider: Decider,
    served: BTreeMap<ObjectRef, Arc<Served>>,
    engine: PacketEngine<MemoryTable>,
}

impl Outside {
    pub(crate) fn new(case: &Case) -> Self {
        let mut engine = PacketEngine::new(MemoryTable::default());
        engine.adopt().unwrap();
        Self { decider: Decider::new(case.settings()), served: BTreeMap::new(), engine }
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.decider.change(change);
        if self.decider.is_complete() {
            self.sync();
        }
    }

    /// Returns the number of edits.
    fn sync(&mut self) -> usize {
        let mut wanted = self.decider.decide().wanted;
        if self.engine.lacks_all() {
            wanted = self.decider.whole(&wanted);
        }
        self.engine.want(&wanted);
        self.served.extend(wanted.services);
        let outcome = self.engine.sync(self.decider.claims(), &mut |_| {});
        assert!(outcome.failed.is_empty() && outcome.beside.is_empty(), "{outcome:?}");
        outcome.ops
    }

    /// What the table says, which an agent that goes on from it leaves as it is.
    pub(crate) fn table(&mut self) -> String {
        self.engine.adopt().unwrap();
        assert_eq!(self.sync(), 0, "an agent that adopts");
        packets::dump::text(self.engine.mirror())
    }

    pub(crate) fn text(&self) -> String {
        let ports = self.served.values().flat_map(|served| &served.outside);
        ports.map(ToString::to_string).collect()
    }
}
