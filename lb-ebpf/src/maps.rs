//! The maps, private behind total functions. Sizes are the agent's to set; those here are the least.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_spin_lock,
        bpf_spin_unlock,
    },
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    ATTEMPTS, Addr, Range, ReadMaps,
    abi::{
        Address, AddressEntry, Affinity, AffinityKey, Backend, Bond, ClientEntry, ClientKey,
        Counter, FILTER_WORDS, Held, Name, Peer, PortOptions, Service, ServiceEntry, ServiceKey,
        SourceAddress, SourceRangeKey,
    },
    find,
};

use crate::words;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, ServiceEntry, 1, NO_PREALLOC> = HashMap::new();

/// Memory-mapped: the agent writes a block without a system call per record.
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, 1, MMAPABLE> = Array::new();

#[btf_map(name = "ports")]
static PORTS: Array<PortOptions, 1> = Array::new();

#[btf_map(name = "addresses")]
static ADDRESSES: HashMap<Addr, AddressEntry, 1, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "filter")]
static FILTER: Array<u64, { FILTER_WORDS as usize }> = Array::new();

#[btf_map(name = "source_ranges")]
static SOURCE_RANGES: LpmTrie<SourceRangeKey, u32, 1> = LpmTrie::new();

#[btf_map(name = "clients")]
static CLIENTS: HashMap<ClientKey, ClientEntry, 1, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "affinity")]
static AFFINITY: HashMap<AffinityKey, Affinity, 1, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Here so that one loader creates and pins all maps; no program reads it.
#[btf_map(name = "names")]
static NAMES: HashMap<u32, Name, 1, NO_PREALLOC> = HashMap::new();

/// The same.
#[btf_map(name = "generations")]
static GENERATIONS: Array<u32, 1> = Array::new();

/// What was made in the name of each cgroup.
#[btf_map(name = "held")]
static HELD: HashMap<u64, Held, { Held::MAX_CGROUPS as usize }, NO_PREALLOC> = HashMap::new();

/// Word by word: LLVM may make a call of it otherwise, and a lock is held.
#[inline(always)]
fn copy(to: &mut Bond, from: &Bond) {
    let from: [u64; size_of::<Bond>() / 8] = bytemuck::must_cast(*from);
    let to: &mut [u64; size_of::<Bond>() / 8] = bytemuck::must_cast_mut(to);
    let mut word = 0;
    while word < from.len() {
        // SAFETY: a reference is valid.
        unsafe { ptr::from_mut(&mut to[word]).write_volatile(from[word]) };
        word += 1;
    }
}

/// [`find`] as a function that the verifier looks at by itself: of its arguments it knows nothing but
/// that they are numbers. Returns 1 or 0, or -1 if a record is of another generation.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_backend(place: u64, port_and_generation: u64, high: u64, low: u64) -> i32 {
    let [first, count]: [u32; 2] = bytemuck::must_cast(place);
    let [port, generation]: [u32; 2] = bytemuck::must_cast(port_and_generation);
    #[expect(clippy::cast_possible_truncation, reason = "it was made of 16 bits")]
    let order = (high, low, port as u16);
    find(&Maps, Range { first, count, generation }, order).map_or(-1, i32::from)
}

/// The maps, as the lookup reads them.
pub(crate) struct Maps;

