//! `test`: the whole suite, layer by layer. Cargo builds as the user; what needs root is only the
//! finished test program. The last line of stdout is the sum, whatever happened before.

mod ahead;
mod busy;
mod failures;
mod layers;
mod lint;
mod tally;

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, ExitStatus, Stdio},
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use ahead::Ahead;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::builder::PossibleValuesParser;
use failures::Failures;
use layers::{LAYERS, Layer, Made, Turn, Work, is_claimed};
use lint::Check;
pub(crate) use tally::Tally;
use tools::{
    cargo::{as_cargo, cargo, executables, integration, workspace},
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
    /// Run four busy loops and a disk load beside the tests.
    #[arg(long)]
    busy: bool,
    /// Arguments for the test programs: `-- a_test_name`, `-- --nocapture`.
    #[arg(last = true, value_name = "ARGS")]
    rust_test: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if args.busy { busy::beside(|| run_layers(args)) } else { run_layers(args) }
}

fn run_layers(args: &Args) -> ExitCode {
    let mut total = Tally::default();
    let mut suite = Suite { arguments: args.rust_test.clone(), failures: Failures::default() };
    let mut ahead = Ahead::default();
    let is_asked =
        |layer: &Layer| args.layer.is_empty() || args.layer.iter().any(|name| name == layer.name);
    let last = LAYERS.last().filter(|layer| is_asked(layer) && !skips_root());
    for layer in LAYERS.iter().filter(|layer| is_asked(layer)) {
        match (layer.ahead, last) {
            (Some(Turn::Begin), Some(last)) => {
                if let Err(error) = ahead.begin(last.needs) {
                    eprintln!("not built meanwhile: {error:#}");
                }
            }
            (Some(Turn::End), _) => ahead.end(),
            _ => {}
        }
        println!("\n== {}: {}", layer.name, layer.purpose);
        let start = Instant::now();
        let tally = suite.run(layer).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            suite.failures.add(format!("{}: {error:#}", layer.name));
            Tally::FAIL
        });
        println!("-- {}: {tally} ({} s)", layer.name, start.elapsed().as_secs());
        total += tally;
    }
    suite.failures.show();
    println!("\n{total}");
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What runs tests and counts them.
#[derive(Default)]
struct Suite {
    /// For the test programs.
    arguments: Vec<OsString>,
    failures: Failures,
}

impl Suite {
    fn run(&mut self, layer: &Layer) -> Result<Tally> {
        // Nothing is installed for what is left out. Other layers are built, to count their tests.
        if skips_root() && matches!(layer.work, Work::Task(_) | Work::Sum { root: true, .. }) {
            println!("skipped: {} needs root, and SOCKLB_SKIP_ROOT=1", layer.name);
            return Ok(Tally::SKIP);
        }
        setup::ensure(layer.needs)?;
        match layer.work {
            Work::Checks(checks) => Ok(self.check_all(checks)),
            Work::Unclaimed => self.unclaimed(),
            Work::User { target, with } => self.user(target, with),
            Work::Root { target, with, at_once } => self.root(target, with, at_once),
            Work::Task(words) => task(words),
            Work::Sum { words, root } => self.sum(words, root),
        }
    }

