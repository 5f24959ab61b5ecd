//! What stands in the table, as far as is known: read from it at the start, and changed with each edit
//! that it has taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
};

use lb_common::abi::Peer;

use super::element::{Choice, Edit, Element};
use crate::{
    model::{Cidr, Frontend},
    policy::TrafficPolicy,
};

/// The mirror of the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TableMirror {
    entries: BTreeMap<(Frontend, TrafficPolicy), Entry>,
    restricted: BTreeSet<Frontend>,
    ranges: BTreeSet<(Frontend, Cidr)>,
    hairpins: BTreeSet<IpAddr>,
    nodes: BTreeSet<IpAddr>,
    servers: BTreeSet<SocketAddr>,
    /// How many elements all that is.
    len: usize,
}

/// What a frontend leads to by one policy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Entry {
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

impl Entry {
    /// How many elements it is.
    fn len(&self) -> usize {
        let affinity = self.affinity.as_deref().map_or(0, |of| {
            usize::from(of.seconds.is_some()) + of.numbers.len() + of.numbered.len()
        });
        usize::from(self.choice.is_some()) + self.endpoints.iter().flatten().count() + affinity
    }

    fn set(&mut self, slot: u32, addr: Option<SocketAddr>) {
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        if slot >= self.endpoints.len() {
            self.endpoints.reserve_exact(slot + 1 - self.endpoints.len());
            self.endpoints.resize(slot + 1, None);
        }
        self.endpoints[slot] = addr.map(Peer::from);
        while self.endpoints.last() == Some(&None) {
            self.endpoints.pop();
        }
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
            Element::Choice { policy, frontend, value } => {
                self.change((frontend, policy), |entry| entry.choice = is_there.then_some(value));
            }
            Element::Endpoint { policy, frontend, slot, addr } if slot < SLOTS => {
                self.change((frontend, policy), |entry| entry.set(slot, is_there.then_some(addr)));
            }
            Element::Endpoint { .. } => {}
            Element::Affinity { policy, frontend, seconds } => {
                self.change_affinity((frontend, policy), |of| {
                    of.seconds = is_there.then_some(seconds);
                });
            }
            Element::Number { policy, frontend, slot, number } => {
                self.change_affinity((frontend, policy), |of| {
                    set(&mut of.numbers, slot, is_there.then_some(number));
                });
            }
            Element::Numbered { policy, frontend, number, addr } => {
                self.change_affinity((frontend, policy), |of| {
                    set(&mut of.numbered, number, is_there.then_some(addr));
                });
            }
            Element::Restricted(frontend) => {
                put(&mut self.restricted, frontend, is_there, &mut self.len);
            }
            Element::Range { frontend, range } => {
                put(&mut self.ranges, (frontend, range), is_there, &mut self.len);
            }
            Element::Hairpin(ip) => put(&mut self.hairpins, ip, is_there, &mut self.len),
            Element::Node(ip) => put(&mut self.nodes, ip, is_there, &mut self.len),
            Element::Server(addr) => put(&mut self.servers, addr, is_there, &mut self.len),
        }
    }

    fn change(&mut self, key: (Frontend, TrafficPolicy), how: impl FnOnce(&mut Entry)) {
        let entry = self.entries.entry(key).or_default();
        self.len -= entry.len();
        how(entry);
        self.len += entry.len();
        if *entry == Entry::default() {
            self.entries.remove(&key);
        }
    }

    fn change_affinity(
        &mut self,
        key: (Frontend, TrafficPolicy),
        how: impl FnOnce(&mut AffinityMirror),
    ) {
        self.change(key, |entry| {
            let mut affinity = entry.affinity.take().unwrap_or_default();
            how(&mut affinity);
            entry.affinity = Some(affinity).filter(|of| **of != AffinityMirror::default());
        });
    }

    /// What stands there of session affinity.
    pub(super) fn affinity(
        &self,
        frontend: Frontend,
        policy: TrafficPolicy,
    ) -> Option<&AffinityMirror> {
        self.entries.get(&(frontend, policy))?.affinity.as_deref()
    }

    /// The timeouts of session affinity that are there.
    pub(super) fn timeouts(&self) -> BTreeSet<NonZeroU32> {
        let affinity = self.entries.values().filter_map(|entry| entry.affinity.as_deref());
        affinity.filter_map(|of| of.seconds).collect()
    }

    /// What packets to a frontend get by a policy.
    pub fn choice(&self, frontend: Frontend, policy: TrafficPolicy) -> Option<Choice> {
        self.entries.get(&(frontend, policy))?.choice
    }

    /// The endpoints of a frontend by their slots; an empty slot is damage.
    pub fn endpoints(
        &self,
        frontend: Frontend,
        policy: TrafficPolicy,
    ) -> impl ExactSizeIterator<Item = Option<SocketAddr>> {
        let entry = self.entries.get(&(frontend, policy));
        let all = entry.map_or(&[][..], |entry| &entry.endpoints);
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
    pub const fn servers(&self) -> &BTreeSet<SocketAddr> {
        &self.servers
    }

    /// All frontends of which anything is there, be it damaged.
    pub fn frontends(&self) -> BTreeSet<Frontend> {
        let entries = self.entries.keys().map(|(frontend, _)| *frontend);
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
        let entries = self.entries.iter().flat_map(|(&(frontend, policy), entry)| {
            let choice = entry.choice.map(|value| Element::Choice { policy, frontend, value });
            let endpoints = (0..).zip(&entry.endpoints).filter_map(move |(slot, peer)| {
                let addr = SocketAddr::from((*peer)?);
                Some(Element::Endpoint { policy, frontend, slot, addr })
            });
            let affinity = entry.affinity.as_deref().into_iter();
            let affinity = affinity.flat_map(move |of| of.elements(frontend, policy));
            choice.into_iter().chain(endpoints).chain(affinity)
        });
        let restricted = self.restricted.iter().copied().map(Element::Restricted);
        let ranges = self.ranges.iter();
        let ranges = ranges.map(|&(frontend, range)| Element::Range { frontend, range });
        let hairpins = self.hairpins.iter().copied().map(Element::Hairpin);
        let nodes = self.nodes.iter().copied().map(Element::Node);
        let servers = self.servers.iter().copied().map(Element::Server);
        entries.chain(restricted).chain(ranges).chain(hairpins).chain(nodes).chain(servers)
    }
}

impl AffinityMirror {
    pub(super) fn elements(
        &self,
        frontend: Frontend,
        policy: TrafficPolicy,
    ) -> impl Iterator<Item = Element> {
        let seconds = self.seconds.map(|seconds| Element::Affinity { policy, frontend, seconds });
        let numbers = self.numbers.iter();
        let numbers =
            numbers.map(move |(&slot, &number)| Element::Number { policy, frontend, slot, number });
        let numbered = self.numbered.iter().map(move |(&number, &addr)| Element::Numbered {
            policy,
            frontend,
            number,
            addr,
        });
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

fn set<V>(map: &mut BTreeMap<u32, V>, key: u32, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
