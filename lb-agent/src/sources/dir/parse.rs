//! From the text of a file to objects. Pure.
//!
//! A document is one Kubernetes object, or a List of them (`kubectl get -o yaml`). A file counts as a
//! whole or not at all: the first thing in it that cannot be read is the error.

use std::fmt;

use k8s_openapi::api::{core::v1::Service as KubeService, discovery::v1::EndpointSlice};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::{
    model::{ObjectRef, Service, Slice},
    sources::{
        Problem,
        translate::{self, Translated},
    },
};

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

/// An object, already in our words.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A v1 Service.
    Service(Named<Service>),
    /// A discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(Named<Slice>),
    /// A v1 Node. Nothing depends on it yet.
    Node,
    /// Something else.
    Other {
        /// `apps/v1 Deployment`.
        kind: String,
    },
}

/// What an object says.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<T> {
    /// Its name.
    pub name: ObjectRef,
    /// What counts of it; none if it asks for nothing.
    pub model: Option<T>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl<T> Named<T> {
    fn new(name: ObjectRef, (model, problems): Translated<T>) -> Self {
        Self { name, model, problems }
    }
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
                raw.documents(number, line, &mut documents)?;
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
                raw.documents(number, line, &mut documents)?;
            }
        }
    }
    Ok(documents)
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
        let rest = line.strip_prefix("---").filter(|rest| {
            rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])
        });
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
fn syntax_error(
    document: usize,
    line: u64,
    text: &str,
    error: &serde_saphyr::Error,
) -> ParseError {
    // The text of the error speaks of lines too, so read it again at the place where it stands.
    let skipped = usize::try_from(line.saturating_sub(1)).unwrap_or(0);
    let padded = "\n".repeat(skipped) + text;
    let padded = yaml(&padded).err();
    let error = padded.as_ref().unwrap_or(error);
    let line = error.location().map_or(line, |location| location.line());
    ParseError { document, line, field: String::new(), what: error.to_string() }
}

/// A document, read but not understood: what stands in it, with the items of a list apart.
#[derive(Default)]
struct Raw {
    fields: Map<String, Value>,
    items: Option<Items>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                raw.items = map.next_value()?;
            } else {
                raw.fields.insert(key, map.next_value()?);
            }
        }
        Ok(raw)
    }
}

/// The items of a list, each translated as soon as it is read: a whole list of raw values would take
/// ten times the memory of the file.
struct Items(Vec<Item>);

enum Item {
    Read(Result<Object, Fault>),
    /// In a ServiceList the items themselves do not say what they are.
    Kindless(Map<String, Value>),
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
        let mut items = Vec::new();
        while let Some(map) = seq.next_element::<Map<String, Value>>()? {
            items.push(if map.contains_key("kind") {
                Item::Read(object(map))
            } else {
                Item::Kindless(map)
            });
        }
        Ok(Items(items))
    }
}

/// What is wrong with a field.
struct Fault {
    field: String,
    what: String,
}

impl Raw {
    fn documents(
        self,
        number: usize,
        line: u64,
        documents: &mut Vec<Document>,
    ) -> Result<(), ParseError> {
        let fault = |Fault { field, what }| ParseError { document: number, line, field, what };
        let Self { fields, items } = self;
        if fields.is_empty() && items.is_none() {
            return Ok(());
        }
        let (version, kind) = type_of(&fields).map_err(fault)?;
        let Some(of) = list_of(&version, &kind) else {
            let object = object(fields).map_err(fault)?;
            documents.push(Document { number, item: None, object });
            return Ok(());
        };
        for (i, item) in items.map_or_else(Vec::new, |items| items.0).into_iter().enumerate() {
            let object = match (item, of) {
                (Item::Read(object), _) => object,
                (Item::Kindless(mut map), Some((version, kind))) => {
                    map.insert("apiVersion".to_owned(), version.into());
                    map.insert("kind".to_owned(), kind.into());
                    object(map)
                }
                (Item::Kindless(map), None) => object(map),
            };
            let object = object.map_err(|Fault { field, what }| {
                fault(Fault { field: format!("items[{i}].{field}"), what })
            })?;
            documents.push(Document { number, item: Some(i), object });
        }
        Ok(())
    }
}

/// Whether it is a list, and of what, if its name says so.
fn list_of(version: &str, kind: &str) -> Option<Option<(&'static str, &'static str)>> {
    match (version, kind) {
        ("v1", "List") => Some(None),
        ("v1", "ServiceList") => Some(Some(("v1", "Service"))),
        ("v1", "NodeList") => Some(Some(("v1", "Node"))),
        ("discovery.k8s.io/v1", "EndpointSliceList") => {
            Some(Some(("discovery.k8s.io/v1", "EndpointSlice")))
        }
        _ => None,
    }
}

fn type_of(fields: &Map<String, Value>) -> Result<(String, String), Fault> {
    let text = |field: &str| match fields.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Value::Null) | None => {
            Err(Fault { field: field.to_owned(), what: "is missing".to_owned() })
        }
        Some(other) => {
            Err(Fault { field: field.to_owned(), what: format!("{other} is no name") })
        }
    };
    Ok((text("apiVersion")?, text("kind")?))
}

fn object(fields: Map<String, Value>) -> Result<Object, Fault> {
    let (version, kind) = type_of(&fields)?;
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => {
            let object: KubeService = typed(fields)?;
            let name = translate::object_ref(&object.metadata);
            Ok(Object::Service(Named::new(name, translate::service(&object))))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let object: EndpointSlice = typed(fields)?;
            let name = translate::object_ref(&object.metadata);
            Ok(Object::EndpointSlice(Named::new(name, translate::slice(&object))))
        }
        ("v1", "Node") => Ok(Object::Node),
        _ => Ok(Object::Other { kind: format!("{version} {kind}") }),
    }
}

fn typed<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Fault> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| Fault {
        field: error.path().to_string(),
        what: error.into_inner().to_string(),
    })
}
