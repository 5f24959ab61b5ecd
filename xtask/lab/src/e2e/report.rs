//! What came of the tests: read from ginkgo's report, kept as a file of one line for each test.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::test::Tally;

/// What came of a test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) state: State,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Why it failed, or why it found that it cannot be run here; one line.
    pub(crate) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Passed,
    Failed,
    Skipped,
}

/// By the test's full name.
pub(crate) type Outcomes = BTreeMap<String, Outcome>;

/// The tests of `report` that were chosen, as `--json-report` writes it.
pub(crate) fn outcomes(report: &str) -> Result<Outcomes> {
    let report: Value = serde_json::from_str(report).context("ginkgo's report is not JSON")?;
    let suites = report.as_array().context("ginkgo's report is not a list of suites")?;
    let specs = suites.iter().filter_map(|suite| suite.get("SpecReports")?.as_array()).flatten();
    let it = specs.filter(|spec| spec.get("LeafNodeType").is_some_and(|kind| kind == "It"));
    Ok(it.filter_map(|spec| Some((name(spec)?, outcome(spec)?))).collect())
}

fn name(spec: &Value) -> Option<String> {
    let mut words: Vec<_> = spec.get("ContainerHierarchyTexts")?.as_array()?.iter().collect();
    words.push(spec.get("LeafNodeText")?);
    let words: Option<Vec<_>> = words.into_iter().map(Value::as_str).collect();
    Some(words?.join(" "))
}

/// `None` for a test that was not chosen. One that looked around and gave up says why.
fn outcome(spec: &Value) -> Option<Outcome> {
    let message = spec.pointer("/Failure/Message").and_then(Value::as_str).unwrap_or("");
    let state = match spec.get("State")?.as_str()? {
        "passed" => State::Passed,
        "skipped" | "pending" if message.is_empty() => return None,
        "skipped" | "pending" => State::Skipped,
        _ => State::Failed,
    };
    let reason = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    let attempts = spec.get("NumAttempts").and_then(Value::as_u64).unwrap_or(1);
    let reason = match state {
        State::Passed if attempts > 1 => format!("attempt {attempts}"),
        State::Passed => String::new(),
        State::Failed | State::Skipped => reason.replace('\t', " "),
    };
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of minutes")]
    let seconds = spec.get("RunTime").and_then(Value::as_u64).unwrap_or(0) as f64 / 1e9;
    Some(Outcome { state, seconds, reason })
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        [Self::Passed, Self::Failed, Self::Skipped].into_iter().find(|state| state.word() == word)
    }
}

/// How many did what.
pub(crate) fn tally(outcomes: &Outcomes) -> Tally {
    let count = |state| {
        let count = outcomes.values().filter(|outcome| outcome.state == state).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let [passed, failed, skipped] = [State::Passed, State::Failed, State::Skipped].map(count);
    Tally { passed, failed, skipped }
}

/// One line for each test: state, seconds, name, reason, between tabs.
pub(crate) fn to_text(outcomes: &Outcomes) -> String {
    let mut text = String::new();
    for (name, Outcome { state, seconds, reason }) in outcomes {
        let _ = writeln!(text, "{}\t{seconds:.1}\t{name}\t{reason}", state.word());
    }
    text
}

/// What [`to_text`] wrote; lines that begin with `#` are comments.
pub(crate) fn from_text(text: &str) -> Result<Outcomes> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let outcome = |line: &str| {
        let fields: Vec<_> = line.split('\t').collect();
        let [state, seconds, name, reason] = fields[..] else { return None };
        let state = State::of_word(state)?;
        let outcome = Outcome { state, seconds: seconds.parse().ok()?, reason: reason.to_owned() };
        Some((name.to_owned(), outcome))
    };
    lines.map(|line| outcome(line).with_context(|| format!("not an outcome: {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SpecReports":[
        {"LeafNodeType":"BeforeSuite","LeafNodeText":"","State":"passed"},
        {"ContainerHierarchyTexts":["[sig-network] Services","with a port"],"LeafNodeType":"It",
         "LeafNodeText":"should serve","State":"passed","RunTime":1500000000,"NumAttempts":2},
        {"ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeType":"It",
         "LeafNodeText":"should fail","State":"failed","RunTime":1,"Failure":{"Message":"\n a\tb\nc"}},
        {"ContainerHierarchyTexts":["[sig-network] DNS"],"LeafNodeType":"It",
         "LeafNodeText":"needs more","State":"skipped","Failure":{"Message":"needs 3 zones"}},
        {"ContainerHierarchyTexts":["[sig-node] Pods"],"LeafNodeType":"It",
         "LeafNodeText":"not chosen","State":"skipped"}]}]"#;

    #[test]
    fn what_was_not_chosen_is_no_outcome() {
        let outcomes = outcomes(REPORT).unwrap();
        let got: Vec<_> = outcomes
            .iter()
            .map(|(name, outcome)| (name.as_str(), outcome.state, outcome.reason.as_str()))
            .collect();
        assert_eq!(
            got,
            [
                ("[sig-network] DNS needs more", State::Skipped, "needs 3 zones"),
                ("[sig-network] Services should fail", State::Failed, "a b"),
                ("[sig-network] Services with a port should serve", State::Passed, "attempt 2"),
            ]
        );
    }

    #[test]
    fn a_report_survives_its_file() {
        let outcomes = outcomes(REPORT).unwrap();
        let mut text = to_text(&outcomes);
        text.insert_str(0, "# when, and with what\n\n");
        let again = from_text(&text).unwrap();
        assert_eq!(to_text(&again), to_text(&outcomes));
        assert!(from_text("passed\tx\n").is_err());
    }
}
