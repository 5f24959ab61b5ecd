//! What socklb costs: `cargo xtask bench [hook|sync|memory]`. Each measurement is a report on stdout.

mod cluster;
mod hook;
mod lab;
mod memory;
mod samples;
mod sync;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    // `cargo bench` adds --bench.
    let name = std::env::args().skip(1).find(|argument| argument != "--bench");
    match name.as_deref() {
        Some("hook") => hook::run(),
        Some("sync") => sync::run(),
        Some("memory") => memory::run(),
        _ => bail!("which one? hook, sync or memory"),
    }
}
