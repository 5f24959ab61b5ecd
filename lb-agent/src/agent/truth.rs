//! What is true of sockets now, by the cluster and the maps.
//!
//! A socket is judged by addresses: which endpoints serve at the address that it dialled, whatever the
//! Service and its port were called then. Ports are renamed, Services are deleted and made again, and
//! a frontend passes from one Service to another; a flow to an endpoint that serves there now is not
//! concerned (kube-proxy L2).

use std::net::IpAddr;

use lb_common::{
    Flow, Prior, ReadMaps, Refusal, Verdict,
    abi::{Address, Peer, SCOPE_OTHER_NODES, SCOPE_OWN_NODE, ServiceKey, Translation},
    select,
};
use lb_core::{
    model::{PortRef, Protocol},
    onlooker::Onlooker,
    pipeline::Pipeline,
    policy,
    store::Store,
};

use crate::{
    maps::Exchanges,
    sockets::{Found, Truth},
};

/// What stands in the maps of a pipeline, and from whom UDP sockets have heard, if that can be read.
#[derive(Clone, Copy)]
pub struct InForce<'a, S>(pub &'a Pipeline<S>, pub Option<&'a Exchanges>);

impl<S: Store> InForce<'_, S> {
    /// The service port at the address that was dialled. If there is none any more, the one that it
    /// was: an address that a Service gives up does not end the flows of those who dialled it.
    fn port(&self, protocol: Protocol, translation: &Translation) -> Option<&PortRef> {
        let mirror = self.0.mirror();
        let at = |key: &ServiceKey| Some(mirror.service(key)?.id);
        let here = keys(protocol, translation.frontend).iter().find_map(at);
        let port = mirror.name(here.unwrap_or(translation.service))?;
        (port.protocol == protocol).then_some(port)
    }
}

/// The entries that an address may have led to: its own, or that of a node port, wherever the nodes
/// have their addresses today.
fn keys(protocol: Protocol, frontend: Peer) -> [ServiceKey; 3] {
    let own = ServiceKey::new(frontend, protocol.number());
    let node_port = |scope| own.scoped(frontend.addr.unspecified(), scope);
    [own, node_port(SCOPE_OWN_NODE), node_port(SCOPE_OTHER_NODES)]
}

