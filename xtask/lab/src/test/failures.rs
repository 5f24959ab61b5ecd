//! What of the suite failed.

/// What failed, in the lines that said so: to be shown once more at the end, where people look.
#[derive(Default)]
pub(super) struct Failures {
    pub(super) lines: Vec<String>,
    /// The test of Rust whose output is being shown, and whether it has just said that it panicked.
    shown: Option<(String, bool)>,
}

impl Failures {
    pub(super) fn add(&mut self, failure: String) {
        self.lines.push(failure);
    }

    /// Keeps a line of a test program, of checks or of stories, if it tells a failure or the reason
    /// of one.
    pub(super) fn listen(&mut self, line: &str) {
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

    pub(super) fn show(&self) {
        if !self.lines.is_empty() {
            println!("\nFailed:\n  {}", self.lines.join("\n  "));
        }
    }
}
