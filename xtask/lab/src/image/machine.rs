//! Programs of this machine, with the shared libraries that they need, put into an image.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tools::exec::ask;

use super::tree::Tree;

/// What `program` loads when it starts: nothing, if it is static.
pub(crate) fn libraries(program: &Path) -> Vec<PathBuf> {
    // Fails for a static program.
    let answer = ask(Command::new("ldd").arg(program)).unwrap_or_default();
    answer.lines().filter_map(library).collect()
}

/// What libc loads by name when a name is looked up, in one of the directories of the libraries.
pub(super) fn resolver(libraries: &[PathBuf]) -> Vec<PathBuf> {
    let libc = libraries.iter().find(|path| path.ends_with("libc.so.6"));
    let Some(directory) = libc.and_then(|path| path.parent()) else {
        return Vec::new();
    };
    let names = ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"];
    names.into_iter().map(|name| directory.join(name)).filter(|path| path.is_file()).collect()
}

/// A line of ldd: `libc.so.6 => /lib/libc.so.6 (0x7f)`, or `/lib64/ld-linux.so.2 (0x7f)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
    let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
    path.starts_with('/').then(|| path.into())
}

/// Adds a library at the path where the programs look for it.
pub(super) fn add_library(tree: &mut Tree, library: &Path) -> Result<()> {
    let path = library.to_str().context("a library's path is not UTF-8")?;
    tree.program(path, library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_every_kind_of_line() {
        let path = |line| library(line).map(|path| path.display().to_string());
        let libc = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)";
        assert_eq!(path(libc).as_deref(), Some("/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(path("\t/lib64/ld.so.2 (0x00007f)").as_deref(), Some("/lib64/ld.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tlibx.so => not found"), None);
    }

    #[test]
    fn a_shell_has_libraries() {
        let shell = tools::path::find("bash").unwrap();
        assert!(libraries(&shell).iter().any(|path| path.ends_with("libc.so.6")));
    }
}
