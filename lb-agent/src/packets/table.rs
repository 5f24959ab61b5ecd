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

/// So many timeouts of session affinity keep their rules without need, until all is read.
const SPARE: usize = 16;

/// How often all is read that somebody wrote to meanwhile.
const ATTEMPTS: u32 = 3;

/// The chain and the comment of each rule of a table.
type Rules = Vec<(String, Option<String>)>;

/// The tables of the families that this kernel has. They belong to this as long as it lives, where the
/// kernel knows owners.
#[derive(Debug)]
pub(super) struct Tables {
    netlink: Netlink,
    families: Vec<Family>,
    /// How many bonds of session affinity a map has room for.
    bonds: u32,
    /// Tables that serve until the first elements of those in their place are written.
    outdated: BTreeSet<Family>,
    /// The timeouts of session affinity that have rules, in seconds.
    timeouts: BTreeSet<u32>,
    /// The timeouts that elements have, and how many have them.
    used: BTreeMap<u32, usize>,
    /// The rules that are to be there, in order, with these timeouts.
    wanted: BTreeMap<Family, (BTreeSet<u32>, Rules)>,
}

/// What there is of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Missing,
    /// Another layout, or room for another number of bonds.
    Outdated,
    /// As it is to be, but for its rules, which nobody has looked at. Its flags.
    Ours(u32),
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
        Ok(Self {
            netlink: Netlink::netfilter()?,
            families,
            bonds,
            outdated: BTreeSet::new(),
            timeouts: BTreeSet::new(),
            used: BTreeMap::new(),
            wanted: BTreeMap::new(),
        })
    }

    pub(super) const fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Whether tables, chains and rules are there as they are to be. Where a table has an owner, nobody
    /// else can have changed it.
    pub(super) fn are_whole(&mut self) -> Result<bool, Trouble> {
        let mut all = BTreeSet::new();
        for family in self.families.clone() {
            match self.state(family)? {
                State::Ours(flags) if flags & OWNER != 0 => {}
                State::Ours(_) => match self.rules(family)? {
                    Some(timeouts) => _ = all.insert(timeouts),
                    None => return Ok(false),
                },
                State::Missing | State::Outdated => return Ok(false),
            }
        }
        // Each timeout has rules in each family.
        Ok(all.len() <= 1)
    }

    /// The timeouts of session affinity that have rules in a table; none if its rules are not as they
    /// are to be.
    fn rules(&mut self, family: Family) -> Result<Option<BTreeSet<u32>>, Trouble> {
        // Chain by chain: one that was made again stands behind the others. Rules for timeouts are in
        // no order.
        let in_order = |mut rules: Rules| {
            let timeout = |comment: &Option<String>| ruleset::timeout(comment.as_deref()?);
            rules.sort_by_cached_key(|(chain, comment)| (chain.clone(), timeout(comment)));
            rules
        };
        let found = in_order(read::rules(&mut self.netlink, family, TABLE)?);
        let comments = found.iter().filter_map(|(_, comment)| comment.as_deref());
        let timeouts: BTreeSet<u32> = comments.filter_map(ruleset::timeout).collect();
        let (of, wanted) = self.wanted.entry(family).or_default();
        if *of != timeouts || wanted.is_empty() {
            *wanted = in_order(ruleset::wanted(family, &timeouts));
            of.clone_from(&timeouts);
        }
        Ok((found == *wanted).then_some(timeouts))
    }

    fn state(&mut self, family: Family) -> Result<State, Trouble> {
        Ok(match read::table(&mut self.netlink, family, TABLE)? {
            Some(table) if is_foreign(&table) => return Err(Trouble::Foreign(family.name())),
            Some(table) if table.comment == Some(ruleset::comment(self.bonds)) => {
                State::Ours(table.flags)
            }
            Some(_) => State::Outdated,
            None => State::Missing,
        })
    }

    /// Makes tables as they are to be, with rules for these timeouts, and does what `more` says, all of
    /// it at once. Elements of a table that is ours stay.
    fn set_up(
        &mut self,
        tables: &[(Family, State)],
        timeouts: &BTreeSet<u32>,
        more: impl Fn(&mut Transaction),
    ) -> Result<(), NftError> {
        let attempt = |netlink: &mut Netlink, new| {
            let mut transaction = Transaction::default();
            for (family, state) in tables {
                let flags = match state {
                    // A table keeps the kind of ownership that it was made with.
                    State::Ours(flags) if flags & OWNED == 0 => 0,
                    State::Ours(_) => OWNED,
                    State::Missing => new,
                    State::Outdated => {
                        ruleset::remove(&mut transaction, *family);
                        new
                    }
                };
                ruleset::set_up(&mut transaction, *family, flags, (timeouts, self.bonds));
            }
            more(&mut transaction);
            transaction.commit(netlink)
        };
        match attempt(&mut self.netlink, OWNED) {
            // Linux before 6.9 knows no owner that outlives itself.
            Err(error)
                if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL))
                    && tables.iter().any(|(_, state)| !matches!(state, State::Ours(_))) =>
            {
                attempt(&mut self.netlink, 0)
            }
            result => result,
        }
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

    /// The elements of all tables of ours, if there are any, and whether they were there at one time:
    /// nobody has written since the first set was read. Writes nothing.
    pub(super) fn look(&mut self) -> Result<(Option<Vec<Element>>, bool), Trouble> {
        let mut attempts = ATTEMPTS;
        loop {
            let before = read::generation(&mut self.netlink).map_err(NftError::from)?;
            let mut found = None;
            for family in self.families.clone() {
                let table = read::table(&mut self.netlink, family, TABLE)?;
                if table.is_some_and(|table| !is_foreign(&table)) {
                    self.elements(family, found.get_or_insert_default())?;
                }
            }
            let after = read::generation(&mut self.netlink).map_err(NftError::from)?;
            let is_steady = after == before;
            attempts -= 1;
            if is_steady || attempts == 0 {
                return Ok((found, is_steady));
            }
        }
    }

    fn elements(&mut self, family: Family, all: &mut Vec<Element>) -> Result<(), Trouble> {
        for set in Set::all().filter(|set| !set.is_dynamic()) {
            let raw = read::elements(&mut self.netlink, family, (TABLE, set.name()))?;
            let raw = raw.unwrap_or_default();
            all.extend(raw.iter().filter_map(|raw| decode(family, set, raw)));
        }
        Ok(())
    }
}

