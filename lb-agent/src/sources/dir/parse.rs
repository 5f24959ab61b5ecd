//! From the text of a file to objects. Pure.
//!
//! A document is one Kubernetes object, or a List of them (`kubectl get -o yaml`). A file counts as a
//! whole or not at all: the first thing in it that cannot be read is the error.

use std::fmt;

use super::object::{FieldError, Object, Raw};

/// How deep a document may nest; below what a thread's stack can hold.
const DEPTH: usize = 64;
/// Most nodes that aliases may stand for, in one document.
const ALIASED: usize = 100_000;

/// How a file is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Syntax {
    /// YAML 1.2, documents separated by `---` lines.
    Yaml,
    /// JSON values, one after the other.
    Json,
}

impl Syntax {
    /// By the file's name; none if it is not for us: another ending, or hidden.
    pub(super) fn of(file: &str) -> Option<Self> {
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
pub(super) struct Document {
    /// Which document of the file, from 1. Empty documents do not count.
    pub number: usize,
    /// Which item of the document, from 0, if it is a list.
    pub item: Option<usize>,
    /// The object.
    pub object: Object,
}

/// Why a text is no list of objects.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) struct ParseError {
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
    pub(super) fn place(&self) -> String {
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
pub(super) fn parse(text: &str, format: Syntax) -> Result<Vec<Document>, ParseError> {
    // Editors on Windows put it there.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut number = 0;
    match format {
        Syntax::Yaml => {
            for (line, text) in split(text) {
                number += 1;
                let raw = yaml(text).map_err(|error| syntax_error(number, line, text, &error))?;
                add(&mut documents, number, line, raw)?;
            }
        }
        Syntax::Json => {
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<Raw>();
            loop {
                let before = &text[..values.byte_offset()];
                let Some(raw) = values.next() else { break };
                number += 1;
                let raw = raw.map_err(|error| json_error(number, &error))?;
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
    let objects = raw.objects().map_err(|FieldError { field, what }| ParseError {
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
        // `n` is a fine name for a port.
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The error, with line numbers of the file instead of the document.
fn syntax_error(document: usize, line: u64, text: &str, error: &serde_saphyr::Error) -> ParseError {
    // The text of the error speaks of lines too, so read it again at the place where it stands.
    let skipped = usize::try_from(line.saturating_sub(1)).unwrap_or(0);
    let padded = yaml(&("\n".repeat(skipped) + text)).err();
    let error = padded.as_ref().unwrap_or(error);
    let what = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let Some(at) = error.location() else {
        return ParseError { document, line, field: String::new(), what };
    };
    let known = format!(" at line {}, column {}", at.line(), at.column());
    let what = what.trim_end_matches(known.as_str()).to_owned();
    ParseError { document, line: at.line(), field: String::new(), what }
}

fn json_error(document: usize, error: &serde_json::Error) -> ParseError {
    let (line, column) = (error.line(), error.column());
    let known = format!(" at line {line} column {column}");
    let what = error.to_string().trim_end_matches(known.as_str()).to_owned();
    let line = u64::try_from(line).unwrap_or(u64::MAX);
    ParseError { document, line, field: String::new(), what }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                           spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";

    /// `1 Service default/web`, one line for each object.
    fn objects(text: &str, format: Syntax) -> Vec<String> {
        let line = |Document { number, item, object }: Document| {
            let item = item.map_or_else(String::new, |item| format!("[{item}]"));
            let object = match object {
                Object::Service(service, _) => format!("Service {}", service.name),
                Object::EndpointSlice(slice) => format!("EndpointSlice {}", slice.name),
                Object::Node(_) => "Node".to_owned(),
                Object::List { kind, problems } => format!("{kind} {}", problems[0]),
                Object::Other { kind } => kind,
            };
            format!("{number}{item} {object}")
        };
        parse(text, format).unwrap().into_iter().map(line).collect()
    }

    fn error(text: &str) -> String {
        parse(text, Syntax::Yaml).unwrap_err().to_string()
    }

    #[test]
    fn files_are_chosen_by_name() {
        let yaml = ["a.yaml", "a.yml", "a.b.yaml"].map(Syntax::of);
        assert_eq!(yaml, [Some(Syntax::Yaml); 3]);
        assert_eq!(Syntax::of("a.json"), Some(Syntax::Json));
        for name in ["a", "yaml", ".a.yaml", "a.yaml~", "a.yaml.swp", "..data", "a.YAML.txt"] {
            assert_eq!(Syntax::of(name), None, "{name}");
        }
    }

    #[test]
    fn documents_are_counted_as_people_do() {
        let none: [&str; 0] = [];
        for empty in ["", "\n", "# nothing\n", "---\n", "---\n# a\n--- # b\n...\n", "null\n"] {
            assert_eq!(objects(empty, Syntax::Yaml), none, "{empty:?}");
        }
        for text in [
            format!("{SERVICE}---\nkind: Node\napiVersion: v1\n"),
            format!("# licence\n---\n{SERVICE}...\n---\n---   \n# nothing\n---\tkind: Node\n"),
            format!("\u{feff}%YAML 1.2\n---\n{SERVICE}--- {{apiVersion: v1, kind: Node}}"),
            format!("{SERVICE}---\nkind: Node\napiVersion: v1\n").replace('\n', "\r\n"),
        ] {
            let text = text.replace("---\tkind: Node", "---\nkind: Node\napiVersion: v1");
            assert_eq!(objects(&text, Syntax::Yaml), ["1 Service default/web", "2 Node"], "{text}");
        }
        let text = "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    x\n    ---\n    y\n";
        assert_eq!(objects(text, Syntax::Yaml), ["1 v1 ConfigMap"]);
    }

    #[test]
    fn lists_are_what_kubectl_prints() {
        let list = "apiVersion: v1\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n\
                    - {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: b, \
                    namespace: n}, addressType: IPv4, endpoints: null, ports: null}\n\
                    kind: List\nmetadata: {resourceVersion: \"\"}\n";
        let wanted = ["1[0] Service default/a", "1[1] EndpointSlice n/b"];
        assert_eq!(objects(list, Syntax::Yaml), wanted);
        // As the API server answers: the items do not say what they are.
        let typed = r#"{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "a"}}]}
            {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "items": null}"#;
        for format in [Syntax::Json, Syntax::Yaml] {
            let text = typed.replace(
                "\n            {",
                if format == Syntax::Yaml { "\n---\n{" } else { "\n{" },
            );
            assert_eq!(objects(&text, format), ["1[0] Service default/a"]);
        }
    }

    #[test]
    fn a_list_has_fields_too() {
        let list = "apiVersion: v1\nkind: ServiceList\nitem: [{metadata: {name: a}}]\n";
        assert_eq!(
            objects(list, Syntax::Yaml),
            [
                "1 ServiceList item: Kubernetes 1.36 has no such field; it is ignored: did you mean items?"
            ]
        );
    }

    #[test]
    fn traps_of_yaml() {
        let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: &name \"1\"\n  labels: &l {app: *name}\n\
                    \u{20} annotations: {<<: *l}\n  creationTimestamp: null\nspec:\n  clusterIP: None\n  ports: []\n\
                    status: {loadBalancer: {}}\n";
        assert_eq!(objects(text, Syntax::Yaml), ["1 Service default/1"]);
        let created =
            SERVICE.replace("name: web", "name: web, creationTimestamp: 2024-01-01T00:00:00Z");
        let parsed = parse(&created, Syntax::Yaml).unwrap();
        let Object::Service(service, _) = &parsed[0].object else { panic!("{parsed:?}") };
        assert_eq!(service.model.as_ref().unwrap().created, 1_704_067_200);
    }

    #[test]
    fn an_error_names_the_document_and_the_field_or_the_line() {
        let second = |text: &str| error(&format!("# one\n{SERVICE}---\n{text}"));
        for (text, wanted) in [
            (
                SERVICE.replace("port: 80", "port: '80'"),
                "document 2 (from line 6), spec.ports[0].port: invalid type: string \"80\", expected i32",
            ),
            (
                SERVICE.replace("port: 80", "port: 80000000000"),
                "document 2 (from line 6), spec.ports[0].port: invalid value: integer `80000000000`, \
                 expected i32",
            ),
            (
                SERVICE.replace("name: web", "name: web, labels: {version: 1.0}"),
                "document 2 (from line 6), metadata.labels.version: invalid type: floating point \
                 `1.0`, expected a string",
            ),
            ("metadata: {}".to_owned(), "document 2 (from line 6), apiVersion: is missing"),
            (SERVICE.replace("Service", "[]"), "document 2 (from line 6), kind: [] is no name"),
        ] {
            assert_eq!(second(&text), wanted);
        }
        for (text, line, what) in [
            ("a: [1\nb: 2\n".to_owned(), 8, "illegal placement of ':'"),
            (format!("{SERVICE}kind: Node\n"), 11, "duplicate mapping key"),
            ("a:\n\tb: 1\n".to_owned(), 8, "tab"),
            ("a: *b\n".to_owned(), 7, "reference to unknown"),
            ("just text\n".to_owned(), 6, "expected a kubernetes object"),
            (format!("{SERVICE}...\nmore: 1\n"), 12, "multiple"),
            ("a: \"half writ".to_owned(), 7, "unclosed quote"),
        ] {
            let error = second(&text);
            assert!(error.starts_with(&format!("document 2, line {line}: ")), "{text:?}: {error}");
            assert!(error.to_lowercase().contains(what), "{text:?}: {error}");
            assert!(!error.contains("at line"), "{text:?}: {error}");
        }
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node}\n- {kind: Service}\n";
        assert_eq!(error(list), "document 1 (from line 1), items[1].apiVersion: is missing");

        let json = |text: &str| parse(text, Syntax::Json).unwrap_err().to_string();
        let node = r#"{"apiVersion": "v1", "kind": "Node"}"#;
        assert!(json(&format!("{node}\n{node}\n{{\"a\"\n")).starts_with("document 3, line 4: EOF"));
        let service =
            r#"{"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": true}]}}"#;
        assert_eq!(
            json(&format!("{node}\n\n{service}")),
            "document 2 (from line 3), spec.ports[0].port: invalid type: boolean `true`, expected i32"
        );
    }

    #[test]
    fn bombs_do_not_go_off() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..10 {
            let before = vec![format!("*a{}", i - 1); 10].join(", ");
            writeln!(text, "a{i}: &a{i} [{before}]").unwrap();
        }
        assert!(error(&text).contains("document 1, line"), "{}", error(&text));
        for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
            let deep = format!("a:\n  {}x{}\n", open.repeat(10_000), close.repeat(10_000));
            assert!(error(&deep).starts_with("document 1, line 2: "), "{}", error(&deep));
        }
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse(&deep, Syntax::Json).unwrap_err().what.contains("recursion limit"));
    }

    #[test]
    fn ten_thousand_services_fit_into_one_list() {
        let item = "- apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n\
                    \u{20} spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n\
                    - apiVersion: discovery.k8s.io/v1\n  kind: EndpointSlice\n  addressType: IPv4\n\
                    \u{20} metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
                    \u{20} endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]\n";
        let padding = format!("# {}\n", "x".repeat(700));
        let list =
            format!("apiVersion: v1\nkind: List\nitems:\n{}", (padding + item).repeat(10_000));
        assert!(list.len() > 10_000_000, "{}", list.len());
        assert_eq!(parse(&list, Syntax::Yaml).unwrap().len(), 20_000);
    }

    #[test]
    fn each_document_is_read_once() {
        // Were the time to grow with the square of their number, this would take minutes.
        let text = format!("{SERVICE}---\n").repeat(5_000);
        assert_eq!(parse(&text, Syntax::Yaml).unwrap().last().unwrap().number, 5_000);
    }
}
