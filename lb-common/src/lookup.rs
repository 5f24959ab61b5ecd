//! Which backend a connection goes to.

use crate::{
    abi::{
        self, Action, Addr, Address, AffinityKey, Backend, Bond, Client, ClientKey, Peer, Service,
        ServiceKey, SourceKey,
    },
    verdict::{Refusal, Verdict},
};

/// How often [`select`] reads the service anew when the record it names is of another generation.
///
/// A mismatch means that the agent replaced the set between the two reads, or that the hash element
/// was recycled under the reader; either lasts for nanoseconds.
pub const ATTEMPTS: u32 = 4;
/// How often a client's bond is read anew when another program changes it at the same time.
const BONDS: u32 = 3;
/// Halvings after which a search in the largest block has one record left.
const HALVINGS: u32 = 27;
const NANOSECONDS: u64 = 1_000_000_000;

/// The maps, as far as the lookup reads them. Values are copies, each read from memory once.
pub trait Tables {
    /// The frontend's entry in [`SERVICES`](abi::SERVICES), its seal undone.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The record at `index` of [`BACKENDS`](abi::BACKENDS); none if out of bounds.
    fn backend(&self, index: u32) -> Option<Backend>;
    /// [`find`], for a backend. Its own function in the programs: the verifier then looks at the loop
    /// once, and not wherever it is needed.
    #[inline(always)]
    fn find(&self, range: Range, backend: &Peer) -> Option<bool>
    where
        Self: Sized,
    {
        find(self, range, backend.order())
    }
    /// What [`ADDRESSES`](abi::ADDRESSES) says of an address.
    fn address(&self, addr: &Addr) -> Option<Address>;
    /// From where a socket of a network namespace connects, in [`CLIENTS`](abi::CLIENTS).
    fn client(&self, key: &ClientKey) -> Option<Client>;
    /// Whether a range in [`SOURCES`](abi::SOURCES) has the client.
    fn allows(&self, client: &SourceKey) -> bool;
    /// Where the client went before, in [`AFFINITY`](abi::AFFINITY); [`Bond::NONE`] if nowhere.
    fn bond(&self, key: &AffinityKey) -> Bond;
    /// Whether an address may be one that the maps know, by [`FILTER`](abi::FILTER).
    #[inline(always)]
    fn may_know(&self, _: &Addr) -> bool {
        true
    }
}

/// The socket that asks. Each is asked only where it matters, since each is a call into the kernel.
pub trait Caller {
    /// 32 random bits, for the choice of a backend.
    fn random(&self, flow: &Flow) -> u32;
    /// The cookie of its network namespace.
    fn netns(&self) -> u64;
    /// The address that its packets come from, if that is settled: the socket is bound to it, or the
    /// message says so. Else the unspecified one.
    fn source(&self) -> Addr;
    /// Settles it.
    fn come_from(&self, addr: Addr) -> Origin;
    /// The time, in nanoseconds of the monotonic clock.
    fn now(&self) -> u64;
    /// Makes `bond` the client's in place of `before`, which was read. False if another program was
    /// faster; `bond` is then what that one made.
    fn bind(&self, key: &AffinityKey, before: &Bond, bond: &mut Bond) -> bool;
    /// Whether the socket cannot get to a backend, as [`is_confined`] says.
    #[inline(always)]
    fn is_confined_from(&self, _: &Peer) -> bool {
        false
    }
    /// Whether the flow's peer was heard before it was asked: then this is an answer, and no question
    /// to a Service.
    #[inline(always)]
    fn answers(&self, _: &Flow) -> bool {
        false
    }
}

/// Whether a socket comes from the address that it is to come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// It does.
    Settled,
    /// Nobody knows: it has a port already, and cannot be bound any more.
    Open,
    /// It does not: the address is none of its network namespace.
    Elsewhere,
}

/// What an application asked for. Aligned, or else the programs would read a reference byte by byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C, align(4))]
pub struct Flow {
    /// The destination it gave.
    pub peer: Peer,
    /// IP protocol number of the socket.
    pub protocol: u8,
}

/// Where earlier datagrams of the same flow went: a flow stays with a backend that still serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prior {
    /// The backend.
    pub backend: Peer,
    /// Generation of the block that it was last found in; 0: there were no earlier ones.
    pub generation: u32,
}

impl Prior {
    /// The first datagram of a flow, and every connection.
    pub const NONE: Self = Self { backend: Bond::NONE.backend, generation: 0 };

    /// Whether it was found in a later block. Generations begin anew behind the greatest number.
    #[inline(always)]
    pub const fn is_newer(&self, other: &Self) -> bool {
        self.generation.wrapping_sub(other.generation).wrapping_sub(1) < u32::MAX / 2
    }
}

/// The set that a backend was chosen from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Set {
    /// The backends to choose from.
    pub range: Range,
    /// Id of the service port.
    pub service: u32,
    /// For how many seconds a client stays with its backend; 0: not at all.
    pub affinity: u32,
}

