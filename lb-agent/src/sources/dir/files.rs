//! All files of the directory, and what they say together. Pure: whoever reads them is elsewhere.
//!
//! A file that cannot be read keeps its last good content as a whole. Two files may speak of the same
//! object only by mistake; the first one by name has it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use lb_core::{
    model::{Change, Node, ObjectRef, Service, Slice},
    printable::Printable,
};

use super::{
    object::{Named, Object},
    parse::{Document, Syntax, parse},
};
use crate::sources::Problem;

/// The files, by name.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<String, File>,
    /// Only Services that ask for the proxy of this name; none: that ask for no other (A1).
    proxy_name: Option<String>,
}

#[derive(Debug, Default)]
struct File {
    /// What it said when it could be read last; none if it never could.
    good: Option<Vec<Document>>,
    /// Why it cannot be read now.
    error: Option<Problem>,
}

/// What the files say together.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The Services that ask for load balancing.
    pub services: BTreeMap<ObjectRef, Service>,
    /// The EndpointSlices that belong to a Service.
    pub slices: BTreeMap<ObjectRef, Slice>,
    /// The Nodes.
    pub nodes: BTreeMap<ObjectRef, Node>,
    /// What is wrong, by object (`Service default/web (web.yaml, document 2)`) or file.
    pub problems: BTreeMap<String, Vec<Problem>>,
}

impl Listing {
    /// The lists.
    pub fn changes(self) -> [Change; 3] {
        let nodes = self.nodes.into_iter().map(|(name, node)| (name.name, node));
        [
            Change::ListedNodes(nodes.collect()),
            Change::ListedServices(self.services),
            Change::ListedSlices(self.slices),
        ]
    }
}

impl Files {
    /// No files, of which only Services count that ask for the proxy of that name.
    pub fn new(proxy_name: Option<String>) -> Self {
        Self { proxy_name, ..Self::default() }
    }

    /// A file has this content now.
    pub fn put(&mut self, name: &str, content: &[u8]) {
        let format = Syntax::of(name).unwrap_or(Syntax::Yaml);
        let parsed = std::str::from_utf8(content)
            .map_err(|error| {
                let line = content[..error.valid_up_to()].split(|b| *b == b'\n').count();
                let line = u64::try_from(line).unwrap_or(u64::MAX);
                ("content".to_owned(), format!("line {line} is no UTF-8"))
            })
            .and_then(|text| parse(text, format).map_err(|error| (error.place(), error.what)));
        match parsed {
            Ok(documents) => {
                let before = self.files.get(name).and_then(|file| file.good.as_deref());
                say_skipped(name, before.unwrap_or_default(), &documents);
                self.files.insert(name.to_owned(), File { good: Some(documents), error: None });
            }
            Err((field, what)) => {
                let large = content.len() >> 20;
                let size =
                    if large > 0 { format!(" (the file has {large} MB)") } else { String::new() };
                self.fail(name, field, what + &size);
            }
        }
    }

    /// A file is there, but cannot be read. True if that is news.
    pub fn fail(&mut self, name: &str, field: impl Into<String>, what: impl Into<String>) -> bool {
        let file = self.files.entry(name.to_owned()).or_default();
        let remedy = if file.good.is_some() {
            "its last good content stays in force: correct or remove the file"
        } else {
            "nothing of the file is known: correct or remove it"
        };
        let error = Some(Problem::new(field, what, remedy));
        let news = file.error != error;
        file.error = error;
        news
    }

    /// A file is gone.
    pub fn remove(&mut self, name: &str) {
        self.files.remove(name);
    }

    /// A file has another name now.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(file) = self.files.remove(from) {
            self.files.insert(to.to_owned(), file);
        }
    }

    /// The files of which nothing is known, for they never could be read.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter(|(_, file)| file.good.is_none()).map(|(name, _)| name.as_str())
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// What they say together.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        let mut services = Objects { kind: "Service", ..Objects::default() };
        let mut slices = Objects { kind: "EndpointSlice", ..Objects::default() };
        let mut nodes = Objects { kind: "Node", ..Objects::default() };
        for (name, file) in &self.files {
            if let Some(error) = &file.error {
                listing.problems.insert(name.clone(), vec![error.clone()]);
            }
            for document in file.good.iter().flatten() {
                let place = Place { file: name, document };
                let problems = &mut listing.problems;
                match &document.object {
                    Object::Service(object, proxy) => {
                        let ours = proxy.as_deref() == self.proxy_name.as_deref();
                        services.put(object, ours, place, &mut listing.services, problems);
                    }
                    Object::EndpointSlice(object) => {
                        slices.put(object, true, place, &mut listing.slices, problems);
                    }
                    Object::Node(object) => {
                        nodes.put(object, true, place, &mut listing.nodes, problems);
                    }
                    Object::List { kind, problems: of_list } => {
                        problems.insert(place.label_list(kind), of_list.clone());
                    }
                    Object::Other { .. } => {}
                }
            }
        }
        listing
    }
}

