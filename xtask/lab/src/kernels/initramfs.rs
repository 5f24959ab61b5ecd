//! The files that a kernel finds in its memory when it boots: a cpio archive, not compressed, since
//! an emulated processor would have to undo that.

use std::io::Write;

use anyhow::Result;
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::image::tree::{Entry, Tree};

/// Writes the archive.
pub(super) fn write(tree: &Tree, mut to: impl Write) -> Result<()> {
    for (number, (path, entry)) in (1..).zip(tree.entries()) {
        let (kind, mode, content) = match entry {
            Entry::Directory { mode } => (ModeFileType::Directory, *mode, &[][..]),
            Entry::File { mode, content } => (ModeFileType::Regular, *mode, content.as_slice()),
            Entry::Link { to } => (ModeFileType::Symlink, 0o777, to.as_bytes()),
        };
        // Files with one number would be links to one file.
        let header = Builder::new(path).ino(number).nlink(1).mode(mode).set_mode_file_type(kind);
        let mut file = header.write(&mut to, u32::try_from(content.len())?);
        file.write_all(content)?;
        file.finish()?;
    }
    trailer(to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_every_kind_of_file() {
        let mut tree = Tree::default();
        tree.file("etc/one", "text");
        tree.link("init", "bin/busybox");
        tree.directory("tmp", 0o1777);
        let mut bytes = Vec::new();
        write(&tree, &mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        let mut got = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            std::io::Read::read_to_string(&mut reader, &mut content).unwrap();
            let entry = reader.entry();
            let (ino, mode) = (entry.ino(), entry.mode());
            got.push(format!("{ino} {mode:o} {} {content}", entry.name()));
            rest = reader.finish().unwrap();
        }
        let wanted =
            ["1 40755 etc ", "2 100444 etc/one text", "3 120777 init bin/busybox", "4 41777 tmp "];
        assert_eq!(got, wanted);
    }
}
