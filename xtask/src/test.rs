//! `test`: the whole suite, layer by layer. Cargo builds as the user; what needs root is only the
//! finished test program. The last line of stdout is the sum, whatever happened before.

mod layers;
mod lint;
mod tally;

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;
use layers::{LAYERS, Layer, Made, Work, is_claimed};
use lint::Check;
pub(crate) use tally::Tally;

use crate::{
    cargo::{Executable, cargo, executables, workspace},
    exec::{announce, ask, exec},
    root::{as_root, require_root},
    setup,
};

/// Run the test suite, or some of its layers.
///
/// Layers that need root fail without it; with SOCKLB_SKIP_ROOT=1 their tests are counted as
/// skipped.
#[derive(clap::Args)]
#[command(after_help = layers::help())]
pub(crate) struct Args {
    /// Which layers; all of them if none is named.
    #[arg(value_parser = PossibleValuesParser::new(LAYERS.iter().map(|layer| layer.name)))]
    #[arg(hide_possible_values = true)]
    layer: Vec<String>,
    /// Arguments for the test programs: `-- a_test_name`, `-- --nocapture`.
    #[arg(last = true, value_name = "ARGS")]
    rust_test: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let (mut total, mut failures) = (Tally::default(), Failures::default());
    for layer in LAYERS {
        if !args.layer.is_empty() && !args.layer.iter().any(|name| name == layer.name) {
            continue;
        }
        println!("\n== {}: {}", layer.name, layer.purpose);
        let start = Instant::now();
        let tally = layer.run(&args.rust_test, &mut failures).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            failures.add(format!("{}: {error:#}", layer.name));
            Tally::FAIL
        });
        println!("-- {}: {tally} ({} s)", layer.name, start.elapsed().as_secs());
        total += tally;
    }
    failures.show();
    println!("\n{total}");
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What failed, in the lines that said so: to be shown once more at the end, where people look.
#[derive(Default)]
pub(crate) struct Failures {
    lines: Vec<String>,
    /// The test of Rust whose output is being shown, and whether it has just said that it panicked.
    shown: Option<(String, bool)>,
}

impl Failures {
    fn add(&mut self, failure: String) {
        self.lines.push(failure);
    }

    /// Keeps a line of a test program, of checks or of stories, if it tells a failure or the reason
    /// of one.
    fn listen(&mut self, line: &str) {
        let of_test = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(test) = of_test {
            self.shown = Some((format!("test {test} ... FAILED"), false));
        } else if (line.starts_with("test ") || line.starts_with("check "))
            && line.contains(" ... FAILED")
        {
            self.add(line.to_owned());
        } else if let Some((test, panicked)) = &mut self.shown {
            if *panicked {
                for failure in self.lines.iter_mut().filter(|failure| failure == &test) {
                    failure.push_str(": ");
                    failure.push_str(line);
                }
                self.shown = None;
            } else {
                *panicked = line.starts_with("thread ") && line.contains(" panicked at ");
            }
        }
    }

    fn show(&self) {
        if !self.lines.is_empty() {
            println!("\nFailed:\n  {}", self.lines.join("\n  "));
        }
    }
}

impl Layer {
    fn run(&self, arguments: &[OsString], failures: &mut Failures) -> Result<Tally> {
        // Nothing is installed for what is left out. Other layers are built, to count their tests.
        if skips_root() && matches!(self.work, Work::Task(_) | Work::Sum(_)) {
            println!("skipped: {} needs root, and SOCKLB_SKIP_ROOT=1", self.name);
            return Ok(Tally::SKIP);
        }
        setup::ensure(self.needs)?;
        match self.work {
            Work::Checks(checks) => Ok(check_all(checks, failures)),
            Work::Unclaimed => unclaimed(arguments, failures),
            Work::User { target, with } => user(target, with, arguments, failures),
            Work::Root { target, with } => root(target, with, arguments, failures),
            Work::Task(task) => self::task(task),
            Work::Sum(words) => sum(words, failures),
        }
    }
}

fn check_all(checks: &[Check], failures: &mut Failures) -> Tally {
    let mut sum = Tally::default();
    for check in checks {
        sum += match (check.command)() {
            Err(reason) => {
                println!("check {} ... skipped: {reason}", check.name);
                Tally::SKIP
            }
            Ok(mut command) => match exec(&mut command) {
                Ok(()) => {
                    println!("check {} ... ok", check.name);
                    Tally::PASS
                }
                Err(error) => {
                    let line = format!("check {} ... FAILED: {error:#}", check.name);
                    println!("{line}");
                    failures.add(line);
                    Tally::FAIL
                }
            },
        };
    }
    sum
}

