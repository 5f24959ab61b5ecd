//! Columns, as kubectl prints them.

use std::io::{self, Write};

use lb_core::printable::Printable;

/// What stands in a cell that has nothing to say.
pub(super) const NONE: &str = "<none>";

/// Spaces between two columns.
const GAP: usize = 3;

/// Rows of as many cells as there are titles.
#[derive(Debug)]
pub(super) struct TextTable {
    titles: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub(super) fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.titles.len());
        self.rows.push(row.into_iter().map(|cell| Printable(cell).to_string()).collect());
    }

    /// Writes the rows, each column as wide as its widest cell; the last one is not padded.
    pub(super) fn write(&self, out: &mut dyn Write, titles: bool) -> io::Result<()> {
        let mut widths: Vec<usize> =
            self.titles.iter().map(|title| if titles { title.len() } else { 0 }).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if titles {
            line(out, &widths, self.titles.iter().copied())?;
        }
        for row in &self.rows {
            line(out, &widths, row.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

fn line<'a>(
    out: &mut dyn Write,
    widths: &[usize],
    cells: impl ExactSizeIterator<Item = &'a str>,
) -> io::Result<()> {
    let last = cells.len().saturating_sub(1);
    for (i, (cell, width)) in cells.zip(widths).enumerate() {
        if i == last {
            write!(out, "{cell}")?;
        } else {
            write!(out, "{cell:width$}", width = width + GAP)?;
        }
    }
    writeln!(out)
}

/// The text, or [`NONE`].
pub(super) fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(table: &TextTable, titles: bool) -> String {
        let mut out = Vec::new();
        table.write(&mut out, titles).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = TextTable::new(&["NAMESPACE", "NAME", "N"]);
        assert_eq!(printed(&table, true), "NAMESPACE   NAME   N\n");
        assert_eq!(printed(&table, false), "");
        table.push(["default", "a-long-name", "12"].map(str::to_owned).to_vec());
        table.push(["x", "é", "3"].map(str::to_owned).to_vec());
        assert_eq!(
            printed(&table, true),
            "NAMESPACE   NAME          N\n\
             default     a-long-name   12\n\
             x           é             3\n"
        );
        assert_eq!(
            printed(&table, false),
            "default   a-long-name   12\nx         é             3\n"
        );
    }
}
