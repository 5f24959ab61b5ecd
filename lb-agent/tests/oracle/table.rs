//! What the elements of the table for packets say, looked up as its rules are to look it up.
//!
//! It stands beside [`Served::outside`](lb_core::policy::Served): what is planned, written and swept in
//! the course of a history is to say the same as what was decided last. The table is one in memory, or the
//! kernel's own, of which the elements are read back.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
};

use lb_agent::packets;
use lb_core::{
    model::{Frontend, Protocol, Scope},
    packets::{Choice, Edit, Element, Group, MemoryTable, Table, TableError},
    policy::{Sender, TrafficPolicy},
};

use super::{
    outcome::{Fate, Packet},
    outside::Handled,
};

thread_local! {
    static IN_KERNEL: Cell<bool> = const { Cell::new(false) };
}

/// From now on the tables of this thread are the kernel's, in the thread's network namespace.
pub(crate) fn use_the_kernel() {
    IN_KERNEL.set(true);
}

/// The tables of both families, which outlive their engines.
#[derive(Clone)]
pub(super) struct Shared(Rc<RefCell<Tables>>);

enum Tables {
    Memory(MemoryTable),
    Kernel {
        /// Of IPv4, and of IPv6.
        tables: [Box<dyn Table>; 2],
        /// What was read from them after the last write.
        read: Option<BTreeSet<Element>>,
    },
}

/// A family's.
pub(super) struct FamilyTable {
    all: Shared,
    ipv4: bool,
}

impl Default for Shared {
    fn default() -> Self {
        let tables = if IN_KERNEL.get() {
            packets::cleanup().expect("the tables of the case before go");
            let open = |ipv4| -> Box<dyn Table> {
                Box::new(packets::open(ipv4, 1024).expect("nf_tables"))
            };
            Tables::Kernel { tables: [true, false].map(open), read: None }
        } else {
            Tables::Memory(MemoryTable::default())
        };
        Self(Rc::new(RefCell::new(tables)))
    }
}

impl Tables {
    fn of(&mut self, ipv4: bool) -> &mut dyn Table {
        match self {
            Self::Memory(table) => table,
            Self::Kernel { tables, .. } => &mut *tables[usize::from(!ipv4)],
        }
    }
}

impl Table for FamilyTable {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        let mut all = self.all.0.borrow_mut();
        if let Tables::Kernel { read, .. } = &mut *all {
            *read = None;
        }
        all.of(self.ipv4).write(edits)
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        self.all.0.borrow_mut().of(self.ipv4).read(take)
    }

    fn settle(&mut self) -> Result<(), TableError> {
        self.all.0.borrow_mut().of(self.ipv4).settle()
    }
}

impl Shared {
    pub(super) fn family(&self, ipv4: bool) -> FamilyTable {
        FamilyTable { all: self.clone(), ipv4 }
    }

    /// What becomes of a packet.
    pub(super) fn handles(&self, packet: &Packet, sender: Sender) -> Handled {
        let mut tables = self.0.borrow_mut();
        let elements = match &mut *tables {
            Tables::Memory(table) => table.elements(),
            Tables::Kernel { read, .. } => read.get_or_insert_with(|| {
                let seen = packets::look().expect("nf_tables").expect("there are tables");
                seen.table.elements().collect()
            }),
        };
        let Some(frontend) = frontend(elements, packet) else { return Handled::default() };
        let admits = |element: &Element| {
            matches!(element, Element::Range { frontend: of, range }
                if *of == frontend && range.contains(packet.source))
        };
        if elements.contains(&Element::Restricted(frontend)) && !elements.iter().any(admits) {
            return Fate::Denied.into();
        }
        let has_local = group(elements, TrafficPolicy::Local, frontend).is_some();
        let policy = if sender == Sender::Stranger && has_local {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        };
        let is_masqueraded = match sender {
            Sender::Pod | Sender::Stranger => !has_local,
            Sender::Node => true,
        };
        let group = group(elements, policy, frontend).expect("both lead somewhere");
        match choice(elements, group) {
            None => Handled::default(),
            Some(Choice::Reject) => Fate::Refused.into(),
            Some(Choice::Drop) => Fate::Unreachable.into(),
            Some(Choice::Slots(slots)) => {
                let slots = endpoints(elements, group, slots);
                let is_itself =
                    |ip: IpAddr| ip == packet.source && elements.contains(&Element::Hairpin(ip));
                let those = slots.values().map(|at| (*at, is_masqueraded || is_itself(at.ip())));
                Handled {
                    fate: Fate::Forwarded,
                    endpoints: those.collect(),
                    affinity: affinity(elements, group, &slots),
                }
            }
        }
    }
}

