//! What is done to the maps: pure data, which the planner makes, `--dry-run` prints and a
//! [`Store`](crate::store::Store) carries out.

use std::fmt;

use lb_common::abi::{
    ADDRESSES, Action, Addr, Address, Backend, NAMES, PORTS, PortOptions, SERVICES, SOURCE_RANGES,
    Service, ServiceKey,
};

use crate::model::{Cidr, Frontend, PortRef};

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
    /// Says what is true of a service port.
    PutPort {
        /// The id.
        id: u32,
        /// What is true of it; nothing special by default.
        options: PortOptions,
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
    /// Lets the clients of a range use a service port.
    PutSourceRange {
        /// The id of the service port.
        id: u32,
        /// The range.
        range: Cidr,
    },
    /// Takes back what `PutSourceRange` said.
    DeleteSourceRange {
        /// The id of the service port.
        id: u32,
        /// The range.
        range: Cidr,
    },
    /// Says what an address stands for.
    PutAddress {
        /// The address.
        addr: Addr,
        /// What it stands for.
        known: AddressUse,
    },
    /// Forgets an address.
    DeleteAddress {
        /// The address.
        addr: Addr,
    },
}

impl Op {
    /// The map that the kernel is asked to change; none where only shared memory is written.
    pub const fn map(&self) -> Option<&'static str> {
        match self {
            Self::PutName { .. } | Self::DeleteName { .. } => Some(NAMES),
            Self::PutPort { .. } => Some(PORTS),
            Self::WriteBlock { .. } => None,
            Self::PutService { .. } | Self::DeleteService { .. } => Some(SERVICES),
            Self::PutSourceRange { .. } | Self::DeleteSourceRange { .. } => Some(SOURCE_RANGES),
            Self::PutAddress { .. } | Self::DeleteAddress { .. } => Some(ADDRESSES),
        }
    }
}

/// What an address stands for, whatever the port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AddressUse {
    /// Bits of [`Address`].
    pub flags: u32,
    /// The network namespace where it does; 0: in all.
    pub netns: u64,
}

impl fmt::Display for AddressUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flags, netns } = *self;
        for (flag, text) in [
            (Address::OWN_NODE, " own-node"),
            (Address::OTHER_NODE, " other-node"),
            (Address::CLUSTER_IP, " cluster-ip"),
            (Address::RESERVED, " reserved"),
        ] {
            if flags & flag != 0 {
                f.write_str(text)?;
            }
        }
        if netns != 0 {
            f.write_str(" host-only")?;
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutName { id, port } => write!(f, "put name {id} {port} {}", port.protocol),
            Self::PutPort { id, options } => {
                write!(f, "put port {id} affinity {}", options.affinity)
            }
            Self::WriteBlock { block, records } => {
                let generation = records.first().map_or(0, |record| record.generation);
                write!(f, "write block {block} generation {generation}")?;
                for record in records {
                    match record.action() {
                        Action::Forward => write!(f, " {}", record.peer)?,
                        Action::Refuse => f.write_str(" refuse")?,
                        Action::Unreachable => f.write_str(" unreachable")?,
                    }
                }
                Ok(())
            }
            Self::PutService { key, service } => {
                let Service { block, count, kept, generation, id } = service;
                write!(f, "put service {} id {id} block {block} count {count}", KeyText(key))?;
                if *kept > 0 {
                    write!(f, " kept {kept}")?;
                }
                write!(f, " generation {generation}")
            }
            Self::DeleteService { key } => write!(f, "delete service {}", KeyText(key)),
            Self::DeleteName { id } => write!(f, "delete name {id}"),
            Self::PutSourceRange { id, range } => write!(f, "put source range {id} {range}"),
            Self::DeleteSourceRange { id, range } => write!(f, "delete source range {id} {range}"),
            Self::PutAddress { addr, known } => write!(f, "put address {addr}{known}"),
            Self::DeleteAddress { addr } => write!(f, "delete address {addr}"),
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
