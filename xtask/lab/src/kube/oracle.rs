//! The program of `xtask/oracle/`: what kube-proxy's own code says of a list of objects.
//!
//! What makes a proxier there starts programs of the machine, and keeps what it makes to itself. So
//! the package is compiled from a copy of kube-proxy's own sources, of the one version, beside a file
//! of ours that takes the place of one of theirs.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tools::{
    cache::{Scratch, cache},
    cargo::workspace,
    exec::exec,
};

use super::{
    go,
    kubernetes::{self, VERSION, go_mod},
};

/// kube-proxy's package, in the tree of Kubernetes and, below its last name, in ours.
const PACKAGE: &str = "pkg/proxy/nftables";
/// Its file that ours stands in for.
const REPLACED: &str = "supported.go";

/// The program, built from what `xtask/oracle/` holds now. Quick when that was built before.
pub(crate) fn oracle() -> Result<PathBuf> {
    let sources = sources()?;
    let cache = cache()?;
    let directory = cache.join(format!("kubernetes-{VERSION}"));
    let name = name(&sources);
    let program = directory.join(&name);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let go = go::toolchain(&cache)?;
    eprintln!(
        "Building the oracle with kube-proxy {VERSION} from source into {}, once. The first time \
         this takes some minutes and 1 GB of download and build cache.",
        directory.display()
    );
    let scratch = Scratch::new(&directory)?;
    let module = scratch.0.join("module");
    let package = module.join(name_of(Path::new(PACKAGE)));
    fs::create_dir_all(&package)?;
    fs::write(module.join("go.mod"), go_mod())?;
    copy(&kubernetes::sources(&go)?.join(PACKAGE), &package)?;
    for (file, text) in &sources {
        fs::write(module.join(file), text)?;
    }
    let mut build = go.command();
    build.current_dir(&module).env("CGO_ENABLED", "0");
    build.args(["build", "-mod=mod", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w"]);
    exec(build.arg("-o").arg(scratch.0.join(&name)).arg("."))
        .context("cannot build the oracle; SOCKLB_ORACLE=FILE names one that is built")?;
    scratch.deliver(&name, &directory)?;
    Ok(program)
}

/// Copies the Go files of a package, without its tests and what we replace.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut replaced = false;
    for path in go_files(from)? {
        let name = name_of(&path);
        replaced |= name == REPLACED;
        if name != REPLACED && !name.ends_with("_test.go") {
            // Not fs::copy: what Go keeps is not to be written to, and neither would be the copy.
            fs::write(to.join(&name), fs::read(&path)?)?;
        }
    }
    ensure!(replaced, "{} has no {REPLACED} any more: see xtask/oracle/nftables", from.display());
    Ok(())
}

/// Name, below `xtask/oracle/`, and text of the sources, in the order of their names.
fn sources() -> Result<Vec<(String, String)>> {
    let directory = workspace().join("xtask/oracle");
    let package = name_of(Path::new(PACKAGE));
    let mut sources = Vec::new();
    for path in go_files(&directory)? {
        sources.push((name_of(&path), fs::read_to_string(&path)?));
    }
    for path in go_files(&directory.join(&package))? {
        sources.push((format!("{package}/{}", name_of(&path)), fs::read_to_string(&path)?));
    }
    sources.sort();
    Ok(sources)
}

fn go_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("no {}", directory.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|it| it == "go")).collect())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Other sources, or other modules, are another program.
fn name(sources: &[(String, String)]) -> String {
    let mut hasher = DefaultHasher::new();
    (sources, go_mod()).hash(&mut hasher);
    format!("oracle-{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_is_another_program() {
        let sources = sources().unwrap();
        for file in ["main.go", "nftables/oracle.go"] {
            assert!(sources.iter().any(|(name, _)| name == file), "{file}");
        }
        let mut changed = sources.clone();
        changed[0].1.push('\n');
        assert_eq!(name(&sources), name(&sources));
        assert_ne!(name(&sources), name(&changed));
    }
}