    fn check_all(&mut self, checks: &[Check]) -> Tally {
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
                    Err(error) => self.fail(format!("check {} ... FAILED: {error:#}", check.name)),
                },
            };
        }
        sum
    }

    fn unclaimed(&mut self) -> Result<Tally> {
        let workspace = ["test", "--workspace", "--exclude", "lb-ebpf"];
        let mut sum = Tally::default();
        for program in executables(cargo().args(workspace).arg("--no-run"))? {
            // Integration tests come with the programs they start; those are no tests.
            if !program.is_test || (program.kind == "test" && is_claimed(&program.name)) {
                continue;
            }
            let mut test = as_cargo(&program);
            test.args(&self.arguments);
            sum += self.count(&mut test)?;
        }
        let mut examples = cargo();
        examples.args(workspace).args(["--doc", "--"]).args(&self.arguments);
        sum += self.count(&mut examples)?;
        Ok(sum)
    }

    fn user(&mut self, target: &str, with: Option<Made>) -> Result<Tally> {
        let mut test = as_cargo(&integration(target)?);
        give(&mut test, with)?;
        test.args(&self.arguments);
        self.count(&mut test)
    }

    fn root(&mut self, target: &str, with: Option<Made>, at_once: usize) -> Result<Tally> {
        let program = integration(target)?;
        if skips_root() {
            let mut list = as_cargo(&program);
            list.args(["--list", "--format", "terse"]).args(&self.arguments);
            let list = ask(&mut list).context("the test program does not list its tests")?;
            let tally = Tally::skipping(&list);
            println!("skipped: {} tests need root, and SOCKLB_SKIP_ROOT=1", tally.skipped);
            return Ok(tally);
        }
        require_root().context(NEEDS_ROOT)?;
        let mut all = as_cargo(&program);
        all.args(["--list", "--format", "terse"]);
        let all = ask(&mut all).context("the test program does not list its tests")?;
        // Whoever asks for some of them has a reason, and few of them.
        let parts = if self.arguments.is_empty() { parts(&all, at_once) } else { vec![vec![]] };
        let mut commands = Vec::new();
        for names in parts {
            let mut test = as_cargo(&program);
            test.arg("--test-threads=1").args(&self.arguments);
            if !names.is_empty() {
                test.arg("--exact").args(names);
            }
            give(&mut test, with)?;
            commands.push(as_root(test));
        }
        self.count_together(commands)
    }

    fn sum(&mut self, words: &[&str], root: bool) -> Result<Tally> {
        if root {
            require_root().context(NEEDS_ROOT)?;
        }
        self.last_count(Command::new("cargo").arg("xtask").args(words).current_dir(workspace()))
    }

    /// Runs test programs, passes on what they say and counts it. A program that ends without a
    /// count, or unhappily without a failed test, is a failure itself.
    fn count(&mut self, command: &mut Command) -> Result<Tally> {
        let (mut sum, mut counts) = (Tally::default(), 0);
        let (line, status) = self.pass_on(command, |text| {
            if let Some(tally) = Tally::of_line(text) {
                sum += tally;
                counts += 1;
            }
        })?;
        self.whole(&line, status, (counts > 0).then_some(sum))
    }

    /// The same of several at once. What they say comes as they say it, line by line.
    fn count_together(&mut self, commands: Vec<Command>) -> Result<Tally> {
        let count = |mut command: Command| {
            let mut part = Self::default();
            let tally = part.count(&mut command);
            (tally, part.failures)
        };
        let parts: Vec<_> = thread::scope(|scope| {
            let running = commands.into_iter().map(|command| scope.spawn(|| count(command)));
            let running: Vec<_> = running.collect();
            running.into_iter().map(ScopedJoinHandle::join).collect()
        });
        let mut sum = Ok(Tally::default());
        for part in parts {
            let (tally, failures) = part.map_err(|_| anyhow!("what runs tests has panicked"))?;
            failures.lines.into_iter().for_each(|line| self.failures.add(line));
            sum = match (sum, tally) {
                (Ok(sum), Ok(tally)) => Ok(sum + tally),
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
        }
        sum
    }

    /// The same of a program that ends with a sum such as ours.
    fn last_count(&mut self, command: &mut Command) -> Result<Tally> {
        let mut last = None;
        let (line, status) = self.pass_on(command, |text| {
            if !text.is_empty() {
                last = Tally::of_sum(text);
            }
        })?;
        self.whole(&line, status, last)
    }

    /// Runs a command, shows what it says, and gives it line by line.
    fn pass_on(
        &mut self,
        command: &mut Command,
        mut take: impl FnMut(&str),
    ) -> Result<(String, ExitStatus)> {
        let line = announce(command);
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start `{line}`"))?;
        let mut stdout = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let mut bytes = Vec::new();
        while stdout.read_until(b'\n', &mut bytes)? > 0 {
            let text = String::from_utf8_lossy(&bytes);
            print!("{text}");
            self.failures.listen(text.trim_end());
            take(text.trim_end());
            bytes.clear();
        }
        Ok((line, child.wait()?))
    }

    fn whole(&mut self, line: &str, status: ExitStatus, sum: Option<Tally>) -> Result<Tally> {
        if status.success() && sum.is_none() {
            bail!("`{line}` ended well, but counted no tests");
        }
        let mut sum = sum.unwrap_or_default();
        if !status.success() && sum.failed == 0 {
            sum += self.fail(format!("test `{line}` ... FAILED: {status}"));
        }
        Ok(sum)
    }

    fn fail(&mut self, line: String) -> Tally {
        println!("{line}");
        self.failures.add(line);
        Tally::FAIL
    }
}

/// Runs a program that ends with a sum such as ours, and passes on what it says.
pub(crate) fn last_count(command: &mut Command) -> Result<Tally> {
    Suite::default().last_count(command)
}

