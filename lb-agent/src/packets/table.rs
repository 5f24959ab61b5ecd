//! The tables in the kernel: elements in and out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use lb_core::packets::{Edit, Element, Table, TableError};

use super::{
    element::{decode, encode},
    nft::{Family, Message, NftError, Raw, Transaction},
    read,
    ruleset::{self, OURS, OWNED, OWNER, TABLE},
    sets::Set,
};
use crate::netlink::Netlink;

/// The tables of the families that this kernel has. They belong to this as long as it lives, where the
/// kernel knows owners.
#[derive(Debug)]
pub(super) struct Tables {
    netlink: Netlink,
    families: Vec<Family>,
    /// How many bonds of session affinity a map has room for.
    bonds: u32,
    /// The timeouts of session affinity that have rules, in seconds.
    timeouts: BTreeSet<u32>,
}

/// Why the tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The kernel refuses.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Another program uses the name.
    #[error(
        "the table `{0} {TABLE}` was not made by socklb: rename or remove it (`nft delete table {0} \
         {TABLE}`)"
    )]
    Foreign(&'static str),
}

impl Tables {
    /// In the network namespace of this thread.
    pub(super) fn open(families: Vec<Family>, bonds: u32) -> io::Result<Self> {
        let (netlink, timeouts) = (Netlink::netfilter()?, BTreeSet::new());
        Ok(Self { netlink, families, bonds, timeouts })
    }

    pub(super) const fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Whether tables, chains and rules are there as they are to be.
    pub(super) fn are_whole(&mut self) -> Result<bool, Trouble> {
        for family in self.families.clone() {
            if !self.is_ours(family)? {
                return Ok(false);
            }
            let found = read::rules(&mut self.netlink, family, TABLE)?;
            let comments = found.iter().filter_map(|(_, comment)| comment.as_deref());
            self.timeouts.extend(comments.filter_map(ruleset::timeout));
            // Chain by chain: one that was made again stands behind the others. Rules for timeouts are in
            // no order.
            let in_order = |mut rules: Vec<(String, Option<String>)>| {
                let timeout = |comment: &Option<String>| ruleset::timeout(comment.as_deref()?);
                rules.sort_by_cached_key(|(chain, comment)| (chain.clone(), timeout(comment)));
                rules
            };
            if in_order(found) != in_order(ruleset::wanted(family, &self.timeouts)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes them so; elements that are there stay.
    pub(super) fn set_up(&mut self) -> Result<(), Trouble> {
        for family in self.families.clone() {
            let found = read::table(&mut self.netlink, family, TABLE)?;
            let is_other = match &found {
                Some(table) if is_foreign(table) => {
                    return Err(Trouble::Foreign(family.name()));
                }
                Some(table) => table.comment != Some(ruleset::comment(self.bonds)),
                None => false,
            };
            let mut result = Ok(());
            // A table keeps the kind of ownership that it was made with.
            let kept = found.filter(|_| !is_other).map(|table| table.flags & OWNED);
            let flags = kept.map_or(vec![OWNED, 0], |kept| vec![if kept == 0 { 0 } else { OWNED }]);
            for flags in flags {
                let mut transaction = Transaction::default();
                if is_other {
                    ruleset::remove(&mut transaction, family);
                }
                ruleset::set_up(&mut transaction, family, flags, (&self.timeouts, self.bonds));
                result = transaction.commit(&mut self.netlink);
                // Linux before 6.9 knows no owner that outlives itself.
                let is_unknown = |error: &NftError| {
                    matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL))
                };
                if !result.as_ref().is_err_and(is_unknown) {
                    break;
                }
            }
            result?;
        }
        Ok(())
    }

    /// Takes tables over whose owner has ended.
    fn claim(&mut self) -> Result<(), Trouble> {
        for family in self.families.clone() {
            let found = read::table(&mut self.netlink, family, TABLE)?;
            if found.is_some_and(|table| table.flags & OWNED == OWNED & !OWNER) {
                let mut transaction = Transaction::default();
                ruleset::claim(&mut transaction, family);
                transaction.commit(&mut self.netlink)?;
            }
        }
        Ok(())
    }

    /// Removes the tables. Their names, if they were there.
    pub(super) fn remove(&mut self) -> Result<Vec<String>, Trouble> {
        let mut removed = Vec::new();
        for family in self.families.clone() {
            let Some(table) = read::table(&mut self.netlink, family, TABLE)? else { continue };
            if is_foreign(&table) {
                continue;
            }
            let mut transaction = Transaction::default();
            ruleset::remove(&mut transaction, family);
            transaction.commit(&mut self.netlink)?;
            removed.push(format!("table {} {TABLE}", family.name()));
        }
        Ok(removed)
    }

    /// The elements of all tables of ours, if there are any. Writes nothing.
    pub(super) fn look(&mut self, found: &mut Option<Vec<Element>>) -> Result<(), Trouble> {
        for family in self.families.clone() {
            let table = read::table(&mut self.netlink, family, TABLE)?;
            if table.is_some_and(|table| !is_foreign(&table)) {
                self.elements(family, found.get_or_insert_default())?;
            }
        }
        Ok(())
    }

    fn elements(&mut self, family: Family, all: &mut Vec<Element>) -> Result<(), Trouble> {
        for set in Set::all().filter(|set| !set.is_dynamic()) {
            let raw = read::elements(&mut self.netlink, family, (TABLE, set.name()))?;
            let raw = raw.unwrap_or_default();
            all.extend(raw.iter().filter_map(|raw| decode(family, set, raw)));
        }
        Ok(())
    }

    /// The timeouts of session affinity that have no rules.
    fn lacking<'a>(&self, elements: impl Iterator<Item = &'a Element>) -> BTreeSet<u32> {
        let timeouts = elements.filter_map(|element| match element {
            Element::Affinity { seconds, .. } => Some(seconds.get()),
            _ => None,
        });
        timeouts.filter(|seconds| !self.timeouts.contains(seconds)).collect()
    }

