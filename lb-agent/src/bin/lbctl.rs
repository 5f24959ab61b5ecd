//! `lbctl`: see [`lb_agent::ctl::Cli`] for the commands.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use lb_agent::ctl::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = ctl::run(&cli, &mut out, &mut io::stderr())
        .and_then(|answer| out.flush().map(|()| answer).map_err(Into::into));
    match result {
        Ok(answer) => answer.code().into(),
        Err(failure) if failure.is_reader_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.code().into()
        }
    }
}
