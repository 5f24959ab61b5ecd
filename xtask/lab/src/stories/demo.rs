//! `demo`: the demo that everybody can play in a cluster of their own.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use super::Stage;
use crate::kube_demo::{self, Choices};

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    let code = kube_demo::play(stage.everywhere(), &Choices::default())?;
    ensure!(code == ExitCode::SUCCESS, "the demo ends badly");
    Ok(())
}
