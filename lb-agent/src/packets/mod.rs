//! Packets from outside: tables of nftables of our own, in which the engine for packets keeps what it
//! decided.
//!
//! | file | |
//! |---|---|
//! | `nft`, `read` | messages of a transaction, and what the kernel says of it; what stands there |
//! | `sets`, `expression`, `ruleset` | the tables: their sets, the steps of rules, and chains and rules, which only timeouts of session affinity change |
//! | `element`, `table` | elements as bytes; in and out |
//! | `watch` | whether somebody else has changed the tables |
//! | `obstacles` | what of the node's settings and of others' rules is in the way |
//! | `conntrack` | what connection tracking remembers of UDP, and is to forget |

mod conntrack;
mod element;
mod expression;
mod nft;
mod obstacles;
mod read;
mod ruleset;
mod sets;
mod table;
mod watch;

use std::io;

use lb_core::{
    model::Families,
    packets::{Table, TableError, TableMirror},
};

pub use self::{
    conntrack::{ConntrackError, FlowEntry, Forgotten, flows, forget},
    obstacles::{Obstacle, obstacles, reachable},
    watch::Watch,
};
use self::{
    nft::{Family, NftError},
    table::{Tables, Trouble},
};

/// The tables of this network namespace, of the families that the kernel has. Each of their maps has
/// room for so many `bonds` of session affinity.
pub fn open(families: Families, bonds: u32) -> io::Result<impl Table> {
    Tables::open(of(families), bonds)
}

/// What stands in the tables of both families.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Their elements.
    pub table: TableMirror,
    /// Whether all of it was there at one time. If not, somebody wrote while it was read, and parts may
    /// not fit together.
    pub is_steady: bool,
}

/// What stands in the tables; none if there are none of ours. Writes nothing.
pub fn look() -> Result<Option<Seen>, TableError> {
    let looked = Tables::open(Family::ALL.to_vec(), 0)
        .map_err(|error| Trouble::from(NftError::from(error)))
        .and_then(|mut tables| tables.look());
    match looked {
        Err(Trouble::Nft(error)) if error.lacks_the_means() => Ok(None),
        looked => {
            let (found, is_steady) = looked?;
            Ok(found.map(|all| Seen { table: all.into_iter().collect(), is_steady }))
        }
    }
}

/// Removes the tables, whoever left them; returns what was removed. A kernel without nf_tables has none.
pub fn cleanup() -> Result<Vec<String>, TableError> {
    let removed = Tables::open(Family::ALL.to_vec(), 0)
        .map_err(|error| Trouble::from(NftError::from(error)))
        .and_then(|mut tables| tables.remove());
    match removed {
        Err(Trouble::Nft(error)) if error.lacks_the_means() => Ok(Vec::new()),
        removed => Ok(removed?),
    }
}

fn of(families: Families) -> Vec<Family> {
    let all = [(Family::Ip, families.ipv4), (Family::Ip6, families.ipv6)];
    all.into_iter().filter(|(_, has)| *has).map(|(family, _)| family).collect()
}
