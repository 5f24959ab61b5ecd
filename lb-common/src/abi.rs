//! What stands in the pinned maps: keys and values, their names, and the version of the layout.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytemuck::{Pod, Zeroable, must_cast};

/// Version of everything in this module; part of the pin path (`<bpffs>/socklb/v<LAYOUT>`).
pub const LAYOUT: u32 = 1;

/// HASH: [`ServiceKey`] to [`ServiceEntry`].
pub const SERVICES: &str = "services";
/// ARRAY: `u32` to [`Backend`], in contiguous blocks, one block per backend set.
pub const BACKENDS: &str = "backends";
/// HASH: service id (`u32`) to [`Name`]. Read by people only, never by the datapath.
pub const NAMES: &str = "names";
/// SK_STORAGE: what a socket was translated from and to.
pub const SOCKETS: &str = "sockets";

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

    /// 32 bits of the key: equal for two different keys once in 2^32 times. The sum of the words,
    /// each multiplied by an odd number of its own, costs the datapath little.
    #[inline(always)]
    const fn digest(&self) -> u32 {
        let [a, b, c, d] = self.peer.addr.words();
        let rest =
            self.peer.port.raw() as u64 | (self.protocol as u64) << 16 | (self.scope as u64) << 24;
        let high = (a as u64 | (b as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let low = (c as u64 | (d as u64) << 32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let rest = rest.wrapping_mul(0x1656_67b1_9e37_79f9);
        (high.wrapping_add(low).wrapping_add(rest) >> 32) as u32
    }
}

/// What [`SERVICES`] says of a frontend: which block holds its backends. 16 bytes.
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
    /// Number of records; never 0 (an empty set is one record that refuses).
    pub count: u32,
    /// The same number in each record of the block; another block, another number; never 0.
    pub generation: u32,
    /// The service port this frontend belongs to, key of [`NAMES`]. For people; the datapath takes
    /// the id from the record.
    pub id: u32,
}

impl Service {
    /// The value as it stands in the map under `key`, made from what it says; and the inverse. What
    /// was sealed with another key says a generation that no record has.
    #[inline(always)]
    #[must_use]
    pub const fn sealed(self, key: &ServiceKey) -> Self {
        Self { generation: self.generation ^ key.digest(), ..self }
    }
}

/// Value of [`SERVICES`]. 20 bytes.
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
    /// No bit is in use.
    pub flags: u8,
    /// Generation of the block.
    pub generation: u32,
    /// Id of the service port.
    pub service: u32,
    /// Always 0: room for the session affinity timeout.
    pub reserved: u32,
}

/// What a [`Backend`] record asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Connect to the record's address.
    Forward,
    /// Fail with ECONNREFUSED: the set has no endpoints.
    Refuse,
}

impl Action {
    /// As stored in [`Backend::action`].
    pub const fn code(self) -> u8 {
        match self {
            Self::Forward => 1,
            Self::Refuse => 2,
        }
    }
}

impl Backend {
    /// A record to an endpoint.
    pub fn forward(peer: Peer) -> Self {
        Self { peer, action: Action::Forward.code(), ..Self::zeroed() }
    }

    /// The only record of an empty set.
    pub fn refuse() -> Self {
        Self { action: Action::Refuse.code(), ..Self::zeroed() }
    }

    /// What the record asks for; refuse, if it asks for something unknown.
    #[inline(always)]
    pub const fn action(&self) -> Action {
        if self.action == Action::Forward.code() { Action::Forward } else { Action::Refuse }
    }

    /// The same record with another block's generation and service.
    #[must_use]
    pub const fn stamped(self, generation: u32, service: u32) -> Self {
        Self { generation, service, ..self }
    }
}

/// Value of [`SOCKETS`]: what the socket was told, and where it went. 48 bytes; each address starts
/// at a word.
///
/// `connect(AF_UNSPEC)` runs no program, so the value may outlive the connection it describes:
/// believe it only while `backend` is the socket's peer.
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
    assert!(size_of::<Service>() == 16);
    assert!(size_of::<ServiceEntry>() == 20);
    assert!(size_of::<Backend>() == 32);
    assert!(size_of::<Translation>() == 48);
    assert!(size_of::<Name>() == 200);
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

        let service = Service { block: 1, count: 2, generation: 3, id: 4 };
        assert_eq!(service.sealed(&keys[0]).sealed(&keys[0]), service);
        assert_ne!(service.sealed(&keys[0]).sealed(&keys[1]).generation, service.generation);
    }

    #[test]
    fn a_record_never_written_refuses() {
        assert_eq!(Backend::zeroed().action(), Action::Refuse);
    }
}
