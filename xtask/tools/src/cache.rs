//! The user's cache: what is dear to make and can be made again.
//!
//! What is not there yet is made in a directory beside and then renamed: a thing that stands in the
//! cache is complete, whenever the making of it was interrupted.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::id,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

/// The directory of everything that is kept.
pub fn cache() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache =
        cache.context("there is no HOME to keep built programs below: set XDG_CACHE_HOME")?;
    Ok(cache.join("socklb"))
}

/// A directory for half-made things, on the file system of the whole ones.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// In the directory `beside`, which is made if it is not there.
    pub fn new(beside: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let scratch = Self(beside.join(format!(".making-{}-{count}", id())));
        fs::create_dir_all(&scratch.0)
            .with_context(|| format!("cannot make the directory {}", scratch.0.display()))?;
        Ok(scratch)
    }

    /// Moves what is whole to where it stays; `name` may be a path below both directories.
    pub fn deliver(&self, name: &str, to: &Path) -> Result<()> {
        let whole = to.join(name);
        if let Some(parent) = whole.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the directory {}", parent.display()))?;
        }
        fs::rename(self.0.join(name), whole)
            .with_context(|| format!("cannot put {name} into {}", to.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_made_things_do_not_stay() {
        let directory = env::temp_dir().join(format!("socklb-cache-{}", id()));
        let scratch = Scratch::new(&directory).unwrap();
        fs::write(scratch.0.join("whole"), "").unwrap();
        fs::write(scratch.0.join("half"), "").unwrap();
        fs::create_dir(scratch.0.join("below")).unwrap();
        fs::write(scratch.0.join("below/one"), "").unwrap();
        scratch.deliver("whole", &directory).unwrap();
        scratch.deliver("below/one", &directory).unwrap();
        drop(scratch);
        let mut left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let below = directory.join("below/one").exists();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(left, ["below", "whole"]);
        assert!(below);
    }
}
