//! `kube`: a real Kubernetes control plane to test against. Nobody publishes its programs for a
//! plain machine, so they are built from their Go modules, once per version, into the user's cache.
//!
//! What is not there yet is made in a directory beside and then renamed: a program that stands in
//! [`binaries`] is complete, whenever a build was interrupted, and building more programs later
//! does not build the present ones again.

mod client;
mod coredns;
mod go;
mod oracle;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, id},
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::{client::go_client, coredns::coredns, oracle::oracle};
use crate::{
    exec::{ask, exec},
    root::as_root,
};

const VERSION: &str = "1.36.3";
/// Of `k8s.io/kubernetes`; named like the directory below its `cmd`.
const PROGRAMS: &[&str] = &["kube-apiserver", "kube-controller-manager", "kube-proxy"];
const ETCD: &str = "etcd";

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

/// Build Kubernetes' own programs for the tests, unless they are there, and print where they are.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    println!("{}", binaries()?.display());
    Ok(ExitCode::SUCCESS)
}

/// The directory with kube-apiserver, kube-controller-manager, kube-proxy and etcd. Quick when they
/// are there; otherwise builds them, which takes some minutes, and says so.
pub(crate) fn binaries() -> Result<PathBuf> {
    let cache = cache()?;
    let directory = cache.join(format!("kubernetes-{VERSION}"));
    // `exists` follows links: an etcd that was uninstalled is missing again.
    let lacks = |program: &&str| !directory.join(program).exists();
    let programs: Vec<&str> = PROGRAMS.iter().copied().filter(lacks).collect();
    let etcd = lacks(&ETCD);
    if programs.is_empty() && !etcd {
        return Ok(directory);
    }
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let scratch = Scratch::new(&directory)?;
    if etcd {
        bring_etcd(&scratch.0)?;
        scratch.deliver(ETCD, &directory)?;
    }
    if !programs.is_empty() {
        eprintln!(
            "Building {} {VERSION} from source into {}, once. This takes 5 to 10 minutes and some \
             3 GB of download and build cache.",
            programs.join(", "),
            directory.display()
        );
        build(&go::toolchain(&cache)?, &programs, &scratch.0)?;
        for program in programs {
            scratch.deliver(program, &directory)?;
        }
    }
    Ok(directory)
}

/// Where things stay that are dear to make and can be made again.
fn cache() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache =
        cache.context("there is no HOME to keep built programs below: set XDG_CACHE_HOME")?;
    Ok(cache.join("socklb"))
}

/// A directory for half-made things, on the file system of the whole ones.
struct Scratch(PathBuf);

impl Scratch {
    fn new(beside: &Path) -> Result<Self> {
        let scratch = Self(beside.join(format!(".making-{}", id())));
        fs::create_dir_all(&scratch.0)
            .with_context(|| format!("cannot make the directory {}", scratch.0.display()))?;
        Ok(scratch)
    }

    fn deliver(&self, program: &str, to: &Path) -> Result<()> {
        fs::rename(self.0.join(program), to.join(program))
            .with_context(|| format!("cannot put {program} into {}", to.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// etcd from the PATH, or taken out of Debian's package. That package is not installed: its service
/// would start on the machine, and unpacking it needs no root.
fn bring_etcd(into: &Path) -> Result<()> {
    let remedy = "etcd is missing: put the program `etcd` (3.4 or later) on the PATH";
    if let Some(etcd) = on_path(ETCD) {
        return std::os::unix::fs::symlink(&etcd, into.join(ETCD))
            .with_context(|| format!("cannot link {}", etcd.display()));
    }
    if ask(Command::new("apt-get").arg("--version")).is_none() {
        bail!(remedy);
    }
    eprintln!("Taking etcd out of the distribution's package etcd-server; nothing is installed.");
    if ask(Command::new("apt-cache").args(["show", "etcd-server"])).is_none() {
        let mut update = Command::new("apt-get");
        update.args(["update", "--quiet"]);
        exec(&mut as_root(update)).context(remedy)?;
    }
    let mut download = Command::new("apt-get");
    // As root apt would download as another user, who may not write here.
    download.args(["download", "--quiet", "-o", "APT::Sandbox::User=root", "etcd-server"]);
    exec(download.current_dir(into)).context(remedy)?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let mut files = fs::read_dir(into)?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = files.find(is_package).context("apt-get downloaded no package")?;
    let tree = into.join("etcd-server");
    exec(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree)).context(remedy)?;
    fs::rename(tree.join("usr/bin").join(ETCD), into.join(ETCD))
        .context("the package etcd-server has no usr/bin/etcd")
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Builds programs of `k8s.io/kubernetes` into `to`.
fn build(go: &go::Go, programs: &[&str], to: &Path) -> Result<()> {
    let module = to.join("module");
    fs::create_dir_all(&module)?;
    fs::write(module.join("go.mod"), go_mod())?;
    let packages: Vec<_> =
        programs.iter().map(|program| format!("k8s.io/kubernetes/cmd/{program}")).collect();
    // Without a source that imports them, `go build` would look no further than the requirements.
    let imports = format!("import (\n\t_ \"{}\"\n)\n", packages.join("\"\n\t_ \""));
    fs::write(module.join("tools.go"), format!("//go:build tools\n\npackage tools\n\n{imports}"))?;
    let mut build = go.command();
    // Static programs. `-mod=mod`: go.sum is written on the way, from Go's checksum database.
    build.current_dir(&module).env("CGO_ENABLED", "0");
    build.args(["build", "-mod=mod", "-buildvcs=false", "-trimpath", "-ldflags", &ldflags()]);
    exec(build.arg("-o").arg(to).args(&packages)).with_context(|| {
        format!("cannot build Kubernetes {VERSION}; SOCKLB_KUBE_BIN=DIR names one that is built")
    })
}

/// A module of one's own that requires Kubernetes, as it is no library and cannot be installed.
fn go_mod() -> String {
    let staging = VERSION.trim_start_matches("1.");
    let replace = |name: &&str| format!("replace k8s.io/{name} => k8s.io/{name} v0.{staging}");
    let replace = STAGING.iter().map(replace).collect::<Vec<_>>().join("\n");
    format!(
        "module socklb.invalid/kubernetes\n\ngo 1.26\n\nrequire k8s.io/kubernetes v{VERSION}\n\n\
         {replace}\n"
    )
}

/// The version is set by the linker, else it is unknown and does not parse.
fn ldflags() -> String {
    let mut numbers = VERSION.split('.');
    let (major, minor) = (numbers.next().unwrap_or(""), numbers.next().unwrap_or(""));
    let variable = "k8s.io/component-base/version.git";
    format!(
        "-s -w -X {variable}Version=v{VERSION} -X {variable}Major={major} -X {variable}Minor={minor}"
    )
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
    fn half_made_things_do_not_stay() {
        let directory = env::temp_dir().join(format!("socklb-kube-{}", id()));
        fs::create_dir(&directory).unwrap();
        let scratch = Scratch::new(&directory).unwrap();
        fs::write(scratch.0.join("whole"), "").unwrap();
        fs::write(scratch.0.join("half"), "").unwrap();
        scratch.deliver("whole", &directory).unwrap();
        drop(scratch);
        let left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(left, ["whole"]);
    }
}
