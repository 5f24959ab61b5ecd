//! Whether somebody else has changed a table. The kernel counts the transactions of all programs: as
//! long as that number is the same, nothing has changed; when it is another one, the table is read, and
//! where it has no owner (before Linux 6.9) its rules, not the elements of its sets.

use std::io;

use super::{nft::Family, read, table::KernelTable};

/// Looks at the table of a family in one network namespace.
#[derive(Debug)]
pub struct Watch {
    table: KernelTable,
    /// When it was seen whole.
    whole_at: Option<u32>,
}

impl Watch {
    /// Of the network namespace of this thread; `bonds` as in [`super::open`].
    pub fn open(ipv4: bool, bonds: u32) -> io::Result<Self> {
        Ok(Self { table: KernelTable::open(Family::of(ipv4), bonds)?, whole_at: None })
    }

    /// Whether the table, chains or rules are gone, or others, since it was seen whole; said once.
    /// Costs one message if nobody has changed anything at all.
    pub fn is_damaged(&mut self) -> bool {
        let generation = read::generation(self.table.netlink()).ok();
        if generation.is_some() && generation == self.whole_at {
            return false;
        }
        match self.table.is_whole() {
            Ok(true) => {
                self.whole_at = generation;
                false
            }
            Ok(false) => self.whole_at.take().is_some(),
            Err(error) => {
                tracing::debug!(%error, "cannot look at the table for packets");
                false
            }
        }
    }
}
