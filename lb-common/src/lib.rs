//! The contract between the agent and the BPF programs, and the lookup that both run.
//!
//! Three promises:
//!
//! * [`abi`] is the only description of what stands in the pinned maps. Its types have no padding
//!   (bytemuck refuses it) and no byte order to get wrong: addresses and ports are bytes as they
//!   are on the wire. Another layout gets another [`abi::LAYOUT`], and with it other pins.
//! * [`select`] is the only function that decides where a connection goes. The kernel program, the
//!   unit tests and `lbctl explain` all run this one.
//! * [`Refusal`] is the only place that says with which error a refusal ends, how it is counted and
//!   what it is called.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod flows;
pub mod heard;
mod lookup;
mod verdict;

pub use abi::{Addr, Port};
pub use lookup::{
    ATTEMPTS, Caller, Flow, Origin, Prior, Range, ReadMaps, Selection, choose, find, flow_bits,
    is_known, pick, select, select_into,
};
pub use verdict::{Errno, Refusal, Verdict};
