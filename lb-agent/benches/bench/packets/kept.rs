//! Cells that were measured, each in a file: a run that was broken off goes on where it was.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{cell::Cell, proxy::Name};

/// Of what, and when.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Origin {
    pub(super) date: String,
    pub(super) machine: String,
    /// Of the proxy: a commit, or a version.
    pub(super) version: String,
    /// A digest of its program.
    pub(super) program: String,
}

/// A cell and its origin.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Kept {
    pub(super) origin: Origin,
    pub(super) cell: Cell,
}

/// Where they are.
pub(super) struct Keep {
    dir: PathBuf,
}

impl Keep {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, name: Name, services: u32) -> PathBuf {
        self.dir.join(format!("{name:?}-{services}.json").to_lowercase())
    }

    /// What was measured on this machine of this program, whenever that was.
    pub(super) fn find(&self, name: Name, services: u32, origin: &Origin) -> Option<Kept> {
        let text = fs::read(self.path(name, services)).ok()?;
        // What an earlier benchmark has written otherwise is measured anew.
        let kept: Kept = serde_json::from_slice(&text).ok()?;
        let is_same =
            kept.origin.machine == origin.machine && kept.origin.program == origin.program;
        is_same.then_some(kept)
    }

    pub(super) fn put(&self, name: Name, services: u32, kept: &Kept) -> Result<()> {
        let (path, fresh) = (self.path(name, services), self.dir.join(".fresh"));
        fs::write(&fresh, serde_json::to_vec(kept)?)?;
        fs::rename(&fresh, &path).with_context(|| format!("cannot keep {}", path.display()))
    }
}
