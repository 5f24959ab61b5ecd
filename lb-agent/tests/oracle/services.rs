//! Random Services.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{
        ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec,
        ServiceStatus, SessionAffinityConfig,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use proptest::{
    collection::vec,
    option::{of, weighted},
    prelude::*,
    sample::select,
};

use super::objects::{PROXY_NAME, meta, port, text};

/// Addresses of this node, and of another one.
pub(crate) const NODES: [&str; 6] =
    ["10.0.0.1", "10.0.0.100", "10.0.0.2", "fd00::1", "fd00::100", "fd00::2"];

/// `clusterIP`, `clusterIPs` and `ipFamilies`, in whatever state an upgrade or a file left them.
type Addresses = (Option<String>, Option<Vec<String>>, Option<Vec<String>>);

fn cluster_ips() -> impl Strategy<Value = Addresses> {
    let pair = (
        prop_oneof![
            7 => text(&["10.96.0.1", "10.96.0.2", "10.096.000.003"]),
            1 => text(&NODES[..3]),
        ],
        prop_oneof![7 => text(&["fd00:96::1", "fd00:96::2"]), 1 => text(&NODES[3..])],
        any::<bool>(),
    );
    let lists = prop_oneof![
        8 => Just((1, 1)),
        8 => Just((2, 2)),
        1 => Just((2, 1)),
        1 => Just((1, 2)),
        1 => Just((0, 1)),
        1 => Just((1, 0)),
        1 => Just((0, 0)),
    ];
    let set = (pair, lists).prop_map(|((v4, v6, six_first), (ips, families))| {
        let mut both = vec![(v4, "IPv4".to_owned()), (v6, "IPv6".to_owned())];
        if six_first {
            both.reverse();
        }
        let first = both[0].0.clone();
        let list = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let ips = both.iter().take(ips).map(|(ip, _)| ip.clone()).collect();
        let families = both.into_iter().take(families).map(|(_, family)| family).collect();
        (Some(first), list(ips), list(families))
    });
    prop_oneof![
        20 => set,
        1 => Just((None, None, None)),
        1 => Just((Some(String::new()), None, None)),
        1 => Just((Some("None".to_owned()), Some(vec!["None".to_owned()]), None)),
    ]
}

prop_compose! {
    fn service_port()(
        (name, protocol) in port(),
        port in select(vec![53, 80, 443]),
        node_port in weighted(0.5, select(vec![30053, 30080, 30443])),
    ) -> ServicePort {
        ServicePort { name, protocol, port, node_port, ..ServicePort::default() }
    }
}

/// Ports among which nothing occurs twice, as the API demands.
fn service_ports() -> impl Strategy<Value = Option<Vec<ServicePort>>> {
    prop_oneof![1 => vec(service_port(), 0..1), 15 => vec(service_port(), 1..4)].prop_map(
        |mut ports| {
            let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
            ports.retain(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_owned();
                names.insert((port.name.clone().unwrap_or_default(), protocol.clone()))
                    && numbers.insert((port.port, protocol.clone()))
                    && port.node_port.is_none_or(|number| numbers.insert((number, protocol)))
            });
            (!ports.is_empty()).then_some(ports)
        },
    )
}

const EXTERNAL: &[&str] = &[
    "192.0.2.1",
    "192.0.2.2",
    "192.000.002.003",
    "2001:db8::1",
    "2001:db8:0::2",
    "nonsense",
    "",
    "224.0.0.1",
    "::ffff:192.0.2.4",
    " 192.0.2.5 ",
    "fe80::1",
    // What is somebody's already: a cluster IP, a pod's, another node's.
    "10.96.0.2",
    "fd00:96::2",
    "10.1.0.3",
    "10.0.0.2",
];

fn ingress() -> impl Strategy<Value = LoadBalancerIngress> {
    let ip = text(&[
        "192.0.2.2",
        "198.51.100.1",
        "198.51.100.002",
        "2001:db8::2",
        "2001:db8::3",
        "127.0.0.1",
        // A cluster IP, a pod's, this node's and another node's.
        "10.96.0.1",
        "10.1.0.3",
        "10.0.0.1",
        "10.0.0.100",
        "10.0.0.2",
        "fd00::100",
    ]);
    let mode = prop_oneof![3 => Just(None), 2 => Just(Some("VIP")), 1 => Just(Some("Proxy"))];
    (weighted(0.9, ip), weighted(0.1, text(&["lb.example"])), mode).prop_map(
        |(ip, hostname, ip_mode)| LoadBalancerIngress {
            ip,
            hostname,
            ip_mode: ip_mode.map(str::to_owned),
            ports: None,
        },
    )
}

