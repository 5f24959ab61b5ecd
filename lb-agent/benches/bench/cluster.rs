//! Services and EndpointSlices as an API server would deliver them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use lb_agent::sources::translate::{self, object_ref};
use lb_core::model::Change;

/// The port of every Service.
pub(crate) const PORT: u16 = 80;
/// The port of every endpoint.
pub(crate) const TARGET: u16 = 8080;

/// How large the cluster is.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Number of its first Service.
    pub(crate) first: u32,
    pub(crate) services: u32,
    /// Of each Service, in each family.
    pub(crate) endpoints: u32,
    /// Else IPv4 only.
    pub(crate) dual_stack: bool,
    pub(crate) protocol: &'static str,
}

/// All objects of a cluster.
pub(crate) struct Cluster {
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
}

impl Shape {
    pub(crate) fn cluster(&self) -> Cluster {
        let slices = |i| {
            let v4 = self.slice(i, true, self.endpoints, 0);
            std::iter::once(v4)
                .chain(self.dual_stack.then(|| self.slice(i, false, self.endpoints, 0)))
        };
        let numbers = || self.first..self.first + self.services;
        Cluster {
            services: numbers().map(|i| self.service(i)).collect(),
            slices: numbers().flat_map(slices).collect(),
        }
    }

    /// Service `i`.
    pub(crate) fn service(&self, i: u32) -> Service {
        let mut ips = vec![cluster_ip(i, true).to_string()];
        if self.dual_stack {
            ips.push(cluster_ip(i, false).to_string());
        }
        let port = ServicePort {
            name: Some("http".to_owned()),
            port: PORT.into(),
            protocol: Some(self.protocol.to_owned()),
            target_port: Some(IntOrString::Int(TARGET.into())),
            ..ServicePort::default()
        };
        let spec = ServiceSpec {
            cluster_ip: ips.first().cloned(),
            cluster_ips: Some(ips),
            ports: Some(vec![port]),
            selector: Some([("app".to_owned(), name(i))].into()),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        };
        let labels = [("app".to_owned(), name(i))].into();
        Service { metadata: meta(i, name(i), labels), spec: Some(spec), ..Service::default() }
    }

    /// The slice of one family, with as many endpoints. Another `edition` has another last one.
    pub(crate) fn slice(&self, i: u32, ipv4: bool, endpoints: u32, edition: u32) -> EndpointSlice {
        let endpoint = |j| {
            let last = if j + 1 == endpoints { edition } else { 0 };
            let pod = format!("{}-{j}", name(i));
            Endpoint {
                addresses: vec![pod_ip(i * self.endpoints + j, last, ipv4).to_string()],
                conditions: Some(EndpointConditions {
                    ready: Some(true),
                    serving: Some(true),
                    terminating: Some(false),
                }),
                node_name: Some(format!("node-{:03}", j % 100)),
                target_ref: Some(ObjectReference {
                    kind: Some("Pod".to_owned()),
                    name: Some(pod),
                    namespace: Some(namespace(i)),
                    ..ObjectReference::default()
                }),
                zone: Some("zone-a".to_owned()),
                ..Endpoint::default()
            }
        };
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let labels = [
            ("app".to_owned(), name(i)),
            ("kubernetes.io/service-name".to_owned(), name(i)),
            (
                "endpointslice.kubernetes.io/managed-by".to_owned(),
                "endpointslice-controller.k8s.io".to_owned(),
            ),
        ];
        EndpointSlice {
            address_type: family.to_owned(),
            endpoints: Some((0..endpoints).map(endpoint).collect()),
            metadata: meta(i, format!("{}-{}", name(i), family.to_lowercase()), labels.into()),
            ports: Some(vec![EndpointPort {
                name: Some("http".to_owned()),
                port: Some(TARGET.into()),
                protocol: Some(self.protocol.to_owned()),
                ..EndpointPort::default()
            }]),
        }
    }
}

impl Cluster {
    /// This one and another, with other numbers.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.services.extend(other.services);
        self.slices.extend(other.slices);
        self
    }

    /// What a source says of these objects after a list.
    pub(crate) fn listed(&self) -> [Change; 3] {
        let services = self.services.iter().filter_map(|object| {
            Some((object_ref(&object.metadata), translate::service(object).0?))
        });
        let slices = self
            .slices
            .iter()
            .filter_map(|object| Some((object_ref(&object.metadata), translate::slice(object).0?)));
        [
            Change::ListedNodes([].into()),
            Change::ListedServices(services.collect()),
            Change::ListedSlices(slices.collect()),
        ]
    }
}

/// What a source says of a slice after an event.
pub(crate) fn event(slice: &EndpointSlice) -> Change {
    Change::Slice(object_ref(&slice.metadata), translate::slice(slice).0)
}

/// The address of Service `i`: within 10.96.0.0/12 or fd00:96::/112.
pub(crate) fn cluster_ip(i: u32, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 10).to_bits() + i).into()
    } else {
        let first = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10);
        Ipv6Addr::from_bits(first.to_bits() + u128::from(i)).into()
    }
}

/// The address of pod `n`: within 10.128.0.0/10 or fd00:128::/64. Another edition, another address.
pub(crate) fn pod_ip(n: u32, edition: u32, ipv4: bool) -> IpAddr {
    if ipv4 {
        let first = Ipv4Addr::new(10, 128, 0, 1).to_bits();
        Ipv4Addr::from_bits(first + (edition % 4) * (1 << 20) + n).into()
    } else {
        let first = Ipv6Addr::new(0xfd00, 0x128, 0, 0, 0, 0, 0, 1);
        Ipv6Addr::from_bits(first.to_bits() + (u128::from(edition) << 32) + u128::from(n)).into()
    }
}

fn name(i: u32) -> String {
    format!("service-{i:05}")
}

fn namespace(i: u32) -> String {
    format!("team-{:03}", i / 100)
}

fn meta(i: u32, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(namespace(i)),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}
