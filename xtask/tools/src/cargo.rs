//! Cargo with the pinned toolchains, and what it built.

use std::{
    env,
    ffi::OsString,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{exec::announce, pins};

/// The root of the work tree.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package)
}

/// The prebuilt BPF object to embed, if the caller gives one: then the BPF side is not built, and
/// its tools are not needed.
pub fn prebuilt_object() -> Option<OsString> {
    env::var_os("SOCKLB_BPF_OBJECT")
}

/// `cargo` of the pinned stable, in the work tree.
pub fn cargo() -> Command {
    cargo_of(pins::STABLE)
}

/// `cargo` of a toolchain, in the work tree.
pub fn cargo_of(toolchain: &str) -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", toolchain, "cargo"]).current_dir(workspace());
    // What the outer `cargo run` says about xtask is not true of what is built now, and build
    // scripts that look at it (ring's does) would run again after every plain `cargo build`.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_xtask) {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn describes_xtask(name: &str) -> bool {
    name == "CARGO"
        || name == "RUSTUP_TOOLCHAIN"
        || name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
}

/// A program that cargo built.
pub struct Executable {
    /// Where it is.
    pub path: PathBuf,
    /// The directory of its package, in which `cargo test` starts tests.
    pub package: PathBuf,
    /// `lib`, `bin` or `test`: what of the package it was built from.
    pub kind: String,
    /// The name of that library, program or integration test.
    pub name: String,
    /// Is it its tests, or the thing itself?
    pub is_test: bool,
}

/// Runs a cargo command that builds, and returns the programs it names.
pub fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    let line = announce(command);
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let mut messages = String::new();
    child.stdout.take().context("stdout is piped")?.read_to_string(&mut messages)?;
    let status = child.wait()?;
    ensure!(status.success(), "`{line}`: {status}");
    Ok(messages.lines().filter_map(executable).collect())
}

/// One line of cargo's messages, if it is about a program.
fn executable(message: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(message).ok()?;
    let text = |pointer| message.pointer(pointer)?.as_str();
    Some(Executable {
        path: text("/executable")?.into(),
        package: Path::new(text("/manifest_path")?).parent()?.to_owned(),
        kind: text("/target/kind/0")?.to_owned(),
        name: text("/target/name")?.to_owned(),
        is_test: message.pointer("/profile/test")?.as_bool()?,
    })
}

/// Builds an integration test of lb-agent.
pub fn integration(target: &str) -> Result<Executable> {
    let mut build = cargo();
    build.args(["test", "--package", "lb-agent", "--test", target, "--no-run"]);
    let mut programs = executables(&mut build)?.into_iter();
    let program = programs.find(|program| program.is_test && program.name == target);
    program.with_context(|| format!("cargo built no test {target}"))
}

/// A test program as cargo would start it.
pub fn as_cargo(program: &Executable) -> Command {
    let mut test = Command::new(&program.path);
    test.current_dir(&program.package).env("CARGO_MANIFEST_DIR", &program.package);
    test
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_the_messages() {
        let artifact = r#"{"reason":"compiler-artifact","manifest_path":"/w/lb-agent/Cargo.toml",
            "target":{"kind":["test"],"name":"kernel"},"profile":{"test":true},
            "executable":"/w/target/debug/deps/kernel-1"}"#;
        let found = executable(artifact).unwrap();
        assert_eq!(found.path, Path::new("/w/target/debug/deps/kernel-1"));
        assert_eq!(found.package, Path::new("/w/lb-agent"));
        assert_eq!((found.kind.as_str(), found.name.as_str()), ("test", "kernel"));
        assert!(found.is_test);

        let library = artifact.replace(r#""/w/target/debug/deps/kernel-1""#, "null");
        assert!(executable(&library).is_none());
        assert!(executable(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(executable("a line of a build script").is_none());
    }
}
