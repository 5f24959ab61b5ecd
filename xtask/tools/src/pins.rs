//! The versions that belong together, in one place. `lb-agent/build.rs` includes this file too.
//!
//! `NIGHTLY`, `BPF_LINKER` and `LLVM` are one unit: the linker reads the bitcode that rustc's LLVM
//! writes, and an LLVM reads no bitcode of a newer one. Nightlies from 2026-08-06 on write LLVM 23.

/// Builds everything that runs in user space; what aya 0.16 needs.
pub const STABLE: &str = "1.98.0";
/// Builds `lb-ebpf`, with `-Z build-std=core`.
pub const NIGHTLY: &str = "nightly-2026-08-01";
/// The linker for `bpfel-unknown-none`.
pub const BPF_LINKER: &str = "0.13.0";
/// Major version of the LLVM that `BPF_LINKER` is built against.
pub const LLVM: &str = "22";
/// Checks licences, advisories and where crates come from.
pub const CARGO_DENY: &str = "0.20.2";
