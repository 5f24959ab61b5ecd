//! The packet-flow tables of nftables/proxier_test.go: traffic policies and terminating endpoints.

use lb_core::policy::{HealthCheck, NoLocal, PerFamily};

use super::lab::{Lab, NODE, POD, STRANGER, service, slice};

const PORT: &str = "ports: [{name: p80, port: 80, protocol: TCP, nodePort: 3001}]";

/// E3: a pod sees both endpoints, whatever the policy for those outside; a stranger the local one only
/// with Local, and then as itself.
#[test]
fn test_external_traffic_policy() {
    for policy in ["Local, healthCheckNodePort: 30000", "Cluster"] {
        let spec = format!(
            "type: LoadBalancer, clusterIP: 172.30.0.41, externalIPs: [192.168.99.11], {PORT}, \
             externalTrafficPolicy: {policy}"
        );
        let svc = service("ns1/svc1", &spec, "{ip: 1.2.3.4}");
        let slice =
            slice("ns1/svc1", 1, "p80=80", &["10.180.0.1 other-node", "10.180.2.1 test-node"]);
        let both = "10.180.0.1:80, 10.180.2.1:80";
        let lab = Lab::new(&(svc + &slice));
        let is_local = policy != "Cluster";
        let wanted = if is_local { "10.180.2.1:80" } else { both };
        for (name, to) in [
            ("external to external IP", "192.168.99.11:80"),
            ("external to LB IP", "1.2.3.4:80"),
            ("external to NodePort", "192.168.0.2:3001"),
        ] {
            lab.packets(&[(name, STRANGER, to, wanted, !is_local)]);
        }
        lab.tcp(&[
            ("pod to cluster IP hits both endpoints", POD, "172.30.0.41:80", both),
            ("pod to external IP hits both endpoints", POD, "192.168.99.11:80", both),
            ("pod to LB IP hits both endpoints", POD, "1.2.3.4:80", both),
            ("pod to NodePort hits both endpoints", POD, "192.168.0.2:3001", both),
        ]);
    }
}

#[test]
fn test_internal_traffic_policy() {
    let one = ["10.0.1.1 test-node", "10.0.1.2 node1", "10.0.1.3 node2"];
    let two = ["10.0.1.1 test-node", "10.0.1.2 test-node", "10.0.1.3 node2"];
    let none = ["10.0.1.1 node0", "10.0.1.2 node1", "10.0.1.3 node2"];
    for (name, policy, endpoints, wanted) in [
        (
            "internalTrafficPolicy is cluster",
            "Cluster",
            one,
            "10.0.1.1:80, 10.0.1.2:80, 10.0.1.3:80",
        ),
        (
            "internalTrafficPolicy is local and there is one local endpoint",
            "Local",
            one,
            "10.0.1.1:80",
        ),
        (
            "internalTrafficPolicy is local and there are multiple local endpoints",
            "Local",
            two,
            "10.0.1.1:80, 10.0.1.2:80",
        ),
        ("internalTrafficPolicy is local and there are no local endpoints", "Local", none, "DROP"),
    ] {
        let spec = format!(
            "clusterIP: 172.30.1.1, ports: [{{port: 80}}], internalTrafficPolicy: {policy}"
        );
        let mut lab = Lab::new(&service("ns1/svc1", &spec, ""));
        lab.apply("slice.yaml", &slice("ns1/svc1", 1, "=80", &endpoints));
        lab.tcp(&[(name, POD, "172.30.1.1:80", wanted)]);
        lab.apply("slice.yaml", "");
        lab.tcp(&[("endpoints deleted", POD, "172.30.1.1:80", "REJECT")]);
    }
}

