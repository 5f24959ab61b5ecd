//! What `docs/differs.md` says is pinned by tests, and the tests that it names are there. README.md
//! says of refusals what the code says.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this is all test code")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use lb_common::Refusal;

fn read(path: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Each section with its heading as the first line.
fn sections(page: &str) -> Vec<&str> {
    page.split("\n### ").skip(1).map(|text| text.split("\n## ").next().unwrap()).collect()
}

/// The tests that a text names: `path::test`, or `path` of a case.
fn tests(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains(".rs::") || name.starts_with("cases/")).collect()
}

/// As the heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn each_test_that_it_names_exists() {
    let page = read("../docs/differs.md");
    let named = tests(&page);
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let (file, test) = name.split_once("::").unwrap_or((name, ""));
        let source = read(&format!("tests/{file}"));
        let is_there = test.is_empty() || source.contains(&format!("#[test]\nfn {test}() {{"));
        assert!(is_there, "docs/differs.md names {name}, which is not there");
    }
}

#[test]
fn each_section_names_its_test_or_says_that_there_is_none() {
    let page = read("../docs/differs.md");
    for section in sections(&page) {
        let has_none = section.contains("*Not tried") || section.contains("*not tried*");
        let is_pinned = !tests(section).is_empty();
        let heading = section.lines().next().unwrap();
        assert!(is_pinned || has_none || section.contains("No test:"), "{heading}");
    }
}

#[test]
fn the_table_leads_to_the_sections() {
    let page = read("../docs/differs.md");
    let anchors: BTreeSet<_> =
        sections(&page).iter().map(|text| anchor(text.lines().next().unwrap())).collect();
    let links: BTreeSet<_> =
        page.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned()).collect();
    let broken: Vec<_> = links.difference(&anchors).collect();
    assert!(broken.is_empty() && !links.is_empty(), "{broken:?} of {anchors:?}");
}

/// README.md's table of refusals has the words of the programs and of `lbctl`.
#[test]
fn the_readme_has_each_refusal() {
    let row = |refusal: Refusal| {
        let (errno, counter) = (refusal.errno().name(), refusal.counter().name());
        format!("| {errno} | {} | `{counter}` |\n", refusal.text())
    };
    let rows: String = Refusal::ALL.map(row).concat();
    let table = format!("| error | why | counter |\n|---|---|---|\n{rows}\n");
    assert!(read("../README.md").contains(&table), "README.md lacks this table:\n\n{table}");
}
