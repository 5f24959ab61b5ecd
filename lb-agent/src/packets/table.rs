//! The table of a family in the kernel: elements in and out.

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

/// The table of a family. It belongs to this as long as it lives, where the kernel knows owners.
#[derive(Debug)]
pub(super) struct KernelTable {
    netlink: Netlink,
    family: Family,
    /// How many bonds of session affinity it has room for.
    bonds: u32,
    /// The one that is there serves until the first elements of the one in its place are written.
    is_outdated: bool,
    /// The timeouts of session affinity that have rules, in seconds.
    timeouts: BTreeSet<u32>,
    /// The timeouts that elements have, and how many have them.
    used: BTreeMap<u32, usize>,
    /// The rules that are to be there, in order, with these timeouts.
    wanted: (BTreeSet<u32>, Rules),
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

/// What stands in a table.
pub(super) struct Found {
    pub(super) elements: Vec<Element>,
    /// Whether all of it was there at one time: nobody has written since the first set was read.
    pub(super) is_steady: bool,
}

/// Why a table cannot be used.
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

impl KernelTable {
    /// In the network namespace of this thread.
    pub(super) fn open(family: Family, bonds: u32) -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::netfilter()?,
            family,
            bonds,
            is_outdated: false,
            timeouts: BTreeSet::new(),
            used: BTreeMap::new(),
            wanted: (BTreeSet::new(), Rules::new()),
        })
    }

    pub(super) const fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Whether table, chains and rules are there as they are to be. Where the table has an owner, nobody
    /// else can have changed it.
    pub(super) fn is_whole(&mut self) -> Result<bool, Trouble> {
        Ok(match self.state()? {
            State::Ours(flags) if flags & OWNER != 0 => true,
            State::Ours(_) => self.rules()?.is_some(),
            State::Missing | State::Outdated => false,
        })
    }

    /// The timeouts of session affinity that have rules; none if its rules, or the remainders that they
    /// look up, are not as they are to be.
    fn rules(&mut self) -> Result<Option<BTreeSet<u32>>, Trouble> {
        // Chain by chain: one that was made again stands behind the others. Rules for timeouts are in
        // no order.
        let in_order = |mut rules: Rules| {
            let timeout = |comment: &Option<String>| ruleset::timeout(comment.as_deref()?);
            rules.sort_by_cached_key(|(chain, comment)| (chain.clone(), timeout(comment)));
            rules
        };
        let found = in_order(read::rules(&mut self.netlink, self.family, TABLE)?);
        let comments = found.iter().filter_map(|(_, comment)| comment.as_deref());
        let timeouts: BTreeSet<u32> = comments.filter_map(ruleset::timeout).collect();
        let (of, wanted) = &mut self.wanted;
        if *of != timeouts || wanted.is_empty() {
            *wanted = in_order(ruleset::wanted(self.family, &timeouts));
            of.clone_from(&timeouts);
        }
        if found != *wanted {
            return Ok(None);
        }
        let set = (TABLE, Set::Remainders.name());
        let mut remainders =
            read::elements(&mut self.netlink, self.family, set)?.unwrap_or_default();
        remainders.sort_unstable();
        Ok((remainders == ruleset::remainders()).then_some(timeouts))
    }

    fn state(&mut self) -> Result<State, Trouble> {
        Ok(match read::table(&mut self.netlink, self.family, TABLE)? {
            Some(table) if is_foreign(&table) => return Err(Trouble::Foreign(self.family.name())),
            Some(table) if table.comment == Some(ruleset::comment(self.bonds)) => {
                State::Ours(table.flags)
            }
            Some(_) => State::Outdated,
            None => State::Missing,
        })
    }

    /// Makes the table as it is to be, with rules for these timeouts, and does what `more` says, all of
    /// it at once. Elements of a table that is ours stay.
    fn set_up(
        &mut self,
        state: State,
        timeouts: &BTreeSet<u32>,
        more: impl Fn(&mut Transaction),
    ) -> Result<(), NftError> {
        let (family, bonds) = (self.family, self.bonds);
        let attempt = |netlink: &mut Netlink, new| {
            let mut transaction = Transaction::default();
            let flags = match state {
                // A table keeps the kind of ownership that it was made with.
                State::Ours(flags) if flags & OWNED == 0 => 0,
                State::Ours(_) => OWNED,
                State::Missing => new,
                State::Outdated => {
                    ruleset::remove(&mut transaction, family);
                    new
                }
            };
            ruleset::set_up(&mut transaction, family, flags, (timeouts, bonds));
            more(&mut transaction);
            transaction.commit(netlink)
        };
        match attempt(&mut self.netlink, OWNED) {
            // Linux before 6.9 knows no owner that outlives itself.
            Err(error)
                if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL))
                    && !matches!(state, State::Ours(_)) =>
            {
                attempt(&mut self.netlink, 0)
            }
            result => result,
        }
    }

    /// Removes the table. Its name, if it was there.
    pub(super) fn remove(&mut self) -> Result<Option<String>, Trouble> {
        let Some(table) = read::table(&mut self.netlink, self.family, TABLE)? else {
            return Ok(None);
        };
        if is_foreign(&table) {
            return Ok(None);
        }
        let mut transaction = Transaction::default();
        ruleset::remove(&mut transaction, self.family);
        transaction.commit(&mut self.netlink)?;
        Ok(Some(format!("table {} {TABLE}", self.family.name())))
    }

    /// What stands in the table, if it is there and ours. Writes nothing.
    pub(super) fn look(&mut self) -> Result<Option<Found>, Trouble> {
        let mut attempts = ATTEMPTS;
        loop {
            let before = read::generation(&mut self.netlink).map_err(NftError::from)?;
            let table = read::table(&mut self.netlink, self.family, TABLE)?;
            if table.is_none_or(|table| is_foreign(&table)) {
                return Ok(None);
            }
            let elements = self.elements()?;
            let after = read::generation(&mut self.netlink).map_err(NftError::from)?;
            let is_steady = after == before;
            attempts -= 1;
            if is_steady || attempts == 0 {
                return Ok(Some(Found { elements, is_steady }));
            }
        }
    }

    /// How many bonds of session affinity there are. Reads them all: the kernel tells no number.
    pub(super) fn bonds(&mut self) -> Result<usize, Trouble> {
        let set = (TABLE, Set::Bonds.name());
        let all = read::elements(&mut self.netlink, self.family, set)?;
        Ok(all.map_or(0, |all| all.len()))
    }

    fn elements(&mut self) -> Result<Vec<Element>, Trouble> {
        let mut all = Vec::new();
        for set in Set::all().filter(|set| set.has_wanted()) {
            let raw = read::elements(&mut self.netlink, self.family, (TABLE, set.name()))?;
            let raw = raw.unwrap_or_default();
            all.extend(raw.iter().filter_map(|raw| decode(self.family, set, raw)));
        }
        Ok(all)
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

impl Table for KernelTable {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        // Nobody sees an order in what takes effect at once; a value that changes is deleted and added.
        let mut all: BTreeMap<(bool, Set), Vec<Raw>> = BTreeMap::new();
        let mut used = self.used.clone();
        for edit in edits {
            let (set, raw) = encode(edit.element());
            let is_added = matches!(edit, Edit::Add(_));
            all.entry((is_added, set)).or_default().push(raw);
            count(&mut used, edit.element(), is_added);
        }
        let needed: BTreeSet<u32> = used.keys().copied().collect();
        let is_anew = self.is_outdated || self.timeouts.difference(&needed).count() > SPARE;
        let rules = if is_anew { needed } else { &self.timeouts | &needed };
        let family = self.family;
        let elements = |transaction: &mut Transaction| {
            for ((is_added, set), raw) in &all {
                let message = if *is_added { Message::NewElements } else { Message::DelElements };
                transaction.elements(message, family, (TABLE, set.name()), raw);
            }
        };
        if self.is_outdated {
            self.set_up(State::Outdated, &rules, elements)
        } else {
            let mut transaction = Transaction::default();
            if is_anew {
                ruleset::set_timeouts(&mut transaction, family, &rules);
            } else {
                ruleset::add_timeouts(&mut transaction, family, &(&rules - &self.timeouts));
            }
            elements(&mut transaction);
            transaction.commit(&mut self.netlink)
        }
        .map_err(Trouble::from)?;
        (self.used, self.timeouts) = (used, rules);
        self.is_outdated = false;
        Ok(())
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        let state = self.state()?;
        let (rules, all) = match state {
            State::Ours(_) => (self.rules()?, self.elements()?),
            State::Missing | State::Outdated => (None, Vec::new()),
        };
        let mut used = BTreeMap::new();
        for element in &all {
            count(&mut used, element, true);
        }
        let timeouts = used.keys().copied().collect();
        match (state, rules) {
            // It serves until what is wanted is known.
            (State::Outdated, _) => Ok(()),
            (_, None) => self.set_up(state, &timeouts, |_| {}),
            (_, Some(rules)) => {
                let mut transaction = Transaction::default();
                // Its owner has ended.
                if matches!(state, State::Ours(flags) if flags & OWNED == OWNED & !OWNER) {
                    ruleset::claim(&mut transaction, self.family);
                }
                if rules != timeouts {
                    ruleset::set_timeouts(&mut transaction, self.family, &timeouts);
                }
                transaction.commit(&mut self.netlink)
            }
        }
        .map_err(Trouble::from)?;
        self.is_outdated = state == State::Outdated;
        (self.timeouts, self.used) = (timeouts, used);
        // Nothing of it counts unless all could be read.
        all.into_iter().for_each(take);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), TableError> {
        if self.is_outdated { self.write(&[]) } else { Ok(()) }
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
