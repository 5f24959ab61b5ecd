//! The control plane in this process, on the real maps: what a test says is known at once.

use std::{net::IpAddr, path::Path};

use lb_agent::{
    datapath::{Datapath, Sizes},
    maps::{Access, Counters, Pinned},
    pins::Pins,
};
use lb_common::abi::Counter;
use lb_core::{
    model::{
        Change, Conditions, Endpoint, Node, ObjectRef, Protocol, Service, ServicePort, Slice,
        SlicePort, Trigger,
    },
    pipeline::{NodeConfig, Pipeline, SyncReport},
    store::Snapshot,
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
        Self::start_as(world, sizes, NodeConfig::default(), [])
    }

    /// With these objects from the start, on what is pinned.
    pub(crate) fn start_as(
        world: &World,
        sizes: Sizes,
        view: NodeConfig,
        objects: impl IntoIterator<Item = Change>,
    ) -> Self {
        Self::new((&world.pins(), world.cgroup()), sizes, view, objects)
    }

    /// Attached to another cgroup, with pins elsewhere.
    pub(crate) fn start_at(pins: &Pins, cgroup: &Path) -> Self {
        Self::new((pins, cgroup), SIZES, NodeConfig::default(), [])
    }

    fn new(
        (pins, cgroup): (&Pins, &Path),
        sizes: Sizes,
        view: NodeConfig,
        objects: impl IntoIterator<Item = Change>,
    ) -> Self {
        let (mut datapath, maps) = Datapath::load(pins, sizes).unwrap();
        datapath.attach(cgroup).unwrap();
        let snapshot = maps.snapshot().unwrap();
        let mut control = Self { pipeline: Pipeline::with_config(view, maps, &snapshot) };
        control.pipeline.change(Change::ListedNodes([].into()));
        control.pipeline.change(Change::ListedServices([].into()));
        control.pipeline.change(Change::ListedSlices([].into()));
        control.apply(objects);
        control
    }

    /// Takes in changes, and acts on them at once.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> SyncReport {
        for change in changes {
            self.pipeline.change(change);
        }
        let report = self.sync();
        assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
        assert!(report.sockets.addresses.is_none(), "{:?}", report.sockets.addresses);
        report
    }

    /// A Service at `port` of these addresses, TCP and UDP, and its backends, all at [`PORT`].
    pub(crate) fn put(&mut self, name: &str, ips: &[&str], port: u16, backends: &[IpAddr]) {
        self.change(name, Some((ips, port, backends)));
        assert_eq!(self.sync().sockets.failed.len(), 0);
    }

    /// The Service is gone.
    pub(crate) fn delete(&mut self, name: &str) {
        self.change(name, None);
        assert_eq!(self.sync().sockets.failed.len(), 0);
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

    pub(crate) fn sync(&mut self) -> SyncReport {
        self.pipeline.sync()
    }
}

pub(crate) fn object(name: &str) -> ObjectRef {
    ObjectRef::new("default", name)
}

const PORTS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];

pub(crate) fn service(ips: &[&str], number: u16) -> Service {
    let ports = PORTS.map(|(name, protocol)| ServicePort::new(name, protocol, number)).to_vec();
    let cluster_ips = self::ips(ips).collect();
    Service { cluster_ips, ports, ..Service::default() }
}

pub(crate) fn slice(service: &str, backends: &[IpAddr]) -> Slice {
    let ports =
        PORTS.map(|(name, protocol)| SlicePort { name: name.into(), protocol, number: PORT });
    let endpoints = backends.iter().copied().map(ready).collect();
    Slice {
        service: object(service),
        ports: ports.to_vec(),
        endpoints,
        trigger: Trigger::default(),
    }
}

/// Any Service, and one slice with endpoints that serve each of its ports at [`PORT`].
pub(crate) fn serve(name: &str, service: &Service, endpoints: Vec<Endpoint>) -> [Change; 2] {
    let port = |port: &ServicePort| SlicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        number: PORT,
    };
    let ports = service.ports.iter().map(port).collect();
    let slice = Slice { service: object(name), ports, endpoints, trigger: Trigger::default() };
    [Change::Slice(object(name), Some(slice)), Change::Service(object(name), Some(service.clone()))]
}

/// The Service, at this port of nodes too.
pub(crate) fn at_node_port(mut service: Service, number: u16) -> Service {
    for port in &mut service.ports {
        port.node_port = number.try_into().ok();
    }
    service
}

pub(crate) fn ready(addr: IpAddr) -> Endpoint {
    Endpoint::new(addr, Conditions { ready: true, serving: true, terminating: false })
}

/// On its way out, and still serving.
pub(crate) fn draining(addr: IpAddr) -> Endpoint {
    Endpoint::new(addr, Conditions { ready: false, serving: true, terminating: true })
}

pub(crate) fn on(node: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint { node: Some(node.into()), ..endpoint }
}

pub(crate) fn node(name: &str, addresses: &[&str]) -> Change {
    let node = Node { addresses: ips(addresses).collect(), ..Node::default() };
    Change::Node(name.into(), Some(node))
}

/// This machine's own addresses.
pub(crate) fn local(addresses: &[&str]) -> Change {
    Change::LocalAddresses(ips(addresses).collect())
}

pub(crate) fn ips(texts: &[&str]) -> impl Iterator<Item = IpAddr> {
    texts.iter().map(|ip| ip.parse().unwrap())
}

/// How often something happened.
pub(crate) fn counted(world: &World, counter: Counter) -> u64 {
    let maps = world.pins().maps().unwrap().expect("no maps are pinned");
    Counters::open(&maps).unwrap().get(counter).unwrap()
}

/// What is pinned in a world, as another process sees it.
pub(crate) fn pinned(world: &World) -> Snapshot {
    let maps = world.pins().maps().unwrap().expect("no maps are pinned");
    Pinned::open(&maps, Access::Read).unwrap().snapshot().unwrap()
}
