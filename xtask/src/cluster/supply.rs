//! What the cluster is made of, made or found by whoever calls, not by root.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use super::plan::{Proxy, Shape, Supply};

/// Names of images. Those that e2e.test asks for are names of the agnhost image, too.
pub(super) const PAUSE: &str = "docker.io/library/pause:1";
pub(super) const COREDNS: &str = "docker.io/library/coredns:1";

/// Brings everything that a cluster of this shape needs; takes long the first time.
pub(super) fn bring(shape: &Shape) -> Result<Supply> {
    let [pause, coredns, agnhost] = images()?;
    let mut supply = Supply {
        programs: programs()?,
        first: vec![pause, coredns],
        archives: vec![agnhost],
        helm: None,
        chart: None,
        image: None,
    };
    if shape.proxy == Proxy::Socklb {
        bring_socklb(&mut supply)?;
    }
    Ok(supply)
}

fn programs() -> Result<PathBuf> {
    stand_in("programs")
}

fn images() -> Result<[PathBuf; 3]> {
    let images = stand_in("images")?;
    Ok(["pause.tar", "coredns.tar", "agnhost.tar"].map(|name| images.join(name)))
}

/// The image of this very source, the chart, and Helm.
fn bring_socklb(supply: &mut Supply) -> Result<()> {
    let _ = supply;
    anyhow::bail!("there is no image of socklb yet: --proxy none, --proxy kube-proxy")
}

fn stand_in(name: &str) -> Result<PathBuf> {
    let all = env::var_os("SOCKLB_CLUSTER_SUPPLY").context("SOCKLB_CLUSTER_SUPPLY is not set")?;
    Ok(PathBuf::from(all).join(name))
}
