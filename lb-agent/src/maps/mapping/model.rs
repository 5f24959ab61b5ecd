//! A model of how blocks are published. [`loom`] goes through every order in which one thread may see
//! the writes of another: the writer is [`super::write`], the reader is [`lb_common::select`] as the
//! programs run it, the memory is loom's, word by word.
//!
//! What it shows: with the release, whatever a reader sees of a value half written or wholly, it goes
//! to a backend of the block whose generation it has read, or reads anew. Without the release it
//! goes astray, and the model finds that.
//!
//! What it cannot show: that the processor keeps the dependency from `block` and `count` to the record's
//! address. Loom knows none, so these reads are acquires here, which order no less than the dependency
//! does for the records that are read after them. (Where only `block` is one, a reader of the old
//! `block` and the new `count` goes astray: it is both that the address depends on.) Nor that the kernel and the compiler do what the writer is thought to
//! do, nor the grace period, before which records are not written again: the model ends there.

use lb_common::{
    Caller, Flow, Origin, Prior, ReadMaps, Refusal, Selection, Verdict,
    abi::{
        Addr, Address, AffinityKey, Backend, Bond, ClientKey, Peer, PortOptions, Service,
        ServiceKey, SourceAddress, SourceRangeKey, TCP,
    },
    select,
};
use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
    thread,
};

use super::{Records, write};

/// The words of a record that tell one from another: the last octet of its address, its generation.
struct Record {
    octet: AtomicU32,
    generation: AtomicU32,
}

/// One service value, and the records of two blocks.
struct Memory {
    block: AtomicU32,
    count: AtomicU32,
    generation: AtomicU32,
    records: [Record; 3],
}

const OLD: Service = Service { block: 0, count: 1, kept: 0, generation: 7, id: 1 };
const NEW: Service = Service { block: 1, count: 2, kept: 0, generation: 8, id: 1 };
/// Backends of the old block, and of the new one.
const OCTETS: [u32; 3] = [1, 2, 3];
/// What stands in records that are free: an address, and a generation.
const FREE: (u32, u32) = (99, 5);

impl Memory {
    fn new() -> Self {
        let record = |octet, generation| Record {
            octet: AtomicU32::new(octet),
            generation: AtomicU32::new(generation),
        };
        let free = || record(FREE.0, FREE.1);
        Self {
            block: AtomicU32::new(OLD.block),
            count: AtomicU32::new(OLD.count),
            generation: AtomicU32::new(OLD.generation),
            records: [record(OCTETS[0], OLD.generation), free(), free()],
        }
    }

    /// As the kernel copies a value: in whatever order.
    fn publish(&self, service: &Service) {
        self.generation.store(service.generation, Relaxed);
        self.count.store(service.count, Relaxed);
        self.block.store(service.block, Relaxed);
    }
}

fn backend(octet: u32) -> Backend {
    let octet = u8::try_from(octet).unwrap();
    Backend::forward(std::net::SocketAddr::from(([10, 1, 0, octet], 80)).into())
}

fn octet(peer: &Peer) -> u32 {
    match std::net::SocketAddr::from(*peer) {
        std::net::SocketAddr::V4(peer) => u32::from(peer.ip().octets()[3]),
        std::net::SocketAddr::V6(peer) => panic!("{peer}"),
    }
}

struct Writer {
    memory: Arc<Memory>,
    releases: bool,
}

impl Records for Writer {
    fn put(&mut self, index: u32, record: &Backend) {
        let place = &self.memory.records[index as usize];
        place.generation.store(record.generation, Relaxed);
        place.octet.store(octet(&record.peer), Relaxed);
    }

    fn release(&self) {
        if self.releases {
            fence(Release);
        }
    }
}

/// Reads the words in the order that is hardest to bear: the address first in a record, and first the
/// words of the value that nothing depends on.
struct Reader {
    memory: Arc<Memory>,
    index: u32,
}

impl ReadMaps for Reader {
    fn service(&self, _: &ServiceKey) -> Option<Service> {
        let generation = self.memory.generation.load(Relaxed);
        // The addresses of records are computed from these two.
        let count = self.memory.count.load(Acquire);
        let block = self.memory.block.load(Acquire);
        Some(Service { block, count, kept: 0, generation, id: 1 })
    }

    fn port(&self, _: u32) -> Option<PortOptions> {
        None
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        let record = self.memory.records.get(index as usize)?;
        let octet = record.octet.load(Relaxed);
        Some(backend(octet).stamped(record.generation.load(Relaxed), 1))
    }

    fn address(&self, _: &Addr) -> Option<Address> {
        None
    }

    fn client(&self, _: &ClientKey) -> Option<SourceAddress> {
        None
    }

    fn allows(&self, _: &SourceRangeKey) -> bool {
        false
    }

    fn bond(&self, _: &AffinityKey) -> Bond {
        Bond::NONE
    }
}

impl Caller for Reader {
    fn index(&self, _: &Flow, count: u32) -> u32 {
        self.index.min(count.saturating_sub(1))
    }

    fn netns(&self) -> u64 {
        1
    }

    fn source(&self) -> Addr {
        std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into()
    }

    fn come_from(&self, _: Addr) -> Origin {
        Origin::Settled
    }

    fn now(&self) -> u64 {
        1
    }

    fn bind(&self, _: &AffinityKey, _: &Bond, _: &mut Bond) -> bool {
        true
    }
}

/// Goes through all orders, with a reader that takes the first or the last record of a set.
fn explore(releases: bool, index: u32) {
    loom::model(move || {
        let memory = Arc::new(Memory::new());
        let mut writer = Writer { memory: Arc::clone(&memory), releases };
        let writing = thread::spawn(move || {
            let records =
                [OCTETS[1], OCTETS[2]].map(|octet| backend(octet).stamped(NEW.generation, 1));
            write(&mut writer, NEW.block, &records);
            writer.memory.publish(&NEW);
        });
        let reader = Reader { memory, index };
        let flow = Flow { peer: backend(1).peer, protocol: TCP };
        match select(&reader, &reader, &flow, &Prior::NONE) {
            Verdict::Forward(Selection { to, .. }) if to.generation == OLD.generation => {
                assert_eq!(octet(&to.backend), 1);
            }
            Verdict::Forward(Selection { to, .. }) => {
                assert_eq!(to.generation, NEW.generation);
                assert!([2, 3].contains(&octet(&to.backend)), "astray: {}", octet(&to.backend));
            }
            // Asks its caller to try again.
            Verdict::Fail(Refusal::Unstable) => {}
            verdict => panic!("{verdict:?}"),
        }
        writing.join().unwrap();
    });
}

#[test]
fn whoever_finds_a_block_finds_its_records() {
    for index in [0, u32::MAX] {
        explore(true, index);
    }
}

/// The model would see it.
#[test]
#[should_panic(expected = "astray: 99")]
fn without_the_release_a_reader_goes_astray() {
    explore(false, 0);
}
