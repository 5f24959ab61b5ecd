//! Whether pinned maps do what maps of ours do. Type and sizes do not tell it all: a map of the right
//! shape without a lock, or with one elsewhere in its values, takes no write, or loses a part of it.
//! What the kernel knows of the types can be read with `CAP_SYS_ADMIN` only; so a write is tried, under
//! a key that nobody looks up.

use std::{io, mem::offset_of, path::Path};

use lb_common::{
    abi::{
        ADDRESSES, AFFINITY, Addr, AddressEntry, Affinity, AffinityKey, CLIENTS, ClientEntry,
        ClientKey, HEARD, HELD, Held, NAMES, Name, SERVICES, ServiceEntry, ServiceKey,
        bpf_spin_lock,
    },
    heard::{Heard, Slot},
};

use super::{
    OpenError,
    one::{BPF_F_LOCK, errno, hash},
};

/// What is wrong with one of the maps in `dir`, which are all there; none if they do their work, or
/// are of another shape, which whoever opens them is told. Nobody else may write to them meanwhile.
pub fn probe(dir: &Path) -> Result<Option<String>, OpenError> {
    const KEY: usize = size_of::<ServiceKey>();
    const SERVICE: usize = size_of::<ServiceEntry>();
    const ADDR: usize = size_of::<Addr>();
    const ADDRESS: usize = size_of::<AddressEntry>();
    const CLIENT_KEY: usize = size_of::<ClientKey>();
    const CLIENT: usize = size_of::<ClientEntry>();
    const BOUND: usize = size_of::<AffinityKey>();
    const BOND: usize = size_of::<Affinity>();
    let found = [
        try_out::<KEY, SERVICE>(dir, SERVICES, Some(offset_of!(ServiceEntry, lock)))?,
        try_out::<ADDR, ADDRESS>(dir, ADDRESSES, Some(offset_of!(AddressEntry, lock)))?,
        try_out::<CLIENT_KEY, CLIENT>(dir, CLIENTS, Some(offset_of!(ClientEntry, lock)))?,
        try_out::<BOUND, BOND>(dir, AFFINITY, Some(offset_of!(Affinity, lock)))?,
        try_out::<4, { size_of::<Name>() }>(dir, NAMES, None)?,
    ];
    Ok(found.into_iter().flatten().next())
}

/// The same of those beside the storage of sockets, which can be made anew without loss; each with its
/// name. Those that have no pin are left out.
pub fn probe_beside_storage(root: &Path) -> Result<Vec<(&'static str, String)>, OpenError> {
    const SLOT: usize = size_of::<Slot>();
    const HEARD_SIZE: usize = size_of::<Heard>();
    const HELD_SIZE: usize = size_of::<Held>();
    let mut found = Vec::new();
    if root.join(HEARD).exists() {
        let what = try_out::<SLOT, HEARD_SIZE>(root, HEARD, Some(offset_of!(Heard, lock)))?;
        found.extend(what.map(|what| (HEARD, what)));
    }
    if root.join(HELD).exists() {
        let what = try_out::<8, HELD_SIZE>(root, HELD, Some(offset_of!(Held, lock)))?;
        found.extend(what.map(|what| (HELD, what)));
    }
    Ok(found)
}

/// The same of those in `dir` that know of clients, and can be made anew; those that have no pin are left
/// out.
pub fn probe_clients(dir: &Path) -> Result<Vec<(&'static str, String)>, OpenError> {
    const CLIENT_KEY: usize = size_of::<ClientKey>();
    const CLIENT: usize = size_of::<ClientEntry>();
    const BOUND: usize = size_of::<AffinityKey>();
    const BOND: usize = size_of::<Affinity>();
    let mut found = Vec::new();
    if dir.join(CLIENTS).exists() {
        let what = try_out::<CLIENT_KEY, CLIENT>(dir, CLIENTS, Some(offset_of!(ClientEntry, lock)));
        found.extend(what?.map(|what| (CLIENTS, what)));
    }
    if dir.join(AFFINITY).exists() {
        let what = try_out::<BOUND, BOND>(dir, AFFINITY, Some(offset_of!(Affinity, lock)));
        found.extend(what?.map(|what| (AFFINITY, what)));
    }
    Ok(found)
}

fn try_out<const KEY: usize, const VALUE: usize>(
    dir: &Path,
    name: &'static str,
    lock: Option<usize>,
) -> Result<Option<String>, OpenError> {
    let mut map = match hash::<[u8; KEY], [u8; VALUE]>(dir, name) {
        Err(OpenError::Foreign { .. }) => return Ok(None),
        map => map?.0,
    };
    let (key, mut value) = ([0xff; KEY], [0xff; VALUE]);
    let mut flags = 0;
    if let Some(at) = lock {
        value[at..at + size_of::<bpf_spin_lock>()].fill(0);
        flags = BPF_F_LOCK;
    }
    let fail = |error| OpenError::Open { path: dir.join(name).display().to_string(), error };
    match map.insert(&key, &value, flags) {
        Ok(()) => {
            let read = map.get(&key, flags);
            map.remove(&key).map_err(fail)?;
            let is_same = read.map_err(fail)? == value;
            Ok((!is_same).then(|| format!("the map {name} does not keep what is written to it")))
        }
        Err(error) => match errno(&error) {
            // It is full, of what was written to it.
            Some(libc::E2BIG) => Ok(None),
            Some(errno @ libc::EINVAL) => {
                let error = io::Error::from_raw_os_error(errno);
                Ok(Some(format!(
                    "the map {name} takes no write as socklb's does, for lack of a lock: {error}"
                )))
            }
            _ => Err(fail(error)),
        },
    }
}