/// The tests of a list in so many parts, each test in one of them. Neighbours are apart, since what
/// takes long often stands together.
fn parts(list: &str, at_once: usize) -> Vec<Vec<&str>> {
    let tests: Vec<_> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let count = at_once.min(tests.len()).max(1);
    let part = |n| tests.iter().copied().skip(n).step_by(count).collect();
    (0..count).map(part).collect()
}

/// Gives a test what it is to find in its environment.
fn give(test: &mut Command, with: Option<Made>) -> Result<()> {
    if let Some((variable, make)) = with {
        test.env(variable, env::var_os(variable).map_or_else(make, |path| Ok(path.into()))?);
    }
    Ok(())
}

fn task(words: &[&str]) -> Result<Tally> {
    require_root().context(NEEDS_ROOT)?;
    exec(Command::new("cargo").arg("xtask").args(words).current_dir(workspace()))?;
    Ok(Tally::PASS)
}

const NEEDS_ROOT: &str = "this layer needs root (SOCKLB_SKIP_ROOT=1 leaves it out)";

fn skips_root() -> bool {
    env::var_os("SOCKLB_SKIP_ROOT").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<Tally> {
        Suite::default().count(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn failures_are_told_again_at_the_end() {
        let told = |script: &str, run: fn(&mut Suite, &mut Command) -> Result<Tally>| {
            let mut suite = Suite::default();
            run(&mut suite, Command::new("sh").args(["-c", script])).unwrap();
            suite.failures.lines
        };
        let script = "echo 'test a ... ok'; echo 'test b ... FAILED'; echo '  test b ... FAILED'; \
                      echo 'test c ... FAILED (3 s): why'; echo '1 passed, 2 failed, 0 skipped'; exit 1";
        let lines = told(script, Suite::last_count);
        assert_eq!(lines, ["test b ... FAILED", "test c ... FAILED (3 s): why"]);
        let script = "echo 'test a::b ... FAILED'; echo; echo failures:; echo '---- a::b stdout ----'; \
                      echo; echo \"thread '<unnamed>' (9) panicked at a.rs:1:2:\"; echo 'left: 1'; \
                      echo 'right: 2'; echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 x'";
        assert_eq!(told(script, Suite::count), ["test a::b ... FAILED: left: 1"]);
        let lines = told("kill -9 $$", Suite::count);
        assert_eq!(lines, ["test `sh -c 'kill -9 $$'` ... FAILED: signal: 9 (SIGKILL)"]);
    }

    #[test]
    fn a_sum_is_the_last_line_and_no_other() {
        let last = |script: &str| last_count(Command::new("sh").args(["-c", script]));
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
        assert!(Suite::default().count(&mut Command::new("no-such-program")).is_err());
    }

    #[test]
    fn parts_are_counted_together_and_each_test_is_in_one() {
        let list = "a: test\nb: test\nc: test\nfast: benchmark\n";
        assert_eq!(parts(list, 1), [["a", "b", "c"]]);
        let mut all: Vec<_> = parts(list, 2).concat();
        all.sort_unstable();
        assert_eq!(all, ["a", "b", "c"]);
        assert_eq!(parts("", 2).len(), 1);

        let part = |script: &str| {
            let mut sh = Command::new("sh");
            sh.args(["-c", script]);
            sh
        };
        let mut suite = Suite::default();
        let failed = "echo 'test b ... FAILED'; \
                      echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 x'; exit 1";
        let sum = suite.count_together(vec![part(ONE), part(failed)]).unwrap();
        assert_eq!(sum, Tally { passed: 1, failed: 1, skipped: 1 });
        assert_eq!(suite.failures.lines, ["test b ... FAILED"]);
        // One that dies has failed, whatever the others do.
        let mut suite = Suite::default();
        let sum = suite.count_together(vec![part(ONE), part("kill -9 $$")]).unwrap();
        assert_eq!((sum.passed, sum.failed), (1, 1));
        assert!(suite.count_together(vec![part(ONE), part("exit 0")]).is_err());
    }

    #[test]
    fn every_check_counts() {
        const CHECKS: &[Check] = &[
            Check { name: "good", command: || Ok(Command::new("true")) },
            Check { name: "bad", command: || Ok(Command::new("false")) },
            Check { name: "absent", command: || Err("not here") },
        ];
        let mut suite = Suite::default();
        assert_eq!(suite.check_all(CHECKS), Tally { passed: 1, failed: 1, skipped: 1 });
        assert_eq!(suite.failures.lines, ["check bad ... FAILED: `false`: exit status: 1"]);
    }
}
