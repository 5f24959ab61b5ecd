//! What stands in the pinned maps: keys and values, their names, and the version of the layout.

use core::{
    fmt,
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytemuck::{Pod, Zeroable, must_cast};

/// Version of everything in this module; part of the pin path (`<bpffs>/socklb/v<LAYOUT>`).
pub const LAYOUT: u32 = 4;

/// HASH: [`ServiceKey`] to [`ServiceEntry`].
pub const SERVICES: &str = "services";
/// ARRAY: `u32` to [`Backend`], in contiguous blocks, one block per backend set.
pub const BACKENDS: &str = "backends";
/// HASH: [`Addr`] to [`AddressEntry`]: what is known of an address, whatever the port.
pub const ADDRESSES: &str = "addresses";
/// ARRAY of [`FILTER_WORDS`] `u64`: bit [`Addr::filter_bit`] is set for each key of [`ADDRESSES`], and
/// for each address that clients dial of a key of [`SERVICES`].
pub const FILTER: &str = "filter";
/// LPM_TRIE: prefix length and [`SourceKey`] to `u32`, always 1: which clients may use a service port.
pub const SOURCES: &str = "sources";
/// HASH: [`ClientKey`] to [`ClientEntry`]: from which address a socket connects that has none.
pub const CLIENTS: &str = "clients";
/// HASH: [`AffinityKey`] to [`Affinity`].
pub const AFFINITY: &str = "affinity";
/// PERCPU_ARRAY: [`Counter`] to `u64`.
pub const COUNTERS: &str = "counters";
/// HASH: service id (`u32`) to [`Name`]. Read by people and by the next agent, never by the datapath.
pub const NAMES: &str = "names";
/// SK_STORAGE: what a socket was translated from and to, by its last connect() to a Service.
pub const SOCKETS: &str = "sockets";
/// SK_STORAGE: the same of the connect() before, as the kernel may refuse the last one. Only of UDP
/// sockets that were connected once more.
pub const FORMER: &str = "former";
/// SK_STORAGE: [`Flows`](crate::flows::Flows) of a UDP socket that sends without being connected.
pub const FLOWS: &str = "flows";
/// SK_STORAGE: the same of a socket that talks to more Services than fit there.
pub const MORE_FLOWS: &str = "more_flows";
/// ARRAY of one `u32`: the last generation that may have been given; 0: not known. As long as a flow may
/// remember one, it is not given again. Never read by the datapath.
pub const GENERATIONS: &str = "generations";
/// HASH: id of a cgroup (`u64`) to [`Held`].
pub const HELD: &str = "held";
/// Number in the programs, which the loader sets: the most bonds of one cgroup, see [`Held::max_bonds`].
pub const MAX_BONDS: &str = "MAX_BONDS";

/// HASH: [`Slot`](crate::heard::Slot) to [`Heard`](crate::heard::Heard): from whom UDP sockets have
/// just heard, of peers that have a Service's address.
pub const HEARD: &str = "heard";

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// [`ServiceKey::scope`]: the address is the one that clients dial.
pub const SCOPE_ANY: u8 = 0;
/// A NodePort on the addresses of this node; the address is the unspecified one of the family.
pub const SCOPE_OWN_NODE: u8 = 1;
/// A NodePort on the addresses of all other nodes; the address is the unspecified one of the family.
pub const SCOPE_OTHER_NODES: u8 = 2;
/// A NodePort on an address of one other node; goes before [`SCOPE_OTHER_NODES`].
pub const SCOPE_NODE: u8 = 3;

/// An IP address in network order; IPv4 as `::ffff:a.b.c.d`.
///
/// One form for both families means one set of maps, and a dual-stack socket that dials
/// `::ffff:10.96.0.10` finds the IPv4 Service without a special case.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(transparent)]
pub struct Addr([u8; 16]);

impl Addr {
    /// The four 32-bit words of a `sockaddr_in6`, as they stand in memory.
    ///
    /// A cast, not a sum of bytes: LLVM would not put the bytes together again, and the datapath
    /// would move them one by one.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        must_cast(words)
    }

    /// The inverse of [`Addr::from_words`].
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        must_cast(self)
    }

    /// The word of a `sockaddr_in`, as it stands in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), word])
    }

    /// The last word: the whole address, if it is an IPv4 one.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.words()[3]
    }

    /// The unspecified address of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn unspecified(self) -> Self {
        if self.is_v4() { Self::from_v4_word(0) } else { Self::from_words([0; 4]) }
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether it is `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.words();
        a == 0 && b == 0 && d == 0 && (c == 0 || c == u32::from_ne_bytes([0, 0, 0xff, 0xff]))
    }

    /// Whether it is `::1` or one of `127.0.0.0/8`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        let [a, b, c, d] = self.words();
        if self.is_v4() {
            d & u32::from_ne_bytes([0xff, 0, 0, 0]) == u32::from_ne_bytes([127, 0, 0, 0])
        } else {
            a == 0 && b == 0 && c == 0 && d == u32::from_ne_bytes([0, 0, 0, 1])
        }
    }

    /// Where a socket that is bound to `source` gets that dials this address, the unspecified one: to
    /// itself in IPv4, or else to the loopback address. Linux does so after the programs have run
    /// (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`, `__ip6_datagram_connect`, `udpv6_sendmsg`).
    #[inline(always)]
    #[must_use]
    pub const fn meant(self, source: Self) -> Self {
        let localhost = Self::from_v4_word(u32::from_ne_bytes([127, 0, 0, 1]));
        if self.is_v4() {
            if source.is_v4() && !source.is_unspecified() { source } else { localhost }
        } else if source.is_v4() {
            // A socket of both families, bound in IPv4.
            localhost
        } else {
            Self::from_words([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])])
        }
    }

    /// The bit of [`FILTER`] that speaks for the address and its 255 neighbours.
    #[inline(always)]
    pub const fn filter_bit(self) -> u32 {
        let [a, b, c, d] = self.words();
        let d = d & u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
        // Multiplication carries upwards only: once more, for the high bits of both halves.
        let sum = mixed([a, b, c, d]);
        ((sum ^ (sum >> 32)).wrapping_mul(0x1656_67b1_9e37_79f9) >> (64 - FILTER_BITS)) as u32
    }

    /// 32 bits of the address.
    #[inline(always)]
    const fn digest(self) -> u32 {
        (mixed(self.words()) >> 32) as u32
    }

    /// The bytes, in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.0
    }

    /// The address as the standard library has it, IPv4-mapped ones as IPv4.
    pub const fn ip(self) -> IpAddr {
        Ipv6Addr::from_octets(self.0).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self(ip.to_ipv6_mapped().octets())
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// The words of an address, each half multiplied by an odd number of its own. The high bits are the
/// best mixed.
#[inline(always)]
pub(crate) const fn mixed([a, b, c, d]: [u32; 4]) -> u64 {
    let high = (a as u64 | (b as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let low = (c as u64 | (d as u64) << 32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    high.wrapping_add(low)
}

/// A port in network order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(transparent)]
pub struct Port([u8; 2]);

impl Port {
    /// From a `sin_port`, as it stands in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw.to_ne_bytes())
    }

    /// The inverse of [`Port::from_raw`].
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        u16::from_ne_bytes(self.0)
    }

    /// The port number.
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl From<u16> for Port {
    fn from(number: u16) -> Self {
        Self(number.to_be_bytes())
    }
}

/// An address and a port: one end of a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct Peer {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
}

impl Peer {
    /// Numbers that compare as the peers do: by address, then by port. The records of a block stand
    /// in this order.
    #[inline(always)]
    pub const fn order(&self) -> (u64, u64, u16) {
        let [a, b, c, d] = self.addr.words();
        let high = a as u64 | (b as u64) << 32;
        let low = c as u64 | (d as u64) << 32;
        (u64::from_be(high.to_le()), u64::from_be(low.to_le()), u16::from_be(self.port.raw()))
    }
}

impl From<SocketAddr> for Peer {
    fn from(addr: SocketAddr) -> Self {
        Self { addr: addr.ip().into(), port: addr.port().into() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(Peer { addr, port }: Peer) -> Self {
        Self::new(addr.ip(), port.number())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// Key of [`SERVICES`]: one frontend. 20 bytes, hashed by the kernel word by word, so written so.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct ServiceKey {
    /// Address and port that clients dial.
    pub peer: Peer,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Which address space `peer` is in: one of the `SCOPE_*`.
    pub scope: u8,
}

impl ServiceKey {
    /// The frontend as any client sees it.
    #[inline(always)]
    pub const fn new(peer: Peer, protocol: u8) -> Self {
        let [a, b, c, d] = peer.addr.words();
        let Port([high, low]) = peer.port;
        must_cast([a, b, c, d, u32::from_ne_bytes([high, low, protocol, 0])])
    }

    /// The same port of what `scope` makes of `addr`.
    #[inline(always)]
    #[must_use]
    pub const fn scoped(&self, addr: Addr, scope: u8) -> Self {
        let [a, b, c, d] = addr.words();
        let Port([high, low]) = self.peer.port;
        must_cast([a, b, c, d, u32::from_ne_bytes([high, low, self.protocol, scope])])
    }

    /// 32 bits of the key: equal for two different keys once in 2^32 times. The sum of the words,
    /// each multiplied by an odd number of its own, costs the datapath little.
    #[inline(always)]
    pub(crate) const fn digest(&self) -> u32 {
        let rest =
            self.peer.port.raw() as u64 | (self.protocol as u64) << 16 | (self.scope as u64) << 24;
        let rest = rest.wrapping_mul(0x1656_67b1_9e37_79f9);
        (mixed(self.peer.addr.words()).wrapping_add(rest) >> 32) as u32
    }
}

/// What [`SERVICES`] says of a frontend: which block holds its backends. 20 bytes.
///
/// A hash element is recycled while readers still hold it, so a reader may see a mix of two values,
/// or the value of another key. It therefore believes nothing here that a [`Backend`] with the same
/// generation does not confirm, and the generation stands in the map [sealed](Self::sealed) with the
/// key; all else that is true of the set stands in the records.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Service {
    /// Index in [`BACKENDS`] of the first record.
    pub block: u32,
    /// Number of records to choose from; never 0 (an empty set is one record that refuses).
    pub count: u32,
    /// Number of records behind those: backends that flows may stay with, but no new one goes to.
    pub kept: u32,
    /// The same number in each record of the block; another block, another number; never 0.
    pub generation: u32,
    /// The service port this frontend belongs to, key of [`NAMES`]. For people; the datapath takes
    /// the id from the record.
    pub id: u32,
}

impl Service {
    /// Number of records in the block.
    #[inline(always)]
    pub const fn records(&self) -> u32 {
        self.count.wrapping_add(self.kept)
    }

    /// The value as it stands in the map under `key`, made from what it says; and the inverse. What
    /// was sealed with another key says a generation that no record has.
    #[inline(always)]
    #[must_use]
    pub const fn sealed(self, key: &ServiceKey) -> Self {
        Self { generation: self.generation ^ key.digest(), ..self }
    }
}

/// Value of [`SERVICES`]. 24 bytes.
///
/// The lock lets the agent change a value where it stands (`BPF_F_LOCK`). Any other update puts a new
/// element at the head of its bucket and then takes the old one out behind it, and a reader on its
/// way through the bucket meets neither: the frontend would be gone for that reader. Nobody else
/// takes the lock; a reader finds out about a value half changed by its generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceEntry {
    /// What it says.
    pub service: Service,
    /// The kernel's.
    pub lock: bpf_spin_lock,
}

/// The kernel knows the lock of a value by the name of its type.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

impl bpf_spin_lock {
    pub(crate) const UNLOCKED: Self = Self { val: 0 };
}

/// Element of [`BACKENDS`]: one endpoint of one backend set. 32 bytes, so none straddles a cache line.
///
/// A record is immutable from the moment a service names its block until a grace period after the
/// last service stopped naming it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Where the connection goes.
    pub peer: Peer,
    /// What is to be done, see [`Backend::action`].
    pub action: u8,
    /// [`Backend::SOURCES`] or 0.
    pub flags: u8,
    /// Generation of the block.
    pub generation: u32,
    /// Id of the service port.
    pub service: u32,
    /// For how many seconds after its last connection a client stays with its backend; 0: not at all.
    pub affinity: u32,
}

/// What a [`Backend`] record asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Connect to the record's address.
    Forward,
    /// Fail with ECONNREFUSED: the service port has no endpoints (kube-proxy F1).
    Refuse,
    /// Fail with EHOSTUNREACH: it has some, but none that a traffic policy allows from here (F2).
    Unreachable,
}

impl Action {
    /// As stored in [`Backend::action`].
    pub const fn code(self) -> u8 {
        match self {
            Self::Forward => 1,
            Self::Refuse => 2,
            Self::Unreachable => 3,
        }
    }
}

impl Backend {
    /// Bit of [`Backend::flags`]: [`SOURCES`] says which clients may connect.
    pub const SOURCES: u8 = 1;

    /// A record to an endpoint.
    #[inline(always)]
    pub fn forward(peer: Peer) -> Self {
        Self { peer, action: Action::Forward.code(), ..Self::zeroed() }
    }

    /// The only record of a set without endpoints.
    pub fn refuse() -> Self {
        Self { action: Action::Refuse.code(), ..Self::zeroed() }
    }

    /// The only record of a set without endpoints here.
    pub fn unreachable() -> Self {
        Self { action: Action::Unreachable.code(), ..Self::zeroed() }
    }

    /// What the record asks for; refuse, if it asks for something unknown.
    #[inline(always)]
    pub const fn action(&self) -> Action {
        if self.action == Action::Forward.code() {
            Action::Forward
        } else if self.action == Action::Unreachable.code() {
            Action::Unreachable
        } else {
            Action::Refuse
        }
    }

    /// The same record with another block's generation and service.
    #[inline(always)]
    #[must_use]
    pub const fn stamped(self, generation: u32, service: u32) -> Self {
        Self { generation, service, ..self }
    }
}

/// Value of [`SOCKETS`] and [`FORMER`]: what the socket was told, and where it went. 48 bytes; each
/// address starts at a word.
///
/// `connect(AF_UNSPEC)` runs no program, and a connect() may fail after them, so the value may outlive
/// the connection it describes, or describe one that never was: believe it only while `backend` is the
/// socket's peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Translation {
    /// What the application dialled.
    pub frontend: Peer,
    /// Always 0.
    pub reserved: [u8; 2],
    /// What it got.
    pub backend: Peer,
    /// Always 0.
    pub reserved_too: [u8; 2],
    /// Id of the service port.
    pub service: u32,
    /// Generation of the block the backend was taken from.
    pub generation: u32,
}

