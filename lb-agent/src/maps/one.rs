//! One pinned map: how it is opened, and what the kernel says of it.

use std::{io, path::Path};

use aya::maps::{Array, HashMap, Map, MapData, MapError};

use crate::pins::shown;

/// Whether the maps are opened to be changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// To look at.
    Read,
    /// To change.
    Write,
}

/// Why pinned maps could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such pin, or no permission to open it.
    #[error("cannot open the pinned map {}", name(path))]
    Open {
        /// The pin.
        path: String,
        /// What was wrong.
        #[source]
        error: MapError,
    },
    /// The pin is no map of this layout.
    #[error(
        "{} is not a map of this version of socklb: {what}; `lb-agent --cleanup` removes all \
         pins, or choose another --bpffs",
        name(path)
    )]
    Foreign {
        /// The pin.
        path: String,
        /// What is different.
        what: String,
    },
    /// The map's memory cannot be reached.
    #[error("cannot map the memory of {}", name(path))]
    Memory {
        /// The pin.
        path: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// What people call a pin.
fn name(path: &str) -> String {
    shown(Path::new(path)).display().to_string()
}

/// Keys and values as plain bytes.
pub(super) type Bytes<K, V> = HashMap<MapData, K, V>;

/// Change a value where it stands, see [`ServiceEntry`](lb_common::abi::ServiceEntry); insert it if there is none.
pub(crate) const BPF_F_LOCK: u64 = 4;

pub(super) fn open(dir: &Path, name: &str) -> Result<(MapData, u32), OpenError> {
    let path = dir.join(name);
    let fail = |error| OpenError::Open { path: path.display().to_string(), error };
    let data = MapData::from_pin(&path).map_err(fail)?;
    let max_entries = data.info().map_err(fail)?.max_entries();
    Ok((data, max_entries))
}

pub(super) fn hash<K: aya::Pod, V: aya::Pod>(
    dir: &Path,
    name: &str,
) -> Result<(Bytes<K, V>, u32), OpenError> {
    let (data, max_entries) = open(dir, name)?;
    let map = HashMap::try_from(Map::HashMap(data)).map_err(|error| OpenError::Foreign {
        path: dir.join(name).display().to_string(),
        what: error.to_string(),
    })?;
    Ok((map, max_entries))
}

pub(super) fn array<V: aya::Pod>(dir: &Path, name: &str) -> Result<Array<MapData, V>, OpenError> {
    let (data, _) = open(dir, name)?;
    Array::try_from(Map::Array(data)).map_err(|error| OpenError::Foreign {
        path: dir.join(name).display().to_string(),
        what: error.to_string(),
    })
}

/// What is to be removed and is not there is removed.
pub(crate) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// A trie without room says ENOSPC, a hash E2BIG.
pub(super) fn is_full(error: &MapError) -> bool {
    matches!(errno(error), Some(libc::E2BIG | libc::ENOSPC))
}

pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// What the kernel said, without the name of the call.
pub(super) fn explained(error: &MapError) -> String {
    match error {
        MapError::SyscallError(error) => error.io_error.to_string(),
        other => other.to_string(),
    }
}
