//! The packet-flow tables of nftables/proxier_test.go: frontends, no endpoints, ranges, node ports.

use lb_core::model::{NodePortAddresses, Protocol, Settings};

use super::lab::{Lab, NODE, NODE_ALT, POD, STRANGER, node, service, slice};

const PORT: &str = "ports: [{name: p80, port: 80, protocol: TCP, nodePort: 3001}]";

#[test]
fn test_no_endpoints_reject() {
    let spec =
        format!("type: LoadBalancer, clusterIP: 172.30.0.41, externalIPs: [192.168.99.11], {PORT}");
    let lab = Lab::new(&service("ns1/svc1", &spec, "{ip: 1.2.3.4}"));
    for to in ["192.168.99.11:80", "192.168.0.2:3001", "1.2.3.4:80"] {
        lab.packets(&[("external with no endpoints", STRANGER, to, "REJECT", false)]);
    }
    lab.tcp(&[
        ("pod to cluster IP with no endpoints", POD, "172.30.0.41:80", "REJECT"),
        ("pod to external IP with no endpoints", POD, "192.168.99.11:80", "REJECT"),
        ("pod to NodePort with no endpoints", POD, "192.168.0.2:3001", "REJECT"),
        ("pod to LoadBalancer IP with no endpoints", POD, "1.2.3.4:80", "REJECT"),
    ]);
}

#[test]
fn test_cluster_ip_general() {
    let svc1 = "clusterIP: 172.30.0.41, ports: [{name: http, port: 80}]";
    let svc2 = "clusterIP: 172.30.0.42, ports: [{name: http, port: 80}, \
                {name: https, port: 443, targetPort: 8443}, \
                {name: dns-udp, port: 53, protocol: UDP}, \
                {name: dns-tcp, port: 53, targetPort: 5353}, \
                {name: dns-sctp, port: 53, protocol: SCTP}]";
    let ports = "http=80 https=8443 dns-udp=53/UDP dns-tcp=5353 dns-sctp=53/SCTP";
    let lab = Lab::new(
        &[
            service("ns1/svc1", svc1, ""),
            service("ns2/svc2", svc2, ""),
            slice("ns1/svc1", 1, "http=80", &["10.180.0.1 test-node"]),
            slice("ns2/svc2", 1, ports, &["10.180.0.1 test-node", "10.180.2.1 node2"]),
        ]
        .concat(),
    );
    let (client, hairpin) = ("10.180.0.2", "10.180.0.1");
    lab.tcp(&[
        ("simple clusterIP", client, "172.30.0.41:80", "10.180.0.1:80"),
        ("hairpin to cluster IP", hairpin, "172.30.0.41:80", "10.180.0.1:80"),
        (
            "clusterIP with multiple endpoints",
            client,
            "172.30.0.42:80",
            "10.180.0.1:80, 10.180.2.1:80",
        ),
        (
            "clusterIP with TargetPort",
            client,
            "172.30.0.42:443",
            "10.180.0.1:8443, 10.180.2.1:8443",
        ),
        (
            "clusterIP with TCP, UDP, and SCTP on same port (TCP)",
            client,
            "172.30.0.42:53",
            "10.180.0.1:5353, 10.180.2.1:5353",
        ),
        ("svc1 does not accept svc2's ports", client, "172.30.0.41:443", "REJECT"),
        // kube-proxy drops what goes to a cluster IP that nobody has; a socket sees no such range.
        ("packet to unallocated cluster ip", client, "172.30.0.50:80", ""),
    ]);
    for (name, to, wanted) in [
        (
            "clusterIP with TCP, UDP, and SCTP on same port (UDP)",
            "172.30.0.42:53",
            "10.180.0.1:53, 10.180.2.1:53",
        ),
        ("TCP-only port does not match UDP traffic", "172.30.0.42:80", "REJECT"),
    ] {
        assert_eq!(lab.flow(client, Protocol::Udp, to), wanted, "{name}");
    }
    // No hook sees a socket of SCTP.
    let wanted = Some(("10.180.0.1:53, 10.180.2.1:53".to_owned(), false));
    let name = "clusterIP with TCP, UDP, and SCTP on same port (SCTP)";
    assert_eq!(lab.packet(client, Protocol::Sctp, "172.30.0.42:53"), wanted, "{name}");
}

