//! The script: Markdown in which some blocks are played.
//!
//! ````text
//! ```yaml FILE          the block becomes a file, which commands can use
//! ```console            its commands are played
//! ```console socklb     so they are, if socklb serves the Services
//! $ COMMAND             run where kubectl is; may have more lines
//! n1$ COMMAND           run on a node
//! $ NAME=$(COMMAND)     later commands have this variable
//! $ COMMAND &           goes on until the end
//! ? TEST                a shell command that gets the answer, and must succeed
//! : lines N             so many lines of the answer are on the page
//! : hidden              it is not on the page
//! ````
//!
//! A command must succeed, unless one of its tests looks at `$code`. One with tests is repeated until
//! all of them succeed, for a while: what kubectl changes is in force a moment later.

use anyhow::{Context as _, Result, bail, ensure};

const LINES: usize = 12;

#[derive(Debug, PartialEq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    File { name: &'a str, lines: Vec<&'a str> },
    Steps { socklb_only: bool, steps: Vec<Step<'a>> },
}

#[derive(Debug, PartialEq)]
pub(super) struct Step<'a> {
    /// Of the script.
    pub(super) line: usize,
    /// A node; otherwise where kubectl is.
    pub(super) node: Option<&'a str>,
    pub(super) command: String,
    pub(super) tests: Vec<&'a str>,
    pub(super) lines: usize,
    pub(super) hidden: bool,
}

impl Step<'_> {
    /// `NAME=…`: whose value is kept.
    pub(super) fn variable(&self) -> Option<&str> {
        let (name, _) = self.command.split_once('=')?;
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        (!name.is_empty() && name.chars().all(is_name)).then_some(name)
    }

    /// What goes on in the background.
    pub(super) fn background(&self) -> Option<&str> {
        self.command.strip_suffix('&').map(str::trim_end)
    }

    pub(super) fn prompt(&self) -> String {
        format!("{}$ ", self.node.unwrap_or(""))
    }
}

pub(super) fn parse(text: &str) -> Result<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            parts.push(Part::Text(line));
            continue;
        };
        let mut block = Vec::new();
        loop {
            let (number, line) = lines
                .next()
                .with_context(|| format!("the block of line {} does not end", number + 1))?;
            if line == "```" {
                break;
            }
            block.push((number + 1, line));
        }
        let words: Vec<_> = info.split(' ').collect();
        parts.push(match words[..] {
            ["console"] => Part::Steps { socklb_only: false, steps: steps(&block)? },
            ["console", "socklb"] => Part::Steps { socklb_only: true, steps: steps(&block)? },
            ["yaml", name] => {
                Part::File { name, lines: block.into_iter().map(|(_, line)| line).collect() }
            }
            _ => bail!("line {}: a block of an unknown kind: {info}", number + 1),
        });
    }
    Ok(parts)
}

fn steps<'a>(block: &[(usize, &'a str)]) -> Result<Vec<Step<'a>>> {
    let mut steps: Vec<Step<'a>> = Vec::new();
    for &(number, line) in block {
        if let Some((node, command)) = prompted(line) {
            let (command, tests) = (command.to_owned(), Vec::new());
            steps.push(Step { line: number, node, command, tests, lines: LINES, hidden: false });
            continue;
        }
        let wrong = || format!("line {number}: neither command nor what comes of one: {line}");
        let step = steps.last_mut().with_context(wrong)?;
        if let Some(test) = line.strip_prefix("? ") {
            step.tests.push(test);
        } else if let Some(option) = line.strip_prefix(": ") {
            match option.split_once(' ') {
                Some(("lines", count)) => step.lines = count.parse().with_context(wrong)?,
                None if option == "hidden" => step.hidden = true,
                _ => bail!(wrong()),
            }
        } else {
            ensure!(step.tests.is_empty(), wrong());
            step.command.push('\n');
            step.command.push_str(line);
        }
    }
    Ok(steps)
}

/// A command, with the node.
fn prompted(line: &str) -> Option<(Option<&str>, &str)> {
    let (place, command) = line.split_once("$ ")?;
    let is_place = place.chars().all(|c| c.is_ascii_alphanumeric());
    is_place.then_some(((!place.is_empty()).then_some(place), command))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
# Title

```yaml web.yaml
a: $1
```
```console socklb
$ kubectl get \\
  pods
? grep -q web
: lines 3
n1$ NAME=$(uname -n)
$ sleep 9 &
: hidden
```";

    #[test]
    fn text_files_and_commands() {
        let parts = parse(SCRIPT).unwrap();
        assert_eq!(parts[0], Part::Text("# Title"));
        assert_eq!(parts[2], Part::File { name: "web.yaml", lines: vec!["a: $1"] });
        let Part::Steps { socklb_only: true, steps } = &parts[3] else {
            panic!("{:?}", parts[3]);
        };
        let [get, name, sleep] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(get.command, "kubectl get \\\n  pods");
        assert_eq!((get.line, get.lines, &get.tests[..]), (7, 3, &["grep -q web"][..]));
        assert_eq!((get.variable(), get.background(), get.prompt().as_str()), (None, None, "$ "));
        assert_eq!((name.variable(), name.prompt().as_str()), (Some("NAME"), "n1$ "));
        assert_eq!((sleep.background(), sleep.hidden), (Some("sleep 9"), true));
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert!(error("```console\nls\n```").starts_with("line 2: "));
        assert!(error("```console\n? true\n```").starts_with("line 2: "));
        assert!(error("```console\n$ ls\n: lines many\n```").starts_with("line 3: "));
        assert!(error("a\n```bash\n```").starts_with("line 2: "));
        assert!(error("a\n```console").starts_with("the block of line 2 "));
    }
}
