//! Frontends as keys of the maps, and back.

use lb_common::abi::{self, ServiceKey};

use crate::model::{Frontend, Protocol, Scope};

// The maps number protocols as IP does.
const _: () = assert!(Protocol::Tcp.number() == abi::TCP && Protocol::Udp.number() == abi::UDP);

impl Scope {
    /// As it stands in a key of the maps.
    pub const fn code(self) -> u8 {
        match self {
            Self::Any => abi::SCOPE_ANY,
            Self::OwnNode => abi::SCOPE_OWN_NODE,
            Self::OtherNodes => abi::SCOPE_OTHER_NODES,
            Self::Node => abi::SCOPE_NODE,
        }
    }

    /// The inverse of [`Scope::code`].
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            abi::SCOPE_ANY => Some(Self::Any),
            abi::SCOPE_OWN_NODE => Some(Self::OwnNode),
            abi::SCOPE_OTHER_NODES => Some(Self::OtherNodes),
            abi::SCOPE_NODE => Some(Self::Node),
            _ => None,
        }
    }
}

impl From<&Frontend> for ServiceKey {
    fn from(frontend: &Frontend) -> Self {
        Self {
            peer: frontend.addr.into(),
            protocol: frontend.protocol.number(),
            scope: frontend.scope.code(),
        }
    }
}

impl Frontend {
    /// The frontend behind a key; none if the key is none of ours.
    pub fn from_key(key: &ServiceKey) -> Option<Self> {
        let protocol = Protocol::from_number(key.protocol)?;
        let scope = Scope::from_code(key.scope)?;
        Some(Self { addr: key.peer.into(), protocol, scope })
    }
}
