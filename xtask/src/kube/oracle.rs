//! The program of `oracle/`: what kube-proxy's own code says of a list of objects.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use super::{
    go,
    kubernetes::{VERSION, go_mod},
};
use crate::{
    cache::{Scratch, cache},
    cargo::workspace,
    exec::exec,
};

/// The program, built from what `oracle/` holds now. Quick when that was built before.
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
    fs::create_dir_all(&module)?;
    fs::write(module.join("go.mod"), go_mod())?;
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

/// Name and text of the sources, in the order of their names.
fn sources() -> Result<Vec<(String, String)>> {
    let directory = workspace().join("oracle");
    let mut sources = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("no {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|_| path.extension().is_some_and(|it| it == "go")) {
            sources.push((name.to_owned(), fs::read_to_string(&path)?));
        }
    }
    sources.sort();
    Ok(sources)
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
        assert!(sources.iter().any(|(name, _)| name == "main.go"));
        let mut changed = sources.clone();
        changed[0].1.push('\n');
        assert_eq!(name(&sources), name(&sources));
        assert_ne!(name(&sources), name(&changed));
    }
}
