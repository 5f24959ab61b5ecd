//! What a kernel and its process 1 say on the serial line, read line by line.

/// What is known so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// What `uname -r` says.
    pub(super) kernel: Option<String>,
    pub(super) programs: Vec<Program>,
    pub(super) tests: Vec<Test>,
    /// Warnings and worse, in the kernel's words; modules that are not there.
    pub(super) complaints: Vec<String>,
    /// Why the kernel stopped, in its words.
    pub(super) panic: Option<String>,
    /// The tests that it found, where it was to find them.
    pub(super) found: Vec<String>,
    /// Did it come to its end?
    pub(super) ended: bool,
    /// What the test that is about to be judged said.
    said: Vec<String>,
}

/// What the verifier says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    /// The number of instructions that it looked at, or why it refuses.
    pub(super) verdict: Result<u32, String>,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) fate: Fate,
    pub(super) hundredths: u64,
    /// What it said, if it did not pass.
    pub(super) said: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Passed,
    Failed,
    /// Killed at its time limit.
    Late,
    /// There is no test of that name.
    Absent,
}

impl Fate {
    fn named(word: &str) -> Option<Self> {
        match word {
            "passed" => Some(Self::Passed),
            "failed" => Some(Self::Failed),
            "late" => Some(Self::Late),
            "absent" => Some(Self::Absent),
            _ => None,
        }
    }
}

/// What a line added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News<'a> {
    Program(&'a Program),
    Test(&'a Test),
    Nothing,
}

impl Heard {
    /// Takes in a line.
    pub(super) fn hear(&mut self, line: &str) -> News<'_> {
        let line = line.trim_end();
        if let Some(said) = line.strip_prefix("@| ").or_else(|| line.strip_prefix("@|")) {
            self.said.push(said.to_owned());
        } else if let Some(words) = line.strip_prefix("@@ ") {
            return self.told(words);
        } else if let Some((_, reason)) = line.split_once("Kernel panic - not syncing: ") {
            self.panic.get_or_insert_with(|| reason.to_owned());
        }
        News::Nothing
    }

    fn told(&mut self, words: &str) -> News<'_> {
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        if let Some(fate) = Fate::named(word) {
            let Some((hundredths, name)) = rest.split_once(' ') else { return News::Nothing };
            self.tests.push(Test {
                name: name.to_owned(),
                fate,
                hundredths: hundredths.parse().unwrap_or(0),
                said: std::mem::take(&mut self.said),
            });
            return self.tests.last().map_or(News::Nothing, News::Test);
        }
        match word {
            "kernel" => self.kernel = Some(rest.to_owned()),
            "module" => self.complaints.push(format!("the module {rest} does not load")),
            "complaint" => self.complaints.push(rest.to_owned()),
            "found" => self.found.push(rest.to_owned()),
            "end" => self.ended = true,
            "program" => {
                if let Some(program) = program(rest) {
                    self.programs.push(program);
                    return self.programs.last().map_or(News::Nothing, News::Program);
                }
            }
            _ => {}
        }
        News::Nothing
    }

    /// The tests of `wanted` of which nothing was heard.
    pub(super) fn silent<'a>(&self, wanted: &'a [String]) -> Vec<&'a str> {
        let heard = |name: &&str| !self.tests.iter().any(|test| test.name == **name);
        wanted.iter().map(String::as_str).filter(heard).collect()
    }
}

/// `connect4: 2345 instructions`, or `connect4: refused: why`.
fn program(line: &str) -> Option<Program> {
    let (name, rest) = line.split_once(": ")?;
    let verdict = match rest.strip_prefix("refused: ") {
        Some(reason) => Err(reason.to_owned()),
        None => Ok(rest.split(' ').next()?.parse().ok()?),
    };
    Some(Program { name: name.to_owned(), verdict })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &str) -> Heard {
        let mut heard = Heard::default();
        for line in lines.lines() {
            heard.hear(line);
        }
        heard
    }

    #[test]
    fn a_whole_run_is_read() {
        let heard = heard(
            "SeaBIOS (version 1)\n\n@@ kernel 6.1.0-56-amd64\r\n@@ program connect4: 2345 \
             instructions\r\n@@ program sendmsg4: refused: EINVAL: no calls\n@@ passed 123 a::b\n\
             @| thread panicked\n@|\n@@ failed 7 a::c\n@@ late 12000 a::d\n@@ end\n",
        );
        assert_eq!(heard.kernel.as_deref(), Some("6.1.0-56-amd64"));
        let verdicts: Vec<_> =
            heard.programs.iter().map(|p| (&*p.name, p.verdict.clone())).collect();
        let refused = Err("EINVAL: no calls".to_owned());
        assert_eq!(verdicts, [("connect4", Ok(2345)), ("sendmsg4", refused)]);
        let fates: Vec<_> = heard.tests.iter().map(|t| (&*t.name, t.fate, t.said.len())).collect();
        let wanted =
            [("a::b", Fate::Passed, 0), ("a::c", Fate::Failed, 2), ("a::d", Fate::Late, 0)];
        assert_eq!(fates, wanted);
        assert!(heard.ended && heard.panic.is_none());
        let asked = ["a::b", "a::e"].map(ToOwned::to_owned);
        assert_eq!(heard.silent(&asked), ["a::e"]);
    }

    #[test]
    fn a_panic_is_told_in_the_kernel_s_words() {
        let heard = heard(
            "@@ kernel 6.1\n[    3.1] Kernel panic - not syncing: Attempted to kill init!\n\
             [    3.2] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\n",
        );
        assert_eq!(heard.panic.as_deref(), Some("Attempted to kill init!"));
        assert!(!heard.ended);
    }

    #[test]
    fn half_a_line_is_no_news() {
        let mut heard = Heard::default();
        assert_eq!(heard.hear("@@ passed"), News::Nothing);
        assert_eq!(heard.hear("@@ program connect4"), News::Nothing);
        assert_eq!(heard.hear("@@ program connect4: many"), News::Nothing);
        assert!(heard.tests.is_empty() && heard.programs.is_empty());
    }
}