/// Counts the timeouts of elements that come or go.
fn count(used: &mut BTreeMap<u32, usize>, element: &Element, more: bool) {
    let Element::Affinity { seconds, .. } = element else { return };
    let count = used.entry(seconds.get()).or_default();
    *count = if more { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        used.remove(&seconds.get());
    }
}

impl Table for Tables {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        // Nobody sees an order in what takes effect at once; a value that changes is deleted and added.
        let mut all: BTreeMap<(bool, Family, Set), Vec<Raw>> = BTreeMap::new();
        let mut used = self.used.clone();
        for edit in edits {
            let (family, set, raw) = encode(edit.element());
            let is_added = matches!(edit, Edit::Add(_));
            all.entry((is_added, family, set)).or_default().push(raw);
            count(&mut used, edit.element(), is_added);
        }
        let needed: BTreeSet<u32> = used.keys().copied().collect();
        let is_anew =
            !self.outdated.is_empty() || self.timeouts.difference(&needed).count() > SPARE;
        let rules = if is_anew { needed } else { &self.timeouts | &needed };
        let outdated: Vec<_> =
            self.outdated.iter().map(|family| (*family, State::Outdated)).collect();
        let others: Vec<_> =
            self.families.iter().filter(|of| !self.outdated.contains(of)).copied().collect();
        let fresh = &rules - &self.timeouts;
        self.set_up(&outdated, &rules, |transaction| {
            for family in &others {
                if is_anew {
                    ruleset::set_timeouts(transaction, *family, &rules);
                } else {
                    ruleset::add_timeouts(transaction, *family, &fresh);
                }
            }
            for ((is_added, family, set), raw) in &all {
                let message = if *is_added { Message::NewElements } else { Message::DelElements };
                transaction.elements(message, *family, (TABLE, set.name()), raw);
            }
        })
        .map_err(Trouble::from)?;
        (self.used, self.timeouts) = (used, rules);
        self.outdated.clear();
        Ok(())
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        let (mut all, mut outdated, mut others) = (Vec::new(), BTreeSet::new(), Vec::new());
        for family in self.families.clone() {
            let state = self.state(family)?;
            match state {
                // It serves until what is wanted is known.
                State::Outdated => _ = outdated.insert(family),
                State::Missing => others.push((family, state, None)),
                State::Ours(_) => {
                    others.push((family, state, self.rules(family)?));
                    self.elements(family, &mut all)?;
                }
            }
        }
        let mut used = BTreeMap::new();
        for element in &all {
            count(&mut used, element, true);
        }
        let timeouts = used.keys().copied().collect();
        let is_broken = |rules: &Option<_>| rules.is_none();
        let broken = others.iter().filter(|(.., rules)| is_broken(rules));
        let broken: Vec<_> = broken.map(|(family, state, _)| (*family, *state)).collect();
        self.set_up(&broken, &timeouts, |transaction| {
            for (family, state, rules) in others.iter().filter(|(.., rules)| !is_broken(rules)) {
                // Its owner has ended.
                if matches!(state, State::Ours(flags) if flags & OWNED == OWNED & !OWNER) {
                    ruleset::claim(transaction, *family);
                }
                if rules.as_ref() != Some(&timeouts) {
                    ruleset::set_timeouts(transaction, *family, &timeouts);
                }
            }
        })
        .map_err(Trouble::from)?;
        (self.outdated, self.timeouts, self.used) = (outdated, timeouts, used);
        // Nothing of it counts unless all could be read.
        all.into_iter().for_each(take);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), TableError> {
        if self.outdated.is_empty() { Ok(()) } else { self.write(&[]) }
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