fn unclaimed(arguments: &[OsString], failures: &mut Failures) -> Result<Tally> {
    let workspace = ["test", "--workspace", "--exclude", "lb-ebpf"];
    let mut sum = Tally::default();
    for program in executables(cargo().args(workspace).arg("--no-run"))? {
        // Integration tests come with the programs they start; those are no tests.
        if !program.is_test || (program.kind == "test" && is_claimed(&program.name)) {
            continue;
        }
        sum += count(test(&program).args(arguments), failures)?;
    }
    sum += count(cargo().args(workspace).args(["--doc", "--"]).args(arguments), failures)?;
    Ok(sum)
}

fn user(
    target: &str,
    with: Option<Made>,
    arguments: &[OsString],
    failures: &mut Failures,
) -> Result<Tally> {
    let mut test = test(&integration(target)?);
    give(&mut test, with)?;
    count(test.args(arguments), failures)
}

fn root(
    target: &str,
    with: Option<Made>,
    arguments: &[OsString],
    failures: &mut Failures,
) -> Result<Tally> {
    let program = integration(target)?;
    if skips_root() {
        let list = ask(test(&program).args(["--list", "--format", "terse"]).args(arguments));
        let tally = Tally::skipping(&list.context("the test program does not list its tests")?);
        println!("skipped: {} tests need root, and SOCKLB_SKIP_ROOT=1", tally.skipped);
        return Ok(tally);
    }
    require_root().context(NEEDS_ROOT)?;
    let mut test = test(&program);
    test.arg("--test-threads=1").args(arguments);
    give(&mut test, with)?;
    count(&mut as_root(test), failures)
}

/// Builds an integration test of lb-agent.
fn integration(target: &str) -> Result<Executable> {
    let mut build = cargo();
    build.args(["test", "--package", "lb-agent", "--test", target, "--no-run"]);
    let mut programs = executables(&mut build)?.into_iter();
    let program = programs.find(|program| program.is_test && program.name == target);
    program.with_context(|| format!("cargo built no test {target}"))
}

/// Gives a test what it is to find in its environment.
fn give(test: &mut Command, with: Option<Made>) -> Result<()> {
    if let Some((variable, make)) = with {
        test.env(variable, env::var_os(variable).map_or_else(make, |path| Ok(path.into()))?);
    }
    Ok(())
}

fn task(task: &str) -> Result<Tally> {
    require_root().context(NEEDS_ROOT)?;
    exec(Command::new("cargo").args(["xtask", task]).current_dir(workspace()))?;
    Ok(Tally::PASS)
}

fn sum(words: &[&str], failures: &mut Failures) -> Result<Tally> {
    require_root().context(NEEDS_ROOT)?;
    last_count(Command::new("cargo").arg("xtask").args(words).current_dir(workspace()), failures)
}

const NEEDS_ROOT: &str = "this layer needs root (SOCKLB_SKIP_ROOT=1 leaves it out)";

fn skips_root() -> bool {
    env::var_os("SOCKLB_SKIP_ROOT").is_some_and(|value| value == "1")
}

/// A test program as cargo would start it.
fn test(program: &Executable) -> Command {
    let mut test = Command::new(&program.path);
    test.current_dir(&program.package).env("CARGO_MANIFEST_DIR", &program.package);
    test
}

/// Runs test programs, passes on what they say and counts it. A program that ends without a count,
/// or unhappily without a failed test, is a failure itself.
fn count(command: &mut Command, failures: &mut Failures) -> Result<Tally> {
    let (mut sum, mut counts) = (Tally::default(), 0);
    let (line, status) = pass_on(command, |text| {
        failures.listen(text);
        if let Some(tally) = Tally::of_line(text) {
            sum += tally;
            counts += 1;
        }
    })?;
    whole(&line, status, (counts > 0).then_some(sum), failures)
}

/// The same of a program that ends with a sum such as ours.
pub(crate) fn last_count(command: &mut Command, failures: &mut Failures) -> Result<Tally> {
    let mut last = None;
    let (line, status) = pass_on(command, |text| {
        failures.listen(text);
        if !text.is_empty() {
            last = Tally::of_sum(text);
        }
    })?;
    whole(&line, status, last, failures)
}

