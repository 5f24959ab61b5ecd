//! From a Service to all that is to be done for it: each of its ports, in each family, as sockets of
//! this node and packets from elsewhere are to find it.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    HealthCheck, PerFamily, Served, endpoints::union, outside::OutsidePort, port_view::PortView,
    sets::add_sets,
};
use crate::model::{Cluster, ObjectRef, Protocol, Service};

/// All that is to be done for a Service; nothing if it is gone or asks for nothing.
pub fn serve(cluster: &Cluster, name: &ObjectRef) -> Served {
    let mut served = Served::default();
    let Some(service) = cluster.service(name) else { return served };
    for port in &service.ports {
        // Without a cluster IP of the family, none of the Service's addresses is served (A5).
        for ip in cluster_ips(cluster, service) {
            let view = PortView::new(cluster, name, service, port, ip);
            view.count(served.no_local.of(ip.is_ipv4()));
            add_sets(&view, &mut served.local);
            if cluster.settings().outside {
                served.outside.push(OutsidePort::of(&view));
            }
        }
    }
    if service.ports.is_empty() {
        return served;
    }
    served.cluster_ips = cluster_ips(cluster, service).collect();
    if let Some(port) = service.health_check_node_port {
        let mut local = PerFamily::default();
        for ip in cluster_ips(cluster, service) {
            *local.of(ip.is_ipv4()) = Some(local_ready(cluster, name, ip.is_ipv4()));
        }
        served.health_check = Some(HealthCheck { port: port.get(), local });
    }
    served
}

/// The cluster IPs of the families that are served.
fn cluster_ips(cluster: &Cluster, service: &Service) -> impl Iterator<Item = IpAddr> {
    let families = cluster.settings().families;
    service.cluster_ips.iter().copied().filter(move |ip| families.have(*ip))
}

