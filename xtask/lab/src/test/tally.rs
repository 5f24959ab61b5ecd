//! How many tests did what.

use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// Prints as `N passed, N failed, N skipped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Tally {
    pub(crate) const PASS: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAIL: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIP: Self = Self { passed: 0, failed: 0, skipped: 1 };

    /// The line with which a test program of Rust ends:
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count =
            |what| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }

    /// What [`fmt::Display`] writes.
    pub(super) fn of_sum(line: &str) -> Option<Self> {
        let mut counts = line.split(", ");
        let mut count = |what| counts.next()?.strip_suffix(what)?.parse().ok();
        let sum = Self {
            passed: count(" passed")?,
            failed: count(" failed")?,
            skipped: count(" skipped")?,
        };
        counts.next().is_none().then_some(sum)
    }

    /// `--list --format terse` of a test program, none of whose tests is run.
    pub(super) fn skipping(list: &str) -> Self {
        let tests = list.lines().filter(|line| line.ends_with(": test")).count();
        Self { skipped: u32::try_from(tests).unwrap_or(u32::MAX), ..Self::default() }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_of_a_test_program_is_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; \
                    4 filtered out; finished in 0.00s";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 3, failed: 1, skipped: 2 }));
        assert_eq!(Tally::of_line("test tests::one ... ok"), None);
        assert_eq!(Tally::of_line("test result: unknown"), None);
    }

    #[test]
    fn listed_tests_are_counted_and_benches_are_not() {
        let list = "tests::one: test\ntests::two: test\nfast: benchmark\n";
        assert_eq!(Tally::skipping(list), Tally { skipped: 2, ..Tally::default() });
    }

    #[test]
    fn sums_print_in_the_form_that_is_read_by_machines() {
        let mut sum = Tally::PASS;
        sum += Tally { passed: 11, failed: 0, skipped: 2 };
        assert_eq!(sum.to_string(), "12 passed, 0 failed, 2 skipped");
        assert_eq!(Tally::of_sum(&sum.to_string()), Some(sum));
        assert_eq!(Tally::of_sum("-- unit: 12 passed, 0 failed, 2 skipped (3 s)"), None);
    }
}
