//! What addresses stand for, and the filter that spares most connections the question.

use std::{collections::BTreeMap, fmt, path::Path};

use aya::maps::{Array, HashMap, MapData, MapError};
use bytemuck::must_cast;
use lb_common::abi::{ADDRESSES, Addr, Address, AddressEntry, FILTER, FILTER_WORDS, bpf_spin_lock};
use lb_core::op::AddressUse;

use super::{
    OpenError,
    one::{BPF_F_LOCK, array, gone, hash},
};

const ADDR: usize = size_of::<Addr>();
const ADDRESS: usize = size_of::<AddressEntry>();

/// The map of addresses, and the filter. A bit of the filter is set before the first address that it speaks for is there, be it
/// in this map or that of a frontend, and is cleared when the last one has gone.
pub(super) struct AddressMaps {
    map: HashMap<MapData, [u8; ADDR], [u8; ADDRESS]>,
    filter: Array<MapData, u64>,
    /// How many addresses, and frontends, each bit speaks for.
    behind: Vec<u32>,
}

impl fmt::Debug for AddressMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressMaps").finish_non_exhaustive()
    }
}

impl AddressMaps {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let (map, _) = hash(dir, ADDRESSES)?;
        let filter = array(dir, FILTER)?;
        let behind = vec![0; FILTER_WORDS as usize * u64::BITS as usize];
        Ok(Self { map, filter, behind })
    }

    /// Makes the filter speak for what is there, and for nothing else: the addresses, and those of the
    /// `frontends`, each as often as it has one. Whoever writes does so first.
    pub(super) fn restore(
        &mut self,
        frontends: impl Iterator<Item = Result<Addr, MapError>>,
    ) -> Result<(), MapError> {
        let addresses = self.all()?.into_keys().map(Ok);
        let mut behind = vec![0; self.behind.len()];
        for addr in addresses.chain(frontends) {
            behind[addr?.filter_bit() as usize] += 1;
        }
        self.behind = behind;
        (0..FILTER_WORDS).try_for_each(|word| self.write_word(word))
    }

    /// All addresses. What is not sealed with its key is damage, and shown as it is.
    pub(super) fn all(&self) -> Result<BTreeMap<Addr, AddressUse>, MapError> {
        let mut all = BTreeMap::new();
        for entry in &self.map {
            let (addr, address) = entry?;
            let Address { flags, netns, .. } = must_cast::<_, AddressEntry>(address).address;
            all.insert(must_cast(addr), AddressUse { flags, netns });
        }
        Ok(all)
    }

    pub(super) fn get(&self, addr: &Addr) -> Option<Address> {
        let entry: AddressEntry = must_cast(self.map.get(&must_cast(*addr), BPF_F_LOCK).ok()?);
        let address = entry.address;
        address.is_of(*addr).then_some(address)
    }

    pub(super) fn put(&mut self, addr: Addr, known: AddressUse) -> Result<(), MapError> {
        let is_new = self.map.get(&must_cast(addr), 0).is_err();
        if is_new {
            self.enter(addr)?;
        }
        let address = Address::new(addr, known.flags, known.netns);
        let entry = AddressEntry { address, lock: bpf_spin_lock::default(), reserved: 0 };
        let written = self.map.insert(&must_cast(addr), &must_cast(entry), BPF_F_LOCK);
        if written.is_err() && is_new {
            self.leave(addr)?;
        }
        written
    }

    /// One more is about to be there.
    pub(super) fn enter(&mut self, addr: Addr) -> Result<(), MapError> {
        let bit = addr.filter_bit();
        self.behind[bit as usize] += 1;
        let written = self.write_word(bit / u64::BITS);
        if written.is_err() {
            self.behind[bit as usize] -= 1;
        }
        written
    }

    /// One has gone.
    pub(super) fn leave(&mut self, addr: Addr) -> Result<(), MapError> {
        let bit = addr.filter_bit();
        self.behind[bit as usize] = self.behind[bit as usize].saturating_sub(1);
        self.write_word(bit / u64::BITS)
    }

    pub(super) fn delete(&mut self, addr: Addr) -> Result<(), MapError> {
        let was_there = self.map.get(&must_cast(addr), 0).is_ok();
        gone(self.map.remove(&must_cast(addr)))?;
        if was_there { self.leave(addr) } else { Ok(()) }
    }

    fn write_word(&mut self, index: u32) -> Result<(), MapError> {
        let first = (index * u64::BITS) as usize;
        let behind = &self.behind[first..first + u64::BITS as usize];
        let word = behind.iter().rev().fold(0, |word, count| word << 1 | u64::from(*count > 0));
        if self.filter.get(&index, 0)? != word {
            self.filter.set(index, &word, 0)?;
        }
        Ok(())
    }
}
