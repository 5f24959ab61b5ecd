//! `lb-agent`: see [`lb_agent::config::Config`] for the flags.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use lb_agent::{
    agent,
    config::{Config, LogFormat},
    printable::{Fields, Output},
};
use tracing_subscriber::EnvFilter;

/// As sysexits(3): the command line was wrong.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let config = Config::parse();
    if let Err(error) = config.check() {
        let _ = writeln!(Output::text(std::io::stderr()), "error: {error}");
        return USAGE.into();
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(Output::text(std::io::stderr()), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<()> {
    // kube's own words say again what `sources::kubernetes` says; --log may ask for them.
    let filter = format!("kube_client=off,kube_runtime=off,notify=warn,{}", config.log);
    let filter = EnvFilter::try_new(filter).context("--log")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log that nobody can write is no reason to stop; telling so on stderr would panic.
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log
            .fmt_fields(Fields::default())
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init(),
        LogFormat::Json => log.json().with_writer(|| Output::json(std::io::stderr())).init(),
    }
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