/// Runs a command, shows what it says, and gives it line by line.
fn pass_on(command: &mut Command, mut take: impl FnMut(&str)) -> Result<(String, ExitStatus)> {
    let line = announce(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
    let mut stdout = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut bytes = Vec::new();
    while stdout.read_until(b'\n', &mut bytes)? > 0 {
        let text = String::from_utf8_lossy(&bytes);
        print!("{text}");
        take(text.trim_end());
        bytes.clear();
    }
    Ok((line, child.wait()?))
}

fn whole(
    line: &str,
    status: ExitStatus,
    sum: Option<Tally>,
    failures: &mut Failures,
) -> Result<Tally> {
    if status.success() && sum.is_none() {
        bail!("`{line}` ended well, but counted no tests");
    }
    let mut sum = sum.unwrap_or_default();
    if !status.success() && sum.failed == 0 {
        let line = format!("test `{line}` ... FAILED: {status}");
        println!("{line}");
        failures.add(line);
        sum += Tally::FAIL;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<Tally> {
        sh_telling(script, &mut Failures::default())
    }

    fn sh_telling(script: &str, failures: &mut Failures) -> Result<Tally> {
        count(Command::new("sh").args(["-c", script]), failures)
    }

    #[test]
    fn failures_are_told_again_at_the_end() {
        let mut failures = Failures::default();
        let script = "echo 'test a ... ok'; echo 'test b ... FAILED'; echo '  test b ... FAILED'; \
                      echo 'test c ... FAILED (3 s): why'; echo '1 passed, 2 failed, 0 skipped'; exit 1";
        last_count(Command::new("sh").args(["-c", script]), &mut failures).unwrap();
        assert_eq!(failures.lines, ["test b ... FAILED", "test c ... FAILED (3 s): why"]);
        let script = "echo 'test a::b ... FAILED'; echo; echo failures:; echo '---- a::b stdout ----'; \
                      echo; echo \"thread '<unnamed>' (9) panicked at a.rs:1:2:\"; echo 'left: 1'; \
                      echo 'right: 2'; echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 x'";
        let mut failures = Failures::default();
        sh_telling(script, &mut failures).unwrap();
        assert_eq!(failures.lines, ["test a::b ... FAILED: left: 1"]);
        let mut failures = Failures::default();
        sh_telling("kill -9 $$", &mut failures).unwrap();
        assert_eq!(failures.lines, ["test `sh -c 'kill -9 $$'` ... FAILED: signal: 9 (SIGKILL)"]);
    }

    #[test]
    fn a_sum_is_the_last_line_and_no_other() {
        let last = |script: &str| {
            last_count(Command::new("sh").args(["-c", script]), &mut Failures::default())
        };
        let two = last(
            "echo '1 passed, 1 failed, 0 skipped'; echo; echo '2 passed, 0 failed, 3 skipped'",
        );
        assert_eq!(two.unwrap(), Tally { passed: 2, failed: 0, skipped: 3 });
        assert_eq!(last("echo '2 passed, 0 failed, 3 skipped'; exit 1").unwrap().failed, 1);
        assert!(last("echo '2 passed, 0 failed, 3 skipped'; echo more").is_err());
    }

    const ONE: &str = "echo 'test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 x'; ";

    #[test]
    fn results_are_summed() {
        let two = sh(&format!("{ONE}{ONE}")).unwrap();
        assert_eq!(two, Tally { passed: 2, failed: 0, skipped: 2 });
    }

    #[test]
    fn a_program_that_dies_has_failed_whatever_it_said_before() {
        assert_eq!(sh(&format!("{ONE} kill -9 $$")).unwrap().failed, 1);
        assert_eq!(sh("exit 3").unwrap(), Tally::FAIL);
        assert!(sh("exit 0").is_err());
        let absent = count(&mut Command::new("no-such-program"), &mut Failures::default());
        assert!(absent.is_err());
    }

    #[test]
    fn every_check_counts() {
        const CHECKS: &[Check] = &[
            Check { name: "good", command: || Ok(Command::new("true")) },
            Check { name: "bad", command: || Ok(Command::new("false")) },
            Check { name: "absent", command: || Err("not here") },
        ];
        let mut failures = Failures::default();
        let tally = check_all(CHECKS, &mut failures);
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 1 });
        assert_eq!(failures.lines, ["check bad ... FAILED: `false`: exit status: 1"]);
    }
}