/// How many addresses of this node have a ready endpoint of the Service, whatever its port (K3).
fn local_ready(cluster: &Cluster, name: &ObjectRef, ipv4: bool) -> usize {
    let ports: BTreeSet<(&str, Protocol)> = cluster
        .slices(name)
        .flat_map(|slice| slice.ports.iter().map(|port| (&*port.name, port.protocol)))
        .collect();
    let all = ports.into_iter().flat_map(|port| union(cluster, name, port, ipv4));
    let local = all.filter(|known| {
        known.ready() && known.node().is_some_and(|node| cluster.nodes().is_own(node))
    });
    local.map(|known| known.addr.ip()).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::{
            Change, Conditions, Endpoint, Node, ServicePort, Settings, Slice, SlicePort, Trigger,
        },
        policy::NoLocal,
    };

    /// K1, K3, F2: an SCTP port is not served, and counts like any other.
    #[test]
    fn a_service_with_sctp_ports_only() {
        let name = ObjectRef::new("default", "web");
        let service = Service {
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            external_local: true,
            internal_local: true,
            ports: vec![ServicePort::new("s", Protocol::Sctp, 9000)],
            health_check_node_port: 32000.try_into().ok(),
            ..Service::default()
        };
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        let slice = |node: &str| Slice {
            service: name.clone(),
            ports: vec![SlicePort { name: "s".into(), protocol: Protocol::Sctp, number: 9000 }],
            endpoints: vec![Endpoint {
                node: Some(node.into()),
                ..Endpoint::new("10.0.0.1".parse().unwrap(), conditions)
            }],
            trigger: Trigger::default(),
        };
        let settings = Settings { node_name: "self".into(), ..Settings::default() };
        let mut cluster = Cluster::new(settings);
        cluster.apply(Change::Service(name.clone(), Some(service)));
        for (node, here) in [("self", 1), ("other", 0)] {
            cluster.apply(Change::Slice(name.clone(), Some(slice(node))));
            let served = serve(&cluster, &name);
            assert!(served.local.iter().all(|set| set.port.protocol == Protocol::Sctp));
            let local = served.health_check.map(|check| (check.port, check.local.ipv4));
            assert_eq!(local, Some((32000, Some(here))), "{node}");
            let NoLocal { internal, external } = served.no_local.ipv4;
            assert_eq!((internal, external), (1 - here, 1 - here), "{node}");
        }
    }

    /// E10: an address that is not served lacks no endpoint.
    #[test]
    fn external_addresses_that_are_not_served_count_for_nothing() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let name = ObjectRef::new("default", "web");
        let port = ServicePort::new("a", Protocol::Tcp, 80);
        let of = |external_ips: &[&str], node_port: u16, serves: bool| {
            let settings =
                Settings { node_name: "self".into(), external_ips: serves, ..Settings::default() };
            let mut cluster = Cluster::new(settings);
            let service = Service {
                cluster_ips: vec![ip("10.96.0.1")],
                external_ips: external_ips.iter().map(|text| ip(text)).collect(),
                external_local: true,
                ports: vec![ServicePort { node_port: node_port.try_into().ok(), ..port.clone() }],
                ..Service::default()
            };
            let conditions = Conditions { ready: true, serving: true, terminating: false };
            let slice = Slice {
                service: name.clone(),
                ports: vec![SlicePort { name: "a".into(), protocol: Protocol::Tcp, number: 80 }],
                endpoints: vec![Endpoint {
                    node: Some("other".into()),
                    ..Endpoint::new(ip("10.0.0.1"), conditions)
                }],
                trigger: Trigger::default(),
            };
            cluster.apply(Change::Service(name.clone(), Some(service)));
            cluster.apply(Change::Slice(name.clone(), Some(slice)));
            serve(&cluster, &name).no_local.ipv4.external
        };
        let external = &["192.0.2.1"][..];
        assert_eq!((of(external, 0, true), of(external, 0, false)), (1, 0));
        assert_eq!(of(external, 30080, false), 1, "its node port lacks one");
        assert_eq!(of(&["2001:db8::1"], 0, false), 1, "as without: kube-proxy counts it");
    }

    #[test]
    fn a_node_within_the_ranges_may_come_from_any_of_the_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let name = ObjectRef::new("default", "web");
        let service = Service {
            cluster_ips: vec![ip("10.96.0.1")],
            load_balancer_ips: vec![ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")],
            source_ranges: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ports: vec![ServicePort::new("", Protocol::Tcp, 80)],
            ..Service::default()
        };
        let settings = Settings { node_name: "self".into(), ..Settings::default() };
        let mut cluster = Cluster::new(settings);
        cluster.apply(Change::Service(name.clone(), Some(service)));
        let source_ranges = |cluster: &Cluster| -> Vec<BTreeMap<String, Vec<String>>> {
            let sets = serve(cluster, &name).local.into_iter();
            sets.map(|set| {
                let source_ranges: Vec<_> =
                    set.source_ranges.iter().map(ToString::to_string).collect();
                set.frontends.iter().map(|it| (it.to_string(), source_ranges.clone())).collect()
            })
            .collect()
        };
        let wanted = |source_ranges: &[&str]| {
            let source_ranges: Vec<_> = source_ranges.iter().map(ToString::to_string).collect();
            let vips = ["192.0.2.1:80/tcp", "192.0.2.2:80/tcp"];
            [
                [("10.96.0.1:80/tcp".to_owned(), vec![])].into(),
                vips.map(|vip| (vip.to_owned(), source_ranges.clone())).into(),
            ]
        };
        assert_eq!(source_ranges(&cluster), wanted(&["10.0.0.0/8"]));
        let node = Node { addresses: vec![ip("10.0.0.1")], ..Node::default() };
        cluster.apply(Change::Node("self".into(), Some(node)));
        assert_eq!(
            source_ranges(&cluster),
            wanted(&["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"])
        );
        cluster.apply(Change::Node("self".into(), None));
        let kept = wanted(&["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"]);
        assert_eq!(source_ranges(&cluster), kept, "the machine is where it was");
    }
}
