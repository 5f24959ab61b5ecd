//! What the cluster is made of, made or found by whoever calls, not by root.

use std::env::consts::ARCH;

use anyhow::{Context as _, Result};
use tools::cargo::workspace;

use super::plan::{Proxy, Shape, Supply};
pub(super) use crate::image::pods::{COREDNS, PAUSE};
use crate::{image, kube};

/// Brings everything that a cluster of this shape needs; takes long the first time.
pub(crate) fn bring(shape: &Shape) -> Result<Supply> {
    let mut archives = image::cluster_images()?;
    // What a test runs comes while the nodes start.
    let tests = archives.pop().context("the cluster has no images")?;
    let mut supply = Supply {
        programs: kube::cluster_programs()?,
        first: archives,
        archives: vec![tests],
        helm: None,
        chart: None,
        image: None,
    };
    if shape.proxy == Proxy::Socklb {
        bring_socklb(&mut supply)?;
    }
    Ok(supply)
}

/// Adds the image of this very source, the chart, and Helm.
fn bring_socklb(supply: &mut Supply) -> Result<()> {
    supply.helm = Some(kube::helm()?);
    supply.chart = Some(workspace().join("deploy/helm/socklb"));
    supply.first.push(image::socklb::socklb(ARCH, None)?);
    supply.image = Some(image::socklb::name());
    Ok(())
}
