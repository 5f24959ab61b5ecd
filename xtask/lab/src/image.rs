//! `image`: container images without a container engine.

mod archive;
pub(crate) mod machine;
pub(crate) mod pods;
mod sbom;
pub(crate) mod socklb;
pub(crate) mod tree;

use std::{
    env::consts::ARCH,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use clap::ValueEnum;
use tools::exec::ask;

pub(crate) use self::pods::cluster_images;

/// Make a container image, and print where its archive is.
///
/// The archive is an OCI image layout and one of `docker save` at once: `docker load -i`, `ctr
/// images import`, `kind load image-archive` and `skopeo copy oci-archive:` take it. The same
/// sources make the same archive.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which image.
    #[arg(value_enum, default_value_t = What::Socklb)]
    what: What,
    /// Where to write it [default: below the target directory].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What it is to run on [default: what this machine is].
    #[arg(long, value_name = "ARCH", value_parser = ["x86_64", "aarch64"])]
    arch: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// lb-agent and lbctl.
    Socklb,
    /// A client and a server for tests with pods.
    Load,
    /// What pods of a cluster on this machine run.
    Pods,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let output = args.output.as_deref();
    let arch = args.arch.as_deref().unwrap_or(ARCH);
    let archives = match args.what {
        What::Socklb => vec![socklb::socklb(arch, output)?],
        What::Load => vec![socklb::load(arch, output)?],
        What::Pods if output.is_some() || arch != ARCH => {
            bail!("the images of pods are for this machine and stay in the cache")
        }
        What::Pods => cluster_images()?,
    };
    for archive in archives {
        if let Some(digest) = ask(Command::new("sha256sum").arg(&archive)) {
            eprintln!("sha256 {}", digest.split(' ').next().unwrap_or_default());
        }
        println!("{}", archive.display());
    }
    Ok(ExitCode::SUCCESS)
}
