//! Whether somebody else has changed the tables. The kernel counts the transactions of all programs: as
//! long as that number is the same, nobody has looked in vain; when it is another one, the tables are
//! read, and where they have no owner (before Linux 6.9) their rules, not the elements of their sets.

use std::io;

use lb_core::model::Families;

use super::{of, read, table::Tables};

/// Looks at the tables of one network namespace.
#[derive(Debug)]
pub struct Watch {
    tables: Tables,
    /// When the tables were seen whole.
    whole_at: Option<u32>,
}

impl Watch {
    /// Of the network namespace of this thread; `bonds` as in [`super::open`].
    pub fn open(families: Families, bonds: u32) -> io::Result<Self> {
        Ok(Self { tables: Tables::open(of(families), bonds)?, whole_at: None })
    }

    /// Whether tables, chains or rules are gone, or others, since they were seen whole; said once.
    /// Costs one message if nobody has changed anything at all.
    pub fn is_damaged(&mut self) -> bool {
        let generation = read::generation(self.tables.netlink()).ok();
        if generation.is_some() && generation == self.whole_at {
            return false;
        }
        match self.tables.are_whole() {
            Ok(true) => {
                self.whole_at = generation;
                false
            }
            Ok(false) => self.whole_at.take().is_some(),
            Err(error) => {
                tracing::debug!(%error, "cannot look at the tables for packets");
                false
            }
        }
    }
}
