//! Ranges of clients change around those that all of them have: a range goes only after every reader
//! who may look for it.

use lb_common::abi::Backend;
use lb_core::{
    memory::Memory,
    model::{Change, ObjectRef, Protocol, Service, ServicePort},
    op::Op,
    pipeline::Pipeline,
    store::{Snapshot, Store, StoreError},
};

/// What happens to the maps, in order.
#[derive(Debug)]
struct Logged(Memory, Vec<&'static str>);

impl Store for Logged {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        self.1.push(match op {
            Op::PutSourceRange { .. } => "range",
            Op::DeleteSourceRange { .. } => "no range",
            Op::PutService { .. } => "service",
            Op::DeleteService { .. } => "no service",
            _ => return self.0.apply(op),
        });
        self.0.apply(op)
    }

    fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
        self.0.reserve(generation)
    }

    fn read(&mut self) -> Result<Snapshot, StoreError> {
        self.0.read()
    }

    fn records(&self, block: u32, count: u32) -> Vec<Backend> {
        self.0.records(block, count)
    }

    fn grace_period(&mut self) -> Result<(), StoreError> {
        self.1.push("grace");
        self.0.grace_period()
    }
}

#[test]
fn a_range_goes_after_those_who_look_for_it() {
    let snapshot = Snapshot { max_services: 8, max_backends: 8, ..Snapshot::default() };
    let store = Logged(Memory::from(&snapshot), Vec::new());
    let mut pipeline = Pipeline::new(store, &snapshot);
    pipeline.change(Change::ListedNodes([].into()));
    pipeline.change(Change::ListedServices([].into()));
    pipeline.change(Change::ListedSlices([].into()));
    let mut put = |service: Option<&[&str]>| {
        let service = service.map(|ranges| Service {
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            load_balancer_ips: vec!["203.0.113.5".parse().unwrap()],
            source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ports: vec![ServicePort::new("http", Protocol::Tcp, 80)],
            ..Service::default()
        });
        pipeline.change(Change::Service(ObjectRef::new("default", "web"), service));
        assert!(pipeline.sync().sockets.failed.is_empty());
        std::mem::take(&mut pipeline.store_mut().1)
    };
    assert_eq!(put(Some(&["10.0.0.0/8"])), ["service", "range", "service"]);
    let others = put(Some(&["10.0.0.0/9", "10.128.0.0/9"]));
    assert_eq!(others, ["range", "range", "grace", "no range"]);
    assert_eq!(put(Some(&[])), ["service", "grace", "no range", "no range"]);
    assert_eq!(put(Some(&["10.0.0.0/8"])), ["range", "service"]);
    // Nobody is let in any more: there is nobody to wait for.
    assert_eq!(put(None), ["no service", "no service", "no range"]);
}
