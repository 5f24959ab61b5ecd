//! The files of an image, and the layer that holds them; of a guest's memory too.
//!
//! The same files are the same bytes, whoever made them, wherever and whenever: names are sorted,
//! everything belongs to root and dates from 1970.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use tar::{Builder, EntryType, Header};

/// Files by their paths, without a leading slash.
#[derive(Default)]
pub(crate) struct Tree(BTreeMap<String, Entry>);

/// What stands at a path.
pub(crate) enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { to: String },
}

impl Tree {
    /// A program that anybody may start, and nobody may write.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.add(path, Entry::File { mode: 0o555, content });
        Ok(())
    }

    /// A file that anybody may read.
    pub(crate) fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { mode: 0o444, content: content.into() });
    }

    /// A program that is text.
    pub(crate) fn script(&mut self, path: &str, content: &str) {
        self.add(path, Entry::File { mode: 0o555, content: content.into() });
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.add(path, Entry::Link { to: to.to_owned() });
    }

    /// A directory that nothing is in yet.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.add(path, Entry::Directory { mode });
    }

    /// All that is below a directory, links as links; not what `leave` names, by its path below.
    pub(crate) fn copy(
        &mut self,
        path: &str,
        from: &Path,
        leave: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let cannot = || format!("cannot read {}", from.display());
        for entry in fs::read_dir(from).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("not UTF-8: {name:?}"))?;
            let below = format!("{path}/{name}");
            if leave(&below) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.directory(&below, 0o755);
                self.copy(&below, &entry.path(), leave)?;
            } else if kind.is_symlink() {
                let to = fs::read_link(entry.path())?;
                self.link(
                    &below,
                    to.to_str().with_context(|| format!("not UTF-8: {}", to.display()))?,
                );
            } else if entry.metadata()?.permissions().mode() & 0o111 != 0 {
                self.program(&below, &entry.path())?;
            } else if kind.is_file() {
                self.file(&below, fs::read(entry.path()).with_context(cannot)?);
            }
        }
        Ok(())
    }

    /// What stands where, directories before what is in them.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Is there something at this path?
    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path.trim_start_matches('/'))
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        let slashes = path.match_indices('/').map(|(at, _)| at);
        for parent in slashes.filter_map(|at| path.get(..at)) {
            self.0.entry(parent.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// A tar of all.
    pub(super) fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            match entry {
                Entry::Directory { mode } => directory(&mut layer, path, *mode)?,
                Entry::File { mode, content } => file(&mut layer, path, *mode, content)?,
                Entry::Link { to } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    layer.append_link(&mut header, path, to)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

pub(super) fn directory(tar: &mut Builder<impl Write>, path: &str, mode: u32) -> io::Result<()> {
    let mut header = header(EntryType::Directory, mode, 0);
    tar.append_data(&mut header, format!("{path}/"), io::empty())
}

pub(super) fn file(
    tar: &mut Builder<impl Write>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len());
    tar.append_data(&mut header, path, content)
}

/// Of root and of 1970, as a new header is.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_sorted_and_has_every_directory_once() {
        let mut tree = Tree::default();
        tree.file("/usr/share/b", "b");
        tree.link("usr/bin/sh", "bash");
        tree.file("/usr/share/a", "a");
        tree.directory("tmp", 0o1777);
        assert!(tree.has("/usr/share") && !tree.has("/usr/lib"));
        let layer = tree.layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 0);
            let link = entry.link_name().unwrap().map(|to| format!(" -> {}", to.display()));
            let path = entry.path().unwrap().display().to_string();
            format!("{:o} {path}{}", header.mode().unwrap(), link.unwrap_or_default())
        });
        let wanted = [
            "1777 tmp/",
            "755 usr/",
            "755 usr/bin/",
            "777 usr/bin/sh -> bash",
            "755 usr/share/",
            "444 usr/share/a",
            "444 usr/share/b",
        ];
        assert_eq!(entries.collect::<Vec<_>>(), wanted);
    }
}
