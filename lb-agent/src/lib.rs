//! socklb's node agent, as a library: `lb-agent` runs it, `lbctl` looks at what it wrote.
//!
//! The modules stand in the order of the data, see ARCHITECTURE.md.

pub mod model;
pub mod policy;

pub mod sources;

mod blocks;
mod claims;
pub mod maps;
pub mod pipeline;
pub mod plan;
pub mod tables;
