//! The tests that must pass, and why others are left out.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

const TESTS: &str = include_str!("tests.txt");

/// Tests by their full names.
pub(crate) struct List {
    pub(crate) must_pass: BTreeSet<String>,
    /// With the reason.
    pub(crate) left_out: BTreeMap<String, String>,
}

impl List {
    /// The file of the repository.
    pub(crate) fn own() -> Result<Self> {
        Self::parse(TESTS).context("xtask/lab/src/e2e/tests.txt")
    }

    fn parse(text: &str) -> Result<Self> {
        let mut list = Self { must_pass: BTreeSet::new(), left_out: BTreeMap::new() };
        let mut section = None;
        for (line, number) in text.lines().zip(1..) {
            match line.strip_prefix("== ") {
                Some("must pass") => section = Some(None),
                Some(heading) => {
                    let reason = heading.strip_prefix("left out: ").with_context(|| {
                        format!("line {number}: a heading is `must pass` or `left out: REASON`")
                    })?;
                    section = Some(Some(reason));
                }
                None if line.is_empty() || line.starts_with('#') => {}
                None => {
                    let reason = section.with_context(|| {
                        format!("line {number}: a test before the first heading")
                    })?;
                    let name = line.to_owned();
                    let new = !list.must_pass.contains(&name) && !list.left_out.contains_key(&name);
                    ensure!(new, "line {number}: the test is there twice: {name}");
                    match reason {
                        None => drop(list.must_pass.insert(name)),
                        Some(reason) => drop(list.left_out.insert(name, reason.to_owned())),
                    }
                }
            }
        }
        Ok(list)
    }

    /// Fails unless it names exactly the tests that there are.
    pub(crate) fn check(&self, there: &BTreeSet<String>) -> Result<()> {
        let listed: BTreeSet<_> = self.must_pass.iter().chain(self.left_out.keys()).collect();
        let there: BTreeSet<_> = there.iter().collect();
        let lines = |what: &str, tests: Vec<&&String>| {
            tests.iter().flat_map(|test| ["\n  ", what, ": ", test.as_str()]).collect::<String>()
        };
        let new = lines("not listed", there.difference(&listed).collect());
        let gone = lines("no such test", listed.difference(&there).collect());
        if !(new.is_empty() && gone.is_empty()) {
            bail!("xtask/lab/src/e2e/tests.txt and e2e.test differ:{new}{gone}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_the_repository_is_sound() {
        let list = List::own().unwrap();
        assert!(list.must_pass.len() > 100 && list.left_out.len() > 10);
        assert!(list.must_pass.iter().all(|name| name.starts_with("[sig-network] ")));
        let conformance = list.left_out.keys().find(|name| name.contains("[Conformance]"));
        assert_eq!(conformance, None);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (text, wanted) in [
            ("a\n", "line 1: a test before the first heading"),
            ("== must pass\na\n\n== left out: b\na\n", "line 5: the test is there twice: a"),
            ("== other\n", "line 1: a heading is"),
        ] {
            let error = List::parse(text).map(drop).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_new_test_has_to_be_thought_about() {
        let list = List::parse("== must pass\na\n== left out: hard\nb\n").unwrap();
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        list.check(&set(&["a", "b"])).unwrap();
        let error = list.check(&set(&["b", "c"])).unwrap_err().to_string();
        assert!(error.contains("not listed: c") && error.contains("no such test: a"), "{error}");
    }
}