impl Set {
    /// Before one was chosen.
    pub const NONE: Self =
        Self { range: Range { first: 0, count: 0, generation: 0 }, service: 0, affinity: 0 };
}

/// Where the flow goes. One HASH and one ARRAY lookup; one HASH and one bit on a miss.
#[inline(always)]
pub fn select(tables: &impl Tables, caller: &impl Caller, flow: &Flow, prior: &Prior) -> Verdict {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let mut set = Set::NONE;
        match choose(tables, caller, flow, prior, &mut set) {
            Verdict::Forward(backend) if set.affinity != 0 => {
                let mut to = Prior { backend: backend.peer, generation: backend.generation };
                if bind(tables, caller, &set, &mut to) {
                    return Verdict::Forward(Backend { peer: to.backend, ..backend });
                }
            }
            verdict => return verdict,
        }
        attempt += 1;
    }
    Verdict::Fail(Refusal::Unstable)
}

/// The first half of [`select`]: any backend of the set, whatever the client is bound to.
#[inline(always)]
pub fn choose(
    tables: &impl Tables,
    caller: &impl Caller,
    flow: &Flow,
    prior: &Prior,
    set: &mut Set,
) -> Verdict {
    let mut key = ServiceKey::new(flow.peer, flow.protocol);
    let mut service = tables.service(&key);
    if service.is_none() {
        match by_address(tables, caller, flow, &mut key) {
            Meaning::Nothing => return Verdict::Miss,
            Meaning::ClusterIp if caller.answers(flow) => return Verdict::Miss,
            Meaning::ClusterIp => return Verdict::Fail(Refusal::UnknownPort),
            Meaning::Reserved => return Verdict::Fail(Refusal::Reserved),
            Meaning::Key => service = tables.service(&key),
        }
    }
    if prior.generation == 0 && caller.answers(flow) {
        return Verdict::Miss;
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let Some(found) = service else { return Verdict::Miss };
        if let Some(verdict) = one_of(tables, caller, flow, &found, prior, set) {
            return verdict;
        }
        service = tables.service(&key);
        attempt += 1;
    }
    Verdict::Fail(Refusal::Unstable)
}

/// Whether what is sent to the flow's peer is not simply sent there: it is forwarded, or refused.
#[inline(always)]
pub fn is_known(tables: &impl Tables, caller: &impl Caller, flow: &Flow) -> bool {
    let addr = flow.peer.addr;
    let may_be_loopback = addr.is_v4() && addr.is_loopback() && tables.may_know(&abi::LOOPBACK_NET);
    if !may_be_loopback && !tables.may_know(&addr) {
        return false;
    }
    let mut key = ServiceKey::new(flow.peer, flow.protocol);
    tables.service(&key).is_some()
        || !matches!(by_address(tables, caller, flow, &mut key), Meaning::Nothing)
}

/// What an address means that is no frontend by itself.
enum Meaning {
    Nothing,
    /// A cluster IP, which lacks the port.
    ClusterIp,
    /// One at which everything is refused.
    Reserved,
    /// What is now in the key: a NodePort.
    Key,
}

/// Replaces the key by the one that its address means. A function of its own in the programs:
/// their stack has 512 bytes.
#[inline(never)]
fn by_address(
    tables: &impl Tables,
    caller: &impl Caller,
    flow: &Flow,
    key: &mut ServiceKey,
) -> Meaning {
    let addr = flow.peer.addr;
    let address = match tables.address(&addr) {
        None if addr.is_v4() && addr.is_loopback() => {
            let net = tables.address(&abi::LOOPBACK_NET);
            net.filter(|net| net.flags & Address::OWN_NODE != 0)
        }
        address => address,
    };
    let Some(address) = address else { return Meaning::Nothing };
    if address.netns != 0 && address.netns != caller.netns() {
        return Meaning::Nothing;
    }
    if address.flags & Address::OWN_NODE != 0 {
        *key = key.scoped(addr.unspecified(), abi::SCOPE_OWN_NODE);
        if tables.service(key).is_some() {
            return Meaning::Key;
        }
    }
    if address.flags & Address::OTHER_NODE != 0 {
        *key = key.scoped(addr, abi::SCOPE_NODE);
        if tables.service(key).is_some() {
            return Meaning::Key;
        }
        *key = key.scoped(addr.unspecified(), abi::SCOPE_OTHER_NODES);
        if tables.service(key).is_some() {
            return Meaning::Key;
        }
    }
    if address.flags & Address::RESERVED != 0 {
        Meaning::Reserved
    } else if address.flags & Address::CLUSTER_IP != 0 {
        Meaning::ClusterIp
    } else {
        Meaning::Nothing
    }
}

