//! Packets from outside: tables of nftables of our own, in which the engine for packets keeps what it
//! decided.
//!
//! | file | |
//! |---|---|
//! | `nft`, `read` | messages of a transaction, and what the kernel says of it; what stands there |
//! | `sets`, `expression`, `ruleset` | the tables: their sets, the steps of rules, and chains and rules, which only timeouts of session affinity change |
//! | `element`, `table` | elements as bytes; in and out |
//! | `watch` | whether somebody else has changed the tables |
//! | `obstacles`, `links`, `obstacle` | what of the node's settings and of others' rules is in the way |
//! | `conntrack` | what connection tracking remembers of UDP, and is to forget |

mod conntrack;
mod element;
mod expression;
mod links;
mod nft;
mod obstacle;
mod obstacles;
mod read;
mod ruleset;
mod sets;
mod table;
mod watch;

use std::io;

use lb_core::{
    model::Families,
    packets::{Edit, Table, TableError, TableMirror},
};

pub use self::{
    conntrack::{ConntrackError, FlowEntry, Forgotten, flows, forget},
    obstacle::Obstacle,
    obstacles::{obstacles, reachable},
    watch::Watch,
};
use self::{
    nft::{Family, NftError},
    table::{Found, KernelTable, Trouble},
};

/// The table of a family in this network namespace, with room for so many `bonds` of session affinity.
pub fn open(ipv4: bool, bonds: u32) -> io::Result<impl Table> {
    KernelTable::open(Family::of(ipv4), bonds)
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

impl Default for Seen {
    fn default() -> Self {
        Self { table: TableMirror::default(), is_steady: true }
    }
}

/// What stands in the tables; none if there are none of ours. Writes nothing.
pub fn look() -> Result<Option<Seen>, TableError> {
    let mut seen: Option<Seen> = None;
    for_each_table(|table| {
        if let Some(Found { elements, is_steady }) = table.look()? {
            let both = seen.get_or_insert_with(Seen::default);
            for element in elements {
                both.table.apply(&Edit::Add(element));
            }
            both.is_steady &= is_steady;
        }
        Ok(())
    })?;
    Ok(seen)
}

/// How many bonds of session affinity the tables hold. Costs as much as there are.
pub fn bonds() -> Result<usize, TableError> {
    let mut all = 0;
    for_each_table(|table| {
        all += table.bonds()?;
        Ok(())
    })?;
    Ok(all)
}

/// Removes the tables, whoever left them; returns what was removed. A kernel without nf_tables has none.
pub fn cleanup() -> Result<Vec<String>, TableError> {
    let mut removed = Vec::new();
    for_each_table(|table| {
        removed.extend(table.remove()?);
        Ok(())
    })?;
    Ok(removed)
}

/// Does something with the table of each family that this kernel may have.
fn for_each_table(
    mut each: impl FnMut(&mut KernelTable) -> Result<(), Trouble>,
) -> Result<(), TableError> {
    for family in Family::ALL {
        let done = KernelTable::open(family, 0)
            .map_err(|error| Trouble::from(NftError::from(error)))
            .and_then(|mut table| each(&mut table));
        match done {
            Err(Trouble::Nft(error)) if error.lacks_the_means() => {}
            done => done?,
        }
    }
    Ok(())
}

fn of(families: Families) -> Vec<Family> {
    let all = [(Family::Ip, families.ipv4), (Family::Ip6, families.ipv6)];
    all.into_iter().filter(|(_, has)| *has).map(|(family, _)| family).collect()
}
