//! A Service, and a socket that asks for it.

extern crate std;

use core::{
    cell::{Cell, RefCell},
    net::SocketAddr,
};
use std::vec::Vec;

use bytemuck::Zeroable as _;

use super::{Caller, Flow, Origin, Prior, ReadMaps, pick};
use crate::{
    Verdict,
    abi::{
        Addr, Address, AffinityKey, Backend, Bond, ClientKey, Peer, PortOptions, Service,
        ServiceKey, SourceAddress, SourceRangeKey,
    },
};

/// One service at one key, and a few records. `stale` readings of the service come first. Also
/// the socket that asks.
pub(super) struct Fake {
    pub(super) key: ServiceKey,
    pub(super) stale: Service,
    pub(super) stale_readings: Cell<u32>,
    pub(super) service: Service,
    pub(super) options: PortOptions,
    pub(super) records: [Backend; 8],
    pub(super) address: Option<(Addr, Address)>,
    /// What the filter knows; none: everything.
    pub(super) filter: Option<Vec<Addr>>,
    pub(super) clients: Vec<(ClientKey, SourceAddress)>,
    pub(super) allowed: Option<SourceRangeKey>,
    /// What the socket is bound to, and what happens when it is to be bound.
    pub(super) source: Cell<Addr>,
    pub(super) origin: Origin,
    pub(super) bond: RefCell<Option<(AffinityKey, Bond)>>,
    /// What another program makes of the bond before this one does.
    pub(super) rival: RefCell<Option<Bond>>,
    pub(super) random: Cell<u32>,
    pub(super) now: Cell<u64>,
    /// To what the socket is connected.
    pub(super) connected: Option<Peer>,
    /// How often the services map and an address were asked for.
    pub(super) asked: Cell<(u32, u32)>,
}

pub(super) const NETNS: u64 = 4711;

pub(super) const NOWHERE: Addr = Addr::from_words([0; 4]);

impl Caller for Fake {
    fn index(&self, _: &Flow, count: u32) -> u32 {
        pick(self.random.get(), count)
    }

    fn netns(&self) -> u64 {
        NETNS
    }

    fn source(&self) -> Addr {
        self.source.get()
    }

    fn come_from(&self, addr: Addr) -> Origin {
        if self.origin == Origin::Settled {
            self.source.set(addr);
        }
        self.origin
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn is_connected_to(&self, peer: &Peer) -> bool {
        self.connected == Some(*peer)
    }

    fn bind(&self, key: &AffinityKey, before: &Bond, bond: &mut Bond) -> bool {
        let mut place = self.bond.borrow_mut();
        if let Some(rival) = self.rival.take() {
            *place = Some((*key, rival));
        }
        let (_, now) = place.get_or_insert((*key, *bond));
        let ours = before == now || now.backend == bond.backend;
        if ours {
            *now = *bond;
        } else {
            *bond = *now;
        }
        ours
    }
}

impl ReadMaps for Fake {
    fn address(&self, addr: &Addr) -> Option<Address> {
        let (services, addresses) = self.asked.get();
        self.asked.set((services, addresses + 1));
        self.address.filter(|(of, _)| of == addr).map(|(_, address)| address)
    }

    fn may_know(&self, addr: &Addr) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.contains(addr))
    }

    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        let found = self.clients.iter().find(|(of, _)| of == key);
        found.map(|(_, client)| *client)
    }

    fn allows(&self, client: &SourceRangeKey) -> bool {
        self.allowed == Some(*client)
    }

    fn bond(&self, key: &AffinityKey) -> Bond {
        self.bond.borrow().filter(|(of, _)| of == key).map_or(Bond::NONE, |(_, bond)| bond)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let (services, addresses) = self.asked.get();
        self.asked.set((services + 1, addresses));
        if *key != self.key {
            return None;
        }
        if self.stale_readings.get() > 0 {
            self.stale_readings.set(self.stale_readings.get() - 1);
            return Some(self.stale);
        }
        Some(self.service)
    }

    fn port(&self, id: u32) -> Option<PortOptions> {
        (id == self.service.id).then_some(self.options)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.records.get(usize::try_from(index).unwrap()).copied()
    }
}

/// The fake service, at `key` instead.
pub(super) fn fake_at(key: ServiceKey, address: &str, flags: u32, netns: u64) -> Fake {
    let addr = peer(address).addr;
    Fake { key, address: Some((addr, Address::new(addr, flags, netns))), ..fake() }
}

pub(super) fn peer(text: &str) -> Peer {
    text.parse::<SocketAddr>().unwrap().into()
}

pub(super) fn record(last: u8, generation: u32) -> Backend {
    Backend::forward(SocketAddr::from(([10, 0, 0, last], 8080)).into()).stamped(generation, 9)
}

/// Block 2..5 of generation 7 at 10.96.0.10:80/tcp; block 5..7 belongs to generation 8.
pub(super) fn fake() -> Fake {
    let mut records = [Backend::zeroed(); 8];
    for i in 2..7u8 {
        records[usize::from(i)] = record(i, if i < 5 { 7 } else { 8 });
    }
    let service = Service { block: 2, count: 3, kept: 0, generation: 7, id: 9 };
    Fake {
        key: ServiceKey::new(peer("10.96.0.10:80"), 6),
        stale: service,
        stale_readings: Cell::new(0),
        service,
        options: PortOptions::default(),
        records,
        address: None,
        filter: None,
        clients: Vec::new(),
        allowed: None,
        source: Cell::new(NOWHERE),
        origin: Origin::Settled,
        bond: RefCell::new(None),
        rival: RefCell::new(None),
        random: Cell::new(0),
        now: Cell::new(1),
        connected: None,
        asked: Cell::default(),
    }
}

/// What `select` says of a first datagram or a connection, given these random bits.
pub(super) fn select(fake: &Fake, flow: &Flow, random: u32) -> Verdict<Prior> {
    fake.random.set(random);
    select_after(fake, flow, &Prior::NONE)
}

/// What `select` says of a flow that is there already.
pub(super) fn select_after(fake: &Fake, flow: &Flow, prior: &Prior) -> Verdict<Prior> {
    super::select(fake, fake, flow, prior).map(|choice| choice.to)
}

/// To the backend of a [`record`].
pub(super) fn gets(last: u8, generation: u32) -> Verdict<Prior> {
    Verdict::Forward(Prior { backend: record(last, generation).peer, generation })
}

/// The backend that a connection to the service gets.
pub(super) fn backend(fake: &Fake, random: u32) -> Peer {
    match select(fake, &flow("10.96.0.10:80", 6), random) {
        Verdict::Forward(to) => to.backend,
        other => panic!("{other:?}"),
    }
}

pub(super) fn flow(to: &str, protocol: u8) -> Flow {
    Flow { peer: peer(to), protocol }
}
