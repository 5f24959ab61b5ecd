//! The engine for packets: what a table of the kernel's packet filter is to say, as data. Who writes
//! it there is another's [`Table`].
//!
//! The table has no rule and no chain for a Service. Fixed rules look a packet up by the frontend that it
//! is sent to: is its sender admitted, to which group does the frontend lead, how many endpoints are there,
//! which one is the one that was drawn? Cluster IPs are left out: senders on this node have sockets, and
//! strangers are not routed there.

pub mod dump;
mod element;
mod engine;
mod flows;
mod memory;
mod mirror;
mod numbers;
mod plan;
mod timeouts;

pub use self::{
    element::{Choice, Edit, Element, Group, Table, TableError},
    engine::{PacketEngine, engine_name},
    flows::ServedFlows,
    memory::MemoryTable,
    mirror::TableMirror,
};

#[cfg(test)]
mod tests;
