//! `lbctl`: what the pinned maps say, whether the agent is alive or dead.
//!
//! Nothing is ever written. Standard output has the answer only, in the form asked for; errors and
//! remarks go to standard error.

mod cli;
mod explain;
mod failure;
mod get;
mod open;
mod packets;
mod status;
mod table;
mod target;

use std::io::{self, Write};

use lb_core::printable;

pub use self::{
    cli::{Cli, Command},
    failure::{Answer, Failure},
};

/// Does what the command line says. `notes` takes remarks that are no part of the answer.
pub fn run(cli: &Cli, out: &mut dyn Write, notes: &mut dyn Write) -> Result<Answer, Failure> {
    // What is wrong with the question is said before what is wrong with the machine.
    if let Command::Get(get) = &cli.command {
        get.check()?;
    }
    let pins = open::pins(cli.bpffs.as_deref())?;
    match &cli.command {
        Command::Get(get) => {
            let (maps, snapshot) = open::maps(&pins)?;
            let others = get::Others::read(get, &maps, &pins)?;
            get::run(get, &snapshot, &others, out, notes)
        }
        Command::Explain(explain) => {
            let (maps, snapshot) = open::maps(&pins)?;
            if !status::is_attached(&pins)? {
                writeln!(notes, "note: nothing is translated now, see `lbctl status`")?;
            }
            explain::run(explain, &pins, &maps, &snapshot, out)
        }
        Command::Status(status) => status::run(*status, &pins, open::maps(&pins), out),
    }
}

/// One JSON document, indented.
fn json(out: &mut dyn Write, value: &impl serde::Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{}", printable::json(&text))
}
