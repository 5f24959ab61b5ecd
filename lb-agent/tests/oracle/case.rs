//! A case: what a node's watches say, step by step.

use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

/// What the oracle is asked, and what a failure prints.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Case {
    /// The node that the clients are on.
    pub(crate) node: String,
    /// Both sides are looked at after each.
    pub(crate) steps: Vec<Vec<Op>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Op {
    pub(crate) op: Verb,
    pub(crate) object: Object,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    Apply,
    Delete,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<Node>),
}

/// Kind, namespace and name.
pub(crate) type Key = (u8, String, String);

impl Object {
    pub(crate) fn key(&self) -> Key {
        let (kind, meta) = match self {
            Self::Service(service) => (0, &service.metadata),
            Self::Slice(slice) => (1, &slice.metadata),
            Self::Node(node) => (2, &node.metadata),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        (kind, text(&meta.namespace), text(&meta.name))
    }
}

pub(crate) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

impl Case {
    /// As a person reads it, and `--replay` too.
    pub(crate) fn yaml(&self) -> String {
        // By way of a value: an object without a field says nothing of it.
        let value = serde_json::to_value(self).expect("objects are JSON");
        serde_saphyr::to_string(&value).expect("JSON is YAML")
    }

    pub(crate) fn from_yaml(text: &str) -> Self {
        let value: serde_json::Value = serde_saphyr::from_str(text).expect("YAML");
        serde_json::from_value(value).expect("a case")
    }
}
