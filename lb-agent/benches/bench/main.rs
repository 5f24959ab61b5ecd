//! What socklb costs: `cargo xtask bench [hook|sync|memory|packets]`. Each measurement is a report on stdout.

mod agent;
mod cluster;
mod hook;
mod lab;
mod memory;
mod packets;
mod samples;
mod sync;

use std::{path::PathBuf, str::FromStr};

use anyhow::Result;
use clap::{Parser, ValueEnum};

/// Measures, and reports on stdout.
#[derive(Parser)]
struct Args {
    what: What,
    /// With `hook`: another agent, to be measured in the same rounds.
    #[arg(long, value_name = "NAME=PROGRAM")]
    baseline: Vec<Baseline>,
    /// With `hook`: how often each variant is measured.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    #[command(flatten)]
    packets: packets::Args,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Hook,
    Sync,
    Memory,
    Packets,
}

/// An agent to compare with.
#[derive(Clone)]
struct Baseline {
    name: String,
    program: PathBuf,
}

impl FromStr for Baseline {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, program) = text.split_once('=').ok_or("NAME=PROGRAM")?;
        Ok(Self { name: name.to_owned(), program: program.into() })
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.what {
        What::Hook => hook::run(&args.baseline, args.rounds),
        What::Sync => sync::run(),
        What::Memory => memory::run(),
        What::Packets => packets::run(&args.packets),
    }
}
