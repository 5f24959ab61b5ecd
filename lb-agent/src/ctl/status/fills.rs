//! How full the maps are.

use std::path::Path;

use aya::maps::{MapError, MapInfo};
use lb_common::abi::{
    ADDRESSES, AFFINITY, BACKENDS, CLIENTS, HEARD, NAMES, SERVICES, SOURCE_RANGES,
};
use lb_core::store::{Snapshot, max_names};
use serde::Serialize;

use crate::maps::Pinned;

/// How full a map is, in entries.
#[derive(Debug, Serialize)]
pub(super) struct Fill {
    pub(super) name: &'static str,
    pub(super) used: usize,
    pub(super) size: u32,
}

impl Fill {
    pub(super) fn ratio(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a map has fewer than 2^32 entries")]
        let used = self.used as f64;
        used / f64::from(self.size.max(1))
    }

    /// The flag of `lb-agent` that makes the map larger; none if it has one size.
    pub(super) fn flag(&self) -> Option<&'static str> {
        match self.name {
            BACKENDS => Some("--max-backends"),
            AFFINITY => Some("--max-affinity"),
            CLIENTS | HEARD => None,
            _ => Some("--max-services"),
        }
    }
}

/// Those of the maps that the agent plans.
pub(super) fn planned(snapshot: &Snapshot) -> Vec<Fill> {
    vec![
        Fill { name: SERVICES, used: snapshot.services.len(), size: snapshot.max_services },
        Fill {
            name: BACKENDS,
            used: snapshot.blocks.values().map(Vec::len).sum(),
            size: snapshot.max_backends,
        },
        // There are never more service ports than frontends.
        Fill { name: NAMES, used: snapshot.names.len(), size: max_names(snapshot.max_services) },
    ]
}

/// Those that are no part of what the agent plans, or have a size of their own.
pub(super) fn beside(
    dir: &Path,
    maps: &Pinned,
    snapshot: &Snapshot,
) -> Result<Vec<Fill>, MapError> {
    let used = [
        (ADDRESSES, snapshot.addresses.len()),
        (SOURCE_RANGES, snapshot.source_ranges.len()),
        (CLIENTS, maps.clients()?.len()),
        (AFFINITY, maps.bonds().count()),
    ];
    let fill = |(name, used)| {
        Ok(Fill { name, used, size: MapInfo::from_pin(dir.join(name))?.max_entries() })
    };
    used.into_iter().map(fill).collect()
}