fn affinity() -> impl Strategy<Value = (Option<String>, Option<SessionAffinityConfig>)> {
    let timeout = prop_oneof![Just(None), Just(Some(1)), Just(Some(10800)), Just(Some(86400))];
    let config = of(timeout).prop_map(|timeout| {
        timeout.map(|timeout_seconds| SessionAffinityConfig {
            client_ip: Some(ClientIPConfig { timeout_seconds }),
        })
    });
    let affinity = prop_oneof![
        2 => Just(None),
        1 => Just(Some("None".to_owned())),
        4 => Just(Some("ClientIP".to_owned())),
    ];
    (affinity, config)
}

const SOURCES: &[&str] = &[
    "10.1.0.0/16",
    " 10.0.0.0/8 ",
    "010.001.000.000/016",
    "203.0.113.000/025",
    "10.1.2.3/16",
    "10.1.0.248/29",
    "10.0.0.64/26",
    "198.51.100.0/24",
    "192.0.2.1/32",
    "0.0.0.0/0",
    "fd00::/8",
    "2001:db8::1/64",
    "::/0",
    "::ffff:192.0.2.9/120",
    "10.0.0.0/33",
    "192.0.2.9",
    "nonsense",
];

fn traffic_policy() -> impl Strategy<Value = Option<String>> {
    prop_oneof![2 => Just(None), 2 => Just(Some("Cluster")), 3 => Just(Some("Local"))]
        .prop_map(|policy| policy.map(str::to_owned))
}

prop_compose! {
    fn spec()(
        type_ in weighted(0.9, prop_oneof![
            4 => text(&["ClusterIP"]),
            4 => text(&["NodePort"]),
            4 => text(&["LoadBalancer"]),
            1 => text(&["ExternalName"]),
        ]),
        (cluster_ip, cluster_ips, ip_families) in cluster_ips(),
        ports in service_ports(),
        external_ips in weighted(0.4, vec(text(EXTERNAL), 0..3)),
        internal_traffic_policy in traffic_policy(),
        external_traffic_policy in traffic_policy(),
        (session_affinity, session_affinity_config) in affinity(),
        load_balancer_source_ranges in weighted(0.5, vec(text(SOURCES), 0..4)),
        health_check_node_port in weighted(0.5, select(vec![32000, 32001])),
        publish_not_ready_addresses in weighted(0.2, any::<bool>()),
        traffic_distribution in weighted(0.2, text(&["PreferClose", "PreferSameNode"])),
    ) -> ServiceSpec {
        ServiceSpec {
            type_,
            cluster_ip,
            cluster_ips,
            ip_families,
            ports,
            external_ips,
            internal_traffic_policy,
            external_traffic_policy,
            session_affinity,
            session_affinity_config,
            load_balancer_source_ranges,
            health_check_node_port,
            publish_not_ready_addresses,
            traffic_distribution,
            ..ServiceSpec::default()
        }
    }
}

prop_compose! {
    pub(crate) fn service()(
        (namespace, name) in prop_oneof![
            12 => Just(("default", "a")),
            4 => Just(("default", "b")),
            1 => Just(("other", "a")),
        ],
        proxy in weighted(0.08, text(&["", "another"])),
        created in of(0..3i64),
        spec in spec(),
        ingress in weighted(0.6, vec(ingress(), 0..3)),
    ) -> Service {
        let created = created.map(|at| Time(Timestamp::from_second(at).expect("not long ago")));
        let metadata = meta(namespace, name, &[(PROXY_NAME, proxy)]);
        Service {
            metadata: ObjectMeta { creation_timestamp: created, ..metadata },
            spec: Some(spec),
            status: ingress.map(|ingress| ServiceStatus {
                load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress) }),
                ..ServiceStatus::default()
            }),
        }
    }
}
