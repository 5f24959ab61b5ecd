//! What is kept of a kernel that was tried, as a file of one line for each fact, and the page that is
//! made of all such files.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tools::cargo::workspace;

use super::{
    console::{Fate, Heard, Program, Test},
    list::{self, Line},
    seconds,
};

/// What stands on the page beside the tables.
const WORDS: &str = include_str!("page.md");
const TABLE: &str = "<!-- table -->\n";
const TESTS: &str = "<!-- tests -->\n";

/// What is known of one kernel.
#[derive(Debug)]
struct Column {
    /// When, what and how.
    about: String,
    programs: Vec<Program>,
    tests: Vec<Test>,
}

fn directory() -> PathBuf {
    workspace().join("docs/kernels")
}

/// Keeps what was heard of a kernel, and writes the page anew. `name` is the same for the next kernel
/// of this series.
pub(super) fn record(name: &str, about: &str, heard: &Heard) -> Result<()> {
    let directory = directory();
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("{name}.tsv")), to_text(about, heard))?;
    fs::write(workspace().join("docs/kernels.md"), page()?)?;
    println!("Written: docs/kernels/{name}.tsv, docs/kernels.md");
    Ok(())
}

fn to_text(about: &str, heard: &Heard) -> String {
    let mut text = format!("# {about}\n");
    for Program { name, verdict } in &heard.programs {
        let _ = match verdict {
            Ok(count) => writeln!(text, "loads\t{count}\t{name}"),
            Err(reason) => writeln!(text, "refused\t{}\t{name}", reason.replace('\t', " ")),
        };
    }
    for test in &heard.tests {
        let word = if test.fate == Fate::Passed { "passed" } else { "FAILED" };
        let _ = writeln!(text, "{word}\t{}\t{}", seconds(test), test.name);
    }
    text
}

fn column(kept: &str) -> Result<Column> {
    let about = kept.lines().next().and_then(|line| line.strip_prefix("# "));
    let about = about.context("the first line does not say what was tried")?.to_owned();
    let (mut programs, mut tests) = (Vec::new(), Vec::new());
    for line in kept.lines().skip(1) {
        let fields: Vec<_> = line.split('\t').collect();
        let [word, what, name] = fields[..] else {
            anyhow::bail!("not three fields: {line}");
        };
        let name = name.to_owned();
        let test = |fate| -> Result<Test> {
            let (whole, rest) = what.split_once('.').context("not seconds")?;
            let hundredths = whole.parse::<u64>()? * 100 + rest.parse::<u64>()? * 10;
            Ok(Test { name: name.clone(), fate, hundredths, said: Vec::new() })
        };
        match word {
            "loads" => programs.push(Program { verdict: Ok(what.parse()?), name }),
            "refused" => programs.push(Program { verdict: Err(what.to_owned()), name }),
            "passed" => tests.push(test(Fate::Passed)?),
            "FAILED" => tests.push(test(Fate::Failed)?),
            _ => anyhow::bail!("not a fact: {line}"),
        }
    }
    Ok(Column { about, programs, tests })
}

/// The page, from what is kept.
fn page() -> Result<String> {
    let mut files = Vec::new();
    let directory = directory();
    fs::create_dir_all(&directory)?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tsv") {
            files.push(path);
        }
    }
    files.sort_by_key(|path| order(path));
    let mut columns = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().replace('-', " ");
        let kept = column(&fs::read_to_string(&path)?)
            .with_context(|| format!("in {}", path.display()))?;
        columns.push((name, kept));
    }
    Ok(make(&columns, &list::left_out()?))
}

/// By architecture, then by version: 6.1 before 6.12, and x86_64, which most nodes are, before others.
fn order(path: &Path) -> (bool, String, Vec<u64>) {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let (arch, version) = name.split_once('-').unwrap_or((&name, ""));
    let numbers = version.split('.').filter_map(|number| number.parse().ok()).collect();
    (arch != "x86_64", arch.to_owned(), numbers)
}

