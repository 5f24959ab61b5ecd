//! Where ops go, and what is read back: maps, real or in memory, behind one trait.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{Addr, Backend, PortOptions, Service, ServiceKey, SourceRangeKey};

use crate::{
    model::{Cidr, PortRef},
    op::{AddressUse, Op},
};

/// Where ops go.
pub trait Store {
    /// Carries out one op; on error the maps are as they were.
    fn apply(&mut self, op: &Op) -> Result<(), StoreError>;
    /// Has it kept, for as long as a flow may remember it, that this generation is given. Before it is
    /// used.
    fn reserve(&mut self, generation: u32) -> Result<(), StoreError>;
    /// All that the maps say now. What stands there only because of it is made to follow it.
    fn read(&mut self) -> Result<Snapshot, StoreError>;
    /// A copy of the records of a block.
    fn records(&self, block: u32, count: u32) -> Vec<Backend>;
    /// Returns when every program run that began before the call has ended.
    fn grace_period(&mut self) -> Result<(), StoreError>;
}

/// Why the maps did not take an op.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map has no room, although the mirror says otherwise.
    #[error("the {map} map is full; raise {flag}")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// The flag of `lb-agent` that sets its size.
        flag: &'static str,
    },
    /// A block does not lie in the array.
    #[error("block {block} with {count} records is outside the backends map of {capacity}")]
    OutOfBounds {
        /// Index of the first record.
        block: u32,
        /// Number of records.
        count: usize,
        /// Size of the map.
        capacity: u32,
    },
    /// A service port's name does not fit into the names map.
    #[error("the name {name} is longer than {limit} bytes")]
    NameTooLong {
        /// The name.
        name: String,
        /// Most bytes that fit.
        limit: usize,
    },
    /// The maps could not be read.
    #[error("the maps cannot be read: {0}")]
    Unreadable(String),
    /// The kernel said no.
    #[error("cannot {call} the {map} map: {error}")]
    Kernel {
        /// What was attempted.
        call: &'static str,
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        error: String,
    },
}

/// All that the maps say, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Size of the services map.
    pub max_services: u32,
    /// Size of the backends map.
    pub max_backends: u32,
    /// The last generation that may have been given, or, for those who only look, as far as the records
    /// show, in use or not. 0: none was.
    pub last_generation: u32,
    /// The greatest id of a backend that a record shows, in use or not; 0: none does.
    pub last_backend: u32,
    /// Whether there are records, in use or not.
    pub written: bool,
    /// The frontends.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The service ports behind the ids.
    pub names: BTreeMap<u32, PortRef>,
    /// What is true of the service ports in `names`, by their ids, where there is something.
    pub ports: BTreeMap<u32, PortOptions>,
    /// The ranges of clients, by the id of the service port.
    pub source_ranges: BTreeSet<(u32, Cidr)>,
    /// What addresses stand for.
    pub addresses: BTreeMap<Addr, AddressUse>,
    /// The records of the blocks that `services` names, by index of the first one.
    pub blocks: BTreeMap<u32, Vec<Backend>>,
}

/// A range as it is looked up: the length of the prefix, and its first client. IPv4 ranges are ranges
/// of IPv4-mapped addresses.
pub fn source_range_key(id: u32, range: Cidr) -> (u32, SourceRangeKey) {
    let unused = if range.addr.is_ipv4() { 32 } else { 128 } - u32::from(range.prefix);
    (SourceRangeKey::BITS - unused, SourceRangeKey::new(id, range.addr.into()))
}

/// The inverse of [`source_range_key`].
pub fn source_range(prefix: u32, key: &SourceRangeKey) -> (u32, Cidr) {
    let addr = key.addr().ip();
    let length = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = length - (SourceRangeKey::BITS - prefix.min(SourceRangeKey::BITS)).min(length);
    (key.service(), Cidr { addr, prefix: u8::try_from(prefix).unwrap_or(u8::MAX) })
}

/// Sizes of the maps of names and of ports: a port that is renamed has its new id before it gives the old
/// one back. No id is as great as this.
pub const fn max_names(max_services: u32) -> u32 {
    max_services.saturating_mul(2)
}

/// The generation given last: the one that the widest range without any comes after. They are given
/// in turn, and begin anew behind the greatest number.
pub fn last_generation(of_records: impl Iterator<Item = u32>) -> u32 {
    let mut given: Vec<u32> = of_records.filter(|generation| *generation != 0).collect();
    given.sort_unstable();
    let (Some(&first), Some(&last)) = (given.first(), given.last()) else { return 0 };
    let mut widest = (u32::MAX - (last - first), last);
    for pair in given.windows(2) {
        widest = widest.max((pair[1] - pair[0], pair[0]));
    }
    widest.1
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::{last_generation, source_range, source_range_key};
    use crate::model::Cidr;

    proptest! {
        #[test]
        fn a_range_is_read_as_it_was_written(
            id: u32,
            addr in prop_oneof![any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())), any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()))],
            prefix in 0..=128u8,
        ) {
            // An IPv4-mapped address is an IPv4 one.
            let addr = addr.to_canonical();
            let prefix = prefix.min(if addr.is_ipv4() { 32 } else { 128 });
            let Ok(range) = format!("{addr}/{prefix}").parse::<Cidr>() else { return Ok(()) };
            let (length, key) = source_range_key(id, range);
            prop_assert_eq!(source_range(length, &key), (id, range));
        }
    }

    #[test]
    fn the_widest_and_the_narrowest_ranges() {
        for (text, length) in
            [("0.0.0.0/0", 128), ("10.0.0.1/32", 160), ("::/0", 32), ("fd00::1/128", 160)]
        {
            let range: Cidr = text.parse().unwrap();
            let (prefix, key) = source_range_key(9, range);
            assert_eq!((prefix, source_range(prefix, &key)), (length, (9, range)), "{text}");
        }
    }

    #[test]
    fn generations_go_on_where_most_are_unused() {
        let last = |of_records: &[u32]| last_generation(of_records.iter().copied());
        assert_eq!(last(&[0, 0]), 0);
        assert_eq!(last(&[1]), 1);
        assert_eq!(last(&[0, 3, 7, 7, 5]), 7);
        assert_eq!(last(&[u32::MAX]), u32::MAX);
        // Behind the greatest number, and with an old one that is still in use.
        assert_eq!(last(&[u32::MAX - 1, u32::MAX, 1, 2]), 2);
        assert_eq!(last(&[5, 3_000_000_000, 3_000_000_100]), 5);
        assert_eq!(last(&[5, 1_000_000_000, 1_000_000_100]), 1_000_000_100);
    }
}
