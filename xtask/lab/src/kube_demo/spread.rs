//! Who answered how often.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, Result};

/// What came of some requests.
#[derive(Debug, Default)]
pub(super) struct Spread {
    answers: BTreeMap<String, usize>,
    failures: BTreeMap<Failure, usize>,
    total: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    /// By curl's exit code.
    Curl(u8),
    /// By the HTTP status.
    Status(u16),
}

impl Spread {
    /// Of lines such as `web-7f-x 200 0` or ` 000 7`.
    pub(super) fn of(lines: &str) -> Result<Self> {
        let mut spread = Self::default();
        for line in lines.lines() {
            let outcome =
                outcome(line).with_context(|| format!("no outcome of a request: {line:?}"))?;
            spread.total += 1;
            match outcome {
                Ok(name) => *spread.answers.entry(name.to_owned()).or_default() += 1,
                Err(failure) => *spread.failures.entry(failure).or_default() += 1,
            }
        }
        Ok(spread)
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn answered(&self, name: &str) -> bool {
        self.answers.contains_key(name)
    }

    /// All of these answered, nobody else did, and no request failed; or what is not so.
    pub(super) fn is_over(&self, names: &BTreeSet<String>) -> Result<(), String> {
        self.all_answered()?;
        if let Some(other) = self.answers.keys().find(|name| !names.contains(*name)) {
            return Err(format!("{other} answered, which is no backend"));
        }
        match names.iter().find(|name| !self.answered(name)) {
            Some(silent) => Err(format!("{silent} never answered, in {} requests", self.total)),
            None => Ok(()),
        }
    }

    /// No request failed; or what is not so.
    pub(super) fn all_answered(&self) -> Result<(), String> {
        match self.failures.first_key_value() {
            Some((failure, count)) => Err(format!("{count} of {} requests: {failure}", self.total)),
            None if self.total == 0 => Err("no request was made".to_owned()),
            None => Ok(()),
        }
    }

    /// Every request failed with this exit code of curl; or what is not so.
    pub(super) fn is_failure(&self, code: u8) -> Result<(), String> {
        if let Some((name, count)) = self.answers.first_key_value() {
            return Err(format!("{name} answered {count} of {} requests", self.total));
        }
        match self.failures.keys().find(|failure| **failure != Failure::Curl(code)) {
            Some(other) => Err(format!("{other}, and not: {}", Failure::Curl(code))),
            None if self.total == 0 => Err("no request was made".to_owned()),
            None => Ok(()),
        }
    }
}

fn outcome(line: &str) -> Option<Result<&str, Failure>> {
    let mut words = line.rsplitn(3, ' ');
    let code = words.next()?.parse().ok()?;
    let status = words.next()?.parse().ok()?;
    let name = words.next()?;
    Some(match (code, status) {
        (0, 200) => Ok(name),
        (0, status) => Err(Failure::Status(status)),
        (code, _) => Err(Failure::Curl(code)),
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Curl(6) => write!(f, "the name was not resolved (curl: 6)"),
            Self::Curl(7) => write!(f, "connection refused, or no way there (curl: 7)"),
            Self::Curl(28) => write!(f, "no answer in time (curl: 28)"),
            Self::Curl(code) => write!(f, "curl: {code}"),
            Self::Status(status) => write!(f, "HTTP status {status}"),
        }
    }
}

/// A bar for everybody who answered would be this long if one alone did.
const BAR: usize = 50;

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.answers {
            writeln!(f, "     {name:24} {count:5}  {}", "#".repeat(count * BAR / self.total))?;
        }
        for (failure, count) in &self.failures {
            writeln!(f, "     {:24} {count:5}  {failure}", "nobody")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn wrong(lines: &str, of: &[&str]) -> String {
        Spread::of(lines).unwrap().is_over(&names(of)).unwrap_err()
    }

    #[test]
    fn all_of_them_and_nobody_else() {
        let spread = Spread::of("web-a 200 0\nweb-b 200 0\nweb-a 200 0\n").unwrap();
        assert_eq!(spread.is_over(&names(&["web-a", "web-b"])), Ok(()));
        assert_eq!(
            wrong("web-a 200 0\n", &["web-a", "web-b"]),
            "web-b never answered, in 1 requests"
        );
        assert_eq!(wrong("web-a 200 0\n", &[]), "web-a answered, which is no backend");
        assert!(
            wrong("web-a 200 0\n 000 7\n", &["web-a"])
                .starts_with("1 of 2 requests: connection refused")
        );
        assert_eq!(wrong("gone 503 0\n", &[]), "1 of 1 requests: HTTP status 503");
        assert!(wrong("", &[]).contains("no request"));
        assert!(Spread::of("web-a\n").is_err());
    }

    #[test]
    fn refused_is_not_silence() {
        let failure = |lines| Spread::of(lines).unwrap().is_failure(7);
        assert_eq!(failure(" 000 7\n 000 7\n"), Ok(()));
        assert!(failure(" 000 7\n 000 28\n").unwrap_err().starts_with("no answer in time"));
        assert!(failure("web-a 200 0\n 000 7\n").unwrap_err().starts_with("web-a answered 1 of 2"));
        assert!(failure("").is_err());
    }

    #[test]
    fn the_table() {
        let table = Spread::of("web-a 200 0\n 000 28\n").unwrap().to_string();
        let lines: Vec<_> = table.lines().map(str::trim).collect();
        assert_eq!(lines[0], format!("{:24} {:5}  {}", "web-a", 1, "#".repeat(25)));
        assert_eq!(lines[1], format!("{:24} {:5}  no answer in time (curl: 28)", "nobody", 1));
    }
}
