//! What the datapath's lookup can say of one flow.
//!
//! Nothing is computed here that `select` decides: the lookup runs over the live maps once for each
//! record, by a socket that takes that one, and what it read on the way is written down.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv6Addr},
};

use lb_common::{
    ATTEMPTS, Flow, Prior, ReadMaps, Refusal, Verdict,
    abi::{
        Addr, Address, AffinityKey, Backend, Bond, ClientKey, Peer, PortOptions, Service,
        ServiceKey, SourceAddress, SourceRangeKey,
    },
    select,
};
use lb_core::onlooker::Onlooker;

/// The client that asks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Who {
    /// The cookie of its network namespace; 0: any client, and one that may connect.
    pub(super) netns: u64,
    /// Its address, if that is not to be looked up.
    pub(super) address: Option<IpAddr>,
}

impl Who {
    const fn is_anybody(&self) -> bool {
        self.netns == 0 && self.address.is_none()
    }

    /// The address that its packets come from; the unspecified one if that is not settled.
    fn source(&self) -> Addr {
        self.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()).into()
    }
}

/// What the maps say of a flow: all that a connection may get.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Lookup {
    /// No Service's address.
    Miss,
    /// Refused by the address, whatever Services there are.
    Fail(Refusal),
    /// An entry.
    Hit(Hit),
}

/// The entry that was hit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hit {
    pub(super) key: ServiceKey,
    pub(super) service: Service,
    /// Each record that it may lead to.
    pub(super) picks: Vec<Pick>,
    /// Only sockets of the host's network namespace find it there.
    pub(super) host_only: bool,
    /// The first record.
    pub(super) record: Option<Backend>,
    /// Where the client stays.
    pub(super) bound: Option<Bond>,
    /// Who the client was taken for, if source ranges were asked.
    pub(super) from: Option<SourceAddress>,
}

/// One record, and what the lookup says if it picks that one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pick {
    pub(super) index: u32,
    /// Id of the backend there; none if there is no record.
    pub(super) backend: Option<u32>,
    pub(super) verdict: Verdict<Peer>,
    pub(super) probability: f64,
}

/// Maps that remember what was read last.
struct Traced<'a, T> {
    maps: &'a T,
    who: Who,
    key: Cell<Option<ServiceKey>>,
    service: Cell<Option<Service>>,
    index: Cell<u32>,
    host_only: Cell<bool>,
    client: Cell<Option<SourceAddress>>,
    /// Whether the client stays where it went before.
    bonds: Cell<bool>,
    bond: Cell<Bond>,
}

impl<T: ReadMaps> ReadMaps for Traced<'_, T> {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.key.set(Some(*key));
        self.service.set(self.maps.service(key));
        self.service.get()
    }

    fn port(&self, id: u32) -> Option<PortOptions> {
        self.maps.port(id)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.index.set(index);
        self.maps.backend(index)
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        let address = self.maps.address(addr)?;
        // Nobody but the host's own sockets comes from a loopback address, or from one of the node's, to
        // a Service.
        let is_host = self.who.netns == 0
            && self.who.address.is_some_and(|ip| ip.is_loopback() || is_own_node(self.maps, ip));
        if self.who.is_anybody() || is_host {
            // Of what was dialled, not of a backend that is looked at behind it.
            self.host_only.set(self.host_only.get() || address.netns != 0);
            return Some(Address { netns: 0, ..address });
        }
        Some(address)
    }

    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        let client = if self.who.is_anybody() {
            Some(SourceAddress::new(key.to, 0))
        } else {
            self.maps.client(key)
        };
        self.client.set(client.or(self.client.get()));
        client
    }

    fn allows(&self, client: &SourceRangeKey) -> bool {
        if let Some(ip) = self.who.address {
            self.client.set(Some(SourceAddress::new(ip.into(), SourceAddress::SURE)));
        }
        self.who.is_anybody() || self.maps.allows(client)
    }

    fn bond(&self, key: &AffinityKey) -> Bond {
        if self.bonds.get() && self.who.netns != 0 {
            self.bond.set(self.maps.bond(key));
        }
        self.bond.get()
    }
}

fn is_own_node(maps: &impl ReadMaps, ip: IpAddr) -> bool {
    let own = |address: Address| address.flags & Address::OWN_NODE != 0 && address.netns == 0;
    maps.address(&ip.into()).is_some_and(own)
}

/// What connect() makes of the unspecified address, if the flow goes there; nobody knows what a socket
/// is bound to that is not asked about.
pub(super) fn meant(flow: &Flow, who: Who) -> Option<Peer> {
    let addr = flow.peer.addr;
    addr.is_unspecified().then(|| Peer { addr: addr.meant(who.source()), ..flow.peer })
}