/// Whether a socket that has dialled an address, and comes from `source` (the unspecified address: from
/// anywhere), cannot get to the backend that it was given: [`Refusal::Confined`]. For a socket that is bound
/// to a loopback address, the unspecified one that is dialled means a loopback address.
#[inline(always)]
pub fn is_confined(tables: &impl Tables, dialled: Addr, source: Addr, backend: &Peer) -> bool {
    let is_own = |address: Address| address.flags & Address::OWN_NODE != 0;
    (dialled.is_loopback() || dialled.is_unspecified())
        && source.is_loopback()
        && !backend.addr.is_loopback()
        && !tables.address(&backend.addr).is_some_and(is_own)
}

/// A backend of the set, or what happens without one; none if the block is of another generation.
#[inline(always)]
fn one_of(
    tables: &impl Tables,
    caller: &impl Caller,
    flow: &Flow,
    service: &Service,
    prior: &Prior,
    set: &mut Set,
) -> Option<Verdict> {
    if prior.generation != 0 {
        // Ranges hold for flows that are there already, too: any record of the set knows of them.
        let first = tables.backend(service.block).filter(|b| b.generation == service.generation)?;
        if first.flags & Backend::SOURCES != 0 {
            if let Err(refusal) = admits(tables, caller, flow, first.service, true) {
                return Some(Verdict::Fail(refusal));
            }
        }
        if prior.generation == service.generation {
            return Some(Verdict::Stay);
        }
        if still_there(tables, service, &prior.backend)? {
            let record = Backend::forward(prior.backend);
            return Some(Verdict::Forward(record.stamped(service.generation, service.id)));
        }
    }
    let index = service.block.wrapping_add(pick(caller.random(flow), service.count));
    let backend = tables.backend(index).filter(|b| b.generation == service.generation)?;
    if backend.flags & Backend::SOURCES != 0 {
        let goes = backend.action() == Action::Forward;
        if let Err(refusal) = admits(tables, caller, flow, backend.service, goes) {
            return Some(Verdict::Fail(refusal));
        }
    }
    match backend.action() {
        Action::Refuse => Some(Verdict::Fail(Refusal::NoEndpoints)),
        Action::Unreachable => Some(Verdict::Fail(Refusal::Unreachable)),
        Action::Forward => {
            let Service { block: first, count, generation, .. } = *service;
            let Backend { service, affinity, .. } = backend;
            *set = Set { range: Range { first, count, generation }, service, affinity };
            Some(Verdict::Forward(backend))
        }
    }
}

/// Whether the service port is for the client. Judged by the address that the socket has, or else by
/// the one that routing in its network namespace gives it, which it then has (`goes`): what the
/// packets carry is what was judged, as where the packets themselves are (kube-proxy G6).
///
/// A function of its own in the programs: their stack has 512 bytes.
#[inline(never)]
fn admits(
    tables: &impl Tables,
    caller: &impl Caller,
    flow: &Flow,
    service: u32,
    goes: bool,
) -> Result<(), Refusal> {
    let own = caller.source();
    if !own.is_unspecified() {
        let granted = tables.allows(&SourceKey::new(service, own));
        return if granted { Ok(()) } else { Err(Refusal::Denied) };
    }
    let to = flow.peer.addr;
    let mut key = ClientKey::general(caller.netns(), to);
    let Some(mut client) = tables.client(&key) else { return Err(Refusal::UnknownClient) };
    if client.flags & Client::OTHERS != 0 {
        key.to = to;
        client = tables.client(&key).unwrap_or(client);
    }
    if !tables.allows(&SourceKey::new(service, client.addr)) {
        return Err(Refusal::Denied);
    }
    if !goes {
        return Ok(());
    }
    match caller.come_from(client.addr) {
        Origin::Settled => Ok(()),
        Origin::Open if client.flags & Client::SURE != 0 => Ok(()),
        Origin::Open | Origin::Elsewhere => Err(Refusal::UnknownClient),
    }
}

/// Whether the backend is one of the set, or was kept for flows that are there already.
#[inline(always)]
fn still_there(tables: &impl Tables, service: &Service, backend: &Peer) -> Option<bool> {
    let Service { block, count, kept, generation, .. } = *service;
    let kept = Range { first: block.wrapping_add(count), count: kept, generation };
    let chosen_from = Range { first: block, count, generation };
    Some(tables.find(chosen_from, backend)? || tables.find(kept, backend)?)
}

/// The second half of [`select`], if the set has an affinity: replaces `chosen` by the backend that the
/// client is bound to, if it went to one of the set not long ago; else binds it to that one
/// (kube-proxy H). False if the block is of another generation by now.
///
/// A function of its own in the programs: their stack has 512 bytes.
#[inline(never)]
pub fn bind(tables: &impl Tables, caller: &impl Caller, set: &Set, chosen: &mut Prior) -> bool {
    let family = if chosen.backend.addr.is_v4() { 4 } else { 6 };
    let key = AffinityKey { netns: caller.netns(), service: set.service, family };
    let now = caller.now();
    let timeout = u64::from(set.affinity).wrapping_mul(NANOSECONDS);
    let mut before = tables.bond(&key);
    let mut attempt = 0;
    while attempt < BONDS {
        let mut bond = Bond { used: now, backend: chosen.backend, reserved: [0; 6] };
        // Another CPU's clock may be a little ahead.
        if before.is_made() && now.saturating_sub(before.used) < timeout {
            match tables.find(set.range, &before.backend) {
                Some(true) => bond.backend = before.backend,
                Some(false) => {}
                None => return false,
            }
        }
        // Who cannot get there is refused, and neither makes a bond nor renews one.
        if caller.is_confined_from(&bond.backend) || caller.bind(&key, &before, &mut bond) {
            chosen.backend = bond.backend;
            return true;
        }
        before = bond;
        attempt += 1;
    }
    true
}

