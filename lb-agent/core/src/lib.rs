//! What a node is to serve, decided without seeing the machine: from what is said of Services to the
//! records in the maps. Nothing here reads a file, a socket or
//! the environment, and nothing waits.
//!
//! The modules stand in the order of the data, see ARCHITECTURE.md.

pub mod model;

pub mod policy;

pub mod claims;

mod keys;
mod names;
pub mod op;

pub mod store;

pub mod memory;
pub mod onlooker;

mod backend_ids;
mod blocks;
pub mod map_mirror;

pub mod addresses;

pub mod plan;

pub mod packets;

pub mod decider;
pub mod engine;
pub mod socket_engine;

pub mod pipeline;

pub mod dump;
pub mod printable;