/// At most `limit` picks: a damaged entry may claim billions.
pub(super) fn look_up(maps: &impl ReadMaps, flow: &Flow, who: Who, now: u64, limit: u32) -> Lookup {
    let traced = Traced {
        maps,
        who,
        key: Cell::new(None),
        service: Cell::new(None),
        index: Cell::new(0),
        host_only: Cell::new(false),
        client: Cell::new(None),
        bonds: Cell::new(false),
        bond: Cell::new(Bond::NONE),
    };
    let flow = meant(flow, who).map_or(*flow, |peer| Flow { peer, ..*flow });
    let ask = |index| {
        let asking = Onlooker { index, netns: who.netns, source: who.source(), now };
        select(&traced, &asking, &flow, &Prior::NONE).map(|selection| selection.to.backend)
    };
    let mut last = Lookup::Miss;
    // Again if the set was replaced between two picks.
    for _ in 0..ATTEMPTS {
        match ask(0) {
            Verdict::Miss => return Lookup::Miss,
            Verdict::Fail(why @ (Refusal::UnknownPort | Refusal::Reserved)) => {
                return Lookup::Fail(why);
            }
            _ => {}
        }
        let (Some(key), Some(service)) = (traced.key.get(), traced.service.get()) else {
            return Lookup::Miss;
        };
        let count = service.count.max(1);
        let probability = 1.0 / f64::from(count);
        let pick = |i| {
            let verdict = ask(i);
            let index = traced.index.get();
            let backend = maps.backend(index).map(|record| record.backend);
            Pick { index, backend, verdict, probability }
        };
        let picks: Vec<_> = (0..count.min(limit.max(1))).map(pick).collect();
        // Where it stays, it gets the same one whatever the choice.
        traced.bonds.set(true);
        let ends = [ask(0), ask(u32::MAX)].map(peer_of);
        traced.bonds.set(false);
        let bond = traced.bond.replace(Bond::NONE);
        let stays = bond.is_made() && ends.iter().all(|peer| *peer == Some(bond.backend));
        last = Lookup::Hit(Hit {
            key,
            service,
            picks,
            host_only: traced.host_only.get(),
            record: maps.backend(service.block).filter(|r| r.generation == service.generation),
            bound: stays.then_some(bond),
            from: traced.client.get(),
        });
        if traced.service.get() == Some(service) {
            break;
        }
    }
    last
}

/// Where a connection goes.
pub(super) const fn peer_of(verdict: Verdict<Peer>) -> Option<Peer> {
    match verdict {
        Verdict::Forward(peer) => Some(peer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_core::{dump::sample, memory::Memory};

    /// Maps in which the set is replaced after a few readings.
    struct Moving(Memory, Memory, Cell<u32>);

    impl Moving {
        fn current(&self) -> &Memory {
            self.2.set(self.2.get() + 1);
            if self.2.get() < 3 { &self.0 } else { &self.1 }
        }
    }

    impl ReadMaps for Moving {
        fn service(&self, key: &ServiceKey) -> Option<Service> {
            ReadMaps::service(self.current(), key)
        }
        fn port(&self, id: u32) -> Option<PortOptions> {
            self.1.port(id)
        }
        fn backend(&self, index: u32) -> Option<Backend> {
            self.1.backend(index)
        }
        fn address(&self, addr: &Addr) -> Option<Address> {
            self.1.address(addr)
        }
        fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
            self.1.client(key)
        }
        fn allows(&self, client: &SourceRangeKey) -> bool {
            self.1.allows(client)
        }
        fn bond(&self, key: &AffinityKey) -> Bond {
            self.1.bond(key)
        }
    }

    #[test]
    fn picks_are_all_of_one_set() {
        let old = sample::memory();
        let mut new = old.clone();
        let web = (0, "default", "web", "http");
        sample::put(&mut new, web, &["10.96.0.10:80"], 30, &["10.0.0.3:80", "10.0.0.4:80"]);
        let flow = Flow { peer: sample::peer("10.96.0.10:80"), protocol: 6 };
        let moving = Moving(old, new, Cell::new(0));
        let Lookup::Hit(hit) = look_up(&moving, &flow, Who::default(), 1, 64) else {
            unreachable!()
        };
        assert_eq!(hit.service.block, 30);
        assert_eq!(hit.picks.iter().map(|pick| pick.index).collect::<Vec<_>>(), [30, 31]);
    }
}