/// Records of one block, in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// Index of the first one.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// Their generation.
    pub generation: u32,
}

/// Whether a backend, told by its [`Peer::order`], is among the records; none if one of them is of
/// another generation.
#[inline(always)]
pub fn find(tables: &impl Tables, range: Range, order: (u64, u64, u16)) -> Option<bool> {
    let (mut low, mut left) = (range.first, range.count);
    let mut halving = 0;
    while left > 0 && halving < HALVINGS {
        let half = left / 2;
        let middle = low.wrapping_add(half);
        let backend = tables.backend(middle).filter(|b| b.generation == range.generation)?;
        let here = backend.peer.order();
        if here == order {
            return Some(backend.action() == Action::Forward);
        }
        if here < order {
            low = middle.wrapping_add(1);
            left = left.wrapping_sub(half).wrapping_sub(1);
        } else {
            left = half;
        }
        halving += 1;
    }
    Some(false)
}

/// 32 bits that look random, always the same ones for the same flow of a socket: datagrams go to one
/// backend even if nothing is remembered of them.
#[inline(always)]
pub const fn flow_bits(socket_cookie: u64, flow: &Flow) -> u32 {
    let digest = ServiceKey::new(flow.peer, flow.protocol).digest() as u64;
    // The finalizer of MurmurHash3: each bit of the input changes each bit of the output half the time.
    let mut bits = socket_cookie ^ (digest << 32);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (bits >> 32) as u32
}

