//! Running commands, so that everybody sees what is run.

use std::{
    env,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Prints the command in one line, runs it, and fails unless it succeeds.
pub fn exec(command: &mut Command) -> Result<()> {
    let line = announce(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    ensure!(status.success(), "`{line}`: {status}");
    Ok(())
}

/// Prints the command in one line, and returns that line for error messages.
pub fn announce(command: &Command) -> String {
    let line = show(command);
    eprintln!("$ {line}");
    line
}

/// What a command says on stdout, in silence; `None` unless it is there and succeeds.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a command says on stdout. Fails with its own words.
pub fn answer(command: &mut Command) -> Result<String> {
    let line = show(command);
    answer_to(&line, command)
}

/// The same where this line says enough of the command.
pub fn answer_to(line: &str, command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    succeeded(line, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives a command this to read. Fails with its own words.
pub fn feed(command: &mut Command, input: &str) -> Result<()> {
    let line = show(command);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    // If it does not read to the end, it says why.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    succeeded(&line, &child.wait_with_output()?)?;
    written.with_context(|| format!("`{line}` did not read all of its input"))
}

fn succeeded(line: &str, output: &Output) -> Result<()> {
    let (status, error) = (output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(status.success(), "`{line}`: {status}: {}", error.trim());
    Ok(())
}

/// Returns only when the command cannot be started: it takes this process's place, so signals and
/// the exit code are its own.
pub fn become_it(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", show(command)))
}

/// This program.
pub fn myself() -> Result<PathBuf> {
    env::current_exe().context("this program does not know where it is")
}

/// The command as one would type it: `VAR=value program argument 'argument with spaces'`.
pub fn show(command: &Command) -> String {
    let environment = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), quote(&value?.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    environment
        .chain(words.map(|word| quote(&word.to_string_lossy())))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `println!`, but whether anybody listens does not matter: what was begun is brought to its end.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        drop(writeln!(std::io::stdout(), $($words)*));
    }};
}
pub use say;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("cargo");
        command.args(["run", "--", "it's", "", "a=b"]).env("LLVM_PREFIX", "/usr/lib/llvm 22");
        command.env_remove("CARGO");
        assert_eq!(show(&command), r"LLVM_PREFIX='/usr/lib/llvm 22' cargo run -- 'it'\''s' '' a=b");
    }

    #[test]
    fn success_is_silent_and_failure_has_the_command_in_it() {
        exec(&mut Command::new("true")).unwrap();
        let failed = exec(Command::new("false").arg("x")).unwrap_err().to_string();
        assert!(failed.starts_with("`false x`: exit status: 1"), "{failed}");
        let absent = exec(&mut Command::new("no-such-program")).unwrap_err().to_string();
        assert_eq!(absent, "cannot start `no-such-program`");
        assert_eq!(ask(&mut Command::new("false")), None);
        assert_eq!(ask(Command::new("echo").arg("a")), Some("a\n".to_owned()));
    }
}
