//! What stands in the table, as far as is known: read from it at the start, and changed with each edit
//! that it has taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
};

use lb_common::abi::Peer;

use super::element::{Choice, Edit, Element, Group};
use crate::{
    model::{Cidr, Frontend},
    policy::TrafficPolicy,
};

/// The mirror of the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TableMirror {
    frontends: BTreeMap<(Frontend, TrafficPolicy), Group>,
    groups: BTreeMap<Group, GroupEntry>,
    restricted: BTreeSet<Frontend>,
    ranges: BTreeSet<(Frontend, Cidr)>,
    hairpins: BTreeSet<IpAddr>,
    nodes: BTreeSet<IpAddr>,
    servers: BTreeSet<Peer>,
    /// How many elements all that is.
    len: usize,
}

/// What stands there of a group.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct GroupEntry {
    /// How many frontends lead to it.
    frontends: u32,
    choice: Option<Choice>,
    /// By slot; the last one is not empty. Small, for there are very many.
    endpoints: Vec<Option<Peer>>,
    /// Few have any.
    affinity: Option<Box<AffinityMirror>>,
}

/// What stands there where senders stay with their endpoints.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct AffinityMirror {
    pub(super) seconds: Option<NonZeroU32>,
    /// By slot.
    pub(super) numbers: BTreeMap<u32, u32>,
    /// By number.
    pub(super) numbered: BTreeMap<u32, SocketAddr>,
}

impl GroupEntry {
    /// Fills a slot, or empties it. Whether it was empty.
    fn set(&mut self, slot: u32, addr: Option<SocketAddr>) -> bool {
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        if slot >= self.endpoints.len() {
            self.endpoints.reserve_exact(slot + 1 - self.endpoints.len());
            self.endpoints.resize(slot + 1, None);
        }
        let before = std::mem::replace(&mut self.endpoints[slot], addr.map(Peer::from));
        while self.endpoints.last() == Some(&None) {
            self.endpoints.pop();
        }
        before.is_none()
    }
}

/// The most slots that are believed. Nobody writes so many; whoever does shall not fill our memory.
const SLOTS: u32 = 1 << 20;

impl TableMirror {
    /// Takes in what an edit did to the table.
    pub fn apply(&mut self, edit: &Edit) {
        let (element, is_there) = match edit {
            Edit::Add(element) => (element, true),
            Edit::Delete(element) => (element, false),
        };
        match *element {
            Element::Frontend { policy, frontend, group } => {
                self.lead((frontend, policy), group, is_there);
            }
            Element::Choice { group, value } => {
                let value = is_there.then_some(value);
                self.change(group, is_there, |entry| {
                    std::mem::replace(&mut entry.choice, value).is_none()
                });
            }
            Element::Endpoint { group, slot, addr } if slot < SLOTS => {
                self.change(group, is_there, |entry| entry.set(slot, is_there.then_some(addr)));
            }
            Element::Endpoint { .. } => {}
            Element::Affinity { group, seconds } => {
                let seconds = is_there.then_some(seconds);
                self.change_affinity(group, is_there, |of| {
                    std::mem::replace(&mut of.seconds, seconds).is_none()
                });
            }
            Element::Number { group, slot, number } => {
                let number = is_there.then_some(number);
                self.change_affinity(group, is_there, |of| set(&mut of.numbers, slot, number));
            }
            Element::Numbered { group, number, addr } => {
                let addr = is_there.then_some(addr);
                self.change_affinity(group, is_there, |of| set(&mut of.numbered, number, addr));
            }
            Element::Restricted(frontend) => {
                put(&mut self.restricted, frontend, is_there, &mut self.len);
            }
            Element::Range { frontend, range } => {
                put(&mut self.ranges, (frontend, range), is_there, &mut self.len);
            }
            Element::Hairpin(ip) => put(&mut self.hairpins, ip, is_there, &mut self.len),
            Element::Node(ip) => put(&mut self.nodes, ip, is_there, &mut self.len),
            Element::Server(addr) => put(&mut self.servers, addr.into(), is_there, &mut self.len),
        }
    }

    /// Changes what is there of a group in one place, where there `is` something afterwards. `how` says
    /// whether there was nothing before.
    fn change(&mut self, group: Group, is: bool, how: impl FnOnce(&mut GroupEntry) -> bool) {
        let entry = self.groups.entry(group).or_default();
        let was = !how(entry);
        self.len = self.len + usize::from(is) - usize::from(was);
        if *entry == GroupEntry::default() {
            self.groups.remove(&group);
        }
    }

    fn change_affinity(
        &mut self,
        group: Group,
        is: bool,
        how: impl FnOnce(&mut AffinityMirror) -> bool,
    ) {
        self.change(group, is, |entry| {
            let mut affinity = entry.affinity.take().unwrap_or_default();
            let was_empty = how(&mut affinity);
            entry.affinity = Some(affinity).filter(|of| **of != AffinityMirror::default());
            was_empty
        });
    }

    /// A frontend leads to this group, or to none any more.
    fn lead(&mut self, key: (Frontend, TrafficPolicy), group: Group, is_there: bool) {
        let before =
            if is_there { self.frontends.insert(key, group) } else { self.frontends.remove(&key) };
        if let Some(before) = before {
            self.change(before, false, |entry| {
                entry.frontends -= 1;
                false
            });
        }
        if is_there {
            self.change(group, true, |entry| {
                entry.frontends += 1;
                true
            });
        }
    }

    /// The group that a frontend leads to by a policy.
    pub fn group(&self, frontend: Frontend, policy: TrafficPolicy) -> Option<Group> {
        self.frontends.get(&(frontend, policy)).copied()
    }

