//! `kube`: a real Kubernetes to test against. Nobody publishes its programs for a plain machine, so
//! they are built from their Go modules, once per version, into the user's cache. What is no part of
//! Kubernetes and comes with every distribution is taken from there.
//!
//! Building more programs later does not build the present ones again.

mod client;
mod go;
mod install;
mod kubernetes;
mod oracle;
mod package;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tools::cache::{Scratch, cache};

pub(crate) use self::kubernetes::VERSION;
pub(crate) use self::{
    client::go_client,
    install::{coredns, helm},
    oracle::oracle,
};
use self::{
    kubernetes::{CONTROL, E2E, NODES, Program},
    package::{BUSYBOX, CNI, CONTAINERD, ETCD, Package, RUNC},
};

/// Build Kubernetes' own programs for the tests, unless they are there, and print where they are.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which programs.
    #[arg(value_enum, default_value_t = What::Control)]
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// kube-apiserver, kube-controller-manager, kube-proxy and etcd.
    Control,
    /// All that a cluster with nodes runs.
    Cluster,
    /// Kubernetes' own tests of a cluster: e2e.test and ginkgo.
    E2e,
    /// Helm.
    Helm,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let path = match args.what {
        What::Control => binaries(),
        What::Cluster => cluster_programs(),
        What::E2e => e2e(),
        What::Helm => helm(),
    };
    println!("{}", path?.display());
    Ok(ExitCode::SUCCESS)
}

/// The directory with kube-apiserver, kube-controller-manager, kube-proxy and etcd. Quick when they
/// are there; otherwise builds them, which takes some minutes, and says so. The other functions
/// here are the same for other programs.
pub(crate) fn binaries() -> Result<PathBuf> {
    directory(&[CONTROL], &[ETCD])
}

/// The directory with all that a cluster runs: what [`binaries`] has, and kube-scheduler, kubelet,
/// kubectl, agnhost, coredns, containerd, containerd-shim-runc-v2, ctr, runc, and `cni/` with bridge,
/// host-local, loopback and portmap.
pub(crate) fn cluster_programs() -> Result<PathBuf> {
    let directory = directory(&[CONTROL, NODES], &[ETCD, CONTAINERD, RUNC, CNI])?;
    link(&coredns()?, "coredns", &directory)?;
    Ok(directory)
}

/// The directory with e2e.test and ginkgo.
pub(crate) fn e2e() -> Result<PathBuf> {
    directory(&[E2E], &[])
}

/// A busybox for images.
pub(crate) fn busybox() -> Result<PathBuf> {
    Ok(directory(&[], &[BUSYBOX])?.join("busybox"))
}

/// The directory with the sources of Kubernetes.
pub(crate) fn sources() -> Result<PathBuf> {
    kubernetes::sources(&go::toolchain(&cache()?)?)
}

/// One directory, with at least these programs.
fn directory(programs: &[&[Program]], packages: &[Package]) -> Result<PathBuf> {
    let cache = cache()?;
    let directory = cache.join(format!("kubernetes-{VERSION}"));
    // `exists` follows links: an etcd that was uninstalled is missing again.
    let lacks = |name: &str| !directory.join(name).exists();
    let programs: Vec<_> =
        programs.iter().copied().flatten().filter(|program| lacks(program.name)).collect();
    for package in packages {
        if package.programs.iter().any(|(name, _)| lacks(name)) {
            let scratch = Scratch::new(&directory)?;
            package::bring(package, &scratch.0)?;
            for (name, _) in package.programs {
                scratch.deliver(name, &directory)?;
            }
        }
    }
    if !programs.is_empty() {
        let names: Vec<_> = programs.iter().map(|program| program.name).collect();
        eprintln!(
            "Building {} of Kubernetes {VERSION} from source into {}, once. This takes 5 to 10 minutes and some \
             3 GB of download and build cache.",
            names.join(", "),
            directory.display()
        );
        let scratch = Scratch::new(&directory)?;
        kubernetes::build(&go::toolchain(&cache)?, &programs, &scratch.0).with_context(|| {
            format!(
                "cannot build Kubernetes {VERSION}; programs that are built may be put into {}",
                directory.display()
            )
        })?;
        for name in names {
            scratch.deliver(name, &directory)?;
        }
    }
    Ok(directory)
}

/// Has `directory/name` lead to `program`, whatever it led to before.
fn link(program: &Path, name: &str, directory: &Path) -> Result<()> {
    if fs::read_link(directory.join(name)).is_ok_and(|old| old == program) {
        return Ok(());
    }
    let scratch = Scratch::new(directory)?;
    symlink(program, scratch.0.join(name))
        .with_context(|| format!("cannot link {}", program.display()))?;
    scratch.deliver(name, directory)
}
