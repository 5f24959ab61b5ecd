//! Which tests are run in a kernel, and which are not, with the reason.

use anyhow::{Context as _, Result, ensure};

/// The tests that are run unless others are asked for: what each shows, and its name.
const SHOWN: &str = include_str!("shown.txt");
/// The tests that are never run there: a name, or all below one, and why.
const LEFT_OUT: &str = include_str!("left-out.txt");

/// A test, or tests, and words about them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) about: &'a str,
}

pub(super) fn shown() -> Result<Vec<Line<'static>>> {
    lines(SHOWN)
}

pub(super) fn left_out() -> Result<Vec<Line<'static>>> {
    lines(LEFT_OUT)
}

/// A name, a space, and the words to the end of the line. Those that begin with `#` are comments.
fn lines(text: &str) -> Result<Vec<Line<'_>>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, about) =
                line.split_once(' ').with_context(|| format!("`{line}` gives no reason"))?;
            ensure!(name.starts_with("kernel::"), "`{name}` is no name of a kernel test");
            Ok(Line { name, about: about.trim() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;
    use tools::cargo::workspace;

    /// The kernel tests, by their full names, from their sources.
    fn all() -> BTreeSet<String> {
        let directory = workspace().join("lb-agent/tests/kernel");
        let mut all = BTreeSet::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            for test in text.split("#[test]\n").skip(1) {
                let name = test.split("fn ").nth(1).unwrap().split('(').next().unwrap();
                all.insert(format!("kernel::{module}::{name}"));
            }
        }
        all
    }

    #[test]
    fn the_lists_name_tests_that_there_are() {
        let all = all();
        assert!(all.len() > 100 && all.contains(super::super::LOADS));
        let (shown, left_out) = (shown().unwrap(), left_out().unwrap());
        for line in &shown {
            assert!(all.contains(line.name), "{}", line.name);
            let is_left_out = left_out.iter().any(|left| line.name.starts_with(left.name));
            assert!(!is_left_out, "{}", line.name);
        }
        for line in &left_out {
            assert!(all.iter().any(|name| name.starts_with(line.name)), "{}", line.name);
        }
    }

    #[test]
    fn every_invariant_is_shown_or_is_no_matter_of_the_kernel() {
        let text = fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
        let invariants = text.split("## Invariants").nth(1).unwrap().split("\n## ").next().unwrap();
        let numbers = invariants.lines().filter_map(|line| line.split_once(". **"));
        let shown = shown().unwrap();
        let mut found = 0;
        for (number, _) in numbers {
            found += 1;
            // What `default/kubernetes` keeps is decided before anything is written.
            let words = format!("invariant {number}");
            let is_shown = shown.iter().any(|line| line.about.starts_with(&words));
            assert!(is_shown || number == "4", "{words} is shown by no test");
        }
        assert!(found >= 8);
    }

    #[test]
    fn a_test_is_not_left_out_without_a_reason() {
        let good = lines("# why\n\nkernel::a::b because\n").unwrap();
        assert_eq!(good, [Line { name: "kernel::a::b", about: "because" }]);
        lines("kernel::a::b\n").unwrap_err();
        lines("a::b because\n").unwrap_err();
    }
}