/// D12.
#[test]
fn test_terminating_endpoints_traffic_policy() {
    let local = [
        (
            "ready endpoints exist",
            &[
                "10.0.1.1 test-node",
                "10.0.1.2 test-node",
                "10.0.1.3 test-node draining",
                "10.0.1.4 test-node dead",
                "10.0.1.5 node-1",
            ][..],
            "10.0.1.1:80, 10.0.1.2:80, 10.0.1.5:80",
            "10.0.1.1:80, 10.0.1.2:80",
        ),
        (
            "only terminating endpoints exist",
            &[
                "10.0.1.2 test-node draining",
                "10.0.1.3 test-node draining",
                "10.0.1.4 test-node dead",
                "10.0.1.5 node-1",
            ],
            "10.0.1.5:80",
            "10.0.1.2:80, 10.0.1.3:80",
        ),
        (
            "terminating endpoints on remote node",
            &["10.0.1.5 node-1 draining"],
            "10.0.1.5:80",
            "DROP",
        ),
        (
            "no usable endpoints on any node",
            &["10.0.1.5 test-node dead", "10.0.1.5 node-1 dead"],
            "REJECT",
            "REJECT",
        ),
    ];
    let cluster = [
        (
            "ready endpoints exist",
            &[
                "10.0.1.1 test-node",
                "10.0.1.2 test-node",
                "10.0.1.3 another-node draining",
                "10.0.1.4 another-node dead",
                "10.0.1.5 another-node",
            ][..],
            "10.0.1.1:80, 10.0.1.2:80, 10.0.1.5:80",
        ),
        (
            "only terminating endpoints exist",
            &[
                "10.0.1.2 test-node draining",
                "10.0.1.3 test-node draining",
                "10.0.1.4 another-node dead",
                "10.0.1.5 another-node draining",
            ],
            "10.0.1.2:80, 10.0.1.3:80, 10.0.1.5:80",
        ),
        ("terminating endpoints on remote node", &["10.0.1.5 node-1 draining"], "10.0.1.5:80"),
        (
            "no usable endpoints on any node",
            &["10.0.1.5 test-node dead", "10.0.1.5 node-1 dead"],
            "REJECT",
        ),
    ];
    let cluster = cluster.map(|(name, endpoints, wanted)| (name, endpoints, wanted, wanted));
    for (policy, cases) in [("Local", local), ("Cluster", cluster)] {
        let spec = format!(
            "type: LoadBalancer, clusterIP: 172.30.1.1, externalTrafficPolicy: {policy}, \
             ports: [{{port: 80}}], healthCheckNodePort: 30000"
        );
        for (name, endpoints, wanted, to_strangers) in cases {
            let mut lab = Lab::new(&service("ns1/svc1", &spec, "{ip: 1.2.3.4}"));
            lab.apply("slice.yaml", &slice("ns1/svc1", 1, "=80", endpoints));
            let masquerade = policy == "Cluster" && to_strangers.contains(':');
            lab.packets(&[(name, STRANGER, "1.2.3.4:80", to_strangers, masquerade)]);
            lab.tcp(&[(name, POD, "172.30.1.1:80", wanted), (name, POD, "1.2.3.4:80", wanted)]);
            lab.apply("slice.yaml", "");
            lab.tcp(&[
                ("pod to clusterIP after endpoints deleted", POD, "172.30.1.1:80", "REJECT"),
                ("pod to LB after endpoints deleted", POD, "1.2.3.4:80", "REJECT"),
                ("external to LB after endpoints deleted", STRANGER, "1.2.3.4:80", "REJECT"),
            ]);
        }
    }
}

/// The same from each node's view: what D12 says of packets from outside is what a node port of that
/// node gives (E5).
#[test]
fn terminating_endpoints_of_another_node() {
    let spec = "type: NodePort, clusterIP: 172.30.1.1, externalTrafficPolicy: Local, \
                ports: [{port: 80, nodePort: 3001}]";
    let other = super::lab::node("other", "192.168.0.11");
    for (name, endpoints, wanted) in [
        (
            "ready endpoints exist",
            &[
                "10.0.1.1 other",
                "10.0.1.2 other",
                "10.0.1.3 other draining",
                "10.0.1.4 other dead",
                "10.0.1.5 node-1",
            ][..],
            "10.0.1.1:80, 10.0.1.2:80",
        ),
        (
            "only terminating endpoints exist",
            &[
                "10.0.1.2 other draining",
                "10.0.1.3 other draining",
                "10.0.1.4 other dead",
                "10.0.1.5 node-1",
            ],
            "10.0.1.2:80, 10.0.1.3:80",
        ),
        ("terminating endpoints on remote node", &["10.0.1.5 node-1 draining"], "DROP"),
        (
            "no usable endpoints on any node",
            &["10.0.1.5 other dead", "10.0.1.5 node-1 dead"],
            "REJECT",
        ),
    ] {
        let yaml = service("ns1/svc1", spec, "") + &slice("ns1/svc1", 1, "=80", endpoints) + &other;
        Lab::new(&yaml).tcp(&[(name, POD, "192.168.0.11:3001", wanted)]);
    }
}

