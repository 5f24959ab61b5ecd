//! Programs of `k8s.io/kubernetes`, built from its Go module. It is no library and cannot be
//! installed, so a module of one's own requires it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tools::exec::{ask, exec};

use super::go::Go;

pub(crate) const VERSION: &str = "1.36.3";
const MODULE: &str = "k8s.io/kubernetes";

/// A program, and where it comes from.
pub(super) struct Program {
    pub(super) name: &'static str,
    /// What is built: the path of a package.
    package: &'static str,
    /// The tests of that package as a program, instead of the package.
    is_test: bool,
}

impl Program {
    const fn new(name: &'static str, package: &'static str) -> Self {
        Self { name, package, is_test: false }
    }
}

/// What the agent is tested against.
pub(super) const CONTROL: &[Program] = &[
    Program::new("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    Program::new("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Program::new("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
];
/// What a cluster has besides.
pub(super) const NODES: &[Program] = &[
    Program::new("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    Program::new("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    Program::new("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    // Client and server of nearly every test, made for images.
    Program::new("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    // A server of one test, which sends packets that connection tracking takes for invalid.
    Program::new("regression-issue-74839", "k8s.io/kubernetes/test/images/regression-issue-74839"),
];
/// Kubernetes' own tests of a cluster, and what runs them in parallel: of the version that they are
/// written for, as Kubernetes requires it.
pub(super) const E2E: &[Program] = &[
    Program { name: "e2e.test", package: "k8s.io/kubernetes/test/e2e", is_test: true },
    Program::new("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
];

/// The modules that live in the tree of `k8s.io/kubernetes`. Its own go.mod finds them there;
/// whoever builds it as a module has to say that they are the published ones, all of one version.
const STAGING: &[&str] = &[
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "cri-streaming",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
    "streaming",
];

/// Builds programs into `to`, where the module stays that they are built from.
pub(super) fn build(go: &Go, programs: &[&Program], to: &Path) -> Result<()> {
    let module = to.join("module");
    fs::create_dir_all(&module)?;
    fs::write(module.join("go.mod"), go_mod())?;
    // Without a source that imports them, `go build` would look no further than the requirements.
    let packages: Vec<_> = programs.iter().map(|program| program.package).collect();
    let imports = format!("import (\n\t_ \"{}\"\n)\n", packages.join("\"\n\t_ \""));
    fs::write(module.join("tools.go"), format!("//go:build tools\n\npackage tools\n\n{imports}"))?;
    let (tests, plain): (Vec<&Program>, Vec<_>) = programs.iter().partition(|it| it.is_test);
    let command = |verb: &[&str]| {
        let mut command = go.command();
        // Static programs. `-mod=mod`: go.sum is written on the way, from Go's checksum database.
        command.current_dir(&module).env("CGO_ENABLED", "0").args(verb);
        command.args(["-mod=mod", "-buildvcs=false", "-trimpath", "-ldflags", &ldflags(), "-o"]);
        command
    };
    if !plain.is_empty() {
        let packages = plain.iter().map(|program| program.package);
        exec(command(&["build"]).arg(to).args(packages))?;
    }
    for test in tests {
        exec(command(&["test", "-c"]).arg(to.join(test.name)).arg(test.package))?;
    }
    Ok(())
}

/// Where Go keeps the sources of Kubernetes; it downloads them if it has to.
pub(super) fn sources(go: &Go) -> Result<PathBuf> {
    let mut download = go.command();
    // Not inside of some module.
    download.current_dir("/").args(["mod", "download", "-json"]);
    let answer = ask(download.arg(format!("{MODULE}@v{VERSION}")));
    let answer: serde_json::Value = serde_json::from_str(&answer.unwrap_or_default())
        .with_context(|| format!("Go cannot download the module {MODULE} {VERSION}"))?;
    let directory = answer.get("Dir").and_then(|dir| dir.as_str());
    Ok(directory.context("Go names no directory of the module")?.into())
}

/// A module of one's own that requires Kubernetes.
pub(super) fn go_mod() -> String {
    let staging = VERSION.trim_start_matches("1.");
    let replace = |name: &&str| format!("replace k8s.io/{name} => k8s.io/{name} v0.{staging}");
    let replace = STAGING.iter().map(replace).collect::<Vec<_>>().join("\n");
    format!(
        "module socklb.invalid/kubernetes\n\ngo 1.26\n\nrequire {MODULE} v{VERSION}\n\n{replace}\n"
    )
}

/// The version is set by the linker, else it is unknown and does not parse.
fn ldflags() -> String {
    let (major, minor) = major_minor();
    let variable = "k8s.io/component-base/version.git";
    format!(
        "-s -w -X {variable}Version=v{VERSION} -X {variable}Major={major} -X {variable}Minor={minor}"
    )
}

/// The first two numbers of the version.
pub(super) fn major_minor() -> (&'static str, &'static str) {
    let mut numbers = VERSION.split('.');
    (numbers.next().unwrap_or(""), numbers.next().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_replaces_what_lives_in_the_tree_of_kubernetes() {
        let text = go_mod();
        assert!(text.contains("require k8s.io/kubernetes v1.36.3\n"), "{text}");
        assert!(text.ends_with("replace k8s.io/streaming => k8s.io/streaming v0.36.3\n"), "{text}");
        assert!(STAGING.is_sorted());
    }

    #[test]
    fn the_linker_sets_the_whole_version() {
        let version = "k8s.io/component-base/version";
        for set in ["gitVersion=v1.36.3", "gitMajor=1", "gitMinor=36"] {
            assert!(ldflags().contains(&format!("-X {version}.{set}")), "{}", ldflags());
        }
    }

    #[test]
    fn go_names_a_program_like_its_package() {
        for program in CONTROL.iter().chain(NODES).chain(E2E).filter(|it| !it.is_test) {
            assert_eq!(program.package.rsplit('/').next(), Some(program.name));
        }
    }
}