impl ReadMaps for Maps {
    #[inline(always)]
    fn find(&self, range: Range, backend: &Peer) -> Option<bool> {
        let (high, low, port) = backend.order();
        let place = bytemuck::must_cast([range.first, range.count]);
        let rest = bytemuck::must_cast([u32::from(port), range.generation]);
        match find_backend(place, rest, high, low) {
            -1 => None,
            found => Some(found != 0),
        }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: the pointer is valid while the program runs. The value may change under us, or the
        // element be recycled for another key: the sealed generation detects both. A volatile read
        // makes the copy once, so that what was checked is what is used. The lock is not read: the
        // verifier does not allow it.
        SERVICES
            .get_ptr(key)
            .map(|entry| unsafe { ptr::addr_of!((*entry).service).read_volatile() }.sealed(key))
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend> {
        // SAFETY: as above.
        BACKENDS.get_ptr(index).map(|backend| unsafe { backend.read_volatile() })
    }

    #[inline(always)]
    fn port(&self, id: u32) -> Option<PortOptions> {
        // SAFETY: as above. It is changed where it stands: so it is read at once.
        let read = |options: *const PortOptions| unsafe { options.cast::<u64>().read_volatile() };
        PORTS.get_ptr(id).map(|options| bytemuck::must_cast(read(options)))
    }

    #[inline(always)]
    fn may_know(&self, addr: &Addr) -> bool {
        let bit = addr.filter_bit();
        FILTER.get(bit / u64::BITS).is_some_and(|word| word >> (bit % u64::BITS) & 1 != 0)
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> Option<Address> {
        if !self.may_know(addr) {
            return None;
        }
        let mut attempt = 0;
        while attempt < ATTEMPTS {
            let entry = ADDRESSES.get_ptr(addr)?;
            // SAFETY: as above; here the seal detects it.
            let address = unsafe { ptr::addr_of!((*entry).address).read_volatile() };
            if address.is_of(*addr) {
                return Some(address);
            }
            attempt += 1;
        }
        None
    }

    #[inline(always)]
    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        let mut attempt = 0;
        while attempt < ATTEMPTS {
            let entry = CLIENTS.get_ptr_mut(key)?;
            // SAFETY: the pointer is valid while the program runs, and the lock is the element's.
            let (client, seal) = unsafe {
                bpf_spin_lock(ptr::addr_of_mut!((*entry).lock).cast());
                let client = ptr::addr_of!((*entry).source).read_volatile();
                let seal = ptr::addr_of!((*entry).seal).read_volatile();
                bpf_spin_unlock(ptr::addr_of_mut!((*entry).lock).cast());
                (client, seal)
            };
            if seal == ClientEntry::seal(key) {
                return Some(client);
            }
            // The element is another key's by now.
            attempt += 1;
        }
        None
    }

    #[inline(always)]
    fn allows(&self, client: &SourceRangeKey) -> bool {
        SOURCE_RANGES.get(&Key::new(SourceRangeKey::BITS, *client)).is_some()
    }

    #[inline(always)]
    fn bond(&self, key: &AffinityKey) -> Bond {
        let mut bond = Bond::NONE;
        if let Some(entry) = AFFINITY.get_ptr_mut(key) {
            // SAFETY: the pointer is valid while the program runs, and the lock is the element's.
            unsafe {
                bpf_spin_lock(ptr::addr_of_mut!((*entry).lock).cast());
                if (*entry).key == *key {
                    bond = (*entry).bond;
                }
                bpf_spin_unlock(ptr::addr_of_mut!((*entry).lock).cast());
            }
        }
        bond
    }
}

/// See [`Caller::bind`](lb_common::Caller::bind).
#[inline(always)]
pub(crate) fn bind(key: &AffinityKey, before: &Bond, bond: &mut Bond) -> bool {
    // The first bond of a client is made in an element that says nothing yet.
    let entry = AFFINITY.get_ptr_mut(key).or_else(|| {
        make_room(key.netns, bytemuck::must_cast([key.service, key.family]));
        AFFINITY.get_ptr_mut(key)
    });
    let Some(entry) = entry else { return true };
    // SAFETY: as for `ReadMaps::bond`.
    unsafe {
        bpf_spin_lock(ptr::addr_of_mut!((*entry).lock).cast());
        let now = &mut (*entry).bond;
        let mut in_force = true;
        if (*entry).key == *key {
            in_force = !now.is_made()
                || (before.used == now.used && before.backend == now.backend)
                || now.backend == bond.backend;
            if in_force { copy(now, bond) } else { copy(bond, now) }
        }
        // Else the element is another client's by now, and this one has no bond.
        bpf_spin_unlock(ptr::addr_of_mut!((*entry).lock).cast());
        in_force
    }
}

/// Makes an element for the first bond of a client, in the name of the cgroup of whoever connects, if
/// there is room for it and the cgroup may have one more. A function that the verifier looks at by itself,
/// as [`find_backend`]; returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room(netns: u64, service_and_family: u64) -> i32 {
    let [service, family]: [u32; 2] = bytemuck::must_cast(service_and_family);
    let key = AffinityKey { netns, service, family };
    let cgroup = current_cgroup();
    if !takes(cgroup, |held| &mut held.bonds, MAX_BONDS.load()) {
        count(Counter::AffinityBounded);
        return 0;
    }
    let mut entry = MaybeUninit::<Affinity>::uninit();
    let entry = words::clear(&mut entry);
    (entry.key, entry.cgroup) = (key, cgroup);
    match AFFINITY.insert(&key, entry, BPF_NOEXIST.into()) {
        Ok(()) => return 0,
        // Another program was faster.
        Err(EEXIST) => {}
        Err(_) => count(Counter::AffinityFull),
    }
    if let Some(held) = HELD.get_ptr_mut(&cgroup) {
        // SAFETY: the pointer is valid while the program runs, and the lock is the element's.
        unsafe {
            bpf_spin_lock(ptr::addr_of_mut!((*held).lock).cast());
            (*held).bonds = (*held).bonds.saturating_sub(1);
            bpf_spin_unlock(ptr::addr_of_mut!((*held).lock).cast());
        }
    }
    0
}

/// One more socket of the cgroup has further flows, if it may.
#[inline(never)]
pub(crate) fn takes_more_flows(cgroup: u64) -> bool {
    takes(cgroup, |held| &mut held.more_flows, Held::MAX_MORE_FLOWS)
}

/// The cgroup has one more of what `number` counts, if it has less than `most`. The agent counts them anew
/// now and then.
#[inline(always)]
fn takes(cgroup: u64, number: impl Fn(&mut Held) -> &mut u32, most: u32) -> bool {
    let held = HELD.get_ptr_mut(&cgroup).or_else(|| {
        let _ = HELD.insert(&cgroup, &NOTHING, BPF_NOEXIST.into());
        HELD.get_ptr_mut(&cgroup)
    });
    let Some(held) = held else { return false };
    // SAFETY: the pointer is valid while the program runs, and the lock is the element's.
    unsafe {
        bpf_spin_lock(ptr::addr_of_mut!((*held).lock).cast());
        let number = number(&mut *held);
        let may = *number < most;
        *number += u32::from(may);
        bpf_spin_unlock(ptr::addr_of_mut!((*held).lock).cast());
        may
    }
}

/// The cgroup of the process that makes the system call.
#[inline(always)]
pub(crate) fn current_cgroup() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_get_current_cgroup_id() }
}

/// [`lb_common::abi::MAX_BONDS`].
#[unsafe(no_mangle)]
static MAX_BONDS: Global<u32> = Global::new(Held::FEW_BONDS);
static NOTHING: Held = Held::NOTHING;
const EEXIST: i32 = -17;

/// The cookie of the network namespace of the socket.
#[inline(always)]
pub(crate) fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts what is rare.
#[inline(always)]
pub(crate) fn count(what: Counter) {
    if let Some(counter) = COUNTERS.get_ptr_mut(what as u32) {
        // SAFETY: the pointer is valid, and the element is this CPU's own. A program that interrupts
        // this one between reading and writing may cost a count.
        unsafe { *counter += 1 };
    }
}