#[test]
fn test_load_balancer() {
    let spec = format!(
        "type: LoadBalancer, clusterIP: 172.30.0.41, {PORT}, \
         loadBalancerSourceRanges: [192.168.0.0/24, ' 203.0.113.0/25']"
    );
    let svc = service("ns1/svc1", &spec, "{ip: 1.2.3.4}, {ip: 5.6.7.8}");
    let slice = slice("ns1/svc1", 1, "p80=80", &["10.180.0.1 test-node"]);
    let ep = "10.180.0.1:80";
    let lab = Lab::new(&(svc + &slice));
    lab.packets(&[
        ("external to nodePort", STRANGER, "192.168.0.2:3001", ep, true),
        ("accepted external to LB1", STRANGER, "1.2.3.4:80", ep, true),
        ("blocked external to LB2", "203.0.113.130", "5.6.7.8:80", "DROP", false),
    ]);
    lab.tcp(&[
        ("pod to cluster IP", POD, "172.30.0.41:80", ep),
        ("nodePort bypasses LoadBalancerSourceRanges", "203.0.113.130", "192.168.0.2:3001", ep),
        ("accepted external to LB1", "203.0.113.2", "1.2.3.4:80", ep),
        ("accepted external to LB2", "203.0.113.2", "5.6.7.8:80", ep),
        ("blocked external to LB1", "203.0.113.130", "1.2.3.4:80", "DROP"),
        ("blocked external to LB2", "203.0.113.130", "5.6.7.8:80", "DROP"),
        ("pod to LB1 (blocked by LoadBalancerSourceRanges)", POD, "1.2.3.4:80", "DROP"),
        ("pod to LB2 (blocked by LoadBalancerSourceRanges)", POD, "5.6.7.8:80", "DROP"),
        ("node to LB1 (allowed by LoadBalancerSourceRanges)", NODE, "1.2.3.4:80", ep),
        ("node to LB2 (allowed by LoadBalancerSourceRanges)", NODE, "5.6.7.8:80", ep),
        ("same node to LB1, SNATted to LB1 (implicitly allowed)", "1.2.3.4", "1.2.3.4:80", ep),
        ("same node to LB2, SNATted to LB2 (implicitly allowed)", "5.6.7.8", "5.6.7.8:80", ep),
        ("one of its addresses opens the other, as the rule says", "1.2.3.4", "5.6.7.8:80", ep),
    ]);
}

#[test]
fn test_node_ports() {
    // kube-proxy's nftables mode takes the primary address unless it is told otherwise.
    let v4 = ["172.30.0.41", "10.180.0.1", "10.180.2.1", POD, NODE, NODE_ALT];
    let v6 = [
        "fd00:172:30::41",
        "fd00:10:180::1",
        "fd00:10:180::2:1",
        "fd00:10::2",
        "2001:db8::1",
        "2001:db8:1::2",
    ];
    let list4 = "192.168.0.0/24,192.168.1.0/24,2001:db8::/64";
    let list6 = "192.168.0.0/24,192.168.1.0/24,2001:db8::/64,2001:db8:1::2/128";
    for (name, ips, list, alt) in [
        ("ipv4", v4, "primary", false),
        ("ipv4, multiple nodeport-addresses", v4, list4, true),
        ("ipv6", v6, "primary", false),
        ("ipv6, multiple nodeport-addresses", v6, list6, true),
    ] {
        let [vip, ep1, ep2, pod, ip, alt_ip] = ips;
        let spec = format!("type: NodePort, clusterIP: '{vip}', {PORT}");
        let endpoints = [format!("{ep1} other-node"), format!("{ep2} test-node")];
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
        let yaml = service("ns1/svc1", &spec, "") + &slice("ns1/svc1", 1, "p80=80", &endpoints);
        let nodeport_addresses: NodePortAddresses = list.parse().unwrap();
        let settings =
            Settings { nodeport_addresses, node_name: "test-node".into(), ..Settings::default() };
        let lab = Lab::with(&yaml, settings);
        let at = |ip: &str, port: u16| {
            if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
        };
        let all = format!("{}, {}", at(ep1, 80), at(ep2, 80));
        for (flow, client, to, wanted) in [
            ("pod to cluster IP", pod, at(vip, 80), &*all),
            ("pod to nodePort", pod, at(ip, 3001), &all),
            ("node to nodePort", ip, at(ip, 3001), &all),
            ("nodePort on secondary IP", pod, at(alt_ip, 3001), if alt { &all } else { "" }),
        ] {
            assert_eq!(lab.flow(client, Protocol::Tcp, &to), wanted, "{name}: {flow}");
        }
    }
}

#[test]
fn test_load_balancer_ingress_route_type_proxy() {
    for (name, ingress, vip, served) in [
        ("ipMode Proxy", "{ip: 1.2.3.4, ipMode: Proxy}", "1.2.3.4:80", false),
        ("ipMode VIP", "{ip: 1.2.3.5, ipMode: VIP}", "1.2.3.5:80", true),
        ("ipMode nil", "{ip: 1.2.3.6}", "1.2.3.6:80", true),
        ("a host name only", "{hostname: lb.example}", "1.2.3.6:80", false),
    ] {
        let svc = service(
            "ns1/svc1",
            &format!("type: LoadBalancer, clusterIP: 10.20.30.41, {PORT}"),
            ingress,
        );
        let lab = Lab::new(&(svc + &slice("ns1/svc1", 1, "p80=80", &["10.180.0.1 test-node"])));
        lab.tcp(&[(name, POD, vip, if served { "10.180.0.1:80" } else { "" })]);
    }
}

