//! More Services than the map holds: those that fit work, the others are named, and a larger map
//! takes them all in.

use std::collections::BTreeMap;

use lb_agent::datapath::{Datapath, Sizes};
use lb_core::{
    model::{Change, ObjectRef, Protocol, Service, Slice},
    pipeline::Pipeline,
    plan::PlanError,
    socket_engine::SyncError,
};

use super::{
    control::{object, pinned, service, slice},
    flips::udp_backend,
    restart::content,
    world::{World, backend4},
};

const SERVICES: u32 = 70_000;
const ROOM: u32 = 65_536;

fn ip(n: u32) -> String {
    format!("10.{}.{}.{}:80", 96 + (n >> 16), n >> 8 & 255, n & 255)
}

fn name(n: u32) -> ObjectRef {
    object(&format!("service-{n:05}"))
}

/// UDP only, so that a Service is one entry; one backend, chosen by number.
fn listed() -> (BTreeMap<ObjectRef, Service>, BTreeMap<ObjectRef, Slice>) {
    let mut services = BTreeMap::new();
    let mut slices = BTreeMap::new();
    for n in 0..SERVICES {
        let ip = ip(n);
        let mut object = service(&[ip.trim_end_matches(":80")], 80);
        object.ports.retain(|port| port.protocol == Protocol::Udp);
        services.insert(name(n), object);
        let backend = backend4(1 + u8::try_from(n % 7).unwrap());
        slices.insert(name(n), slice(&name(n).name, &[backend]));
    }
    (services, slices)
}

fn reaches(n: u32) -> bool {
    let expected = backend4(1 + u8::try_from(n % 7).unwrap());
    udp_backend(&ip(n)).is_ok_and(|backend| backend.ip() == expected)
}

#[test]
fn seventy_thousand_services() {
    World::run(|world| {
        let (services, slices) = listed();
        let start = |services_limit| {
            let sizes = Sizes { services: services_limit, backends: 100_000, affinity: 1024 };
            let (mut datapath, maps) = Datapath::load(&world.pins(), sizes).unwrap();
            datapath.attach(world.cgroup()).unwrap();
            let snapshot = maps.snapshot().unwrap();
            let mut pipeline = Pipeline::new(maps, &snapshot);
            pipeline.change(Change::ListedNodes([].into()));
            pipeline.change(Change::ListedServices(services.clone()));
            pipeline.change(Change::ListedSlices(slices.clone()));
            pipeline
        };

        let mut pipeline = start(ROOM);
        let report = pipeline.sync();
        assert_eq!(report.sockets.failed.len(), usize::try_from(SERVICES - ROOM).unwrap());
        let (first, error) = report.sockets.failed.first_key_value().unwrap();
        println!("{first}: {error}");
        assert_eq!(*first, name(ROOM), "in the order of names");
        assert!(matches!(error, SyncError::Plan(PlanError::ServicesFull { .. })));
        assert!(error.to_string().contains("--max-services"), "{error}");
        assert!([0, 1, 40_000, ROOM - 1].into_iter().all(reaches));
        assert!(!reaches(ROOM) && !reaches(SERVICES - 1));

        // Room that becomes free is used.
        pipeline.change(Change::Service(name(7), None));
        let report = pipeline.sync();
        assert_eq!(report.sockets.failed.len(), usize::try_from(SERVICES - ROOM - 1).unwrap());
        assert!(!reaches(7) && reaches(ROOM), "the next in line has its place");
        let before = pinned(world);
        drop(pipeline);

        let mut pipeline = start(1 << 17);
        assert!(reaches(0) && reaches(ROOM), "before anything is synced");
        let report = pipeline.sync();
        assert_eq!(report.sockets.failed.len(), 0);
        assert!([0, 7, 40_000, ROOM - 1, ROOM, SERVICES - 1].into_iter().all(reaches));
        // What was there is as it was.
        let mut after = pinned(world);
        assert_eq!(after.services.len(), usize::try_from(SERVICES).unwrap());
        after.names.retain(|id, _| before.names.contains_key(id));
        after.services.retain(|key, _| before.services.contains_key(key));
        after.blocks.retain(|block, _| before.blocks.contains_key(block));
        assert!(content(&after) == content(&before), "ids, blocks or generations have changed");
    });
}
