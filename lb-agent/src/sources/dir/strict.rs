//! Fields that a Kubernetes object has not, found while it is read: what an API server would refuse
//! with `fieldValidation: Strict`, and silently drop without. Pure.
//!
//! Which fields there are, k8s-openapi says: each of its types names its own when it asks for a
//! struct.

use std::{cell::RefCell, fmt, rc::Rc};

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Map, Value};

use crate::sources::Problem;

/// Reads an object, and finds the fields that it has not. An error says which field is at fault.
pub(super) fn read<T: DeserializeOwned>(
    fields: Map<String, Value>,
) -> Result<(T, Vec<Problem>), serde_path_to_error::Error<Error>> {
    let found = RefCell::default();
    let strict = Strict { value: Value::Object(fields), at: Rc::new(At::Root), found: &found };
    let object = serde_path_to_error::deserialize(strict)?;
    Ok((object, found.into_inner()))
}

/// The field is none of these.
pub(super) fn unknown(at: impl fmt::Display, field: &str, known: &[&str]) -> Problem {
    let remedy = match likely(field, known) {
        Some(likely) => format!("it is ignored: did you mean {likely}?"),
        None => "it is ignored: correct or remove it".to_owned(),
    };
    Problem::new(at.to_string(), "Kubernetes 1.36 has no such field", remedy)
}

/// The one of these that was meant, if that can be guessed.
fn likely<'a>(field: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &str| strsim::osa_distance(&field.to_lowercase(), &name.to_lowercase());
    let nearest = known.iter().copied().min_by_key(|name| distance(name))?;
    // A third of the letters wrong is another word.
    (distance(nearest) * 3 <= field.chars().count()).then_some(nearest)
}

/// Where a value stands.
enum At {
    Root,
    Field(Rc<At>, String),
    Item(Rc<At>, usize),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(of, field) if matches!(**of, Self::Root) => f.write_str(field),
            Self::Field(of, field) => write!(f, "{of}.{field}"),
            Self::Item(of, item) => write!(f, "{of}[{item}]"),
        }
    }
}

/// A value that is read strictly.
struct Strict<'a> {
    value: Value,
    at: Rc<At>,
    found: &'a RefCell<Vec<Problem>>,
}

impl IntoDeserializer<'_, Error> for Strict<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Self { value, at, found } = self;
        let part = |value, at| Strict { value, at: Rc::new(at), found };
        match value {
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                let items = items.map(|(i, item)| part(item, At::Item(Rc::clone(&at), i)));
                visitor.visit_seq(SeqDeserializer::new(items))
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| {
                    let place = At::Field(Rc::clone(&at), name.clone());
                    (name, part(value, place))
                });
                visitor.visit_map(MapDeserializer::new(fields))
            }
            value => value.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let fields = self.value.as_object().into_iter().flat_map(Map::keys);
        let unknown = fields
            .filter(|field| !known.contains(&field.as_str()))
            .map(|field| unknown(At::Field(Rc::clone(&self.at), field.clone()), field, known));
        self.found.borrow_mut().extend(unknown);
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    };

    use super::*;

    /// What Kubernetes tests its own encoding with: each field there is has a value. From
    /// `testdata/HEAD` of the Go module k8s.io/api, 0.36.3 (Apache-2.0).
    const FULL: [&str; 3] = [
        include_str!("testdata/core.v1.Service.json"),
        include_str!("testdata/discovery.k8s.io.v1.EndpointSlice.json"),
        include_str!("testdata/core.v1.Node.json"),
    ];

    fn found<T: DeserializeOwned>(value: &Value) -> Vec<String> {
        let fields = value.as_object().unwrap().clone();
        let (_, problems) = read::<T>(fields).unwrap();
        problems.iter().map(ToString::to_string).collect()
    }

    fn of_kind(value: &Value) -> Vec<String> {
        match value["kind"].as_str().unwrap() {
            "Service" => found::<Service>(value),
            "Node" => found::<Node>(value),
            _ => found::<EndpointSlice>(value),
        }
    }

    #[test]
    fn each_field_that_kubernetes_has_is_known() {
        for text in FULL {
            let mut value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(of_kind(&value), [""; 0], "{}", value["kind"]);
            // What field managers own is in words of their own.
            let fields = serde_json::json!({"f:spec": {"k:{\"port\":80}": {".": {}, "f:prt": {}}}});
            value["metadata"]["managedFields"][0]["fieldsV1"] = fields;
            value["metadata"]["labels"]["prt"] = "any".into();
            value["metadata"]["annotations"]["prt"] = "any".into();
            assert_eq!(of_kind(&value), [""; 0]);
        }
    }

    /// Each object in them gets one more field.
    fn add(value: &mut Value, at: &str, added: &mut Vec<String>) {
        const OF_USERS: [&str; 10] = [
            "annotations",
            "labels",
            "fieldsV1",
            "capacity",
            "allocatable",
            "deprecatedTopology",
            "selector",
            "matchLabels",
            "data",
            "parameters",
        ];
        match value {
            Value::Array(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    add(item, &format!("{at}[{i}]"), added);
                }
            }
            Value::Object(fields) => {
                if OF_USERS.iter().any(|name| at.ends_with(name)) {
                    return;
                }
                let at = if at.is_empty() { String::new() } else { format!("{at}.") };
                for (name, value) in fields.iter_mut() {
                    add(value, &format!("{at}{name}"), added);
                }
                fields.insert("qqqqqq".to_owned(), Value::Null);
                added.push(format!(
                    "{at}qqqqqq: Kubernetes 1.36 has no such field; it is ignored: correct or remove it"
                ));
            }
            _ => {}
        }
    }

    #[test]
    fn a_field_too_many_is_found_wherever_it_stands() {
        for text in FULL {
            let mut value: Value = serde_json::from_str(text).unwrap();
            let mut added = Vec::new();
            add(&mut value, "", &mut added);
            let mut found = of_kind(&value);
            found.sort();
            added.sort();
            assert!(added.len() > 5, "{added:?}");
            assert_eq!(found, added);
        }
    }

    #[test]
    fn the_field_that_was_meant() {
        let spec = ["clusterIP", "clusterIPs", "externalIPs", "ports", "sessionAffinity", "type"];
        for (field, wanted) in [
            ("clusterip", Some("clusterIP")),
            ("ClusterIPs", Some("clusterIPs")),
            ("port", Some("ports")),
            ("prots", Some("ports")),
            ("externalIP", Some("externalIPs")),
            ("sesionAffinty", Some("sessionAffinity")),
            ("tpye", Some("type")),
            ("foo", None),
            ("x", None),
            ("replicas", None),
        ] {
            assert_eq!(likely(field, &spec), wanted, "{field}");
        }
        assert_eq!(likely("a", &[]), None);
    }
}
