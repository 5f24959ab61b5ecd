//! From a document to the objects in it. Pure.

use std::fmt;

use k8s_openapi::api::{
    core::v1::{Node as KubeNode, Service as KubeService},
    discovery::v1::EndpointSlice,
};
use lb_core::model::{Node, ObjectRef, Service, Slice};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::strict;
use crate::sources::{
    Problem,
    translate::{self, Translated},
};

/// An object, already in our words.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    /// A v1 Service, and the proxy it asks for.
    Service(Named<Service>, Option<Box<str>>),
    /// A discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(Named<Slice>),
    /// A v1 Node.
    Node(Named<Node>),
    /// A list, beside its items: what is wrong with it.
    List {
        /// `ServiceList`.
        kind: String,
        /// There are some.
        problems: Vec<Problem>,
    },
    /// Something else.
    Other {
        /// `apps/v1 Deployment`.
        kind: String,
    },
}

/// What an object says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named<T> {
    /// Its name.
    pub name: ObjectRef,
    /// What counts of it; none if it asks for nothing.
    pub model: Option<T>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl<T> Named<T> {
    fn new(name: ObjectRef, (model, more): Translated<T>, mut problems: Vec<Problem>) -> Self {
        problems.extend(more);
        Self { name, model, problems }
    }
}

/// A document, read but not understood: what stands in it, with the items of a list apart.
#[derive(Default)]
pub(super) struct Raw {
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
/// many times the memory of the file.
struct Items(Vec<Item>);

enum Item {
    Read(Result<Object, FieldError>),
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
        while let Some(item) = seq.next_element()? {
            let Value::Object(map) = item else {
                return Err(A::Error::custom("an item is no object"));
            };
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
pub(super) struct FieldError {
    pub(super) field: String,
    pub(super) what: String,
}

impl Raw {
    /// The objects, each with its place if the document is a list; none if it is empty.
    pub(super) fn objects(self) -> Result<Vec<(Option<usize>, Object)>, FieldError> {
        let Self { fields, items } = self;
        if fields.is_empty() && items.is_none() {
            return Ok(vec![]);
        }
        let (version, kind) = type_of(&fields)?;
        let item_kind = match (version, kind) {
            ("v1", "List") => "",
            ("v1", "ServiceList") => "Service",
            ("v1", "NodeList") => "Node",
            ("discovery.k8s.io/v1", "EndpointSliceList") => "EndpointSlice",
            _ => return Ok(vec![(None, object(fields)?)]),
        };
        let mut objects = Vec::new();
        let known = ["apiVersion", "items", "kind", "metadata"];
        let unknown = fields.keys().filter(|field| !known.contains(&field.as_str()));
        let problems: Vec<_> = unknown.map(|field| strict::unknown(field, field, &known)).collect();
        if !problems.is_empty() {
            objects.push((None, Object::List { kind: kind.to_owned(), problems }));
        }
        for (i, item) in items.map_or_else(Vec::new, |items| items.0).into_iter().enumerate() {
            let object = match item {
                Item::Read(object) => object,
                Item::Kindless(mut map) => {
                    map.insert("apiVersion".to_owned(), version.into());
                    map.insert("kind".to_owned(), item_kind.into());
                    object(map)
                }
            };
            let object = object.map_err(|FieldError { field, what }| FieldError {
                field: format!("items[{i}].{field}"),
                what,
            })?;
            objects.push((Some(i), object));
        }
        Ok(objects)
    }
}

/// `apiVersion` and `kind`.
fn type_of(fields: &Map<String, Value>) -> Result<(&str, &str), FieldError> {
    let text = |field: &str| match fields.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.as_str()),
        Some(Value::Null | Value::String(_)) | None => {
            Err(FieldError { field: field.to_owned(), what: "is missing".to_owned() })
        }
        Some(other) => {
            Err(FieldError { field: field.to_owned(), what: format!("{other} is no name") })
        }
    };
    Ok((text("apiVersion")?, text("kind")?))
}

fn object(fields: Map<String, Value>) -> Result<Object, FieldError> {
    match type_of(&fields)? {
        ("v1", "Service") => {
            let (object, mut problems) = typed::<KubeService>(fields)?;
            problems.extend(translate::without_address(&object));
            let name = translate::object_ref(&object.metadata);
            let proxy = translate::proxy_name(&object).map(Into::into);
            Ok(Object::Service(Named::new(name, translate::service(&object), problems), proxy))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let (object, unknown) = typed::<EndpointSlice>(fields)?;
            let name = translate::object_ref(&object.metadata);
            Ok(Object::EndpointSlice(Named::new(name, translate::slice(&object), unknown)))
        }
        ("v1", "Node") => {
            let (object, unknown) = typed::<KubeNode>(fields)?;
            let name = translate::object_ref(&object.metadata);
            Ok(Object::Node(Named::new(name, translate::node(&object), unknown)))
        }
        (version, kind) => Ok(Object::Other { kind: format!("{version} {kind}") }),
    }
}

/// The object, and the fields that it has not.
fn typed<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<(T, Vec<Problem>), FieldError> {
    strict::read(fields).map_err(|error| FieldError {
        field: error.path().to_string(),
        what: error.into_inner().to_string(),
    })
}
