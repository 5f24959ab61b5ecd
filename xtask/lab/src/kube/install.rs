//! Programs that can be installed as they are from their Go modules.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tools::{
    cache::{Scratch, cache},
    exec::exec,
};

use super::{go, kubernetes};

struct Module {
    /// The program, and the directory of it in the cache.
    name: &'static str,
    version: &'static str,
    package: &'static str,
    /// What that costs, once.
    cost: &'static str,
    /// For the case that it cannot be built here.
    remedy: &'static str,
}

const COREDNS: Module = Module {
    name: "coredns",
    version: "1.14.7",
    package: "github.com/coredns/coredns",
    cost: "some 2 minutes and 1 GB",
    remedy: "SOCKLB_COREDNS=FILE names one that is built",
};

const HELM: Module = Module {
    name: "helm",
    version: "3.20.0",
    package: "helm.sh/helm/v3/cmd/helm",
    cost: "a minute or two and 500 MB",
    remedy: "put Go's module proxy within reach, and try again",
};

/// CoreDNS, the resolver of nearly every cluster: the program.
pub(crate) fn coredns() -> Result<PathBuf> {
    install(&COREDNS, "")
}

/// Helm: the program.
pub(crate) fn helm() -> Result<PathBuf> {
    // What it takes a cluster for that it does not ask.
    let (major, minor) = kubernetes::major_minor();
    let set = |of: &str| {
        let variable = format!("helm.sh/helm/v3/pkg/{of}.k8sVersion");
        format!(" -X {variable}Major={major} -X {variable}Minor={minor}")
    };
    install(&HELM, &(set("chartutil") + &set("lint/rules")))
}

/// Quick when it is there; otherwise builds it, and says so.
fn install(module: &Module, ldflags: &str) -> Result<PathBuf> {
    let Module { name, version, package, cost, remedy } = module;
    let cache = cache()?;
    let directory = cache.join(format!("{name}-{version}"));
    let program = directory.join(name);
    if program.exists() {
        return Ok(program);
    }
    let go = go::toolchain(&cache)?;
    eprintln!(
        "Building {name} {version} from source into {}, once. This takes {cost} of download and \
         build cache.",
        directory.display()
    );
    let scratch = Scratch::new(&directory)?;
    let mut install = go.command();
    // Not inside of some module.
    install.current_dir(&scratch.0).env("GOBIN", &scratch.0).env("CGO_ENABLED", "0");
    install.args(["install", "-trimpath", "-ldflags", &format!("-s -w{ldflags}")]);
    install.arg(format!("{package}@v{version}"));
    exec(&mut install).with_context(|| format!("cannot build {name} {version}; {remedy}"))?;
    scratch.deliver(name, &directory)?;
    Ok(program)
}
