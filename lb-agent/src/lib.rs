//! socklb's node agent, as a library: `lb-agent` runs it, `lbctl` looks at what it wrote.
//!
//! The modules stand in the order of the data, see ARCHITECTURE.md.

pub mod sources;

pub mod maps;

pub mod datapath;
pub mod packets;
pub mod pins;

pub mod sockets;

pub mod admin;
pub mod agent;
pub mod canary;
pub mod config;
pub mod ctl;
pub mod host;
pub mod kube_proxy;
pub mod log;
pub mod mounts;
mod netlink;
pub mod node_cgroup;
pub mod sysctls;
