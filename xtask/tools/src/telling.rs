//! How the demos tell what happens: paragraphs, requests, commands with their answers.

use std::{fmt, process::Output};

use anyhow::{Result, bail, ensure};

use crate::exec::say;

/// Says these lines, indented, after an empty one.
pub fn paragraph(lines: &[&str]) {
    say!("\n   {}", lines.join("\n   "));
}

/// Who answered how often.
pub fn requests(total: usize, from: &str, to: impl fmt::Display, spread: &impl fmt::Display) {
    let requests = if total == 1 { "request" } else { "requests" };
    say!("\n   {total} {requests} from {from} to http://{to}/:\n");
    say!("{}", spread.to_string().trim_end());
}

/// Shows the answer of a command, which must have this exit code and these words in it.
pub fn answer(line: &str, output: &Output, code: i32, mentions: &[&str]) -> Result<()> {
    let answer = String::from_utf8_lossy(&output.stdout);
    for line in answer.lines() {
        say!("{}", format!("   {line}").trim_end());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{line}: {}, where {code} was expected: {}",
        output.status,
        error.trim()
    );
    match mentions.iter().find(|word| !answer.contains(**word)) {
        Some(word) => bail!("{line}: the answer does not mention {word}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_code_and_its_words() {
        let output = Command::new("sh").args(["-c", "echo a b; echo no >&2; exit 3"]).output();
        let output = output.unwrap();
        answer("x", &output, 3, &["a", "b"]).unwrap();
        let error = |code, word| answer("x", &output, code, &[word]).unwrap_err().to_string();
        assert_eq!(error(0, "a"), "x: exit status: 3, where 0 was expected: no");
        assert_eq!(error(3, "c"), "x: the answer does not mention c");
    }
}
