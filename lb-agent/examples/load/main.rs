//! `socklb-load`: steady load on a Service, and a server behind one, for tests with pods.
//!
//! `load` opens a new connection for every request and tells every failure with its phase and its
//! time: a rolling update that loses one request among thousands is seen, and when it did.
//! `cargo xtask image load` makes an image of it.

mod client;
mod request;
mod serve;
mod stalls;
mod stop;

use std::process::ExitCode;

use clap::Parser as _;

/// Steady load on a Service, and a server behind one.
#[derive(clap::Parser)]
#[command(name = "socklb-load")]
enum Task {
    Load(client::Args),
    Serve(serve::Args),
}

fn main() -> ExitCode {
    let task = Task::parse();
    // Before there is another thread: all inherit that the signals are blocked.
    let stop = match stop::Stop::install() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("error: cannot wait for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    match task {
        Task::Load(args) => client::run(&args, &stop),
        Task::Serve(args) => match serve::run(&args, &stop) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: port {}: {error}", args.port);
                ExitCode::FAILURE
            }
        },
    }
}