impl<S: Store + ReadMaps> Truth for InForce<'_, S> {
    fn serves(&self, protocol: Protocol, translation: &Translation) -> bool {
        self.port(protocol, translation)
            .is_some_and(|port| policy::serves(self.0.cluster(), port, translation.backend.into()))
    }

    fn exists(&self, protocol: Protocol, translation: &Translation) -> bool {
        self.port(protocol, translation)
            .is_some_and(|port| policy::knows(self.0.cluster(), port, translation.backend.into()))
    }

    fn is_frontend(&self, found: &Found) -> bool {
        let Found { protocol, peer, local, netns, .. } = *found;
        let flow = Flow { peer, protocol: protocol.number() };
        // The address of a socket that has a peer is settled. A loopback one is what routing gave it: it
        // dials again from nowhere.
        let source =
            if local.addr.ip().is_loopback() { local.addr.unspecified() } else { local.addr };
        let dialling = Onlooker { netns, source, ..Onlooker::default() };
        match select(self.0.store(), &dialling, &flow, &Prior::NONE) {
            Verdict::Forward(_) => true,
            Verdict::Fail(Refusal::NoEndpoints | Refusal::Unreachable) => protocol == Protocol::Tcp,
            _ => false,
        }
    }

    fn is_virtual(&self, ip: IpAddr) -> bool {
        let nodes = Address::OWN_NODE | Address::OTHER_NODE;
        let address = self.0.store().address(&ip.into());
        address.is_some_and(|Address { flags, .. }| {
            flags & Address::CLUSTER_IP != 0 && flags & nodes == 0
        })
    }

    fn answers(&self, found: &Found) -> bool {
        self.1.is_some_and(|heard| heard.is_answer(found.netns, found.local, found.peer))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytemuck::Zeroable as _;

    use super::*;
    use lb_core::{
        memory::Memory,
        model::{
            Change, Conditions, Endpoint, ObjectRef, Service, ServicePort, Settings, Slice,
            SlicePort, Trigger,
        },
        pipeline::NodeConfig,
        socket_engine::SocketSettings,
    };

    const FRONTEND: &str = "10.96.0.10:53";
    const NODE_PORT: &str = "192.0.2.1:30053";
    const BACKEND: &str = "10.1.0.1:5353";
    const BOTH: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

    fn object(name: &str) -> ObjectRef {
        ObjectRef::new("default", name)
    }

    struct World {
        pipeline: Pipeline<Memory>,
    }

    impl World {
        /// The Service `dns`, whose ports are called `a`, with one endpoint.
        fn new() -> Self {
            let maps = Memory::new(64, 64);
            let snapshot = maps.snapshot();
            let mut world = Self { pipeline: Pipeline::new(maps, &snapshot) };
            world.pipeline.change(Change::ListedNodes([].into()));
            world.pipeline.change(Change::ListedServices([].into()));
            world.pipeline.change(Change::ListedSlices([].into()));
            world.say([service("dns", "a", FRONTEND), slice("dns", &[("a", BACKEND)])]);
            world
        }

        fn say(&mut self, changes: impl IntoIterator<Item = Change>) {
            changes.into_iter().for_each(|change| self.pipeline.change(change));
            assert!(self.pipeline.sync().sockets.failed.is_empty());
        }

        /// What the programs store of a connection now, in UDP and in TCP.
        fn connect(&self, frontend: &str) -> [Translation; 2] {
            let frontend = frontend.parse::<SocketAddr>().unwrap().into();
            let id = |key: &ServiceKey| Some(self.pipeline.mirror().service(key)?.id);
            let backend = BACKEND.parse::<SocketAddr>().unwrap().into();
            BOTH.map(|protocol| {
                let service = keys(protocol, frontend).iter().find_map(id).unwrap();
                Translation { frontend, backend, service, ..Translation::zeroed() }
            })
        }

        /// Whether its endpoint serves, and whether it is there; the same in both protocols.
        fn judge(&self, connections: &[Translation; 2]) -> (bool, bool) {
            let truth = InForce(&self.pipeline, None);
            let [udp, tcp] = [0, 1].map(|of| {
                let (protocol, translation) = (BOTH[of], &connections[of]);
                (truth.serves(protocol, translation), truth.exists(protocol, translation))
            });
            assert_eq!(udp, tcp);
            udp
        }
    }

    fn ip(addr: &str) -> IpAddr {
        addr.parse::<SocketAddr>().unwrap().ip()
    }

    fn service(name: &str, port: &str, at: &str) -> Change {
        of(name, &[port], |service| service.cluster_ips = vec![ip(at)])
    }

    /// The first port is 53, the next one 54.
    fn of(name: &str, ports: &[&str], more: impl Fn(&mut Service)) -> Change {
        let numbered = ports.iter().zip(53u16..);
        let ports = numbered.flat_map(|(port, number)| {
            BOTH.map(|protocol| ServicePort {
                node_port: (30_000 + number).try_into().ok(),
                ..ServicePort::new(*port, protocol, number)
            })
        });
        let mut service = Service { ports: ports.collect(), ..Service::default() };
        more(&mut service);
        Change::Service(object(name), Some(service))
    }

    /// A slice whose ports are at these endpoints' numbers.
    fn slice(name: &str, ports: &[(&str, &str)]) -> Change {
        let ready = Conditions { ready: true, serving: true, terminating: false };
        let numbered = ports.iter().flat_map(|(port, addr)| {
            let number = addr.parse::<SocketAddr>().unwrap().port();
            BOTH.map(|protocol| SlicePort { name: (*port).into(), protocol, number })
        });
        let slice = Slice {
            service: object(name),
            ports: numbered.collect(),
            endpoints: ports.iter().map(|(_, addr)| Endpoint::new(ip(addr), ready)).collect(),
            trigger: Trigger::default(),
        };
        Change::Slice(object(name), Some(slice))
    }

    const LIVES: (bool, bool) = (true, true);
    const ENDS: (bool, bool) = (false, false);

    #[test]
    fn a_port_that_is_renamed() {
        let renamed = || [service("dns", "b", FRONTEND), slice("dns", &[("b", BACKEND)])];
        for dialled in [FRONTEND, NODE_PORT] {
            let mut world = World::new();
            let connection = world.connect(dialled);
            assert_eq!(world.judge(&connection), LIVES);
            world.say(renamed());
            assert_eq!(world.judge(&connection), LIVES, "{dialled}");
            // To another endpoint than the port has now.
            world.say([slice("dns", &[("b", "10.1.0.2:5353")])]);
            assert_eq!(world.judge(&connection), ENDS, "{dialled}");

            // An API server tells of the Service and of the slice one after the other.
            for order in [[0, 1], [1, 0]] {
                let mut world = World::new();
                let connection = world.connect(dialled);
                for which in order {
                    world.say([renamed()[which].clone()]);
                    assert_eq!(world.judge(&connection), LIVES, "{dialled} {order:?}");
                }
            }
        }
    }

    /// Names are swapped, so that each port leads where the other one led.
    #[test]
    fn a_name_that_another_port_has_now() {
        let mut world = World::new();
        let cluster_ip = |service: &mut Service| service.cluster_ips = vec![ip(FRONTEND)];
        let other = "10.1.0.1:5454";
        world.say([
            of("dns", &["a", "b"], cluster_ip),
            slice("dns", &[("a", BACKEND), ("b", other)]),
        ]);
        let connection = world.connect(FRONTEND);
        assert_eq!(world.judge(&connection), LIVES);
        world.say([slice("dns", &[("a", other), ("b", BACKEND)])]);
        assert_eq!(world.judge(&connection), ENDS, "the target port is another one's");
        world.say([of("dns", &["b", "a"], cluster_ip)]);
        assert_eq!(world.judge(&connection), LIVES);
        // The port is gone from the slice: nobody took its endpoints over by another name.
        world.say([slice("dns", &[("a", BACKEND)])]);
        assert_eq!(world.judge(&connection), ENDS);
    }

    #[test]
    fn a_service_that_is_made_again() {
        let mut world = World::new();
        let connection = world.connect(FRONTEND);
        let gone = [Change::Service(object("dns"), None), Change::Slice(object("dns"), None)];
        world.say(gone.clone());
        assert_eq!(world.judge(&connection), ENDS, "it is gone");
        // Something else has its id by now.
        world.say([service("x", "x", "10.96.0.99:53"), slice("x", &[("x", "10.1.0.3:1")])]);
        world.say([service("dns", "a", FRONTEND), slice("dns", &[("a", BACKEND)])]);
        assert_ne!(world.connect(FRONTEND)[0].service, connection[0].service);
        assert_eq!(world.judge(&connection), LIVES);
        // By another name, with the same address and the same endpoint.
        world.say(gone);
        world.say([service("new", "y", FRONTEND), slice("new", &[("y", BACKEND)])]);
        assert_eq!(world.judge(&connection), LIVES);
        world.say([slice("new", &[("y", "10.1.0.3:1")])]);
        assert_eq!(world.judge(&connection), ENDS);
    }

    /// Also while the Service that had it is still there, with the endpoint that the other one lacks.
    #[test]
    fn a_frontend_that_passes_to_another_service() {
        let mut world = World::new();
        let external = "198.51.100.7:53";
        let with = |name: &str, own: &str, ips: &[&str]| {
            of(name, &["a"], |service| {
                service.cluster_ips = vec![ip(own)];
                service.external_ips = ips.iter().map(|at| ip(at)).collect();
            })
        };
        world.say([with("dns", FRONTEND, &[external])]);
        let connection = world.connect(external);
        world.say([
            with("dns", FRONTEND, &[]),
            with("other", "10.96.0.11:53", &[external]),
            slice("other", &[("a", BACKEND)]),
        ]);
        assert_eq!(world.judge(&connection), LIVES);
        world.say([slice("other", &[("a", "10.1.0.3:1")])]);
        assert_eq!(world.judge(&connection), ENDS);
        // Nobody's: the endpoint still serves the Service that the socket dialled.
        world.say([with("other", "10.96.0.11:53", &[]), slice("other", &[("a", BACKEND)])]);
        assert_eq!(world.judge(&connection), LIVES);
        world.say([slice("dns", &[("a", "10.1.0.3:1")])]);
        assert_eq!(world.judge(&connection), ENDS);
    }

    /// 203.0.113.5 is behind source ranges: who connects from within is served, whoever else not.
    #[test]
    fn a_socket_is_asked_for_as_what_it_is() {
        let mut world = World::new();
        world.say([
            of("lb", &["a"], |service| {
                service.cluster_ips = vec![ip("10.96.0.20:0")];
                service.load_balancer_ips = vec![ip("203.0.113.5:0")];
                service.source_ranges = vec!["10.2.0.0/16".parse().unwrap()];
            }),
            slice("lb", &[("a", BACKEND)]),
        ]);
        let truth = InForce(&world.pipeline, None);
        let from = |local: &str, to: &str| {
            let [udp, tcp] = BOTH.map(|protocol| {
                let local = local.parse::<SocketAddr>().unwrap().into();
                let mut found = Found::sample(protocol, to.parse().unwrap());
                found.local = local;
                truth.is_frontend(&found)
            });
            assert_eq!(udp, tcp);
            udp
        };
        assert!(from("10.2.0.1:40000", "203.0.113.5:53"));
        assert!(!from("10.3.0.1:40000", "203.0.113.5:53"));
        assert!(from("10.3.0.1:40000", FRONTEND) && !from("10.3.0.1:40000", "203.0.113.6:53"));
    }

    /// NodePorts at loopback addresses are the node's own network namespace's.
    #[test]
    fn a_socket_of_the_node_is_asked_for_in_its_namespace() {
        let maps = Memory::new(64, 64);
        let snapshot = maps.snapshot();
        let settings = Settings { localhost_nodeports: true, ..Settings::default() };
        let view = NodeConfig {
            settings,
            sockets: SocketSettings { host_netns: 1, ..SocketSettings::default() },
        };
        let mut world = World { pipeline: Pipeline::with_config(view, maps, &snapshot) };
        world.say([
            Change::ListedNodes([].into()),
            Change::ListedServices([].into()),
            Change::ListedSlices([].into()),
            service("dns", "a", FRONTEND),
            slice("dns", &[("a", BACKEND)]),
        ]);
        let truth = InForce(&world.pipeline, None);
        let local = "127.0.0.1:40000".parse::<SocketAddr>().unwrap().into();
        let mut found = Found::sample(Protocol::Udp, "127.0.0.1:30053".parse().unwrap());
        found.local = local;
        assert!(truth.is_frontend(&found));
        found.netns = 2;
        assert!(!truth.is_frontend(&found));
    }
}
