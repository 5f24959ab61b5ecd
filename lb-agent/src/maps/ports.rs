//! What is true of service ports, by their ids.

use std::{collections::BTreeMap, fmt, path::Path};

use aya::maps::{Array, MapData, MapError};
use bytemuck::must_cast;
use lb_common::abi::{PORTS, PortOptions};

use super::one::{OpenError, array};

/// The map; each value is one word, as the programs read it.
pub(super) struct Ports(Array<MapData, u64>);

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ports").field(&self.0.len()).finish()
    }
}

impl Ports {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self(array(dir, PORTS)?))
    }

    /// None if the id is out of bounds.
    pub(super) fn get(&self, id: u32) -> Option<PortOptions> {
        self.0.get(&id, 0).ok().map(must_cast)
    }

    /// Of these ids, as far as they are in bounds, those of which something is said.
    pub(super) fn all(
        &self,
        ids: impl Iterator<Item = u32>,
    ) -> Result<BTreeMap<u32, PortOptions>, MapError> {
        let mut all = BTreeMap::new();
        for id in ids.filter(|id| *id < self.0.len()) {
            let options = must_cast(self.0.get(&id, 0)?);
            all.extend((options != PortOptions::default()).then_some((id, options)));
        }
        Ok(all)
    }

    pub(super) fn put(&mut self, id: u32, options: PortOptions) -> Result<(), MapError> {
        self.0.set(id, &must_cast::<_, u64>(options), 0)
    }
}