    fn add_timeouts(&self, transaction: &mut Transaction, timeouts: &BTreeSet<u32>) {
        for (family, seconds) in
            self.families.iter().flat_map(|of| timeouts.iter().map(move |seconds| (of, seconds)))
        {
            ruleset::add_timeout(transaction, *family, *seconds);
        }
    }

    fn is_ours(&mut self, family: Family) -> Result<bool, Trouble> {
        match read::table(&mut self.netlink, family, TABLE)? {
            Some(table) if is_foreign(&table) => Err(Trouble::Foreign(family.name())),
            Some(table) => Ok(table.comment == Some(ruleset::comment(self.bonds))),
            None => Ok(false),
        }
    }
}

impl Table for Tables {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        // Nobody sees an order in what takes effect at once; a value that changes is deleted and added.
        let mut all: BTreeMap<(bool, Family, Set), Vec<Raw>> = BTreeMap::new();
        for edit in edits {
            let (family, set, raw) = encode(edit.element());
            all.entry((matches!(edit, Edit::Add(_)), family, set)).or_default().push(raw);
        }
        let added = edits.iter().filter(|edit| matches!(edit, Edit::Add(_)));
        let timeouts = self.lacking(added.map(Edit::element));
        let mut transaction = Transaction::default();
        self.add_timeouts(&mut transaction, &timeouts);
        for ((is_added, family, set), raw) in &all {
            let message = if *is_added { Message::NewElements } else { Message::DelElements };
            transaction.elements(message, *family, (TABLE, set.name()), raw);
        }
        transaction.commit(&mut self.netlink).map_err(Trouble::from)?;
        self.timeouts.extend(timeouts);
        Ok(())
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        if self.are_whole()? {
            self.claim()?;
        } else {
            self.set_up()?;
        }
        let mut all = Vec::new();
        for family in self.families.clone() {
            self.elements(family, &mut all)?;
        }
        let timeouts = self.lacking(all.iter());
        let mut transaction = Transaction::default();
        self.add_timeouts(&mut transaction, &timeouts);
        transaction.commit(&mut self.netlink).map_err(Trouble::from)?;
        self.timeouts.extend(timeouts);
        // Nothing of it counts unless all could be read.
        all.into_iter().for_each(take);
        Ok(())
    }
}

impl From<Trouble> for TableError {
    fn from(trouble: Trouble) -> Self {
        let refused = match &trouble {
            Trouble::Foreign(_) => false,
            Trouble::Nft(error) => error.is_of_the_elements(),
        };
        if refused {
            Self::Refused(trouble.to_string())
        } else {
            Self::Unusable(trouble.to_string())
        }
    }
}

/// Whether somebody else made it: every layout of ours begins with the same words.
fn is_foreign(table: &read::TableInfo) -> bool {
    !table.comment.as_ref().is_some_and(|comment| comment.starts_with(OURS))
}
