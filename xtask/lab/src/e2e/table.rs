//! What came of the tests, with one proxy beside another: a page in docs/.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    list::List,
    report::{Outcome, Outcomes, State, tally},
};

/// One proxy's outcomes.
pub(crate) struct Column {
    /// Of the proxy: `socklb`, `kube-proxy (nftables)`.
    pub(crate) name: String,
    /// When it was, and with what versions.
    pub(crate) about: Vec<String>,
    pub(crate) outcomes: Outcomes,
}

/// The page.
pub(crate) fn page(columns: &[Column], list: &List) -> String {
    let mut page = String::from(
        "# Kubernetes' own tests, with socklb and with kube-proxy\n\n\
         The tests of `[sig-network]` in Kubernetes' e2e.test, in the same cluster (`cargo xtask \
         cluster`) with one proxy and with the other, by `cargo xtask e2e --record`. This page is \
         generated from the files beside it.\n\n\
         The tests run on a machine outside of the cluster, in another network, without an agent and \
         without a pod. What they dial from there are the addresses of load balancers (`LoadBalancers` \
         below); all else, NodePorts too, they dial from pods. `cargo xtask cluster test outside` \
         dials NodePorts from outside. The load balancer is the testbed's: it gives a Service an \
         address of each of its families, and routes the address to all nodes that pass the health \
         check, or to one of them if the Service has session affinity. Those of before 2026-11-30 ran \
         on the control plane's machine, and socklb left packets alone (`--packets off`).\n",
    );
    for column in columns {
        let mut outcomes = column.outcomes.clone();
        outcomes.retain(|name, _| list.must_pass.contains(name));
        let _ = writeln!(page, "\n**{}**: {}.", column.name, tally(&outcomes));
        page.push('\n');
        for line in &column.about {
            let _ = writeln!(page, "- {line}");
        }
    }
    let _ = write!(page, "\n## Test by test\n\nSeconds; several tests run at a time.\n\n| test |");
    for column in columns {
        let _ = write!(page, " {} |", column.name);
    }
    let _ = write!(page, "\n|---|{}\n", "---|".repeat(columns.len()));
    for name in &list.must_pass {
        let short = name.strip_prefix("[sig-network] ").unwrap_or(name).replace('|', "\\|");
        let _ = write!(page, "| {short} |");
        for column in columns {
            let _ = write!(page, " {} |", cell(column.outcomes.get(name)));
        }
        page.push('\n');
    }
    let _ = write!(page, "\n## Left out\n\n| tests | why |\n|---|---|\n");
    let mut reasons = BTreeMap::<&str, usize>::new();
    for reason in list.left_out.values() {
        *reasons.entry(reason).or_default() += 1;
    }
    for (reason, count) in reasons {
        let _ = writeln!(page, "| {count} | {reason} |");
    }
    page.push_str("\nTheir names are in xtask/lab/src/e2e/tests.txt.\n");
    page
}

fn cell(outcome: Option<&Outcome>) -> String {
    let Some(Outcome { state, seconds, reason }) = outcome else { return "not run".to_owned() };
    match (state, reason.as_str()) {
        (State::Passed, "") => format!("{seconds:.0}"),
        (state, reason) => {
            let reason = reason.replace('|', "\\|");
            format!("{}: {}", state.word(), reason.chars().take(120).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_row_for_each_test() {
        let list = List {
            must_pass: ["[sig-network] a".to_owned(), "[sig-network] b|c".to_owned()].into(),
            left_out: [("[sig-network] d".to_owned(), "no SCTP".to_owned())].into(),
        };
        let outcome = |state, reason: &str| Outcome { state, seconds: 2.4, reason: reason.into() };
        let columns = [Column {
            name: "socklb".to_owned(),
            about: vec!["2026-11-21".to_owned()],
            outcomes: [
                ("[sig-network] a".to_owned(), outcome(State::Passed, "")),
                ("[sig-network] b|c".to_owned(), outcome(State::Failed, "no answer")),
            ]
            .into(),
        }];
        let page = page(&columns, &list);
        for line in [
            "**socklb**: 1 passed, 1 failed, 0 skipped.",
            "| a | 2 |",
            "| b\\|c | FAILED: no answer |",
            "| 1 | no SCTP |",
        ] {
            assert!(page.lines().any(|at| at == line), "{line}\n{page}");
        }
    }
}
