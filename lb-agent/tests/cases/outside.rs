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
    engines: [PacketEngine<MemoryTable>; 2],
}

impl Outside {
    pub(crate) fn new(case: &Case) -> Self {
        let mut engines = [true, false].map(|ipv4| PacketEngine::new(MemoryTable::default(), ipv4));
        for engine in &mut engines {
            engine.adopt().unwrap();
        }
        Self { decider: Decider::new(case.settings()), served: BTreeMap::new(), engines }
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
        if self.engines[0].lacks_all() {
            wanted = self.decider.whole(&wanted);
        }
        let mut ops = 0;
        for engine in &mut self.engines {
            engine.want(&wanted);
            let outcome = engine.sync(self.decider.claims(), &mut |_| {});
            assert!(outcome.failed.is_empty() && outcome.beside.is_empty(), "{outcome:?}");
            ops += outcome.ops;
        }
        self.served.extend(wanted.services);
        ops
    }

    /// What the tables say, which an agent that goes on from them leaves as they are.
    pub(crate) fn table(&mut self) -> String {
        for engine in &mut self.engines {
            engine.adopt().unwrap();
        }
        assert_eq!(self.sync(), 0, "an agent that adopts");
        let both = self.engines.iter().flat_map(|engine| engine.mirror().elements());
        packets::dump::text(&both.collect())
    }

    pub(crate) fn text(&self) -> String {
        let ports = self.served.values().flat_map(|served| &served.outside);
        ports.map(ToString::to_string).collect()
    }
}
