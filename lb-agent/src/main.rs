//! `lb-agent`: see [`lb_agent::config::Config`] for the flags.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use lb_agent::{agent, config::Config, log};

fn main() -> ExitCode {
    give_memory_back();
    let config = Config::parse();
    if let Err(error) = config.check() {
        error.exit();
    }
    log::start(&config.log, config.log_format);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::end(config.log_format, &error);
            ExitCode::FAILURE
        }
    }
}

/// glibc takes a large block that is freed for a sign that more such will be needed, and from then on keeps
/// what is freed. What is large here, the kernel's BTF and the programs, is needed once, at the start.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nobody but glibc itself has mallopt(3)")]
fn give_memory_back() {
    // SAFETY: there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

#[cfg(not(target_env = "gnu"))]
const fn give_memory_back() {}

fn run(config: &Config) -> Result<()> {
    // One thread: the work is short and waits for one thing at a time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(agent::run(config));
    // Whatever still reads a file or waits for a plugin has nothing to save.
    runtime.shutdown_background();
    result
}
