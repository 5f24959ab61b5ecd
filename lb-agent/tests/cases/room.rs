//! Sets that nearly fill the maps, and what is waited for then.

use std::collections::BTreeSet;

use lb_agent::sources::dir::{Files, Listing};
use lb_common::abi::Backend;
use lb_core::{
    memory::Memory,
    op::Op,
    pipeline::Pipeline,
    store::{Snapshot, Store, StoreError},
};

use super::reference::meaning;

/// One Service with many ports and endpoints.
fn wide(ports: usize, endpoints: usize) -> Listing {
    let mut files = Files::default();
    let list = |line: &dyn Fn(usize) -> String| (0..ports).map(line).collect::<Vec<_>>().join(", ");
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, \
         spec: {{clusterIP: 10.96.0.10, ports: [{}]}}}}",
        list(&|i| format!("{{name: p{i}, port: {}}}", 1000 + i)),
    );
    let endpoints: Vec<_> =
        (0..endpoints).map(|i| format!("{{addresses: [10.0.{}.{}]}}", i / 250, i % 250)).collect();
    let slice = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-1, \
         labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, ports: [{}], \
         endpoints: [{}]}}",
        list(&|i| format!("{{name: p{i}, port: {}}}", 8000 + i)),
        endpoints.join(", "),
    );
    files.put("web.yaml", format!("{service}\n---\n{slice}\n").as_bytes());
    files.listing()
}

#[test]
fn a_thousand_endpoints_with_fifty_ports() {
    let maps = || Memory::new(100, 110_000);
    let mut pipeline = Pipeline::new(maps(), &maps().snapshot());
    for endpoints in [1000, 999, 0, 1000] {
        wide(50, endpoints).changes().into_iter().for_each(|change| pipeline.change(change));
        let report = pipeline.sync();
        assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
        let dump = meaning(pipeline.store());
        assert_eq!(dump.lines().count(), 50 + 1, "and the cluster IP");
        let frontends = dump.lines().filter(|line| !line.starts_with("address"));
        for (i, line) in frontends.collect::<BTreeSet<_>>().into_iter().enumerate() {
            let (frontend, backends) = line.split_once(" -> ").unwrap();
            let port: usize = frontend.split([' ', ':', '/']).nth(4).unwrap().parse().unwrap();
            assert!((1000..1050).contains(&port), "{i}: {frontend}");
            let backends: Vec<_> = backends.split(' ').collect();
            if endpoints == 0 {
                assert_eq!(backends, ["refuse"]);
                continue;
            }
            assert_eq!(backends.len(), endpoints, "{frontend}");
            let suffix = format!(":{}", port + 7000);
            assert!(backends.iter().all(|b| b.ends_with(&suffix)), "{frontend}");
            assert_eq!(backends.iter().collect::<BTreeSet<_>>().len(), endpoints);
        }
    }
    let snapshot = pipeline.store().snapshot();
    let mut fresh = Pipeline::new(Memory::from(&snapshot), &snapshot);
    wide(50, 1000).changes().into_iter().for_each(|change| fresh.change(change));
    assert_eq!(fresh.sync().sockets.ops, 0);
}

/// How often the maps were waited for.
struct Patient(Memory, usize);

impl Store for Patient {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
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
        self.1 += 1;
        self.0.grace_period()
    }
}

/// Services whose ports, which are numbered, all have these endpoints.
fn crowd(services: usize, ports: std::ops::Range<usize>, endpoints: &[usize]) -> Listing {
    let mut files = Files::default();
    for of in 0..services {
        let ports =
            |of: &dyn Fn(usize) -> String| ports.clone().map(of).collect::<Vec<_>>().join(", ");
        let at = |i: &usize| format!("{{addresses: [10.{of}.{}.{}]}}", i / 250, i % 250);
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{of}}}, \
             spec: {{clusterIP: 10.96.0.{of}, ports: [{}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s{of}-1, \
             labels: {{kubernetes.io/service-name: s{of}}}}}, addressType: IPv4, ports: [{}], \
             endpoints: [{}]}}\n",
            ports(&|i| format!("{{name: p{i}, port: {}}}", 1000 + i)),
            ports(&|i| format!("{{name: p{i}, port: {}}}", 8000 + i)),
            endpoints.iter().map(at).collect::<Vec<_>>().join(", "),
        );
        files.put(&format!("s{of}.yaml"), yaml.as_bytes());
    }
    files.listing()
}

fn all(endpoints: std::ops::Range<usize>) -> Vec<usize> {
    endpoints.collect()
}

