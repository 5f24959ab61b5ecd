//! `structure`: which crate may know which, and that no module needs one that needs it.

mod modules;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tools::{
    cargo::{cargo, workspace},
    exec::answer,
};

use self::modules::circles;

/// Say where the crates and modules of the workspace are not as ARCHITECTURE.md draws them.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The crates of the workspace, and those of them that each may know. Tests may know more.
const CRATES: &[(&str, &[&str])] = &[
    ("lb-common", &[]),
    ("lb-ebpf", &["lb-common"]),
    ("lb-core", &["lb-common"]),
    ("lb-agent", &["lb-common", "lb-core"]),
    ("tools", &[]),
    ("xtask", &["tools"]),
    ("lab", &["tools"]),
];

/// All that `lb-core` may have below it besides: without these nothing reaches the machine.
const CORE: &[&str] = &["bytemuck", "serde", "thiserror"];

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let packages = packages()?;
    let mut wrong = unlike_the_drawing(&packages);
    for package in &packages {
        let found = circles(&package.sources)
            .with_context(|| format!("cannot read the sources of {}", package.name))?;
        wrong.extend(found.into_iter().map(|circle| format!("{}: {circle}", package.name)));
    }
    for line in &wrong {
        println!("{line}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A crate of the workspace.
struct Package {
    name: String,
    /// What its own code may use: not what only tests or build scripts do.
    uses: BTreeSet<String>,
    sources: Box<Path>,
}

fn packages() -> Result<Vec<Package>> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(workspace());
    let metadata: Value =
        serde_json::from_str(&answer(&mut metadata)?).context("cargo metadata is no JSON")?;
    let all = metadata["packages"].as_array().context("cargo names no packages")?;
    all.iter().map(|it| package(it).context("cargo tells too little of a package")).collect()
}

fn package(of: &Value) -> Option<Package> {
    let dependencies = of["dependencies"].as_array()?.iter();
    let uses = dependencies.filter(|it| it["kind"].is_null());
    Some(Package {
        name: of["name"].as_str()?.to_owned(),
        uses: uses.filter_map(|it| Some(it["name"].as_str()?.to_owned())).collect(),
        sources: Path::new(of["manifest_path"].as_str()?).with_file_name("src").into(),
    })
}

fn unlike_the_drawing(packages: &[Package]) -> Vec<String> {
    let drawn: BTreeMap<&str, &[&str]> = CRATES.iter().copied().collect();
    let mut wrong = Vec::new();
    for Package { name, uses, .. } in packages {
        let Some(may) = drawn.get(name.as_str()) else {
            wrong.push(format!("{name}: a crate that the drawing lacks"));
            continue;
        };
        let others = uses.iter().filter(|other| drawn.contains_key(other.as_str()));
        let too_much = others.filter(|other| !may.contains(&other.as_str()));
        wrong.extend(too_much.map(|other| format!("{name} may not know {other}")));
        if name == "lb-core" {
            let others = uses.iter().filter(|other| {
                !CORE.contains(&other.as_str()) && !drawn.contains_key(other.as_str())
            });
            wrong.extend(others.map(|other| format!("{name} may not know {other}")));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_knows_too_much_is_named() {
        let package = |name: &str, uses: &[&str]| Package {
            name: name.to_owned(),
            uses: uses.iter().map(|it| (*it).to_owned()).collect(),
            sources: Path::new("src").into(),
        };
        let wrong = unlike_the_drawing(&[
            package("lb-core", &["lb-common", "serde", "tokio"]),
            package("lb-common", &["lb-core", "bytemuck"]),
            package("lb-agent", &["lb-core", "aya"]),
            package("other", &[]),
        ]);
        assert_eq!(
            wrong,
            [
                "lb-core may not know tokio",
                "lb-common may not know lb-core",
                "other: a crate that the drawing lacks"
            ]
        );
    }
}