/// Table E': sockets of this node, and packets of all three kinds of senders, with whose source is
/// replaced. A socket is never masqueraded. Upstream does the same with other detectors of local traffic
/// and with masqueradeAll.
#[test]
fn test_internal_external_masquerade() {
    let spec = |n: u8, rest: &str| {
        format!(
            "type: LoadBalancer, clusterIP: 172.30.0.4{n}, healthCheckNodePort: 3000{n}, {rest} \
             ports: [{{name: p80, port: 80, nodePort: 300{n}}}]"
        )
    };
    let of = |n: u8, rest: &str, ip: &str| {
        let name = format!("ns{n}/svc{n}");
        let endpoints = [format!("10.180.0.{n} test-node"), format!("10.180.1.{n} remote")];
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
        service(&name, &spec(n, rest), &format!("{{ip: {ip}}}"))
            + &slice(&name, 1, "p80=80", &endpoints)
    };
    let lab = Lab::new(
        &[
            of(1, "", "1.2.3.4"),
            of(2, "externalTrafficPolicy: Local,", "5.6.7.8"),
            of(3, "internalTrafficPolicy: Local,", "9.10.11.12"),
        ]
        .concat(),
    );
    let [all1, all2, all3] = [1, 2, 3].map(|n| format!("10.180.0.{n}:80, 10.180.1.{n}:80"));
    let (local2, local3) = ("10.180.0.2:80", "10.180.0.3:80");
    let (masq, kept) = (true, false);
    // What a socket of a pod or of the node gets; what a packet from elsewhere gets; whether the source
    // is replaced of packets of a pod, of the node, and from elsewhere.
    for (to, addr, wanted, to_strangers, masquerade) in [
        ("ClusterIP", "172.30.0.41:80", &*all1, &*all1, [kept, masq, masq]),
        ("NodePort", "192.168.0.2:3001", &all1, &all1, [masq; 3]),
        ("LB", "1.2.3.4:80", &all1, &all1, [masq; 3]),
        ("ClusterIP with eTP:Local", "172.30.0.42:80", &all2, &all2, [kept, masq, masq]),
        // The upstream table asks port 3001 here, for the node: a slip.
        ("NodePort with eTP:Local", "192.168.0.2:3002", &all2, local2, [kept, masq, kept]),
        ("LB with eTP:Local", "5.6.7.8:80", &all2, local2, [kept, masq, kept]),
        ("ClusterIP with iTP:Local", "172.30.0.43:80", local3, local3, [kept, masq, masq]),
        ("NodePort with iTP:Local", "192.168.0.2:3003", &all3, &all3, [masq; 3]),
        ("LB with iTP:Local", "9.10.11.12:80", &all3, &all3, [masq; 3]),
    ] {
        let [of_pod, of_node, of_stranger] = masquerade;
        lab.packets(&[
            (&format!("pod to {to}"), POD, addr, wanted, of_pod),
            (&format!("node to {to}"), NODE, addr, wanted, of_node),
            (&format!("external to {to}"), STRANGER, addr, to_strangers, of_stranger),
        ]);
        for (who, client) in [("pod", POD), ("node", NODE)] {
            lab.tcp(&[(&format!("{who} to {to}"), client, addr, wanted)]);
        }
    }
}

