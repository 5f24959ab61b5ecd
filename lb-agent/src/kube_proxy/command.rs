//! The tools that know the tables' and sets' own language.

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    process::{Command, Stdio},
};

/// What a tool prints, given this input. None if it is not installed.
pub(super) fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Option<String>, String> {
    let call = || format!("{program} {}", arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path()).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        child => child.map_err(|error| format!("{}: {error}", call()))?,
    };
    // These tools read all before they print anything.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| format!("{}: {error}", call()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", call(), said.trim()));
    }
    written.map_err(|error| format!("{}: {error}", call()))?;
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Where administrators' tools are, also for those whose PATH does not say so.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
