//! [`PortRef`] as a value of the names map, and back.

use lb_common::abi::Name;

use crate::store::StoreError;
use crate::{
    model::{ObjectRef, PortRef, Protocol},
    printable::Printable,
};

/// A Kubernetes name has at most 63 characters; the field's last byte is always 0.
fn field(text: &str) -> Result<[u8; 64], StoreError> {
    let mut bytes = [0; 64];
    let limit = bytes.len() - 1;
    let head = bytes[..limit].get_mut(..text.len());
    let too_long = || StoreError::NameTooLong { name: text.to_owned(), limit };
    head.ok_or_else(too_long)?.copy_from_slice(text.as_bytes());
    Ok(bytes)
}

/// Who wrote the maps may have written anything: what is no name differs from all that are wanted.
fn text(bytes: &[u8; 64]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    Printable(String::from_utf8_lossy(&bytes[..end])).to_string()
}

impl TryFrom<&PortRef> for Name {
    type Error = StoreError;

    fn try_from(port: &PortRef) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: field(&port.service.namespace)?,
            name: field(&port.service.name)?,
            port: field(&port.port)?,
            protocol: port.protocol.number(),
            reserved: [0; 7],
        })
    }
}

impl From<&Name> for PortRef {
    fn from(name: &Name) -> Self {
        Self {
            service: ObjectRef::new(text(&name.namespace), text(&name.name)),
            port: text(&name.port).into(),
            protocol: Protocol::from_number(name.protocol).unwrap_or(Protocol::Tcp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_stands_there_can_be_printed() {
        let mut name = Name::try_from(&PortRef {
            service: ObjectRef::new("a\u{1b}[2J", "b\nc"),
            port: "\u{202e}".into(),
            protocol: Protocol::Udp,
        })
        .unwrap();
        assert_eq!(PortRef::from(&name).to_string(), "a\\u{1b}[2J/b\\nc:\\u{202e}");
        name.namespace = [0xff; 64];
        assert_eq!(*PortRef::from(&name).service.namespace, "\u{fffd}".repeat(64));
    }

    #[test]
    fn a_name_round_trips_up_to_63_bytes() {
        let port = |name: String| PortRef {
            service: ObjectRef::new("kube-system", name),
            port: "dns".into(),
            protocol: Protocol::Udp,
        };
        let longest = port("x".repeat(63));
        assert_eq!(PortRef::from(&Name::try_from(&longest).unwrap()), longest);
        let error = Name::try_from(&port("x".repeat(64))).unwrap_err();
        assert!(error.to_string().ends_with("is longer than 63 bytes"), "{error}");
    }
}