/// A number below `count` (0 for 0), uniform if `random` is: the high half of a 32 × 32 bit product,
/// since a division costs more and favours small numbers just as much.
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::{
        cell::{Cell, RefCell},
        net::SocketAddr,
    };
    use std::vec::Vec;

    use bytemuck::Zeroable as _;

    use super::*;

    /// One service at one key, and a few records. `stale` readings of the service come first. Also
    /// the socket that asks.
    struct Fake {
        key: ServiceKey,
        stale: Service,
        stale_readings: Cell<u32>,
        service: Service,
        records: [Backend; 8],
        address: Option<(Addr, Address)>,
        clients: Vec<(ClientKey, Client)>,
        allowed: Option<SourceKey>,
        /// What the socket is bound to, and what happens when it is to be bound.
        source: Cell<Addr>,
        origin: Origin,
        bond: RefCell<Option<(AffinityKey, Bond)>>,
        /// What another program makes of the bond before this one does.
        rival: RefCell<Option<Bond>>,
        random: Cell<u32>,
        now: Cell<u64>,
        /// How often the services map and an address were asked for.
        asked: Cell<(u32, u32)>,
    }

    const NETNS: u64 = 4711;
    const NOWHERE: Addr = Addr::from_words([0; 4]);

    impl Caller for Fake {
        fn random(&self, _: &Flow) -> u32 {
            self.random.get()
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

    impl Tables for Fake {
        fn address(&self, addr: &Addr) -> Option<Address> {
            let (services, addresses) = self.asked.get();
            self.asked.set((services, addresses + 1));
            self.address.filter(|(of, _)| of == addr).map(|(_, address)| address)
        }

        fn client(&self, key: &ClientKey) -> Option<Client> {
            let found = self.clients.iter().find(|(of, _)| of == key);
            found.map(|(_, client)| *client)
        }

        fn allows(&self, client: &SourceKey) -> bool {
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

        fn backend(&self, index: u32) -> Option<Backend> {
            self.records.get(usize::try_from(index).unwrap()).copied()
        }
    }

    fn peer(text: &str) -> Peer {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn record(last: u8, generation: u32) -> Backend {
        Backend::forward(SocketAddr::from(([10, 0, 0, last], 8080)).into()).stamped(generation, 9)
    }

    /// Block 2..5 of generation 7 at 10.96.0.10:80/tcp; block 5..7 belongs to generation 8.
    fn fake() -> Fake {
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
            records,
            address: None,
            clients: Vec::new(),
            allowed: None,
            source: Cell::new(NOWHERE),
            origin: Origin::Settled,
            bond: RefCell::new(None),
            rival: RefCell::new(None),
            random: Cell::new(0),
            now: Cell::new(1),
            asked: Cell::default(),
        }
    }

    /// What `select` says, given these random bits.
    fn select(fake: &Fake, flow: &Flow, random: u32) -> Verdict {
        fake.random.set(random);
        super::select(fake, fake, flow, &Prior::NONE)
    }

    /// The backend that a connection to the service gets.
    fn backend(fake: &Fake, random: u32) -> Peer {
        match select(fake, &flow("10.96.0.10:80", 6), random) {
            Verdict::Forward(backend) => backend.peer,
            other => panic!("{other:?}"),
        }
    }

    fn flow(to: &str, protocol: u8) -> Flow {
        Flow { peer: peer(to), protocol }
    }

    #[test]
    fn address_port_and_protocol_all_count() {
        let fake = fake();
        assert_eq!(select(&fake, &flow("10.96.0.11:80", 6), 0), Verdict::Miss);
        assert_eq!(select(&fake, &flow("10.96.0.10:81", 6), 0), Verdict::Miss);
        assert_eq!(select(&fake, &flow("10.96.0.10:80", 17), 0), Verdict::Miss);
        assert_eq!(select(&fake, &flow("10.96.0.10:80", 6), 0), Verdict::Forward(record(2, 7)));
        assert_eq!(
            select(&fake, &flow("[::ffff:10.96.0.10]:80", 6), u32::MAX),
            Verdict::Forward(record(4, 7))
        );
    }

    /// Most connections of a node go to no Service.
    #[test]
    fn what_is_no_service_costs_two_questions_at_most() {
        let fake = fake();
        for (to, asked) in [("10.96.0.10:80", (1, 0)), ("192.0.2.1:443", (1, 1))] {
            fake.asked.set((0, 0));
            select(&fake, &flow(to, 6), 0);
            assert_eq!(fake.asked.get(), asked, "{to}");
        }
    }

    #[test]
    fn a_count_from_another_value_never_reaches_into_its_block() {
        let mut fake = fake();
        // The torn reading: block and generation of one value, count of another.
        fake.stale = Service { count: 5, ..fake.service };
        fake.stale_readings = Cell::new(1);
        let verdict = select(&fake, &flow("10.96.0.10:80", 6), u32::MAX);
        assert_eq!(verdict, Verdict::Forward(record(4, 7)));
    }

    #[test]
    fn a_block_of_another_generation_is_read_again_and_then_given_up() {
        let mut fake = fake();
        fake.stale = Service { generation: 6, ..fake.service };
        fake.stale_readings = Cell::new(ATTEMPTS - 1);
        let to = flow("10.96.0.10:80", 6);
        assert_eq!(select(&fake, &to, 0), Verdict::Forward(record(2, 7)));
        fake.stale_readings = Cell::new(ATTEMPTS);
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Unstable));
    }

    #[test]
    fn an_empty_set_refuses_and_a_block_out_of_bounds_is_no_answer() {
        let mut fake = fake();
        fake.records[2] = Backend::refuse().stamped(7, 9);
        fake.service.count = 1;
        let to = flow("10.96.0.10:80", 6);
        assert_eq!(select(&fake, &to, 5), Verdict::Fail(Refusal::NoEndpoints));
        fake.service.block = u32::MAX;
        assert_eq!(select(&fake, &to, 5), Verdict::Fail(Refusal::Unstable));
    }

    /// The fake service, at `key` instead.
    fn fake_at(key: ServiceKey, address: &str, flags: u32, netns: u64) -> Fake {
        let addr = peer(address).addr;
        Fake { key, address: Some((addr, Address::new(addr, flags, netns))), ..fake() }
    }

    #[test]
    fn a_node_port_is_found_on_the_addresses_of_nodes_only() {
        let node_port =
            |scope, addr: &str| ServiceKey::new(peer(addr), 6).scoped(peer(addr).addr, scope);
        let own = fake_at(
            node_port(abi::SCOPE_OWN_NODE, "0.0.0.0:30080"),
            "192.0.2.1:0",
            Address::OWN_NODE,
            0,
        );
        let forward = Verdict::Forward(record(2, 7));
        assert_eq!(select(&own, &flow("192.0.2.1:30080", 6), 0), forward);
        assert_eq!(select(&own, &flow("192.0.2.1:30081", 6), 0), Verdict::Miss);
        assert_eq!(select(&own, &flow("192.0.2.1:30080", 17), 0), Verdict::Miss);
        assert_eq!(select(&own, &flow("192.0.2.2:30080", 6), 0), Verdict::Miss);
        assert_eq!(select(&own, &flow("0.0.0.0:30080", 6), 0), Verdict::Miss);

        let v6 = fake_at(
            node_port(abi::SCOPE_OWN_NODE, "[::]:30080"),
            "[fd00::1]:0",
            Address::OWN_NODE,
            0,
        );
        assert_eq!(select(&v6, &flow("[fd00::1]:30080", 6), 0), forward);

        for key in [
            node_port(abi::SCOPE_OTHER_NODES, "0.0.0.0:30080"),
            node_port(abi::SCOPE_NODE, "192.0.2.7:30080"),
        ] {
            let other = fake_at(key, "192.0.2.7:0", Address::OTHER_NODE, 0);
            assert_eq!(select(&other, &flow("192.0.2.7:30080", 6), 0), forward, "{key:?}");
        }
    }

    #[test]
    fn a_loopback_address_is_a_node_s_in_its_own_namespace_only() {
        let key = ServiceKey::new(peer("0.0.0.0:30080"), 6)
            .scoped(peer("0.0.0.0:0").addr, abi::SCOPE_OWN_NODE);
        let to = flow("127.0.0.1:30080", 6);
        let fake = fake_at(key, "127.0.0.1:0", Address::OWN_NODE, NETNS);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        let fake = fake_at(key, "127.0.0.1:0", Address::OWN_NODE, NETNS + 1);
        assert_eq!(select(&fake, &to, 0), Verdict::Miss);
    }

    #[test]
    fn one_entry_speaks_for_all_loopback_addresses_that_have_none() {
        let key = ServiceKey::new(peer("0.0.0.0:30080"), 6)
            .scoped(peer("0.0.0.0:0").addr, abi::SCOPE_OWN_NODE);
        let fake = fake_at(key, "127.0.0.0:0", Address::OWN_NODE, NETNS);
        for to in ["127.0.0.1:30080", "127.1.2.3:30080", "[::ffff:127.255.255.255]:30080"] {
            assert!(matches!(select(&fake, &flow(to, 6), 0), Verdict::Forward(_)), "{to}");
        }
        for to in ["127.0.0.1:30081", "128.0.0.0:30080", "126.0.0.1:30080", "[::1]:30080"] {
            assert_eq!(select(&fake, &flow(to, 6), 0), Verdict::Miss, "{to}");
        }
        let fake = fake_at(key, "127.0.0.0:0", Address::OWN_NODE, NETNS + 1);
        assert_eq!(select(&fake, &flow("127.0.0.2:30080", 6), 0), Verdict::Miss);
        // What it says of others than this node is of itself only.
        let fake = fake_at(key, "127.0.0.0:0", Address::CLUSTER_IP, 0);
        assert_eq!(select(&fake, &flow("127.0.0.2:30080", 6), 0), Verdict::Miss);
    }

    #[test]
    fn from_a_loopback_address_only_this_node_is_reached() {
        let key = ServiceKey::new(peer("10.96.0.10:80"), 6);
        let fake = fake_at(key, "10.0.0.2:0", Address::OWN_NODE, 0);
        let confined = |to: &str, source: &str, backend: &str| {
            let source = source.parse::<core::net::IpAddr>().unwrap().into();
            is_confined(&fake, peer(to).addr, source, &peer(backend))
        };
        for (to, source) in [
            ("127.0.0.1:80", "127.0.0.1"),
            ("127.0.0.9:80", "127.1.1.1"),
            ("[::ffff:127.0.0.9]:80", "::ffff:127.0.0.1"),
            ("[::1]:80", "::1"),
            ("0.0.0.0:80", "127.0.0.1"),
            ("[::]:80", "::1"),
            ("[::]:80", "::ffff:127.0.0.1"),
        ] {
            assert!(confined(to, source, "10.0.0.3:80"), "{to} {source}");
            assert!(!confined(to, source, "10.0.0.2:80"), "{to} {source}: this node's");
            assert!(!confined(to, source, "127.0.0.1:80"), "{to} {source}");
        }
        for (to, source) in
            [("10.96.0.10:80", "127.0.0.1"), ("127.0.0.1:80", "0.0.0.0"), ("[::]:80", "fd00::1")]
        {
            assert!(!confined(to, source, "10.0.0.3:80"), "{to} {source}");
        }
    }

    #[test]
    fn a_port_that_a_cluster_ip_lacks_is_refused() {
        let mut fake = fake();
        let addr = peer("10.96.0.10:0").addr;
        fake.address = Some((addr, Address::new(addr, Address::CLUSTER_IP, 0)));
        assert_eq!(
            select(&fake, &flow("10.96.0.10:81", 6), 0),
            Verdict::Fail(Refusal::UnknownPort)
        );
        assert!(matches!(select(&fake, &flow("10.96.0.10:80", 6), 0), Verdict::Forward(_)));
    }

    #[test]
    fn a_reserved_address_refuses_everything() {
        let mut fake = fake();
        let addr = peer("127.115.108.98:0").addr;
        let flags = Address::RESERVED | Address::CLUSTER_IP;
        fake.address = Some((addr, Address::new(addr, flags, 0)));
        for protocol in [6, 17] {
            let verdict = select(&fake, &flow("127.115.108.98:9", protocol), 0);
            assert_eq!(verdict, Verdict::Fail(Refusal::Reserved));
        }
    }

    #[test]
    fn source_ranges_hold_before_anything_else() {
        let mut fake = fake();
        let to = flow("10.96.0.10:80", 6);
        fake.records[2].flags = Backend::SOURCES;
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient));
        // What is known of the other family says nothing.
        fake.knows("[::]:0", "[fd00::9]:0", 0);
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient));
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied));
        fake.admits_only("[fd00::9]:0");
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied));
        fake.admits_only("10.0.0.9:0");
        assert_eq!(select(&fake, &to, 0), Verdict::Forward(fake.records[2]));
        fake.records[2].action = Action::Unreachable.code();
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Unreachable));
    }

    impl Fake {
        fn knows(&mut self, to: &str, addr: &str, flags: u32) {
            let key = ClientKey { netns: NETNS, to: peer(to).addr };
            self.clients.push((key, Client::new(peer(addr).addr, flags)));
        }

        fn admits_only(&mut self, addr: &str) {
            self.allowed = Some(SourceKey::new(9, peer(addr).addr));
        }
    }

    /// The fake service behind source ranges, of which 10.0.0.9 is in one.
    fn guarded() -> Fake {
        let mut fake = fake();
        for record in &mut fake.records {
            record.flags = Backend::SOURCES;
        }
        fake.admits_only("10.0.0.9:0");
        fake
    }

    #[test]
    fn a_client_is_judged_by_the_address_that_its_packets_carry() {
        let to = flow("10.96.0.10:80", 6);
        let mut fake = guarded();
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        assert_eq!(fake.source.get(), peer("10.0.0.9:0").addr, "it has it from now on");
        fake.source.set(peer("10.0.0.8:0").addr);
        assert!(
            matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied)),
            "it is bound elsewhere"
        );
        fake.source.set(NOWHERE.unspecified());
        fake.origin = Origin::Elsewhere;
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)));
        // It has a port already: only where all come from one address.
        fake.origin = Origin::Open;
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)));
        fake.clients[0].1.flags = Client::SURE;
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.origin = Origin::Elsewhere;
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)));
        // Bound inside, and nobody knows of it.
        let fake = guarded();
        fake.source.set(peer("10.0.0.9:0").addr);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.source.set(peer("0.0.0.0:0").addr);
        assert!(
            matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)),
            "bound to nothing"
        );
    }

    #[test]
    fn who_is_refused_is_not_bound() {
        let mut fake = guarded();
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        fake.records[2].action = Action::Refuse.code();
        assert!(matches!(
            select(&fake, &flow("10.96.0.10:80", 6), 0),
            Verdict::Fail(Refusal::NoEndpoints)
        ));
        assert!(fake.source.get().is_unspecified());
    }

    #[test]
    fn what_routing_says_of_one_address_goes_before_what_it_says_of_all() {
        let to = flow("10.96.0.10:80", 6);
        let mut fake = guarded();
        fake.knows("10.96.0.10:0", "10.0.0.9:0", 0);
        fake.knows("0.0.0.0:0", "10.0.0.8:0", 0);
        assert!(
            matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied)),
            "there is no other one"
        );
        fake.clients.pop();
        fake.knows("0.0.0.0:0", "10.0.0.8:0", Client::OTHERS);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.clients[0].0.to = peer("10.96.0.11:0").addr;
        fake.source.set(NOWHERE);
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied)));
    }

    #[test]
    fn ranges_hold_for_flows_that_are_there() {
        let to = flow("10.96.0.10:80", 17);
        let mut fake = guarded();
        fake.key = ServiceKey::new(to.peer, to.protocol);
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        for generation in [6, 7] {
            let prior = Prior { backend: record(3, 7).peer, generation };
            let goes = |verdict| matches!(verdict, Verdict::Stay | Verdict::Forward(_));
            fake.admits_only("10.0.0.9:0");
            fake.source.set(NOWHERE);
            assert!(goes(super::select(&fake, &fake, &to, &prior)), "{generation}");
            assert_eq!(fake.source.get(), peer("10.0.0.9:0").addr, "each datagram");
            fake.admits_only("10.0.0.8:0");
            fake.source.set(NOWHERE);
            let verdict = super::select(&fake, &fake, &to, &prior);
            assert!(matches!(verdict, Verdict::Fail(Refusal::Denied)), "{generation}");
        }
    }

    const TIMEOUT: u32 = 10;

    /// The fake service with affinity.
    fn sticky() -> Fake {
        let mut fake = fake();
        for record in &mut fake.records {
            record.affinity = TIMEOUT;
        }
        fake
    }

    #[test]
    fn a_client_stays_with_its_backend_until_it_was_away_for_the_timeout() {
        let fake = sticky();
        let first = backend(&fake, 0);
        let timeout = u64::from(TIMEOUT) * NANOSECONDS;
        // Each connection renews the bond.
        for _ in 0..3 {
            fake.now.set(fake.now.get() + timeout - 1);
            assert_eq!(backend(&fake, u32::MAX), first);
        }
        fake.now.set(fake.now.get() + timeout);
        let second = backend(&fake, u32::MAX);
        assert_ne!(second, first);
        assert_eq!(backend(&fake, 0), second);
        // The monotonic clock of another CPU may be a little behind.
        fake.now.set(fake.now.get() - 5);
        assert_eq!(backend(&fake, 0), second);
    }

    #[test]
    fn a_bond_with_a_backend_that_left_the_set_is_made_anew() {
        let mut fake = sticky();
        let gone = backend(&fake, 0);
        for (record, generation) in fake.records[3..].iter_mut().zip([11; 3]) {
            record.generation = generation;
        }
        fake.service = Service { block: 3, count: 2, kept: 1, generation: 11, id: 9 };
        let next = backend(&fake, 0);
        assert_ne!(next, gone);
        assert_eq!(backend(&fake, u32::MAX), next);
        // A kept backend is for flows that are there already.
        let bond = Bond { used: 1, backend: fake.records[5].peer, reserved: [0; 6] };
        fake.bond.borrow_mut().as_mut().unwrap().1 = bond;
        assert_eq!(backend(&fake, 0), next);
    }

    #[test]
    fn of_two_that_bind_a_client_at_once_the_second_takes_what_the_first_chose() {
        let fake = sticky();
        let rival = Bond { used: 1, backend: record(4, 7).peer, reserved: [0; 6] };
        fake.rival.replace(Some(rival));
        assert_eq!(backend(&fake, 0), rival.backend);
        // Also if there was a bond that is over.
        fake.now.set(u64::MAX / 2);
        let rival = Bond { used: u64::MAX / 2, backend: record(3, 7).peer, reserved: [0; 6] };
        fake.rival.replace(Some(rival));
        assert_eq!(backend(&fake, 0), rival.backend);
    }

    #[test]
    fn a_flow_stays_with_a_backend_that_serves() {
        let mut fake = fake();
        let to = flow("10.96.0.10:80", 6);
        let select = |fake: &Fake, last, generation| {
            let prior = Prior { backend: record(last, 7).peer, generation };
            super::select(fake, fake, &to, &prior)
        };
        fake.random.set(u32::MAX);
        assert_eq!(select(&fake, 9, 7), Verdict::Stay);
        for last in 2..=4 {
            assert_eq!(select(&fake, last, 6), Verdict::Forward(record(last, 7)));
        }
        assert_eq!(select(&fake, 9, 6), Verdict::Forward(record(4, 7)), "a new one");
        // One that takes no new flows.
        fake.service = Service { count: 1, kept: 2, ..fake.service };
        assert_eq!(select(&fake, 4, 6), Verdict::Forward(record(4, 7)));
        assert_eq!(select(&fake, 9, 6), Verdict::Forward(record(2, 7)));
    }

    proptest::proptest! {
        #[test]
        fn a_search_finds_what_is_there(present in proptest::array::uniform8(proptest::prelude::any::<bool>())) {
            let mut fake = fake();
            let all: [Backend; 8] = core::array::from_fn(|i| record(u8::try_from(i).unwrap(), 7));
            let mut count = 0;
            for (backend, present) in all.iter().zip(present) {
                if present {
                    fake.records[count] = *backend;
                    count += 1;
                }
            }
            let count = u32::try_from(count).unwrap();
            for (backend, present) in all.iter().zip(present) {
                let found = fake.find(Range { first: 0, count, generation: 7 }, &backend.peer);
                proptest::prop_assert_eq!(found, Some(present));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn pick_is_in_range_and_monotonic(a: u32, b: u32, count in 1u32..) {
            proptest::prop_assert!(pick(a, count) < count);
            proptest::prop_assert!((a <= b) == (pick(a, count) <= pick(b, count)) || pick(a, count) == pick(b, count));
        }
    }

    #[test]
    fn generations_are_in_order_also_where_they_begin_anew() {
        let of = |generation| Prior { generation, ..Prior::NONE };
        for (new, old) in [(2, 1), (1000, 1), (1, u32::MAX), (5, u32::MAX - 5)] {
            assert!(of(new).is_newer(&of(old)) && !of(old).is_newer(&of(new)), "{new} {old}");
        }
        assert!(!of(7).is_newer(&of(7)));
    }

    #[test]
    fn flows_of_many_sockets_spread_and_each_keeps_its_bits() {
        let to = [flow("10.96.0.10:53", 17), flow("10.96.0.11:53", 17)];
        let mut seen = [[0u32; 5]; 2];
        for cookie in 1..=5000 {
            for (flow, seen) in to.iter().zip(&mut seen) {
                assert_eq!(flow_bits(cookie, flow), flow_bits(cookie, flow));
                seen[pick(flow_bits(cookie, flow), 5) as usize] += 1;
            }
        }
        assert!(seen.iter().flatten().all(|&n| (880..=1120).contains(&n)), "{seen:?}");
        let both =
            (1..=5000).filter(|c| pick(flow_bits(*c, &to[0]), 5) == pick(flow_bits(*c, &to[1]), 5));
        assert!((880..=1120).contains(&both.count()), "the choices do not depend on each other");
    }

    #[test]
    fn pick_reaches_every_backend_equally_often() {
        let mut seen = [0u32; 5];
        for i in 0..5000u32 {
            seen[pick(i * (u32::MAX / 5000), 5) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (999..=1001).contains(&n)), "{seen:?}");
    }
}
