//! A few Services in memory, for the tests of whoever prints them.

#![expect(clippy::unwrap_used, reason = "for tests")]

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{self, Address, Backend, Peer, PortOptions, Service, ServiceKey};

use crate::{
    memory::Memory,
    model::{ObjectRef, PortRef, Protocol},
    op::{AddressUse, Op},
    store::Store as _,
};

/// An address and a port, from text.
pub fn peer(text: &str) -> Peer {
    text.parse::<SocketAddr>().unwrap().into()
}

/// Puts a set of `backends` at `block` for the frontends.
pub fn put(
    memory: &mut Memory,
    (id, namespace, name, port): (u32, &str, &str, &str),
    frontends: &[&str],
    block: u32,
    backends: &[&str],
) {
    let protocol = if port == "dns" { Protocol::Udp } else { Protocol::Tcp };
    let generation = block + 100;
    let mut records: Vec<Backend> = (block + 1..)
        .zip(backends)
        .map(|(backend, addr)| Backend { backend, ..Backend::forward(peer(addr)) })
        .collect();
    if records.is_empty() {
        records.push(Backend::refuse());
    }
    let count = records.len().try_into().unwrap();
    let records = records.into_iter().map(|r| r.stamped(generation, id)).collect();
    let service = ObjectRef::new(namespace, name);
    let port = PortRef { service, port: port.into(), protocol };
    memory.apply(&Op::PutName { id, port }).unwrap();
    memory.apply(&Op::WriteBlock { block, records }).unwrap();
    for frontend in frontends {
        let key = ServiceKey { peer: peer(frontend), protocol: protocol.number(), scope: 0 };
        let service = Service { block, count, kept: 0, generation, id };
        memory.apply(&Op::PutService { key, service }).unwrap();
    }
}

/// A Service of two families, one of one, and one without endpoints.
pub fn memory() -> Memory {
    let mut memory = Memory::new(16, 64);
    put(&mut memory, (3, "kube-system", "kube-dns", "dns"), &["10.96.0.2:53"], 9, &[]);
    put(
        &mut memory,
        (0, "default", "web", "http"),
        &["10.96.0.10:80", "192.0.2.7:80"],
        2,
        &["10.0.0.10:8080", "10.0.0.9:8080"],
    );
    put(&mut memory, (0, "default", "web", "http"), &["[fd00::a]:80"], 5, &["[fd01::1]:8080"]);
    put(&mut memory, (1, "default", "db", ""), &["10.96.0.9:5432"], 6, &["10.0.0.1:5432"]);
    memory
}

/// A Service of UDP with affinity and kept backends; and one with a NodePort, and with source ranges.
pub fn rich() -> Memory {
    let mut memory = Memory::new(16, 64);
    let mut set = |id, block, keys: &[(&str, u8)], protocol, count, records: Vec<Backend>| {
        let generation = block + 100;
        let kept = u32::try_from(records.len()).unwrap() - count;
        let records = records.into_iter().map(|r| r.stamped(generation, id)).collect();
        memory.apply(&Op::WriteBlock { block, records }).unwrap();
        for (frontend, scope) in keys {
            let key = ServiceKey { peer: peer(frontend), protocol, scope: *scope };
            let service = Service { block, count, kept, generation, id };
            memory.apply(&Op::PutService { key, service }).unwrap();
        }
    };
    let to = |backend, addr: &str| Backend { backend, ..Backend::forward(peer(addr)) };
    let sticky = [(1, "10.0.0.1:53"), (2, "10.0.0.2:53"), (3, "10.0.0.3:53")]
        .map(|(backend, addr)| Backend { flags: Backend::OPTIONS, ..to(backend, addr) });
    set(4, 0, &[("10.96.0.20:53", 0)], abi::UDP, 1, sticky.to_vec());
    let cart = to(9, "10.0.1.1:80");
    let ranges = Backend { flags: Backend::SOURCE_RANGES, ..cart };
    set(5, 3, &[("10.96.0.21:80", 0)], abi::TCP, 1, vec![ranges]);
    set(5, 4, &[("0.0.0.0:30080", 1)], abi::TCP, 1, vec![cart]);
    set(5, 5, &[("0.0.0.0:30080", 2)], abi::TCP, 1, vec![Backend::unreachable()]);
    set(5, 6, &[("192.0.2.9:30080", 3)], abi::TCP, 1, vec![cart]);
    let options = PortOptions::with_affinity(30);
    memory.apply(&Op::PutPort { id: 4, options }).unwrap();
    for (id, namespace, name, protocol) in
        [(4, "default", "game", Protocol::Udp), (5, "shop", "cart", Protocol::Tcp)]
    {
        let service = ObjectRef::new(namespace, name);
        let port = PortRef { service, port: "".into(), protocol };
        memory.apply(&Op::PutName { id, port }).unwrap();
    }
    for range in ["10.0.0.0/8", "2001:db8::/32"] {
        memory.apply(&Op::PutSourceRange { id: 5, range: range.parse().unwrap() }).unwrap();
    }
    for (addr, flags, netns) in [
        ("10.96.0.20", Address::CLUSTER_IP, 0),
        ("10.96.0.21", Address::CLUSTER_IP, 0),
        ("127.0.0.1", Address::OWN_NODE, 77),
        ("192.0.2.1", Address::OWN_NODE, 0),
        ("192.0.2.9", Address::OTHER_NODE, 0),
    ] {
        let addr = addr.parse::<IpAddr>().unwrap().into();
        memory.apply(&Op::PutAddress { addr, known: AddressUse { flags, netns } }).unwrap();
    }
    memory
}
