//! Which packets are asked about: to each frontend that an object names, served or not, to what was
//! there a step before, and to neighbours that nobody names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::core::v1::{Node, Service};
use lb_agent::sources::translate;

use super::{
    case::{Config, Key, Object},
    outcome::Packet,
    program::Place,
};

/// Where packets go: an address, a port, and a protocol.
pub(crate) type Targets = BTreeSet<(SocketAddr, &'static str)>;

/// A port that no Service has.
const UNUSED: u16 = 81;

pub(crate) fn targets(config: &Config, live: &BTreeMap<Key, Object>) -> Targets {
    let mut nodes: BTreeSet<IpAddr> = ["127.0.0.1", "127.0.0.9", "::1"].map(ip).into();
    nodes.extend(config.interfaces.iter().map(|text| ip(text)));
    for object in live.values() {
        if let Object::Node(node) = object {
            nodes.extend(addresses_of_node(node));
        }
    }
    let mut targets = Targets::new();
    for object in live.values() {
        let Object::Service(service) = object else { continue };
        let addresses = addresses(service);
        targets.extend(addresses.iter().map(|ip| (SocketAddr::new(*ip, UNUSED), "TCP")));
        let ports = service.spec.iter().flat_map(|spec| &spec.ports).flatten();
        for port in ports {
            let number = u16::try_from(port.port).expect("a port");
            let (own, other) = match port.protocol.as_deref() {
                Some("UDP") => ("UDP", "TCP"),
                Some("SCTP") => ("SCTP", "TCP"),
                _ => ("TCP", "UDP"),
            };
            for ip in &addresses {
                targets.insert((SocketAddr::new(*ip, number), own));
            }
            targets.extend(addresses.first().map(|ip| (SocketAddr::new(*ip, number), other)));
            let Some(number) = port.node_port.and_then(|port| port.try_into().ok()) else {
                continue;
            };
            targets.extend(nodes.iter().map(|ip| (SocketAddr::new(*ip, number), own)));
            targets.extend(nodes.iter().map(|ip| (SocketAddr::new(*ip, number), other)).take(1));
        }
    }
    targets
}

/// From where each is dialled.
pub(crate) fn packets(config: &Config, targets: &Targets) -> Vec<Packet> {
    let mut packets = Vec::new();
    for (to, protocol) in targets.iter().copied() {
        // Some are judged by their addresses; who dials a node's address is not.
        let is_balancer = matches!(to.ip().to_string().split('.').next(), Some("192" | "198"))
            || to.ip().to_string().starts_with("2001:db8:");
        let pods = ["10.1.0.250", "10.1.0.1", "fd00:1::fa", "fd00:1::1"].map(ip);
        let hosts = config.interfaces.iter().map(|text| ip(text));
        let pods = pods.into_iter().filter(|ip| ip.is_ipv4() == to.is_ipv4());
        let hosts = hosts.filter(|ip| ip.is_ipv4() == to.is_ipv4());
        let some = if is_balancer { 2 } else { 1 };
        let pods = pods.take(some).map(|source| (Place::Pod, source));
        let hosts = hosts.take(some).map(|source| (Place::Host, source));
        // A machine that is no node, and a pod of another node; the one or the other, where no ranges
        // tell them apart. From elsewhere nobody dials a loopback address, and what becomes of a port that
        // nobody has is the same for all.
        let strangers = ["203.0.113.77", "10.1.128.250", "2001:db8::77", "fd00:1:0:1::fa"].map(ip);
        let strangers = strangers.into_iter().filter(|ip| ip.is_ipv4() == to.is_ipv4());
        let some = if to.ip().is_loopback() || to.port() == UNUSED { 0 } else { some };
        let strangers = strangers.skip(usize::from(some == 1 && to.port() % 2 == 0));
        let strangers = strangers.take(some).map(|source| (Place::Outside, source));
        packets.extend(pods.chain(hosts).chain(strangers).map(|(place, source)| Packet {
            to,
            protocol,
            place,
            source,
        }));
    }
    packets
}

/// All that the Service names that can be read, served or not.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let mut texts: Vec<&str> = Vec::new();
    if let Some(spec) = &service.spec {
        texts.extend(spec.cluster_ip.as_deref());
        texts.extend(spec.cluster_ips.iter().flatten().map(String::as_str));
        texts.extend(spec.external_ips.iter().flatten().map(String::as_str));
    }
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    texts.extend(ingress.iter().filter_map(|ingress| ingress.ip.as_deref()));
    let mut addresses: Vec<IpAddr> =
        texts.into_iter().filter_map(|text| translate::address(text).ok()).collect();
    let mut seen = BTreeSet::new();
    addresses.retain(|ip| seen.insert(*ip));
    addresses
}

pub(crate) fn addresses_of_node(node: &Node) -> impl Iterator<Item = IpAddr> {
    let addresses = node.status.iter().flat_map(|status| &status.addresses).flatten();
    addresses.filter_map(|address| address.address.parse().ok())
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