impl Translation {
    /// Of a socket that dialled `frontend`.
    #[inline(always)]
    pub const fn new(frontend: Peer, backend: &Backend) -> Self {
        Self {
            frontend,
            reserved: [0; 2],
            backend: backend.peer,
            reserved_too: [0; 2],
            service: backend.service,
            generation: backend.generation,
        }
    }

    /// Whether `peer` is the backend. Word by word, as they stand.
    #[inline(always)]
    pub const fn is_to(&self, peer: &Peer) -> bool {
        let [a, b, c, d] = peer.addr.words();
        let words: [u32; 12] = must_cast(*self);
        let is_addr = a == words[5] && b == words[6] && c == words[7] && d == words[8];
        is_addr && self.port().raw() == peer.port.raw()
    }

    /// The backend's port.
    #[inline(always)]
    pub const fn port(&self) -> Port {
        let [.., port, _, _, _, _, _]: [u16; 24] = must_cast(*self);
        Port::from_raw(port)
    }
}

/// What [`ADDRESSES`] says of an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Address {
    /// One or more of the constants.
    pub flags: u32,
    /// In the map: 32 bits of all the rest and of the key, as a hash element may change, or be recycled,
    /// under its reader.
    pub seal: u32,
    /// Only in the network namespace with this cookie; 0: in all.
    pub netns: u64,
}

