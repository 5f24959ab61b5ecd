//! What needs root gets it here, and only here: by being root already, or by sudo. Cargo and
//! rustup never do, else the work tree fills with files that belong to root.

use std::{
    env, fs,
    io::{IsTerminal as _, stdin},
    os::unix::fs::MetadataExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};

use crate::exec::{announce, ask, become_it};

/// Are we root?
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|myself| myself.uid() == 0)
}

/// Fails, with the reason, unless [`as_root`] will work. May ask for a password.
pub fn require_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    if ask(Command::new("sudo").arg("--version")).is_none() {
        bail!("this needs root, and there is no sudo here: run it as root");
    }
    let mut sudo = sudo();
    sudo.arg("-v");
    let line = announce(&sudo);
    if !sudo.status()?.success() {
        bail!("this needs root, and `{line}` failed: run it as root");
    }
    Ok(())
}

/// The same command, started as root. Of our environment it keeps what is meant for socklb.
pub fn as_root(command: Command) -> Command {
    if is_root() {
        return command;
    }
    let mut sudo = sudo();
    // sudo clears the environment; `env` sets it anew, whatever sudoers says about it.
    sudo.arg("env");
    let mut set = |name: &std::ffi::OsStr, value: &std::ffi::OsStr| {
        let mut assignment = name.to_owned();
        assignment.push("=");
        assignment.push(value);
        sudo.arg(assignment);
    };
    for (name, value) in env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
        set(&name, &value);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            set(name, value);
        }
    }
    sudo.arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        sudo.current_dir(directory);
    }
    sudo
}

/// The same command as root, in this process's place.
pub fn become_root(command: Command) -> Result<ExitCode> {
    become_it(&mut as_root(command))
}

fn is_ours(name: &str) -> bool {
    name.starts_with("SOCKLB_") || ["KUBECONFIG", "RUST_BACKTRACE", "RUST_LOG"].contains(&name)
}

fn sudo() -> Command {
    let mut sudo = Command::new("sudo");
    // Without a terminal there is nobody to type a password: fail instead of waiting.
    if !stdin().is_terminal() {
        sudo.arg("-n");
    }
    sudo
}
