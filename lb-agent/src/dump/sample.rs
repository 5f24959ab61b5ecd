//! A few Services in memory, for the tests of whoever prints them.

use std::net::SocketAddr;

use lb_common::abi::{Backend, Peer, Service, ServiceKey};

use crate::{
    maps::Op,
    maps::{Memory, Store as _},
    model::{ObjectRef, PortRef, Protocol},
};

pub(crate) fn peer(text: &str) -> Peer {
    text.parse::<SocketAddr>().unwrap().into()
}

/// Puts a set of `backends` at `block` for the frontends.
pub(crate) fn put(
    memory: &mut Memory,
    (id, namespace, name, port): (u32, &str, &str, &str),
    frontends: &[&str],
    block: u32,
    backends: &[&str],
) {
    let protocol = if port == "dns" { Protocol::Udp } else { Protocol::Tcp };
    let generation = block + 100;
    let mut records: Vec<Backend> =
        backends.iter().map(|addr| Backend::forward(peer(addr))).collect();
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
pub(crate) fn memory() -> Memory {
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