impl Address {
    /// Bit of `flags`: an address of this node; NodePorts are [`SCOPE_OWN_NODE`].
    pub const OWN_NODE: u32 = 1;
    /// Bit of `flags`: an address of another node.
    pub const OTHER_NODE: u32 = 2;
    /// Bit of `flags`: a cluster IP; a port that no Service has is refused (kube-proxy E12).
    pub const CLUSTER_IP: u32 = 4;
    /// Bit of `flags`: every port is refused, also to a connect() of UDP. So the programs' being in
    /// force can be seen without a datagram.
    pub const RESERVED: u32 = 8;

    /// An address as it stands in the map under `key`.
    #[inline(always)]
    pub const fn new(key: Addr, flags: u32, netns: u64) -> Self {
        Self { flags, seal: Self::seal(key, flags, netns), netns }
    }

    /// Whether it was made for `key`.
    #[inline(always)]
    pub const fn is_of(&self, key: Addr) -> bool {
        self.seal == Self::seal(key, self.flags, self.netns)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    const fn seal(key: Addr, flags: u32, netns: u64) -> u32 {
        key.digest() ^ flags ^ netns as u32 ^ (netns >> 32) as u32
    }
}

/// Value of [`ADDRESSES`], changed where it stands as a [`ServiceEntry`] is. 24 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct AddressEntry {
    /// What it says.
    pub address: Address,
    /// The kernel's.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
}

