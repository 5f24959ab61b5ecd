//! From the text of a file to objects. Pure.
//!
//! A document is one Kubernetes object, or a List of them (`kubectl get -o yaml`). A file counts as a
//! whole or not at all: the first thing in it that cannot be read is the error.

use std::fmt;

use super::object::{Fault, Object, Raw};

/// How deep a document may nest; below what a thread's stack can hold.
const DEPTH: usize = 128;
/// Most nodes that aliases may stand for, in one document.
const ALIASED: usize = 100_000;

/// How a file is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// YAML 1.2, documents separated by `---` lines.
    Yaml,
    /// JSON values, one after the other.
    Json,
}

impl Format {
    /// By the file's name; none if it is not for us: another ending, or hidden.
    pub fn of(file: &str) -> Option<Self> {
        if file.starts_with('.') {
            return None;
        }
        match file.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Which document of the file, from 1. Empty documents do not count.
    pub number: usize,
    /// Which item of the document, from 0, if it is a list.
    pub item: Option<usize>,
    /// The object.
    pub object: Object,
}

/// Why a text is no list of objects.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct ParseError {
    /// Which document, from 1.
    pub document: usize,
    /// A line of the file: of the error if `field` is empty, else the first one of the document.
    pub line: u64,
    /// Path of the field that is at fault; empty if the document cannot be read at all.
    pub field: String,
    /// What is wrong.
    pub what: String,
}

impl ParseError {
    /// Where it is.
    pub fn place(&self) -> String {
        let Self { document, line, field, what: _ } = self;
        if field.is_empty() {
            format!("document {document}, line {line}")
        } else {
            format!("document {document} (from line {line}), {field}")
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.what)
    }
}

/// The objects of a text.
pub fn parse(text: &str, format: Format) -> Result<Vec<Document>, ParseError> {
    // Editors on Windows put it there.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut number = 0;
    match format {
        Format::Yaml => {
            for (line, text) in split(text) {
                number += 1;
                let raw = yaml(text).map_err(|error| syntax_error(number, line, text, &error))?;
                add(&mut documents, number, line, raw)?;
            }
        }
        Format::Json => {
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<Raw>();
            loop {
                let before = &text[..values.byte_offset()];
                let Some(raw) = values.next() else { break };
                number += 1;
                let raw = raw.map_err(|error| ParseError {
                    document: number,
                    line: u64::try_from(error.line()).unwrap_or(u64::MAX),
                    field: String::new(),
                    what: error.to_string(),
                })?;
                // A value begins behind the space that separates it from the one before.
                let space = text[before.len()..].trim_start();
                let line = lines(&text[..text.len() - space.len()]) + 1;
                add(&mut documents, number, line, raw)?;
            }
        }
    }
    Ok(documents)
}

fn add(
    documents: &mut Vec<Document>,
    number: usize,
    line: u64,
    raw: Raw,
) -> Result<(), ParseError> {
    let objects = raw.objects().map_err(|Fault { field, what }| ParseError {
        document: number,
        line,
        field,
        what,
    })?;
    documents.extend(objects.into_iter().map(|(item, object)| Document { number, item, object }));
    Ok(())
}

fn lines(text: &str) -> u64 {
    text.bytes().filter(|b| *b == b'\n').map(|_| 1).sum()
}

/// The documents that are not empty, each with the number of its first line.
///
/// A line that begins with `---` ends a document wherever it stands (YAML 1.2, 9.1.2), so this needs
/// no parser; and with each document read by itself one of them costs what it costs, not more the
/// more of them there are before it.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut empty) = (0, 1, true);
    let (mut at, mut number) = (0, 1);
    for line in text.split_inclusive('\n') {
        let rest = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if rest.is_some() {
            if !empty {
                documents.push((first, &text[start..at]));
            }
            (start, first, empty) = (at, number, true);
        }
        let content = rest.unwrap_or(line).trim();
        // Directives say nothing of the content; `...` ends a document.
        let blank = content.is_empty()
            || content.starts_with('#')
            || (rest.is_none() && line.starts_with('%'))
            || content == "...";
        empty &= blank;
        at += line.len();
        number += 1;
    }
    if !empty {
        documents.push((first, &text[start..]));
    }
    documents
}

fn yaml(text: &str) -> Result<Raw, serde_saphyr::Error> {
    // What the text itself says is limited by its length; only aliases say more than is there.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
            max_buffered_comment_events: usize::MAX,
            max_depth: DEPTH,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The error, with line numbers of the file instead of the document.
fn syntax_error(document: usize, line: u64, text: &str, error: &serde_saphyr::Error) -> ParseError {
    // The text of the error speaks of lines too, so read it again at the place where it stands.
    let skipped = usize::try_from(line.saturating_sub(1)).unwrap_or(0);
    let padded = "\n".repeat(skipped) + text;
    let padded = yaml(&padded).err();
    let error = padded.as_ref().unwrap_or(error);
    let line = error.location().map_or(line, |location| location.line());
    ParseError { document, line, field: String::new(), what: error.to_string() }
}
