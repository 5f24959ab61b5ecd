//! The maps, real or in memory, behind one trait.

mod grace;
mod mapping;
mod memory;
mod names;
mod pinned;

use std::collections::BTreeMap;

use lb_common::abi::{Backend, Service, ServiceKey};

pub use self::{
    memory::Memory,
    pinned::{Access, OpenError, Pinned},
};
use crate::{model::PortRef, plan::Op};

/// Where ops go.
pub trait Store {
    /// Carries out one op; on error the maps are as they were.
    fn apply(&mut self, op: &Op) -> Result<(), StoreError>;
    /// A copy of the records of a block.
    fn records(&self, block: u32, count: u32) -> Vec<Backend>;
    /// Returns when every program run that began before the call has ended.
    fn grace_period(&mut self) -> Result<(), StoreError>;
}

/// Why the maps did not take an op.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map has no room, although the mirror says otherwise.
    #[error("the {map} map is full; raise {flag}")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// The flag of `lb-agent` that sets its size.
        flag: &'static str,
    },
    /// A block does not lie in the array.
    #[error("block {block} with {count} records is outside the backends map of {capacity}")]
    OutOfBounds {
        /// Index of the first record.
        block: u32,
        /// Number of records.
        count: usize,
        /// Size of the map.
        capacity: u32,
    },
    /// A service port's name does not fit into the names map.
    #[error("the name {name} is longer than {limit} bytes")]
    NameTooLong {
        /// The name.
        name: String,
        /// Most bytes that fit.
        limit: usize,
    },
    /// The kernel said no.
    #[error("cannot {call} the {map} map: {error}")]
    Kernel {
        /// What was attempted.
        call: &'static str,
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        error: String,
    },
}

/// All that the maps say, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Size of the services map.
    pub max_services: u32,
    /// Size of the backends map.
    pub max_backends: u32,
    /// The greatest generation of any record, in use or not.
    pub last_generation: u32,
    /// The frontends.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The service ports behind the ids.
    pub names: BTreeMap<u32, PortRef>,
    /// The records of the blocks that `services` names, by index of the first one.
    pub blocks: BTreeMap<u32, Vec<Backend>>,
}