/// Key of [`ADDRESSES`] that speaks for all of `127.0.0.0/8` that has no entry of its own, as far as it
/// is this node's.
pub const LOOPBACK_NET: Addr = Addr::from_v4_word(u32::from_ne_bytes([127, 0, 0, 0]));

/// Bits of an index of a bit in [`FILTER`].
const FILTER_BITS: u32 = 12;
/// Elements of [`FILTER`].
pub const FILTER_WORDS: u32 = (1 << FILTER_BITS) / u64::BITS;

/// Key of [`SOURCES`], behind the length of the prefix: all of the id, and up to 128 bits of the
/// address. 20 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct SourceKey {
    /// Id of the service port, in network order.
    service: [u8; 4],
    /// The address.
    addr: Addr,
}

impl SourceKey {
    /// Length of a prefix that leaves out nothing.
    pub const BITS: u32 = 160;

    /// A client of a service port, or the first one of a range.
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr) -> Self {
        Self { service: service.to_be_bytes(), addr }
    }

    /// Id of the service port.
    pub const fn service(&self) -> u32 {
        u32::from_be_bytes(self.service)
    }

    /// The address.
    pub const fn addr(&self) -> Addr {
        self.addr
    }
}

/// Key of [`CLIENTS`]: a network namespace, and where its socket connects to. 24 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct ClientKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The address of a load balancer; the unspecified one of the family: any.
    pub to: Addr,
}

