//! The control plane in this process, on the real maps: what a test says is known at once.

use std::net::IpAddr;

use lb_agent::{
    datapath::{Datapath, Sizes},
    maps::{Access, Pinned, Snapshot},
    model::{
        Change, Conditions, Endpoint, ObjectRef, Protocol, Service, ServicePort, Slice, SlicePort,
        Trigger,
    },
    pipeline::{Pipeline, Report},
};

use super::world::{PORT, World};

pub(crate) const SIZES: Sizes = Sizes { services: 64, backends: 256, affinity: 1024 };

/// With as many buckets as the agent makes unless it is told otherwise: hardly two entries of a test
/// share one. What happens when they do is `recycling::replaced_in_a_crowded_bucket`.
pub(crate) const ROOMY: Sizes = Sizes { services: 65_536, backends: 256, affinity: 1024 };

pub(crate) struct Control {
    pub(crate) pipeline: Pipeline<Pinned>,
}

impl Control {
    /// Attached to the world's cgroup; no Service yet.
    pub(crate) fn start(world: &World) -> Self {
        Self::start_with(world, SIZES)
    }

    pub(crate) fn start_with(world: &World, sizes: Sizes) -> Self {
        let (mut datapath, maps) = Datapath::load(&world.pins(), sizes).unwrap();
        datapath.attach(world.cgroup()).unwrap();
        let snapshot = maps.snapshot().unwrap();
        let mut pipeline = Pipeline::new(maps, &snapshot);
        pipeline.change(Change::ListedNodes([].into()));
        pipeline.change(Change::ListedServices([].into()));
        pipeline.change(Change::ListedSlices([].into()));
        assert!(pipeline.sync().failed.is_empty());
        Self { pipeline }
    }

    /// A Service at `port` of these addresses, TCP and UDP, and its backends, all at [`PORT`].
    pub(crate) fn put(&mut self, name: &str, ips: &[&str], port: u16, backends: &[IpAddr]) {
        self.change(name, Some((ips, port, backends)));
        assert_eq!(self.sync().failed.len(), 0);
    }

    /// The Service is gone.
    pub(crate) fn delete(&mut self, name: &str) {
        self.change(name, None);
        assert_eq!(self.sync().failed.len(), 0);
    }

    pub(crate) fn change(&mut self, name: &str, service: Option<(&[&str], u16, &[IpAddr])>) {
        let object = object(name);
        let (service, slice) = match service {
            None => (None, None),
            Some((ips, port, backends)) => {
                (Some(self::service(ips, port)), Some(slice(name, backends)))
            }
        };
        self.pipeline.change(Change::Slice(object.clone(), slice));
        self.pipeline.change(Change::Service(object, service));
    }

    pub(crate) fn sync(&mut self) -> Report {
        self.pipeline.sync()
    }
}

pub(crate) fn object(name: &str) -> ObjectRef {
    ObjectRef::new("default", name)
}

const PORTS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];

pub(crate) fn service(ips: &[&str], number: u16) -> Service {
    let ports = PORTS.map(|(name, protocol)| ServicePort::new(name, protocol, number)).to_vec();
    let cluster_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    Service { cluster_ips, ports, ..Service::default() }
}

pub(crate) fn slice(service: &str, backends: &[IpAddr]) -> Slice {
    let conditions = Conditions { ready: true, serving: true, terminating: false };
    Slice {
        service: object(service),
        ports: PORTS
            .map(|(name, protocol)| SlicePort { name: name.into(), protocol, number: PORT })
            .to_vec(),
        endpoints: backends.iter().map(|addr| Endpoint::new(*addr, conditions)).collect(),
        trigger: Trigger::default(),
    }
}

/// What is pinned in a world, as another process sees it.
pub(crate) fn pinned(world: &World) -> Snapshot {
    let maps = world.pins().maps().unwrap().expect("no maps are pinned");
    Pinned::open(&maps, Access::Read).unwrap().snapshot().unwrap()
}