/// A9: all addresses in the form that old objects have.
#[test]
fn test_bad_ips() {
    let spec = format!(
        "type: LoadBalancer, clusterIP: 172.30.0.041, {PORT}, externalIPs: [192.168.099.022], \
         loadBalancerSourceRanges: [203.0.113.000/025]"
    );
    let svc = service("ns1/svc1", &spec, "{ip: 1.2.3.004}");
    let lab = Lab::new(&(svc + &slice("ns1/svc1", 1, "p80=80", &["10.180.00.001 test-node"])));
    let ep = "10.180.0.1:80";
    lab.tcp(&[
        ("cluster IP", POD, "172.30.0.41:80", ep),
        ("external IP", POD, "192.168.99.22:80", ep),
        ("load balancer, allowed", "203.0.113.7", "1.2.3.4:80", ep),
        ("load balancer, not allowed", "203.0.113.130", "1.2.3.4:80", "DROP"),
        ("node port", POD, "192.168.0.2:3001", ep),
    ]);
}

/// G4, G5, and what an address is that is named in two fields.
#[test]
fn ranges() {
    for (ranges, v4, v6) in [
        ("[0.0.0.0/0, 192.0.2.0/24]", "10.180.0.1:80", "[fd00::1]:80"),
        ("[192.0.2.0/24]", "DROP", "[fd00::1]:80"),
        ("['2001:db8::/32']", "10.180.0.1:80", "DROP"),
        ("['::/0', 192.0.2.0/24]", "DROP", "[fd00::1]:80"),
        ("[nonsense]", "10.180.0.1:80", "[fd00::1]:80"),
    ] {
        let spec = format!(
            "type: LoadBalancer, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, 'fd00:172::1'], \
             ipFamilies: [IPv4, IPv6], {PORT}, externalIPs: [1.2.3.4, 'fd00:5::1'], \
             loadBalancerSourceRanges: {ranges}"
        );
        let svc = service("ns1/svc1", &spec, "{ip: 1.2.3.4}, {ip: 'fd00:5::1'}");
        let slices = slice("ns1/svc1", 1, "p80=80", &["10.180.0.1 test-node"])
            + &slice("ns1/svc1", 2, "p80=80", &["fd00::1 test-node"]);
        Lab::new(&(svc.clone() + &slices)).tcp(&[
            (ranges, POD, "1.2.3.4:80", v4),
            (ranges, "fd00:10::2", "[fd00:5::1]:80", v6),
            ("cluster IP", POD, "172.30.0.41:80", "10.180.0.1:80"),
        ]);
        let refused = if v4 == "DROP" { "DROP" } else { "REJECT" };
        Lab::new(&svc).tcp(&[("without endpoints", POD, "1.2.3.4:80", refused)]);
    }
}

/// E5: to a node port of another node, as that node would answer.
#[test]
fn other_nodes() {
    let spec = |policy: &str| {
        format!("type: NodePort, clusterIP: 172.30.0.41, externalTrafficPolicy: {policy}, {PORT}")
    };
    let rest = slice(
        "ns1/svc1",
        1,
        "p80=80",
        &[
            "10.180.0.1 test-node",
            "10.180.1.1 node-1",
            "10.180.1.2 node-1 draining",
            "10.180.2.1 node-2 draining",
        ],
    ) + &node("node-1", "192.168.0.11")
        + &node("node-2", "192.168.0.12")
        + &node("node-3", "192.168.0.13");
    let ready = "10.180.0.1:80, 10.180.1.1:80";
    Lab::new(&(service("ns1/svc1", &spec("Cluster"), "") + &rest)).tcp(&[
        ("own", POD, "192.168.0.2:3001", ready),
        ("with endpoints", POD, "192.168.0.11:3001", ready),
        ("without", POD, "192.168.0.13:3001", ready),
        ("no node", POD, "192.168.0.14:3001", ""),
    ]);
    Lab::new(&(service("ns1/svc1", &spec("Local"), "") + &rest)).tcp(&[
        ("own", POD, "192.168.0.2:3001", ready),
        ("with ready ones", POD, "192.168.0.11:3001", "10.180.1.1:80"),
        ("with draining ones", POD, "192.168.0.12:3001", "10.180.2.1:80"),
        ("without", POD, "192.168.0.13:3001", "DROP"),
        ("another port", POD, "192.168.0.13:3002", ""),
    ]);
    let none = service("ns1/svc1", &spec("Local"), "") + &node("node-1", "192.168.0.11");
    Lab::new(&none).tcp(&[
        ("own, nobody anywhere", POD, "192.168.0.2:3001", "REJECT"),
        ("another, nobody anywhere", POD, "192.168.0.11:3001", "REJECT"),
    ]);
}
