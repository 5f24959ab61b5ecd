//! The numbers of the ports of Services in a table. A port keeps its own as long as it is served, also
//! by the agent after this one: its frontends in the table tell it.

use std::collections::{HashMap, HashSet};

use super::{element::Group, mirror::TableMirror};
use crate::{
    model::PortRef,
    policy::{OutsidePort, TrafficPolicy},
};

/// Ports have numbers below this: a group's has one bit more.
const END: u32 = 1 << 31;

/// Which port has which number, in one family.
#[derive(Debug, Default)]
pub(super) struct PortNumbers {
    ipv4: bool,
    of: HashMap<PortRef, u32>,
    taken: HashSet<u32>,
    /// From here on the next free one is looked for: a number that was given back is not given again
    /// soon, for there may be bonds of session affinity to it.
    next: u32,
}

impl PortNumbers {
    /// Those of a family.
    pub(super) fn new(ipv4: bool) -> Self {
        Self { ipv4, ..Self::default() }
    }

    pub(super) const fn ipv4(&self) -> bool {
        self.ipv4
    }

    /// Begins anew: of these ports, those whose frontends lead to a number have that one.
    pub(super) fn adopt<'a>(
        &mut self,
        mirror: &TableMirror,
        ports: impl Iterator<Item = &'a OutsidePort>,
    ) {
        self.of.clear();
        self.taken.clear();
        for port in ports {
            let leads = port.frontends.iter();
            let leads = leads.filter_map(|of| mirror.group(of.frontend, TrafficPolicy::Cluster));
            if let Some(number) = leads.map(Group::port).find(|number| self.taken.insert(*number)) {
                self.of.insert(port.port.clone(), number);
            }
        }
        let last = mirror.groups().map(Group::port).max();
        self.next = self.next.max(last.map_or(0, |last| last + 1));
    }

    /// The number of a port, if it has one.
    pub(super) fn get(&self, port: &PortRef) -> Option<u32> {
        self.of.get(port).copied()
    }

    /// The groups of a port, which gets a number if it has none: one that nobody has, and of which nothing
    /// is in the table.
    pub(super) fn take(&mut self, port: &PortRef, mirror: &TableMirror) -> [Group; 2] {
        let number = self.get(port).unwrap_or_else(|| {
            let number = self.fresh(mirror);
            self.of.insert(port.clone(), number);
            number
        });
        self.groups(number)
    }

    /// The groups that were those of a port, which has a number no more.
    pub(super) fn give_back(&mut self, port: &PortRef) -> impl Iterator<Item = Group> + use<> {
        let number = self.of.remove(port);
        if let Some(number) = number {
            self.taken.remove(&number);
        }
        number.map(|number| self.groups(number)).into_iter().flatten()
    }

    fn groups(&self, number: u32) -> [Group; 2] {
        [TrafficPolicy::Cluster, TrafficPolicy::Local]
            .map(|policy| Group::of(self.ipv4, number, policy))
    }

    fn fresh(&mut self, mirror: &TableMirror) -> u32 {
        loop {
            let number = self.next % END;
            self.next = (number + 1) % END;
            let is_free = self.groups(number).iter().all(|group| !mirror.has(*group));
            if is_free && self.taken.insert(number) {
                return number;
            }
        }
    }
}