/// Says once which kinds of a file are not for us.
fn say_skipped(file: &str, before: &[Document], now: &[Document]) {
    let kinds = |documents: &[Document]| -> BTreeSet<String> {
        let kind = |document: &Document| match &document.object {
            Object::Other { kind } => Some(kind.clone()),
            _ => None,
        };
        documents.iter().filter_map(kind).collect()
    };
    for kind in kinds(now).difference(&kinds(before)) {
        tracing::info!(file, kind, "skipped: only Services, EndpointSlices and Nodes are read");
    }
}

/// Where an object stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    document: &'a Document,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file, self.document.number)?;
        if let Some(item) = self.document.item {
            write!(f, ", items[{item}]")?;
        }
        Ok(())
    }
}

impl Place<'_> {
    fn label(self, kind: &str, name: &ObjectRef) -> String {
        let label = match kind {
            // It is in no namespace.
            "Node" => format!("{kind} {} ({self})", name.name),
            _ => format!("{kind} {name} ({self})"),
        };
        // Nobody has looked at the names yet.
        Printable(label).to_string()
    }

    fn label_list(self, kind: &str) -> String {
        format!("{kind} ({self})")
    }
}

/// The objects of one kind so far, and where each of them stands.
#[derive(Default)]
struct Objects<'a> {
    kind: &'static str,
    places: HashMap<&'a ObjectRef, Place<'a>>,
}

