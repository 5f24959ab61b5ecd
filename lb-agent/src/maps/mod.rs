//! The pinned maps: what carries out ops in the kernel, and what only the kernel's maps hold.

mod addresses;
mod bonds;
mod clients;
mod counters;
mod generations;
mod grace;
mod heard;
mod held;
mod mapping;
mod one;
mod pinned;
mod ports;
mod probe;

pub use self::{
    bonds::{Bonds, now},
    clients::copy_bonds,
    counters::Counters,
    heard::Exchanges,
    held::{Holders, Of},
    one::{Access, OpenError},
    pinned::{Pinned, names},
    probe::{probe, probe_beside_storage, probe_clients},
};
