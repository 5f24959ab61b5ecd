//! `e2e`: Kubernetes' own tests of its network as judge, in the cluster that is up.

mod list;
mod report;
mod table;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use tools::{
    cache::{Scratch, cache},
    cargo::workspace,
    exec::{ask, myself, show},
    root::{as_root, require_root},
};

use self::{
    list::List,
    report::{Outcomes, State},
    table::Column,
};
use crate::kube;

/// Run Kubernetes' own tests of its network in the cluster that is up.
///
/// Those of e2e.test's [sig-network] that xtask/lab/src/e2e/tests.txt says must pass. Some need two nodes
/// in each of three zones: `cargo xtask cluster up --nodes 6 --zones`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the tests whose full names match this regular expression of Go.
    #[arg(long, value_name = "RE")]
    focus: Option<String>,
    /// How many tests run at a time; those that have to be alone are.
    #[arg(long, value_name = "N", default_value_t = 4)]
    procs: u32,
    /// Keep what came of it in docs/e2e, beside what came of it with other proxies.
    /// With --focus, in the place of what was kept of the same tests.
    #[arg(long)]
    record: bool,
}

/// The suite's own words for tests that change what others rely on.
const ALONE: [&str; 2] = ["[Serial]", "[Disruptive]"];
/// What the suite is told of the cluster.
const CLUSTER: &[&str] = &[
    "--provider=local",
    "--allowed-not-ready-nodes=-1",
    "--non-blocking-taints=",
    "--minStartupPods=0",
    "--disable-log-dump",
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let list = List::own()?;
    let suite = Suite { programs: kube::e2e()?, scratch: Scratch::new(&cache()?)? };
    list.check(&suite.names(None)?)?;
    let mut chosen = suite.names(args.focus.as_deref())?;
    chosen.retain(|name| list.must_pass.contains(name));
    ensure!(!chosen.is_empty(), "no test that must pass has a name that matches --focus");
    require_root()?;
    let about = about()?;
    let start = Instant::now();
    let (alone, together): (BTreeSet<_>, BTreeSet<_>) =
        chosen.iter().cloned().partition(|name| ALONE.iter().any(|word| name.contains(word)));
    let nodes = word_after(&about, "--nodes").context("the cluster tells no number of nodes")?;
    let mut outcomes = suite.judge(&together, nodes, args.procs)?;
    outcomes.extend(suite.judge(&alone, nodes, 1)?);
    let silent: Vec<_> = chosen.iter().filter(|name| !outcomes.contains_key(*name)).collect();
    ensure!(silent.is_empty(), "nothing is known of {} tests, such as {}", silent.len(), silent[0]);
    for (name, outcome) in outcomes.iter().filter(|(_, outcome)| outcome.state != State::Passed) {
        println!("test {name} ... {}: {}", outcome.state.word(), outcome.reason);
    }
    if args.record {
        let focus = args.focus.as_deref();
        record(&list, &outcomes, &about, focus, start.elapsed().as_secs())?;
    }
    let tally = report::tally(&outcomes);
    println!("\n{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Suite {
    programs: PathBuf,
    scratch: Scratch,
}

impl Suite {
    /// The names of all tests of the network, or of those that match.
    fn names(&self, focus: Option<&str>) -> Result<BTreeSet<String>> {
        let file = self.scratch.0.join("names.json");
        let mut list = Command::new(self.programs.join("e2e.test"));
        list.args(["--ginkgo.dry-run", "--ginkgo.silence-skips", "--provider=local"]);
        // A test must match all of the filters.
        list.args(["--ginkgo.label-filter=sig-network", "--ginkgo.focus"]);
        list.arg(focus.unwrap_or(r"\[sig-network\]"));
        list.arg("--ginkgo.json-report").arg(&file);
        if ask(&mut list).is_none() {
            bail!("e2e.test does not list its tests: `{}`", show(&list));
        }
        let outcomes = report::outcomes(&fs::read_to_string(file)?)?;
        Ok(outcomes.into_keys().filter(|name| name.starts_with("[sig-network] ")).collect())
    }

    /// Runs these tests, so many at a time.
    fn judge(&self, tests: &BTreeSet<String>, nodes: &str, procs: u32) -> Result<Outcomes> {
        if tests.is_empty() {
            return Ok(Outcomes::new());
        }
        let names: Vec<_> = tests.iter().map(|name| literally(name)).collect();
        let report = format!("report-{procs}.json");
        let mut ginkgo = Command::new(myself()?);
        ginkgo.args(["cluster", "outside"]).arg(self.programs.join("ginkgo"));
        ginkgo.args(["--no-color", "--silence-skips", "--timeout=3h"]);
        ginkgo.arg(format!("--procs={procs}"));
        // Without a directory for them, ginkgo makes some beside the suite, in the user's cache.
        ginkgo.arg("--output-dir").arg(&self.scratch.0).arg("--json-report").arg(&report);
        // The suite's own name comes first in what is matched.
        ginkgo.arg(format!("--focus=({})$", names.join("|")));
        ginkgo.arg(self.programs.join("e2e.test")).arg("--").args(CLUSTER);
        // It does not count them.
        ginkgo.arg(format!("--num-nodes={nodes}"));
        eprintln!("{} tests, {procs} at a time", tests.len());
        let mut ginkgo = as_root(ginkgo);
        // Root's files are to be readable, and ginkgo's beside the report.
        let status = ginkgo.current_dir(&self.scratch.0).status().context("cannot start ginkgo")?;
        let report = fs::read_to_string(self.scratch.0.join(report))
            .with_context(|| format!("the tests ended ({status}) without a report"))?;
        report::outcomes(&report)
    }
}

/// A regular expression of Go that matches this and nothing else.
fn literally(text: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// What cluster it is, in the words of `cluster up`.
fn about() -> Result<String> {
    let mut shape = Command::new(myself()?);
    shape.args(["cluster", "shape"]);
    let shape = as_root(shape);
    let output = { shape }.output().context("cannot ask for the cluster")?;
    ensure!(
        output.status.success(),
        "{}: `cargo xtask cluster up --nodes 6 --zones`",
        String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ")
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The word that follows another one.
fn word_after<'a>(words: &'a str, word: &str) -> Option<&'a str> {
    words.split_whitespace().skip_while(|at| *at != word).nth(1)
}

/// Keeps what came of it, and writes the page anew.
fn record(
    list: &List,
    outcomes: &Outcomes,
    about: &str,
    focus: Option<&str>,
    seconds: u64,
) -> Result<()> {
    let directory = workspace().join("docs/e2e");
    fs::create_dir_all(&directory)?;
    let name = word_after(about, "--proxy").unwrap_or("none").replace(':', "-");
    let file = directory.join(format!("{name}.tsv"));
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short=10", "HEAD"]).current_dir(workspace());
    let said = |command: &mut Command| {
        ask(command).map_or_else(|| "unknown".to_owned(), |said| said.trim().to_owned())
    };
    let commit = said(&mut git);
    let date = said(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let kernel = said(Command::new("uname").arg("-r"));
    let mut head = format!(
        "# {date}, Kubernetes {}, Linux {kernel}, socklb at {commit}: `cluster up {about}`, {} \
         tests in {seconds} s\n",
        kube::VERSION,
        outcomes.len()
    );
    let mut all = outcomes.clone();
    if let Some(focus) = focus {
        let kept = fs::read_to_string(&file).with_context(|| {
            format!("{} is to be made by a run without --focus", file.display())
        })?;
        let before: String =
            kept.lines().take_while(|line| line.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
        head = format!("{before}{}, `--focus '{focus}'`\n", head.trim_end());
        all = report::from_text(&kept)?;
        all.extend(outcomes.clone());
    }
    fs::write(&file, head + &report::to_text(&all))?;
    let page = table::page(&columns(&directory)?, list);
    fs::write(directory.join("README.md"), page)?;
    println!("Written: docs/e2e/{name}.tsv, docs/e2e/README.md");
    Ok(())
}

/// What is kept, socklb first.
fn columns(directory: &Path) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".tsv"))
        else {
            continue;
        };
        let text = fs::read_to_string(&path)?;
        let outcomes =
            report::from_text(&text).with_context(|| format!("in {}", path.display()))?;
        let about = text.lines().map_while(|line| line.strip_prefix("# "));
        let about = about.map(ToOwned::to_owned).collect();
        columns.push(Column { name: name.to_owned(), about, outcomes });
    }
    columns.sort_by_key(|column| (column.name != "socklb", column.name.clone()));
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_made_of_the_records() {
        let directory = workspace().join("docs/e2e");
        let made = table::page(&columns(&directory).unwrap(), &List::own().unwrap());
        let page = directory.join("README.md");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&page, &made).unwrap();
        }
        assert_eq!(fs::read_to_string(page).unwrap(), made, "UPDATE=1 writes it");
    }

    #[test]
    fn a_name_matches_itself() {
        assert_eq!(literally("[a] (b|c): d.e"), r"\[a\] \(b\|c\): d\.e");
    }
}