/// What [`crowd`] would have in maps without limits.
fn in_large_maps(listing: &Listing) -> String {
    let maps = Memory::new(4096, 1 << 20);
    let mut pipeline = Pipeline::new(maps.clone(), &maps.snapshot());
    listing.clone().changes().into_iter().for_each(|change| pipeline.change(change));
    assert!(pipeline.sync().sockets.failed.is_empty());
    meaning(pipeline.store())
}

/// Each set needs room for its old and its new records, but not for those of all the other sets.
#[test]
fn services_that_fill_more_than_half_of_the_map_go_on_changing() {
    for (services, ports, endpoints, max) in [(1, 50, 50, 4000), (7, 9, 50, 4000)] {
        let maps = Memory::new(1024, max);
        let snapshot = maps.snapshot();
        let mut pipeline = Pipeline::new(Patient(maps, 0), &snapshot);
        let mut one_new = all(0..endpoints);
        one_new[endpoints / 2] = endpoints;
        let others = ports / 3..ports + ports / 3;
        let steps = [
            (0..ports, all(0..endpoints)),
            (0..ports, one_new),
            // All of them at once, and other ports too.
            (0..ports, all(endpoints..2 * endpoints)),
            (others.clone(), all(0..endpoints)),
            (others, all(0..endpoints + 5)),
            (0..ports, vec![]),
            (0..ports, all(1..endpoints)),
        ];
        for (step, (ports, endpoints)) in steps.into_iter().enumerate() {
            let listing = crowd(services, ports.clone(), &endpoints);
            for restarted in [false, true] {
                if restarted {
                    // The next step begins in maps of an agent before it.
                    let snapshot = pipeline.store().0.snapshot();
                    pipeline = Pipeline::new(Patient(Memory::from(&snapshot), 0), &snapshot);
                }
                listing.clone().changes().into_iter().for_each(|change| pipeline.change(change));
                let report = pipeline.sync();
                assert!(
                    report.sockets.failed.is_empty(),
                    "{max}, step {step}: {:?}",
                    report.sockets.failed
                );
                assert!(meaning(&pipeline.store().0) == in_large_maps(&listing), "{max}: {step}");
                let waited = std::mem::take(&mut pipeline.store_mut().1);
                assert!(4 * waited < services * ports.len(), "step {step}: waited {waited} times");
                assert_eq!(report.sockets.ops > 0, !restarted, "{max}, step {step}");
            }
        }
    }
}

/// In maps of the default size.
#[test]
fn four_hundred_ports_with_four_hundred_endpoints() {
    let maps = Memory::new(65_536, 262_144);
    let snapshot = maps.snapshot();
    let mut pipeline = Pipeline::new(Patient(maps, 0), &snapshot);
    for (ports, endpoints) in
        [(0..400, all(0..400)), (0..400, all(1..401)), (100..500, all(401..801))]
    {
        let listing = crowd(1, ports, &endpoints);
        listing.clone().changes().into_iter().for_each(|change| pipeline.change(change));
        let report = pipeline.sync();
        assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
        let right = in_large_maps(&listing);
        assert!(meaning(&pipeline.store().0) == right, "{endpoints:?}");
        let waited = std::mem::take(&mut pipeline.store_mut().1);
        assert!(waited < 10, "waited {waited} times");
    }
}

/// Room for the old and the new records of all: nobody is waited for.
#[test]
fn a_change_waits_only_where_room_is_lacking() {
    let maps = Memory::new(64, 1000);
    let snapshot = maps.snapshot();
    let mut pipeline = Pipeline::new(Patient(maps, 0), &snapshot);
    let mut waited = |endpoints: &[usize]| {
        let listing = crowd(1, 0..10, endpoints);
        listing.changes().into_iter().for_each(|change| pipeline.change(change));
        let failed = pipeline.sync().sockets.failed;
        (std::mem::take(&mut pipeline.store_mut().1), failed.into_values().next())
    };
    assert!(matches!(waited(&all(0..40)), (0, None)));
    assert!(matches!(waited(&all(1..41)), (0, None)));
    // 800 are in use, or were a moment ago.
    assert!(matches!(waited(&all(2..42)), (1, None)));
    assert!(matches!(waited(&all(0..60)), (_, None)));
    // A set that fits nowhere is named, stays as it was, and is not waited for for nothing.
    for _ in 0..2 {
        let (grace_periods, error) = waited(&all(0..500));
        let error = error.unwrap().to_string();
        assert!(error.starts_with("the backends map is full: no 500 records in a row"), "{error}");
        assert!(error.contains("raise --max-backends"), "{error}");
        assert_eq!(grace_periods, 0);
    }
    assert_eq!(meaning(&pipeline.store().0), in_large_maps(&crowd(1, 0..10, &all(0..60))));
}