impl ClientKey {
    /// What holds for all addresses of the family of `to` that have no entry of their own.
    #[inline(always)]
    pub const fn general(netns: u64, to: Addr) -> Self {
        Self { netns, to: to.unspecified() }
    }

    /// The same namespace, when it connects to `to`.
    #[inline(always)]
    #[must_use]
    pub const fn towards(self, to: Addr) -> Self {
        Self { to, ..self }
    }

    #[inline(always)]
    const fn digest(&self) -> u64 {
        self.netns.wrapping_mul(0x1656_67b1_9e37_79f9).wrapping_add(mixed(self.to.words()))
    }
}

/// The source address that routing in a network namespace chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Client {
    /// The address.
    pub addr: Addr,
    /// Any of the constants.
    pub flags: u32,
}

impl Client {
    /// Bit of `flags`, in a general entry: there are others, for single addresses of load balancers.
    pub const OTHERS: u32 = 1;
    /// Bit of `flags`: also a socket that has a port, and so cannot be bound any more, comes from there:
    /// there is no other address, or nobody to be afraid of.
    pub const SURE: u32 = 2;

    /// A client that comes from `addr`.
    #[inline(always)]
    pub const fn new(addr: Addr, flags: u32) -> Self {
        Self { addr, flags }
    }
}

/// Value of [`CLIENTS`]. 32 bytes.
///
/// The lock is there as in [`ServiceEntry`]: a key is never hidden. The programs take it as well, so
/// that nobody reads half a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ClientEntry {
    /// What it says.
    pub client: Client,
    /// The kernel's.
    pub lock: bpf_spin_lock,
    /// 64 bits of the key: a hash element may be recycled under its reader.
    pub seal: u64,
}

impl ClientEntry {
    /// What stands in the map under `key`.
    #[inline(always)]
    pub const fn new(key: &ClientKey, client: Client) -> Self {
        Self { client, lock: bpf_spin_lock { val: 0 }, seal: Self::seal(key) }
    }

    /// The seal of a value under `key`.
    #[inline(always)]
    pub const fn seal(key: &ClientKey) -> u64 {
        key.digest()
    }
}

/// Key of [`AFFINITY`]: a client of a service port. 16 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace: it stands for the client's address (kube-proxy H1).
    pub netns: u64,
    /// Id of the service port.
    pub service: u32,
    /// 4 or 6: a client has an address of either family, and so has the service port.
    pub family: u32,
}

/// What [`AFFINITY`] says of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Bond {
    /// When the client connected last, in nanoseconds of the monotonic clock.
    pub used: u64,
    /// Where it went.
    pub backend: Peer,
    /// Always 0.
    pub reserved: [u8; 6],
}

