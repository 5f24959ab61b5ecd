//! `lb-agent`: see [`lb_agent::config::Config`] for the flags.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use lb_agent::{agent, config::Config, log, memory};

fn main() -> ExitCode {
    memory::keep_no_large_blocks();
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