fn make(columns: &[(String, Column)], left_out: &[Line<'_>]) -> String {
    let mut table = String::new();
    for (_, column) in columns {
        let _ = writeln!(table, "- {}", column.about);
    }
    let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let _ = writeln!(table, "\n| program | {} |", names.join(" | "));
    let _ = writeln!(table, "|---|{}", "---|".repeat(columns.len()));
    let programs: BTreeSet<_> =
        columns.iter().flat_map(|(_, column)| &column.programs).map(|it| &it.name).collect();
    for name in programs {
        let cell = |(_, column): &(String, Column)| {
            let program = column.programs.iter().find(|program| &program.name == name);
            match program.map(|program| &program.verdict) {
                Some(Ok(count)) => grouped(*count),
                Some(Err(reason)) => format!("refused: {reason}"),
                None => String::new(),
            }
        };
        let cells: Vec<_> = columns.iter().map(cell).collect();
        let _ = writeln!(table, "| `{name}` | {} |", cells.join(" | "));
    }
    let passed = |column: &Column| {
        let passed = column.tests.iter().filter(|test| test.fate == Fate::Passed).count();
        format!("{passed} of {}", column.tests.len())
    };
    let cells: Vec<_> = columns.iter().map(|(_, column)| passed(column)).collect();
    let _ = writeln!(table, "| tests passed | {} |", cells.join(" | "));

    let mut tests = format!("| test | {} |\n", names.join(" | "));
    let _ = writeln!(tests, "|---|{}", "---|".repeat(columns.len()));
    let all: BTreeSet<_> =
        columns.iter().flat_map(|(_, column)| &column.tests).map(|test| &test.name).collect();
    for name in all {
        let cell = |(_, column): &(String, Column)| {
            let test = column.tests.iter().find(|test| &test.name == name);
            test.map_or_else(String::new, |test| match test.fate {
                Fate::Passed => seconds(test),
                _ => "FAILED".to_owned(),
            })
        };
        let cells: Vec<_> = columns.iter().map(cell).collect();
        let _ = writeln!(tests, "| {name} | {} |", cells.join(" | "));
    }
    tests.push_str("\nNever run there:\n\n");
    for Line { name, about } in left_out {
        let _ = writeln!(tests, "- {name}: {about}");
    }
    WORDS.replace(TABLE, &table).replace(TESTS, &tests)
}

/// `12,345`.
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_made_of_the_records() {
        let made = page().unwrap();
        let page = workspace().join("docs/kernels.md");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&page, &made).unwrap();
        }
        assert_eq!(fs::read_to_string(page).unwrap(), made, "UPDATE=1 writes it");
    }

    #[test]
    fn a_record_survives_its_file() {
        let mut heard = Heard::default();
        for line in [
            "@@ program connect4: 12345 instructions",
            "@@ program sendmsg4: refused: no calls",
            "@@ passed 250 kernel::a::b",
            "@@ late 12000 kernel::a::c",
        ] {
            heard.hear(line);
        }
        let text = to_text("2026-11-28, Linux 6.1", &heard);
        let kept = column(&text).unwrap();
        let page = make(&[("x86_64 6.1".to_owned(), kept)], &[]);
        for line in [
            "- 2026-11-28, Linux 6.1",
            "| `connect4` | 12,345 |",
            "| `sendmsg4` | refused: no calls |",
            "| tests passed | 1 of 2 |",
            "| kernel::a::b | 2.5 |",
            "| kernel::a::c | FAILED |",
        ] {
            assert!(page.lines().any(|it| it == line), "{line} is not in\n{page}");
        }
        column("# x\nloads\t1\n").unwrap_err();
    }

    #[test]
    fn kernels_are_in_the_order_of_their_versions() {
        let mut names = ["aarch64-6.1.tsv", "x86_64-6.12.tsv", "x86_64-6.1.tsv"].map(Path::new);
        names.sort_by_key(|path| order(path));
        assert_eq!(names, ["x86_64-6.1.tsv", "x86_64-6.12.tsv", "aarch64-6.1.tsv"].map(Path::new));
    }
}