/// The frontend by which a packet is looked up: the address, or else a node port.
fn frontend(elements: &BTreeSet<Element>, packet: &Packet) -> Option<Frontend> {
    let protocol = match packet.protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    let is_there =
        |frontend: &Frontend| group(elements, TrafficPolicy::Cluster, *frontend).is_some();
    let at = Frontend::new(packet.to, protocol);
    let any = if packet.to.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let node_port = Frontend {
        scope: Scope::OwnNode,
        ..Frontend::new(SocketAddr::new(any, packet.to.port()), protocol)
    };
    let is_node = elements.contains(&Element::Node(packet.to.ip()));
    Some(at).filter(is_there).or_else(|| Some(node_port).filter(|it| is_node && is_there(it)))
}

fn group(elements: &BTreeSet<Element>, policy: TrafficPolicy, frontend: Frontend) -> Option<Group> {
    elements.iter().find_map(|element| match element {
        Element::Frontend { policy: of, frontend: at, group } => {
            (*of == policy && *at == frontend).then_some(*group)
        }
        _ => None,
    })
}

fn choice(elements: &BTreeSet<Element>, group: Group) -> Option<Choice> {
    elements.iter().find_map(|element| match element {
        Element::Choice { group: of, value } => (*of == group).then_some(*value),
        _ => None,
    })
}

/// Those in the slots, which are dense and of the least power of two that has room for them.
fn endpoints(elements: &BTreeSet<Element>, group: Group, slots: u32) -> BTreeMap<u32, SocketAddr> {
    let those = elements.iter().filter_map(|element| match element {
        Element::Endpoint { group: of, slot, addr } => (*of == group).then_some((*slot, *addr)),
        _ => None,
    });
    let those: BTreeMap<u32, SocketAddr> = those.collect();
    let count = u32::try_from(those.len()).expect("few");
    assert!(those.keys().copied().eq(0..count), "{group}: {those:?}");
    assert_eq!(Choice::of(count), Choice::Slots(slots), "{group}: {those:?}");
    those
}

/// How long a sender stays, by numbers that lead to the same endpoints as the slots.
fn affinity(elements: &BTreeSet<Element>, group: Group, slots: &BTreeMap<u32, SocketAddr>) -> u32 {
    let (mut seconds, mut numbers, mut numbered) = (0, BTreeMap::new(), BTreeMap::new());
    for element in elements {
        match *element {
            Element::Affinity { group: of, seconds: these } if of == group => {
                seconds = these.get();
            }
            Element::Number { group: of, slot, number } if of == group => {
                numbers.insert(slot, number);
            }
            Element::Numbered { group: of, number, addr } if of == group => {
                numbered.insert(number, addr);
            }
            _ => {}
        }
    }
    let at_slots = numbers.iter().map(|(slot, number)| (*slot, numbered[number]));
    let at_slots: BTreeMap<u32, SocketAddr> = at_slots.collect();
    let wanted = if seconds > 0 { slots.clone() } else { BTreeMap::new() };
    assert_eq!((at_slots, numbered.len()), (wanted, numbers.len()), "{group}");
    seconds
}
