//! What the programs of an image are made of: a list of the crates in CycloneDX
//! (<https://cyclonedx.org/docs/1.5/json/>), where scanners look for it, and the licences of all,
//! which ask to be handed on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tools::{cargo::cargo, exec::ask, pins};

/// A crate that is linked into a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// An SPDX expression.
    licence: Option<String>,
    directory: PathBuf,
}

/// What cargo knows about the work tree, for a target.
pub(super) fn metadata(target: &str) -> Result<Value> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--format-version=1", "--locked", "--filter-platform", target]);
    let answer = ask(&mut metadata).context("`cargo metadata --locked` fails")?;
    Ok(serde_json::from_str(&answer)?)
}

/// All that is linked into the packages `roots` and `roots` themselves, sorted. What only builds
/// them is left out, and so are procedural macros.
pub(super) fn crates(metadata: &Value, roots: &[&str]) -> Result<Vec<Crate>> {
    let list = |pointer| metadata.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let by_id = |list: &mut dyn Iterator<Item = &'_ Value>| -> BTreeMap<String, Value> {
        list.filter_map(|it| Some((it.get("id")?.as_str()?.to_owned(), it.clone()))).collect()
    };
    let packages = by_id(&mut list("/packages"));
    let nodes = by_id(&mut list("/resolve/nodes"));
    let members: BTreeSet<_> = list("/workspace_members").filter_map(Value::as_str).collect();
    let is_root = |id: &&str| {
        members.contains(id) && packages[*id]["name"].as_str().is_some_and(|it| roots.contains(&it))
    };
    let mut open: Vec<&str> = packages.keys().map(String::as_str).filter(is_root).collect();
    let mut seen = BTreeSet::new();
    let mut crates = BTreeSet::new();
    while let Some(id) = open.pop() {
        let package = packages.get(id).with_context(|| format!("cargo does not describe {id}"))?;
        if is_macro(package) || !seen.insert(id) {
            continue;
        }
        crates.insert(described(package).with_context(|| format!("cargo's answer about {id}"))?);
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        let linked = dependencies.into_iter().flatten().filter(|it| is_linked(it));
        open.extend(linked.filter_map(|dependency| dependency["pkg"].as_str()));
    }
    Ok(crates.into_iter().collect())
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    let mut kinds = targets.filter_map(|target| target["kind"].as_array()).flatten();
    kinds.any(|kind| kind == "proc-macro")
}

/// Is it a dependency of the thing itself, not of its tests or its build?
fn is_linked(dependency: &Value) -> bool {
    let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
    kinds.any(|kind| kind["kind"].is_null())
}

fn described(package: &Value) -> Option<Crate> {
    Some(Crate {
        name: package["name"].as_str()?.to_owned(),
        version: package["version"].as_str()?.to_owned(),
        // Before SPDX, a slash was an OR.
        licence: package["license"]
            .as_str()
            .map(|it| it.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")),
        directory: Path::new(package["manifest_path"].as_str()?).parent()?.to_owned(),
    })
}

/// The list in CycloneDX.
pub(super) fn cyclonedx(name: &str, version: &str, crates: &[Crate]) -> String {
    let component = |it: &Crate| {
        let purl = format!("pkg:cargo/{}@{}", it.name, it.version);
        let mut component = json!({
            "type": "library",
            "bom-ref": purl,
            "name": it.name,
            "version": it.version,
            "purl": purl,
        });
        if let Some(licence) = &it.licence {
            component["licenses"] = json!([{ "expression": licence }]);
        }
        component
    };
    let mut components: Vec<_> = crates.iter().map(component).collect();
    components.push(json!({
        "type": "library",
        "bom-ref": "std",
        "name": "rust-std",
        "version": pins::STABLE,
        "licenses": [{ "expression": "MIT OR Apache-2.0" }],
    }));
    let list = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": { "type": "application", "name": name, "version": version },
        },
        "components": components,
    });
    format!("{list:#}\n")
}

/// The licences of all, each text once, with the names of those who come under it.
pub(super) fn licences(crates: &[Crate]) -> Result<String> {
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for it in crates {
        let files = fs::read_dir(&it.directory)
            .with_context(|| format!("no sources of {} in {}", it.name, it.directory.display()))?;
        for file in files {
            let file = file?;
            if is_licence(&file.file_name().to_string_lossy()) && file.path().is_file() {
                let text = fs::read(file.path())?;
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                texts.entry(text).or_default().insert(format!("{} {}", it.name, it.version));
            }
        }
    }
    let line = "=".repeat(80);
    let section = |(text, names): (&String, &BTreeSet<String>)| {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        format!("{line}\n{}\n{line}\n\n{text}\n\n", names.join(", "))
    };
    Ok(texts.iter().map(section).collect())
}

fn is_licence(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"]
        .iter()
        .any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Crate> {
        let metadata = metadata("x86_64-unknown-linux-musl").unwrap();
        crates(&metadata, &["lb-agent"]).unwrap()
    }

    #[test]
    fn what_is_linked_is_listed_and_what_builds_is_not() {
        let crates = all();
        let has = |name: &str| crates.iter().any(|it| it.name == name);
        for linked in ["lb-agent", "lb-common", "aya", "kube", "ring", "tokio"] {
            assert!(has(linked), "{linked}");
        }
        for absent in ["aya-build", "serde_derive", "proptest", "xtask", "sha2", "windows-sys"] {
            assert!(!has(absent), "{absent}");
        }
        assert!(crates.is_sorted());
    }

    #[test]
    fn the_list_names_version_licence_and_origin() {
        let one = Crate {
            name: "what".to_owned(),
            version: "1.2.3".to_owned(),
            licence: Some("MIT".to_owned()),
            directory: PathBuf::new(),
        };
        let list: Value = serde_json::from_str(&cyclonedx("socklb", "0.1.0", &[one])).unwrap();
        let component = &list["components"][0];
        assert_eq!(component["purl"], "pkg:cargo/what@1.2.3");
        assert_eq!(component["licenses"][0]["expression"], "MIT");
        assert_eq!(list["metadata"]["component"]["version"], "0.1.0");
    }

    #[test]
    fn an_old_licence_becomes_an_expression() {
        let package = json!({
            "name": "a", "version": "1", "license": "MIT/Apache-2.0", "manifest_path": "/a/Cargo.toml",
        });
        let described = described(&package).unwrap();
        assert_eq!(described.licence.as_deref(), Some("MIT OR Apache-2.0"));
        assert!(is_licence("License-MIT.txt") && is_licence("COPYING") && !is_licence("lib.rs"));
    }

    #[test]
    fn most_crates_carry_their_licence() {
        let crates = all();
        let texts = licences(&crates).unwrap();
        let named =
            crates.iter().filter(|it| texts.contains(&format!("{} {}", it.name, it.version)));
        assert!(named.count() * 10 > crates.len() * 9);
    }
}
