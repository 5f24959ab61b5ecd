//! What is done to the maps: pure data, which the planner makes, `--dry-run` prints and a
//! [`Store`](super::Store) carries out.

use std::fmt;

use lb_common::abi::{Action, Backend, Service, ServiceKey};

use crate::model::{Frontend, PortRef};

/// One change to the maps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Says what an id stands for.
    PutName {
        /// The id.
        id: u32,
        /// The service port.
        port: PortRef,
    },
    /// Fills a block that no service names.
    WriteBlock {
        /// Index of the first record.
        block: u32,
        /// The records, all of one new generation.
        records: Vec<Backend>,
    },
    /// Points a frontend to a block.
    PutService {
        /// The frontend.
        key: ServiceKey,
        /// The block.
        service: Service,
    },
    /// Removes a frontend.
    DeleteService {
        /// The frontend.
        key: ServiceKey,
    },
    /// Forgets an id that no frontend uses any more.
    DeleteName {
        /// The id.
        id: u32,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutName { id, port } => write!(f, "put name {id} {port} {}", port.protocol),
            Self::WriteBlock { block, records } => {
                let generation = records.first().map_or(0, |record| record.generation);
                write!(f, "write block {block} generation {generation}")?;
                for record in records {
                    match record.action() {
                        Action::Forward => write!(f, " {}", record.peer)?,
                        Action::Refuse => f.write_str(" refuse")?,
                    }
                }
                Ok(())
            }
            Self::PutService { key, service: Service { block, count, generation, id } } => write!(
                f,
                "put service {} id {id} block {block} count {count} generation {generation}",
                KeyText(key)
            ),
            Self::DeleteService { key } => write!(f, "delete service {}", KeyText(key)),
            Self::DeleteName { id } => write!(f, "delete name {id}"),
        }
    }
}

/// A key as people write it: `10.96.0.10:80/tcp`.
pub struct KeyText<'a>(pub &'a ServiceKey);

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(frontend) = Frontend::from_key(self.0) {
            return frontend.fmt(f);
        }
        let ServiceKey { peer, protocol, scope } = self.0;
        write!(f, "{peer}/{protocol} scope {scope}")
    }
}
