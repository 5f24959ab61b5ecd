//! socklb's node agent, as a library: `lb-agent` runs it, `lbctl` looks at what it wrote.
//!
//! The modules stand in the order of the data, see ARCHITECTURE.md.

pub mod sources;

pub mod model;

pub mod policy;

pub mod claims;

mod blocks;
pub mod plan;
pub mod tables;

pub mod maps;
pub mod pipeline;

pub mod datapath;
pub mod pins;

pub mod sockets;

pub mod addresses;
pub mod admin;
pub mod agent;
pub mod canary;
pub mod config;
pub mod ctl;
pub mod dump;
pub mod host;
pub mod kube_proxy;
pub mod log;
pub mod mounts;
pub mod node_cgroup;
pub mod printable;
pub mod sysctls;
