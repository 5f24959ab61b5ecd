//! `image`: container images without a container engine.

mod archive;
mod machine;
pub(crate) mod pods;
mod tree;

use std::process::ExitCode;

use anyhow::Result;

pub(crate) use self::pods::cluster_images;

/// Make the images of the cluster's pods.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    for image in cluster_images()? {
        println!("{}", image.display());
    }
    Ok(ExitCode::SUCCESS)
}