#[test]
fn test_no_endpoints_metric() {
    let here = ["10.0.1.1 test-node", "10.0.1.2 node1", "10.0.1.3 node2"];
    let away = ["10.0.1.1 node0", "10.0.1.2 node1", "10.0.1.3 node2"];
    let (internal, external) =
        ("internalTrafficPolicy: Local,", "type: NodePort, externalTrafficPolicy: Local,");
    let both = format!("{internal} {external}");
    for (name, policy, endpoints, wanted) in [
        ("internalTrafficPolicy is set and there are local endpoints", internal, &here[..], (0, 0)),
        ("externalTrafficPolicy is set and there are local endpoints", external, &here, (0, 0)),
        ("both policies are set and there are local endpoints", &both, &here, (0, 0)),
        ("internalTrafficPolicy is set and there are no local endpoints", internal, &away, (1, 0)),
        ("externalTrafficPolicy is set and there are no local endpoints", external, &away, (0, 1)),
        ("both policies are set and there are no local endpoints", &both, &away, (1, 1)),
        ("both policies are set and there are no endpoints at all", &both, &[], (0, 0)),
    ] {
        let spec = format!("{policy} clusterIP: 172.30.1.1, ports: [{{port: 80, nodePort: 123}}]");
        let lab =
            Lab::new(&(service("ns1/svc1", &spec, "") + &slice("ns1/svc1", 1, "=80", endpoints)));
        let ipv4 = NoLocal { internal: wanted.0, external: wanted.1 };
        let wanted = PerFamily { ipv4, ..PerFamily::default() };
        assert_eq!(lab.served("ns1/svc1").no_local, wanted, "{name}");
    }
}

/// K1, K3. The Services of the upstream tests have none, for they ask deeper inside.
const CHECKED: &str = "type: LoadBalancer, clusterIP: 172.30.1.1, externalTrafficPolicy: Local, \
                       healthCheckNodePort: 30000, ports: [{name: p11, port: 80}]";

fn local(lab: &Lab, name: &str) -> Option<usize> {
    lab.served(name).health_check.and_then(|check| check.local.ipv4)
}

#[test]
fn test_health_check_node_port_when_terminating() {
    let mut lab = Lab::new(&service("ns1/svc1", CHECKED, ""));
    let ready = [
        "10.0.1.1 test-node",
        "10.0.1.2 test-node",
        "10.0.1.3 test-node",
        "10.0.1.4 test-node unready",
    ];
    lab.apply("slice.yaml", &slice("ns1/svc1", 1, "p11=80", &ready));
    let check = lab.served("ns1/svc1").health_check;
    let local = PerFamily { ipv4: Some(3), ipv6: None };
    assert_eq!(check, Some(HealthCheck { port: 30000, local }));
    let terminating = [
        "10.0.1.1 test-node lagging",
        "10.0.1.2 test-node draining",
        "10.0.1.3 test-node draining",
        "10.0.1.4 test-node dead",
    ];
    lab.apply("slice.yaml", &slice("ns1/svc1", 1, "p11=80", &terminating));
    assert_eq!(self::local(&lab, "ns1/svc1"), Some(0));
}

/// Ports and endpoints of each slice.
type Slices<'a> = &'a [(&'a str, &'a [&'a str])];

#[test]
fn test_get_local_endpoint_ips() {
    let two = "p11=11 p12=12";
    let cases: [(&str, Slices<'_>, usize); 7] = [
        ("nothing", &[], 0),
        ("unnamed port", &[("=11", &["1.1.1.1 other"])], 0),
        ("unnamed port local", &[("=11", &["1.1.1.1 test-node"])], 1),
        (
            "named local and non-local ports for the same IP",
            &[(two, &["1.1.1.1 other", "1.1.1.2 test-node"])],
            1,
        ),
        (
            "named local and non-local ports for different IPs",
            &[
                ("p22=22", &["2.2.2.2 test-node", "2.2.2.22 test-node"]),
                ("p23=23", &["2.2.2.3 test-node"]),
                ("p44=44", &["4.4.4.5 other"]),
            ],
            3,
        ),
        (
            "named local and non-local ports for different IPs, some not ready",
            &[
                ("p22=22", &["2.2.2.2 test-node", "2.2.2.22 test-node"]),
                ("p23=23", &["2.2.2.3 test-node draining"]),
            ],
            2,
        ),
        (
            "all endpoints are terminating",
            &[
                ("p22=22", &["2.2.2.2 test-node draining", "2.2.2.22 test-node draining"]),
                ("p23=23", &["2.2.2.3 test-node draining"]),
            ],
            0,
        ),
    ];
    for (name, slices, wanted) in cases {
        let mut yaml = service("ns1/ep1", CHECKED, "");
        for (i, (ports, endpoints)) in slices.iter().enumerate() {
            yaml += &slice("ns1/ep1", i, ports, endpoints);
        }
        assert_eq!(local(&Lab::new(&yaml), "ns1/ep1"), Some(wanted), "{name}");
    }
}
