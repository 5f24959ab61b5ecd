//! The page: the script's text, with answers in the place of tests.

use std::{fmt::Write as _, process::Command};

use tools::exec::ask;

use super::script::Step;
use crate::{kube, stories::Stage};

/// Longer lines of answers are cut.
const WIDTH: usize = 100;

/// When it was played, and with what.
pub(super) fn head(stage: &Stage<'_>) -> String {
    // Root may ask about somebody else's work tree.
    let git = ["-c", "safe.directory=*", "rev-parse", "--short=10", "HEAD"];
    let commit = ask(Command::new("git").args(git));
    let date = ask(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let kernel = ask(Command::new("uname").arg("-r"));
    let [commit, date, kernel] = [commit, date, kernel]
        .map(|said| said.map_or_else(|| "unknown".to_owned(), |said| said.trim().to_owned()));
    format!(
        "{date}, socklb {} at {commit}, Kubernetes {}, Linux {kernel}; `cluster up {}`",
        env!("CARGO_PKG_VERSION"),
        kube::VERSION,
        stage.cluster.shape(),
    )
}

pub(super) fn text(page: &mut String, line: &str) {
    let _ = writeln!(page, "{line}");
}

pub(super) fn file(page: &mut String, name: &str, lines: &[&str]) {
    let _ = writeln!(page, "`{name}`:\n\n```yaml");
    for line in lines {
        text(page, line);
    }
    text(page, "```");
}

/// A block without any command on the page is not there either.
pub(super) fn steps(page: &mut String, steps: &[(&Step<'_>, String)]) {
    let shown: Vec<_> = steps.iter().filter(|(step, _)| !step.hidden).collect();
    if shown.is_empty() {
        return;
    }
    text(page, "```console");
    for (step, answer) in shown {
        let _ = writeln!(page, "{}{}", step.prompt(), step.command);
        let lines: Vec<_> = answer.trim_end().lines().collect();
        // Not for one line more: the mark is one.
        let most = if lines.len() == step.lines + 1 { lines.len() } else { step.lines };
        for line in lines.iter().take(most) {
            text(page, &cut(line));
        }
        if lines.len() > most {
            text(page, "…");
        }
    }
    text(page, "```");
}

fn cut(line: &str) -> String {
    let line = line.trim_end();
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    let kept: String = line.chars().take(WIDTH - 1).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stories::walkthrough::script::{Part, parse};

    #[test]
    fn answers_take_the_place_of_tests() {
        let script = "```console\n$ ls\n? true\n: lines 1\nn1$ rm a\n: hidden\n$ cd\n```";
        let parts = parse(script).unwrap();
        let [Part::Steps { steps: played, .. }] = &parts[..] else { panic!("{parts:?}") };
        let answers = ["a\nb  \nc\n", "no\n", ""].map(ToOwned::to_owned);
        let played: Vec<_> = played.iter().zip(answers).collect();
        let mut page = String::new();
        steps(&mut page, &played);
        assert_eq!(page, "```console\n$ ls\na\n…\n$ cd\n```\n");
        page.clear();
        steps(&mut page, &played[1..2]);
        assert_eq!(page, "");
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(cut("short  "), "short");
        assert_eq!(cut(&"ä".repeat(WIDTH)).chars().count(), WIDTH);
        let long = cut(&"ä".repeat(WIDTH + 1));
        assert!(long.chars().count() == WIDTH && long.ends_with('…'));
    }
}
