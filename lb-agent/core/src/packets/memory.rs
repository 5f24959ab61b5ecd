//! A table in memory, for tests: it takes a transaction whole or not, and refuses what a real one would.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
};

use super::element::{Choice, Edit, Element, Group, Table, TableError};

/// A table in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryTable {
    elements: BTreeSet<Element>,
    /// Most elements that it takes; 0: no limit.
    pub limit: usize,
    /// How many transactions it has taken.
    pub transactions: usize,
}

impl MemoryTable {
    /// What stands in it.
    pub const fn elements(&self) -> &BTreeSet<Element> {
        &self.elements
    }

    /// Whether the edit could be carried out.
    fn edit(&mut self, edit: &Edit) -> bool {
        match edit {
            Edit::Add(element) => Self::put(&mut self.elements, *element),
            Edit::Delete(element) => self.elements.remove(element),
        }
    }

    /// Adds an element if there is none with its key.
    pub fn put(elements: &mut BTreeSet<Element>, element: Element) -> bool {
        let first = key(element);
        let next = elements.range(first..).next();
        next.is_none_or(|next| key(*next) != first) && elements.insert(element)
    }

    /// What stands in it, to be tampered with.
    pub const fn elements_mut(&mut self) -> &mut BTreeSet<Element> {
        &mut self.elements
    }
}

/// The first element that would have the same key.
fn key(element: Element) -> Element {
    match element {
        Element::Frontend { policy, frontend, group } => {
            Element::Frontend { policy, frontend, group: Group { number: 0, ..group } }
        }
        Element::Choice { group, .. } => Element::Choice { group, value: Choice::Slots(0) },
        Element::Endpoint { group, slot, addr } => {
            Element::Endpoint { group, slot, addr: first(addr) }
        }
        Element::Numbered { group, number, addr } => {
            Element::Numbered { group, number, addr: first(addr) }
        }
        Element::Number { group, slot, .. } => Element::Number { group, slot, number: 0 },
        Element::Affinity { group, .. } => Element::Affinity { group, seconds: NonZeroU32::MIN },
        element => element,
    }
}

/// The first address of the family.
fn first(addr: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match addr.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    (ip, 0).into()
}

impl Table for MemoryTable {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        let before = self.elements.len();
        let wrong = edits.iter().position(|edit| !self.edit(edit));
        let done = wrong.unwrap_or(edits.len());
        let is_full = self.limit > 0 && self.elements.len() > self.limit.max(before);
        let error = match wrong {
            Some(wrong) => format!("{}: the table says otherwise", edits[wrong]),
            None if is_full => "the table is full".to_owned(),
            None => {
                self.transactions += 1;
                return Ok(());
            }
        };
        for edit in edits[..done].iter().rev() {
            self.edit(&edit.inverse());
        }
        Err(TableError::Refused(error))
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        self.elements.iter().for_each(|element| take(*element));
        Ok(())
    }
}
