//! What is wrong with the code before it runs.

use std::{env::consts::ARCH, path::PathBuf, process::Command};

use tools::{
    cargo::{cargo, cargo_of, prebuilt_object},
    exec::{ask, myself},
    pins,
};

use crate::manifest;

pub(crate) struct Check {
    pub(super) name: &'static str,
    /// The command that succeeds if all is well, or why it cannot be run here.
    pub(super) command: fn() -> Result<Command, &'static str>,
}

pub(super) const CHECKS: &[Check] = &[
    Check { name: "format", command: || Ok(words(cargo(), "fmt --all --check")) },
    Check {
        name: "clippy",
        command: || {
            Ok(words(cargo(), "clippy --workspace --exclude lb-ebpf --all-targets -- -D warnings"))
        },
    },
    Check { name: "clippy of the BPF programs", command: || programs("") },
    Check { name: "clippy of the BPF programs that log", command: || programs("log") },
    Check {
        name: "documentation",
        command: || {
            let doc = "doc --workspace --exclude lb-ebpf --no-deps --document-private-items";
            let mut doc = words(cargo(), doc);
            doc.env("RUSTDOCFLAGS", "-D warnings");
            Ok(doc)
        },
    },
    Check {
        name: "crates and modules",
        command: || {
            let mut structure = Command::new(this()?);
            structure.arg("structure");
            Ok(structure)
        },
    },
    Check {
        name: "licences and sources",
        command: || Ok(words(cargo(), "deny check bans licenses sources")),
    },
    Check { name: "advisories", command: advisories },
    Check { name: "Helm chart and manifest", command: || Ok(manifest::check(&this()?)) },
];

/// This program.
fn this() -> Result<PathBuf, &'static str> {
    myself().map_err(|_| "this program does not know where it is")
}

/// Clippy for the target and with the `cfg` that the build of `lb-agent` uses.
fn programs(features: &str) -> Result<Command, &'static str> {
    if prebuilt_object().is_some() {
        return Err("a prebuilt object is embedded, and the BPF toolchain may be absent");
    }
    let target = if cfg!(target_endian = "big") { "bpfeb" } else { "bpfel" };
    let mut clippy = words(cargo_of(pins::NIGHTLY), "clippy --package lb-ebpf --release");
    clippy.args(["-Zbuild-std=core", "--target", &format!("{target}-unknown-none")]);
    clippy.args(["--features", features, "--", "-D", "warnings"]);
    clippy.env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{ARCH}\""));
    Ok(clippy)
}

/// Known vulnerabilities, from a database that is fetched: without network there is no answer.
fn advisories() -> Result<Command, &'static str> {
    match ask(&mut words(cargo(), "deny fetch db")) {
        Some(_) => Ok(words(cargo(), "deny check --disable-fetch advisories")),
        None => Err("the advisory database cannot be fetched from here"),
    }
}

fn words(mut command: Command, arguments: &str) -> Command {
    command.args(arguments.split(' '));
    command
}
