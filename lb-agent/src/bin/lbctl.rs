//! `lbctl`: see [`lb_agent::ctl::Cli`] for the commands.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use lb_agent::ctl::{self, Cli};
use lb_core::printable::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Output::text(io::BufWriter::new(io::stdout().lock()));
    let mut notes = Output::text(io::stderr());
    let result = ctl::run(&cli, &mut out, &mut notes)
        .and_then(|answer| out.flush().map(|()| answer).map_err(Into::into));
    match result {
        Ok(answer) => answer.code().into(),
        Err(failure) if failure.is_reader_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            // Who reads no errors gets the code.
            let _ = writeln!(notes, "error: {failure}");
            failure.code().into()
        }
    }
}
