//! Which backend a connection goes to.

use crate::abi::{Action, Backend, Peer, Service, ServiceKey};

/// How often [`select`] reads the service anew when the record it names is of another generation.
///
/// A mismatch means that the agent replaced the set between the two reads, or that the hash element
/// was recycled under the reader; either lasts for nanoseconds.
pub const ATTEMPTS: u32 = 4;

/// The maps, as far as the lookup reads them. Values are copies, each read from memory once.
pub trait Tables {
    /// The frontend's entry in [`SERVICES`](crate::abi::SERVICES), its seal undone.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The record at `index` of [`BACKENDS`](crate::abi::BACKENDS); none if out of bounds.
    fn backend(&self, index: u32) -> Option<Backend>;
}

/// What an application asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// The destination it gave.
    pub peer: Peer,
    /// IP protocol number of the socket.
    pub protocol: u8,
}

/// What happens to the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Not a Service: leave the destination alone.
    Miss,
    /// Go to this backend.
    Forward(Backend),
    /// The Service has no endpoints: fail with ECONNREFUSED.
    Refuse(Backend),
    /// No consistent set after [`ATTEMPTS`] readings: fail with ECONNREFUSED; the caller may retry.
    Unstable,
}

/// Where the flow goes, given a source of 32 random bits, which a miss does not ask. One HASH and
/// one ARRAY lookup; one HASH on a miss.
#[inline(always)]
pub fn select(tables: &impl Tables, flow: &Flow, random: impl Fn() -> u32) -> Verdict {
    let key = ServiceKey::new(flow.peer, flow.protocol);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let Some(service) = tables.service(&key) else { return Verdict::Miss };
        let index = service.block.wrapping_add(pick(random(), service.count));
        if let Some(backend) = tables.backend(index)
            && backend.generation == service.generation
        {
            return match backend.action() {
                Action::Forward => Verdict::Forward(backend),
                Action::Refuse => Verdict::Refuse(backend),
            };
        }
        attempt += 1;
    }
    Verdict::Unstable
}

/// A number below `count` (0 for 0), uniform if `random` is: the high half of a 32 × 32 bit product,
/// since a division costs more and favours small numbers just as much.
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::{cell::Cell, net::SocketAddr};

    use bytemuck::Zeroable as _;

    use super::*;

    /// One service at one key, and a few records. `stale` readings of the service come first.
    struct Fake {
        key: ServiceKey,
        stale: Service,
        stale_readings: Cell<u32>,
        service: Service,
        records: [Backend; 8],
    }

    impl Tables for Fake {
        fn service(&self, key: &ServiceKey) -> Option<Service> {
            if *key != self.key {
                return None;
            }
            if self.stale_readings.get() > 0 {
                self.stale_readings.set(self.stale_readings.get() - 1);
                return Some(self.stale);
            }
            Some(self.service)
        }

        fn backend(&self, index: u32) -> Option<Backend> {
            self.records.get(usize::try_from(index).unwrap()).copied()
        }
    }

    fn peer(text: &str) -> Peer {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn record(last: u8, generation: u32) -> Backend {
        Backend::forward(SocketAddr::from(([10, 0, 0, last], 8080)).into()).stamped(generation, 9)
    }

    /// Block 2..5 of generation 7 at 10.96.0.10:80/tcp; block 5..7 belongs to generation 8.
    fn fake() -> Fake {
        let mut records = [Backend::zeroed(); 8];
        for i in 2..7u8 {
            records[usize::from(i)] = record(i, if i < 5 { 7 } else { 8 });
        }
        let service = Service { block: 2, count: 3, generation: 7, id: 9 };
        Fake {
            key: ServiceKey::new(peer("10.96.0.10:80"), 6),
            stale: service,
            stale_readings: Cell::new(0),
            service,
            records,
        }
    }

    fn flow(to: &str, protocol: u8) -> Flow {
        Flow { peer: peer(to), protocol }
    }

    #[test]
    fn address_port_and_protocol_all_count() {
        let fake = fake();
        assert_eq!(select(&fake, &flow("10.96.0.11:80", 6), || 0), Verdict::Miss);
        assert_eq!(select(&fake, &flow("10.96.0.10:81", 6), || 0), Verdict::Miss);
        assert_eq!(select(&fake, &flow("10.96.0.10:80", 17), || 0), Verdict::Miss);
        assert_eq!(select(&fake, &flow("10.96.0.10:80", 6), || 0), Verdict::Forward(record(2, 7)));
        assert_eq!(
            select(&fake, &flow("[::ffff:10.96.0.10]:80", 6), || u32::MAX),
            Verdict::Forward(record(4, 7))
        );
    }

    #[test]
    fn a_count_from_another_value_never_reaches_into_its_block() {
        let mut fake = fake();
        // The torn reading: block and generation of one value, count of another.
        fake.stale = Service { count: 5, ..fake.service };
        fake.stale_readings = Cell::new(1);
        let verdict = select(&fake, &flow("10.96.0.10:80", 6), || u32::MAX);
        assert_eq!(verdict, Verdict::Forward(record(4, 7)));
    }

    #[test]
    fn a_block_of_another_generation_is_read_again_and_then_given_up() {
        let mut fake = fake();
        fake.stale = Service { generation: 6, ..fake.service };
        fake.stale_readings = Cell::new(ATTEMPTS - 1);
        let to = flow("10.96.0.10:80", 6);
        assert_eq!(select(&fake, &to, || 0), Verdict::Forward(record(2, 7)));
        fake.stale_readings = Cell::new(ATTEMPTS);
        assert_eq!(select(&fake, &to, || 0), Verdict::Unstable);
    }

    #[test]
    fn an_empty_set_refuses_and_a_block_out_of_bounds_is_no_answer() {
        let mut fake = fake();
        fake.records[2] = Backend::refuse().stamped(7, 9);
        fake.service.count = 1;
        let to = flow("10.96.0.10:80", 6);
        assert_eq!(select(&fake, &to, || 5), Verdict::Refuse(fake.records[2]));
        fake.service.block = u32::MAX;
        assert_eq!(select(&fake, &to, || 5), Verdict::Unstable);
    }

    proptest::proptest! {
        #[test]
        fn pick_is_in_range_and_monotonic(a: u32, b: u32, count in 1u32..) {
            proptest::prop_assert!(pick(a, count) < count);
            proptest::prop_assert!((a <= b) == (pick(a, count) <= pick(b, count)) || pick(a, count) == pick(b, count));
        }
    }

    #[test]
    fn pick_reaches_every_backend_equally_often() {
        let mut seen = [0u32; 5];
        for i in 0..5000u32 {
            seen[pick(i * (u32::MAX / 5000), 5) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (999..=1001).contains(&n)), "{seen:?}");
    }
}