impl Bond {
    /// Of a client that has not connected yet.
    pub const NONE: Self = Self {
        used: 0,
        backend: Peer { addr: Addr([0; 16]), port: Port([0; 2]) },
        reserved: [0; 6],
    };

    /// Whether there is one.
    #[inline(always)]
    pub const fn is_made(&self) -> bool {
        self.used != 0
    }
}

/// Value of [`AFFINITY`]. 64 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Affinity {
    /// What it says.
    pub bond: Bond,
    /// Whose it is: a hash element may be recycled under its reader.
    pub key: AffinityKey,
    /// In the name of which cgroup it was made, see [`HELD`].
    pub cgroup: u64,
    /// Of two programs that choose a backend for one client at one time, the second takes the choice
    /// of the first.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
}

impl Affinity {
    /// What stands in the map under `key`, made in the name of a cgroup.
    #[inline(always)]
    pub const fn new(key: AffinityKey, bond: Bond, cgroup: u64) -> Self {
        Self { bond, key, cgroup, lock: bpf_spin_lock::UNLOCKED, reserved: 0 }
    }
}

/// Value of [`HELD`]: what was made in the name of a cgroup, and takes memory of the agent's or room that
/// others need. The programs count up, and the agent puts it right now and then: nothing is done when a
/// socket is closed or a bond ends. 16 bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Held {
    /// Values of [`MORE_FLOWS`].
    pub more_flows: u32,
    /// Entries of [`AFFINITY`].
    pub bonds: u32,
    /// Two programs may count at one time.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
}

impl Held {
    /// Nothing yet.
    pub const NOTHING: Self =
        Self { more_flows: 0, bonds: 0, lock: bpf_spin_lock::UNLOCKED, reserved: 0 };
    /// The most values of [`MORE_FLOWS`] that the tasks of one cgroup may have: 8 MB.
    pub const MAX_MORE_FLOWS: u32 = 1024;
    /// The most cgroups at one time: more than a node has.
    pub const MAX_CGROUPS: u32 = 16_384;
    /// The most bonds that one cgroup may have in any case.
    pub const FEW_BONDS: u32 = 1024;

    /// The most entries of [`AFFINITY`] that may be made in the name of one cgroup, where there is room for
    /// `of_all`: a sixteenth of them, or [`FEW_BONDS`](Self::FEW_BONDS).
    pub const fn max_bonds(of_all: u32) -> u32 {
        let share = of_all / 16;
        if share > Self::FEW_BONDS { share } else { Self::FEW_BONDS }
    }
}

/// Key of [`COUNTERS`]: what is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Counter {
    /// Refused for lack of endpoints, or since the cluster IP has no such port.
    Refused = 0,
    /// Failed since no endpoint is allowed from here.
    Unreachable = 1,
    /// Failed since the client's address is in no source range.
    Denied = 2,
    /// Failed since the client's address is not known, and there are source ranges.
    UnknownClient = 3,
    /// Refused since the maps changed under each of the readings.
    Unstable = 4,
    /// A client that was to stay with its backend, but the affinity map had no room.
    AffinityFull = 5,
    /// A socket for whose state the kernel had no memory.
    NoSocketMemory = 6,
    /// A flow of a UDP socket that was forgotten in favour of another flow of the same socket.
    FlowForgotten = 7,
    /// A connect() of UDP that was left untouched, where a datagram would have been refused.
    UdpConnectUntouched = 8,
    /// A datagram from a Service's address, the answer to which goes to a backend: the map of those
    /// that were just heard from had no room.
    HeardFull = 9,
    /// A socket that did without further flows, since its cgroup holds as many as it may.
    FlowsBounded = 10,
    /// Refused since the socket is bound to a loopback address, and the NodePort's backend is at none
    /// of this node's own addresses.
    LoopbackBound = 11,
    /// A client that was to stay with its backend, but whose cgroup has as many bonds as it may.
    AffinityBounded = 12,
}

