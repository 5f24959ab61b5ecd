//! A client in Go, for the kernel tests.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use tools::{
    cache::{Scratch, cache},
    cargo::workspace,
    exec::exec,
};

use super::go;

/// The program, built from its source as it is now. Quick when that was built before.
pub(crate) fn go_client() -> Result<PathBuf> {
    let source = workspace().join("lb-agent/tests/kernel/languages/client.go");
    let text = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let name = format!("go-client-{:016x}", hasher.finish());
    let cache = cache()?;
    let program = cache.join(&name);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot make the directory {}", cache.display()))?;
    let go = go::toolchain(&cache)?;
    let scratch = Scratch::new(&cache)?;
    let mut build = go.command();
    build.current_dir(&scratch.0).env("CGO_ENABLED", "0");
    build.args(["build", "-buildvcs=false", "-trimpath", "-o"]).arg(scratch.0.join(&name));
    exec(build.arg(source))
        .context("cannot build the client; SOCKLB_GO_CLIENT=FILE names one that is built")?;
    scratch.deliver(&name, &cache)?;
    Ok(program)
}
