//! What stands in the pinned maps: keys and values, their names, and the version of the layout.

mod addresses;
mod affinity;
mod backends;
mod clients;
mod counters;
mod ip;
mod peer;
mod ports;
mod services;
mod sockets;

use bytemuck::{Pod, Zeroable};

pub use self::{
    addresses::{Address, AddressEntry, FILTER_WORDS, LOOPBACK_NET},
    affinity::{Affinity, AffinityKey, Bond, Held},
    backends::{Action, Backend},
    clients::{ClientEntry, ClientKey, SourceAddress, SourceRangeKey},
    counters::Counter,
    ip::Addr,
    peer::{Peer, Port},
    ports::PortOptions,
    services::{
        Name, SCOPE_ANY, SCOPE_NODE, SCOPE_OTHER_NODES, SCOPE_OWN_NODE, Service, ServiceEntry,
        ServiceKey,
    },
    sockets::Translation,
};
pub(crate) use ip::mixed;

/// Version of everything in this module; part of the pin path (`<bpffs>/socklb/v<LAYOUT>`).
///
/// [`AFFINITY`], [`CLIENTS`], [`COUNTERS`], [`NAMES`], and the maps that are beside the sets, pass from one
/// layout to another as they are: what is to mean something else there gets another name or another size.
pub const LAYOUT: u32 = 5;

/// HASH: [`ServiceKey`] to [`ServiceEntry`].
pub const SERVICES: &str = "services";
/// ARRAY: `u32` to [`Backend`], in contiguous blocks, one block per backend set.
pub const BACKENDS: &str = "backends";
/// ARRAY: id of a service port (`u32`) to [`PortOptions`].
pub const PORTS: &str = "ports";
/// HASH: [`Addr`] to [`AddressEntry`]: what is known of an address, whatever the port.
pub const ADDRESSES: &str = "addresses";
/// ARRAY of [`FILTER_WORDS`] `u64`: bit [`Addr::filter_bit`] is set for each key of [`ADDRESSES`], and
/// for each address that clients dial of a key of [`SERVICES`].
pub const FILTER: &str = "filter";
/// LPM_TRIE: prefix length and [`SourceRangeKey`] to `u32`, always 1: which clients may use a service port.
pub const SOURCE_RANGES: &str = "source_ranges";
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

/// The kernel knows the lock of a value by the name of its type.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

impl bpf_spin_lock {
    pub(crate) const UNLOCKED: Self = Self { val: 0 };
}