impl<'a> Objects<'a> {
    fn put<T: Clone>(
        &mut self,
        object: &'a Named<T>,
        ours: bool,
        place: Place<'a>,
        by_name: &mut BTreeMap<ObjectRef, T>,
        problems: &mut BTreeMap<String, Vec<Problem>>,
    ) {
        let name = &object.name;
        if let Some(first) = self.places.get(name) {
            let what = format!("{name} is also in {first}");
            let remedy = "that one counts: remove one of them";
            problems
                .insert(place.label(self.kind, name), vec![Problem::new("metadata", what, remedy)]);
            return;
        }
        // Objects without a name are all problems of their own.
        if !name.name.is_empty() {
            self.places.insert(name, place);
        }
        if !ours {
            return;
        }
        if let Some(model) = &object.model {
            by_name.insert(name.clone(), model.clone());
        }
        if !object.problems.is_empty() {
            problems.insert(place.label(self.kind, name), object.problems.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
        )
    }

    fn addresses(files: &Files) -> Vec<String> {
        let line = |(name, service): (ObjectRef, Service)| {
            let ips: Vec<_> = service.cluster_ips.iter().map(ToString::to_string).collect();
            format!("{name} {}", ips.join(" "))
        };
        files.listing().services.into_iter().map(line).collect()
    }

    fn problems(files: &Files) -> Vec<String> {
        let all = files.listing().problems;
        all.iter().flat_map(|(of, all)| all.iter().map(move |p| format!("{of}: {p}"))).collect()
    }

    /// A1.
    #[test]
    fn each_proxy_has_its_own_services() {
        let labelled = |name: &str, proxy: &str| {
            service(name, "10.0.0.1").replace(
                "}\nspec",
                &format!(
                    ", labels: {{service.kubernetes.io/service-proxy-name: '{proxy}'}}}}\nspec"
                ),
            )
        };
        let text = [
            service("plain", "10.0.0.1"),
            labelled("ours", "socklb"),
            labelled("theirs", "other"),
            labelled("nobodys", ""),
        ];
        for (proxy_name, wanted) in [(None, "plain"), (Some("socklb"), "ours")] {
            let mut files = Files::new(proxy_name.map(ToOwned::to_owned));
            files.put("a.yaml", text.concat().as_bytes());
            assert_eq!(addresses(&files), [format!("default/{wanted} 10.0.0.1")]);
            assert!(problems(&files).is_empty());
        }
    }

    #[test]
    fn nodes_are_listed_too() {
        let mut files = Files::default();
        let node = "{apiVersion: v1, kind: Node, metadata: {name: a, labels: {\
                    topology.kubernetes.io/zone: z}}, spec: {taints: [{key: x, effect: NoSchedule}]}, \
                    status: {addresses: [{type: ExternalIP, address: 198.51.100.1}, \
                    {type: InternalIP, address: 192.000.2.1}, {type: InternalIP, address: x}]}}";
        let leaving = node
            .replace("name: a", "name: b")
            .replace("key: x", "key: ToBeDeletedByClusterAutoscaler");
        let deleted = "{apiVersion: v1, kind: Node, metadata: {name: c, deletionTimestamp: \
                       2024-01-01T00:00:00Z, labels: {topology.kubernetes.io/zone: ''}}}";
        files.put("a.yaml", [node, &leaving, deleted].join("\n---\n").as_bytes());
        let [nodes, ..] = files.listing().changes();
        let Change::ListedNodes(nodes) = nodes else { panic!("{nodes:?}") };
        let line = |(name, node): (&std::sync::Arc<str>, &Node)| {
            let zone = node.zone.as_deref().unwrap_or("-");
            format!("{name} {zone} {:?} {}", node.addresses, node.leaving)
        };
        assert_eq!(
            nodes.iter().map(line).collect::<Vec<_>>(),
            [
                "a z [192.0.2.1, 198.51.100.1] false",
                "b z [192.0.2.1, 198.51.100.1] true",
                "c - [] true"
            ]
        );
        let problem =
            "status.addresses[2].address: \"x\" is no IP address; it is ignored: correct it";
        assert_eq!(
            problems(&files),
            [
                format!("Node a (a.yaml, document 1): {problem}"),
                format!("Node b (a.yaml, document 2): {problem}")
            ]
        );
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_content_as_a_whole() {
        let mut files = Files::default();
        files.put("a.yaml", (service("a", "10.0.0.1") + &service("b", "10.0.0.2")).as_bytes());
        let broken = service("a", "10.0.0.9") + "kind: [";
        files.put("a.yaml", broken.as_bytes());
        assert_eq!(addresses(&files), ["default/a 10.0.0.1", "default/b 10.0.0.2"]);
        let [problem] = &problems(&files)[..] else { panic!("{:?}", problems(&files)) };
        assert!(problem.starts_with("a.yaml: document 2, line 6: "), "{problem}");
        assert!(
            problem.ends_with("its last good content stays in force: correct or remove the file")
        );

        files.put("a.yaml", b"\xff");
        assert!(problems(&files)[0].contains("line 1 is no UTF-8"), "{:?}", problems(&files));
        assert!(!files.fail("a.yaml", "content", "line 1 is no UTF-8"), "that is known");

        files.put("a.yaml", b"");
        assert_eq!((addresses(&files).len(), problems(&files).len()), (0, 0));
    }

    #[test]
    fn a_file_that_never_was_good_is_unknown() {
        let mut files = Files::default();
        files.put("a.yaml", b"kind: [");
        assert_eq!(files.unknown().collect::<Vec<_>>(), ["a.yaml"]);
        files.rename("a.yaml", "b.yaml");
        assert_eq!(files.unknown().collect::<Vec<_>>(), ["b.yaml"]);
        files.remove("b.yaml");
        assert!(files.is_empty() && files.unknown().next().is_none());
    }

    #[test]
    fn of_two_files_with_one_object_the_first_by_name_has_it() {
        let mut files = Files::default();
        files.put("b.yaml", service("a", "10.0.0.2").as_bytes());
        files.put("a.yaml", service("a", "10.0.0.1").as_bytes());
        assert_eq!(addresses(&files), ["default/a 10.0.0.1"]);
        let label = "Service default/a (b.yaml, document 1)";
        assert_eq!(
            problems(&files),
            [format!(
                "{label}: metadata: default/a is also in a.yaml, document 1; that one counts: \
                 remove one of them"
            )]
        );
        files.remove("a.yaml");
        assert_eq!(addresses(&files), ["default/a 10.0.0.2"]);
        assert!(problems(&files).is_empty());

        // The first one counts even if it asks for nothing.
        files.put("a.yaml", service("a", "None").as_bytes());
        assert_eq!((addresses(&files).len(), problems(&files).len()), (0, 1));
    }
}