impl Counter {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::Unreachable,
        Self::Denied,
        Self::UnknownClient,
        Self::Unstable,
        Self::AffinityFull,
        Self::NoSocketMemory,
        Self::FlowForgotten,
        Self::UdpConnectUntouched,
        Self::HeardFull,
        Self::FlowsBounded,
        Self::LoopbackBound,
        Self::AffinityBounded,
    ];

    /// As a label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::UnknownClient => "unknown-client",
            Self::Unstable => "unstable",
            Self::AffinityFull => "affinity-full",
            Self::NoSocketMemory => "no-socket-memory",
            Self::FlowForgotten => "flow-forgotten",
            Self::UdpConnectUntouched => "udp-connect-untouched",
            Self::HeardFull => "heard-full",
            Self::FlowsBounded => "flows-bounded",
            Self::LoopbackBound => "loopback-bound",
            Self::AffinityBounded => "affinity-bounded",
        }
    }
}

/// Value of [`NAMES`]: the service port behind an id. 200 bytes.
///
/// It lets `lbctl` show names while the agent is dead, and a new agent find the ids of the old one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Name {
    /// Namespace of the Service, padded with zero bytes.
    pub namespace: [u8; 64],
    /// Name of the Service, padded with zero bytes.
    pub name: [u8; 64],
    /// Name of the Service's port (may be empty), padded with zero bytes.
    pub port: [u8; 64],
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Always 0.
    pub reserved: [u8; 7],
}