    /// Whether a frontend leads to a group.
    pub(super) fn is_led_to(&self, group: Group) -> bool {
        self.groups.get(&group).is_some_and(|entry| entry.frontends > 0)
    }

    /// All groups of which anything is there, or to which a frontend leads.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group> {
        self.groups.keys().copied()
    }

    /// Whether anything of a group is there, or a frontend leads to it.
    pub(super) fn has(&self, group: Group) -> bool {
        self.groups.contains_key(&group)
    }

    /// What stands there of session affinity.
    pub(super) fn affinity(&self, group: Group) -> Option<&AffinityMirror> {
        self.groups.get(&group)?.affinity.as_deref()
    }

    /// The timeouts of session affinity that are there.
    pub(super) fn timeouts(&self) -> BTreeSet<NonZeroU32> {
        let affinity = self.groups.values().filter_map(|entry| entry.affinity.as_deref());
        affinity.filter_map(|of| of.seconds).collect()
    }

    /// What packets to the frontends of a group get.
    pub fn choice(&self, group: Group) -> Option<Choice> {
        self.groups.get(&group)?.choice
    }

    /// The endpoints of a group by their slots; an empty slot is damage.
    pub fn endpoints(&self, group: Group) -> impl ExactSizeIterator<Item = Option<SocketAddr>> {
        let all = self.groups.get(&group).map_or(&[][..], |entry| &entry.endpoints);
        all.iter().map(|peer| peer.map(SocketAddr::from))
    }

    /// Whether a frontend is for the senders of its ranges alone.
    pub fn is_restricted(&self, frontend: Frontend) -> bool {
        self.restricted.contains(&frontend)
    }

    /// The ranges of a frontend.
    pub fn ranges(&self, frontend: Frontend) -> impl Iterator<Item = Cidr> {
        let first = Cidr { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
        let all = self.ranges.range((frontend, first)..);
        all.take_while(move |(of, _)| *of == frontend).map(|(_, range)| *range)
    }

    /// Addresses that may reach themselves.
    pub const fn hairpins(&self) -> &BTreeSet<IpAddr> {
        &self.hairpins
    }

    /// The addresses at which node ports are served.
    pub const fn nodes(&self) -> &BTreeSet<IpAddr> {
        &self.nodes
    }

    /// Endpoints of TCP whose stray packets are dropped.
    pub fn servers(&self) -> impl ExactSizeIterator<Item = SocketAddr> {
        self.servers.iter().copied().map(SocketAddr::from)
    }

    /// Whether this is one of them.
    pub(super) fn is_server(&self, peer: Peer) -> bool {
        self.servers.contains(&peer)
    }

    /// All frontends of which anything is there, be it damaged.
    pub fn frontends(&self) -> BTreeSet<Frontend> {
        let entries = self.frontends.keys().map(|(frontend, _)| *frontend);
        let ranges = self.ranges.iter().map(|(frontend, _)| *frontend);
        entries.chain(self.restricted.iter().copied()).chain(ranges).collect()
    }

    /// How many elements there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing at all.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements.
    pub fn elements(&self) -> impl Iterator<Item = Element> {
        let frontends = self.frontends.iter();
        let frontends = frontends.map(|(&(frontend, policy), &group)| Element::Frontend {
            policy,
            frontend,
            group,
        });
        let groups = self.groups.iter().flat_map(|(&group, entry)| {
            let choice = entry.choice.map(|value| Element::Choice { group, value });
            let endpoints = (0..).zip(&entry.endpoints).filter_map(move |(slot, peer)| {
                let addr = SocketAddr::from((*peer)?);
                Some(Element::Endpoint { group, slot, addr })
            });
            let affinity = entry.affinity.as_deref().into_iter();
            let affinity = affinity.flat_map(move |of| of.elements(group));
            choice.into_iter().chain(endpoints).chain(affinity)
        });
        let restricted = self.restricted.iter().copied().map(Element::Restricted);
        let ranges = self.ranges.iter();
        let ranges = ranges.map(|&(frontend, range)| Element::Range { frontend, range });
        let hairpins = self.hairpins.iter().copied().map(Element::Hairpin);
        let nodes = self.nodes.iter().copied().map(Element::Node);
        let servers = self.servers().map(Element::Server);
        let of_frontends = frontends.chain(groups).chain(restricted).chain(ranges);
        of_frontends.chain(hairpins).chain(nodes).chain(servers)
    }
}

impl AffinityMirror {
    pub(super) fn elements(&self, group: Group) -> impl Iterator<Item = Element> {
        let seconds = self.seconds.map(|seconds| Element::Affinity { group, seconds });
        let numbers = self.numbers.iter();
        let numbers = numbers.map(move |(&slot, &number)| Element::Number { group, slot, number });
        let numbered = self.numbered.iter();
        let numbered =
            numbered.map(move |(&number, &addr)| Element::Numbered { group, number, addr });
        seconds.into_iter().chain(numbers).chain(numbered)
    }
}

impl FromIterator<Element> for TableMirror {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Self {
        let mut mirror = Self::default();
        elements.into_iter().for_each(|element| mirror.apply(&Edit::Add(element)));
        mirror
    }
}

fn put<T: Ord>(set: &mut BTreeSet<T>, item: T, is_there: bool, len: &mut usize) {
    *len -= set.len();
    if is_there {
        set.insert(item);
    } else {
        set.remove(&item);
    }
    *len += set.len();
}

/// Whether there was nothing.
fn set<V>(map: &mut BTreeMap<u32, V>, key: u32, value: Option<V>) -> bool {
    let before = match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    before.is_none()
}
