//! CoreDNS, the resolver of nearly every cluster, built from its Go module.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{Scratch, cache, go};
use crate::exec::exec;

const VERSION: &str = "1.14.7";
const PROGRAM: &str = "coredns";

/// The program. Quick when it is there; otherwise builds it, which takes some minutes, and says so.
pub(crate) fn coredns() -> Result<PathBuf> {
    let cache = cache()?;
    let directory = cache.join(format!("coredns-{VERSION}"));
    let program = directory.join(PROGRAM);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let go = go::toolchain(&cache)?;
    eprintln!(
        "Building CoreDNS {VERSION} from source into {}, once. This takes some 2 minutes and 1 GB \
         of download and build cache.",
        directory.display()
    );
    let scratch = Scratch::new(&directory)?;
    let mut install = go.command();
    // Not inside of some module.
    install.current_dir(&scratch.0).env("GOBIN", &scratch.0).env("CGO_ENABLED", "0");
    install.args(["install", "-trimpath", "-ldflags", "-s -w"]);
    install.arg(format!("github.com/coredns/coredns@v{VERSION}"));
    exec(&mut install)
        .context("cannot build CoreDNS; SOCKLB_COREDNS=FILE names one that is built")?;
    scratch.deliver(PROGRAM, &directory)?;
    Ok(program)
}