const _: () = {
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<Service>() == 20);
    assert!(size_of::<ServiceEntry>() == 24);
    assert!(size_of::<Backend>() == 32);
    assert!(size_of::<Translation>() == 48);
    assert!(size_of::<Name>() == 200);
    assert!(size_of::<AddressEntry>() == 24);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<ClientKey>() == 24);
    assert!(size_of::<ClientEntry>() == 32);
    assert!(offset_of!(ClientEntry, lock) == 20);
    assert!(size_of::<AffinityKey>() == 16);
    assert!(size_of::<Bond>() == 32);
    assert!(size_of::<Affinity>() == 64);
    assert!(offset_of!(Affinity, lock) == 56);
    assert!(size_of::<Held>() == 16);
};

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn v4_and_its_mapped_form_are_one_address() {
        let v4: IpAddr = "10.96.0.10".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.96.0.10".parse().unwrap();
        assert_eq!(Addr::from(v4), Addr::from(mapped));
        assert_eq!(Addr::from(mapped).ip(), v4);
        let word = u32::from_ne_bytes([10, 96, 0, 10]);
        assert_eq!(Addr::from_v4_word(word), Addr::from(v4));
        assert_eq!(Addr::from(v4).v4_word(), word);
    }

    #[test]
    fn words_round_trip() {
        let v6 = Addr::from("2001:db8::1:2".parse::<IpAddr>().unwrap());
        assert_eq!(Addr::from_words(v6.words()), v6);
        assert_eq!(v6.words()[0].to_ne_bytes(), [0x20, 0x01, 0x0d, 0xb8]);
    }

    #[test]
    fn a_port_is_in_network_order() {
        assert_eq!(Port::from(80).raw().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::from_raw(Port::from(8080).raw()).number(), 8080);
    }

    #[test]
    fn keys_that_differ_anywhere_seal_differently() {
        let key = |addr: &str, protocol, scope| ServiceKey {
            peer: addr.parse::<SocketAddr>().unwrap().into(),
            protocol,
            scope,
        };
        let mut keys = std::vec![key("10.96.0.1:80", UDP, 0), key("10.96.0.1:80", TCP, 1)];
        for n in 1..=250 {
            keys.push(key(&std::format!("10.96.0.{n}:80"), TCP, 0));
            keys.push(key(&std::format!("10.{n}.0.1:80"), TCP, 0));
            keys.push(key(&std::format!("10.96.1.0:{n}"), TCP, 0));
            keys.push(key(&std::format!("[fd00:{n}::1]:80"), TCP, 0));
            keys.push(key(&std::format!("[fd01::1:{n}:0:0]:80"), TCP, 0));
        }
        keys.sort_unstable();
        keys.dedup();
        let digests: std::collections::BTreeSet<_> = keys.iter().map(ServiceKey::digest).collect();
        assert_eq!(digests.len(), keys.len());

        let service = Service { block: 1, count: 2, kept: 0, generation: 3, id: 4 };
        assert_eq!(service.sealed(&keys[0]).sealed(&keys[0]), service);
        assert_ne!(service.sealed(&keys[0]).sealed(&keys[1]).generation, service.generation);
    }

    #[test]
    fn peers_compare_by_address_then_by_port() {
        let mut peers: std::vec::Vec<SocketAddr> = [
            "10.0.0.1:80",
            "10.0.0.1:443",
            "10.0.1.0:1",
            "9.255.255.255:65535",
            "[fd00::1]:80",
            "[fd00::1:0]:1",
            "[fd00::1]:256",
            "192.0.2.1:255",
            "192.0.2.1:256",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        peers.sort_unstable();
        let peers: std::vec::Vec<Peer> = peers.into_iter().map(Peer::from).collect();
        assert!(peers.iter().is_sorted_by_key(Peer::order));
        assert!(peers.is_sorted());
    }

    #[test]
    fn neighbours_share_a_bit_of_the_filter_and_others_rarely_do() {
        let bit = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap()).filter_bit();
        assert_eq!(bit("10.96.0.1"), bit("10.96.0.254"));
        assert_eq!(bit("fd00::1:1"), bit("fd00::1:fe"));
        let mut bits: std::vec::Vec<u32> =
            (0..=255).map(|n| bit(&std::format!("10.96.{n}.1"))).collect();
        bits.extend((0..=255).map(|n| bit(&std::format!("fd00:10:96::{n:x}00"))));
        bits.extend((0..=255).map(|n| bit(&std::format!("192.168.{n}.1"))));
        assert!(bits.iter().all(|bit| *bit < FILTER_WORDS * 64));
        bits.sort_unstable();
        bits.dedup();
        assert!(bits.len() > 650, "{} different ones of 768", bits.len());
    }

    #[test]
    fn what_is_said_of_one_address_is_not_believed_of_another() {
        let [a, b] = ["10.96.0.1", "10.96.0.2"].map(|ip| Addr::from(ip.parse::<IpAddr>().unwrap()));
        let address = Address::new(a, Address::CLUSTER_IP, 0);
        assert!(address.is_of(a) && !address.is_of(b));
        assert!(a.is_v4() && a.unspecified() == Addr::from(Ipv4Addr::UNSPECIFIED));
        let v6 = Addr::from("fd00::1".parse::<IpAddr>().unwrap());
        assert!(!v6.is_v4() && v6.unspecified() == Addr::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)));
    }

    #[test]
    fn the_unspecified_address_means_what_it_means_to_the_kernel() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        // The mapped form of 0.0.0.0 is the same.
        let [none4, none6] = ["0.0.0.0", "::"].map(addr);
        for (dialled, source, meant) in [
            (none4, none4, "127.0.0.1"),
            (none4, addr("127.0.0.9"), "127.0.0.9"),
            (none4, addr("192.0.2.1"), "192.0.2.1"),
            (none4, none6, "127.0.0.1"),
            (none4, addr("2001:db8::1"), "127.0.0.1"),
            (none6, none6, "::1"),
            (none6, addr("2001:db8::1"), "::1"),
            (none6, addr("192.0.2.1"), "127.0.0.1"),
            (none6, none4, "127.0.0.1"),
        ] {
            assert!(dialled.is_unspecified());
            assert_eq!(dialled.meant(source), addr(meant), "{dialled} from {source}");
        }
        for text in ["127.0.0.1", "127.255.0.9", "127.0.0.0", "::1"] {
            assert!(addr(text).is_loopback() && !addr(text).is_unspecified(), "{text}");
        }
        for text in ["128.0.0.1", "1.0.0.127", "126.255.255.255", "::7f00:1", "::2", "fe80::1"] {
            assert!(!addr(text).is_loopback() && !addr(text).is_unspecified(), "{text}");
        }
        assert_eq!(LOOPBACK_NET, addr("127.0.0.0"));
    }

    #[test]
    fn a_client_of_another_key_has_another_seal() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let v4 = ClientKey::general(7, addr("203.0.113.5"));
        let v6 = ClientKey::general(7, addr("2001:db8::5"));
        assert_eq!(v4, ClientKey::general(7, addr("203.0.113.6")));
        let other = ClientKey::general(8, addr("203.0.113.5"));
        let one = v4.towards(addr("203.0.113.5"));
        let seals = [v4, v6, other, one].map(|key| ClientEntry::seal(&key));
        for (n, seal) in seals.iter().enumerate() {
            assert!(!seals[..n].contains(seal), "{seals:x?}");
        }
    }

    #[test]
    fn a_record_never_written_refuses() {
        assert_eq!(Backend::zeroed().action(), Action::Refuse);
    }
}
