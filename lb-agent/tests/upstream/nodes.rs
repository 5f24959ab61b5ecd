//! util/nodeport_addresses_test.go and node_test.go: a node's addresses.

use lb_core::model::{Change, Cluster, Node, NodeAddr, NodePortAddresses, Settings};

use super::lab::{Lab, node};

fn addresses(list: &str, interfaces: &str, localhost: bool) -> String {
    let settings = Settings {
        nodeport_addresses: list.parse().unwrap(),
        localhost_nodeports: localhost,
        ..Settings::default()
    };
    let mut cluster = Cluster::new(settings);
    let local = interfaces.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
    cluster.apply(Change::LocalAddresses(local));
    let all: Vec<_> =
        cluster.nodes().nodeport_addresses().keys().map(ToString::to_string).collect();
    all.join(" ")
}

/// Unlike the upstream list, ours has loopback addresses only where they are asked for (I3, I4).
#[test]
fn test_get_node_ips() {
    let both = "1.2.3.4 2001:db8::1 127.0.0.1 ::1";
    for (name, list, interfaces, wanted) in [
        ("IPv4 single", "10.20.30.0/24", "10.20.30.51 100.200.201.1", "10.20.30.51"),
        ("IPv4 zero CIDR", "0.0.0.0/0", "10.20.30.51 127.0.0.1", "10.20.30.51"),
        ("IPv6 multiple", "2001:db8::/64,::1/128", "2001:db8::1 ::1", "2001:db8::1"),
        ("IPv6 zero CIDR", "::/0", "2001:db8::1 ::1", "2001:db8::1"),
        ("IPv4 localhost exact", "127.0.0.1/32", "10.20.30.51 127.0.0.1", ""),
        ("IPv4 localhost subnet", "127.0.0.0/8", "127.0.1.1", ""),
        (
            "IPv4 multiple",
            "10.20.30.0/24,100.200.201.0/24",
            "10.20.30.51 100.200.201.1",
            "10.20.30.51 100.200.201.1",
        ),
        ("IPv4 multiple, no match", "10.20.30.0/24,100.200.201.0/24", "192.168.1.2 127.0.0.1", ""),
        ("empty list, IPv4 addrs", "", "192.168.1.2 127.0.0.1", "192.168.1.2"),
        ("empty list, IPv6 addrs", "", "2001:db8::1 ::1", "2001:db8::1"),
        ("IPv4 redundant CIDRs", "1.2.3.0/24,0.0.0.0/0", "1.2.3.4", "1.2.3.4"),
        (
            "Dual-stack, redundant IPv4",
            "0.0.0.0/0,1.2.3.0/24,2001:db8::1/128",
            both,
            "1.2.3.4 2001:db8::1",
        ),
        (
            "Dual-stack, redundant IPv6",
            "::/0,1.2.3.0/24,2001:db8::1/128",
            both,
            "1.2.3.4 2001:db8::1",
        ),
        (
            "a family without a range has all of its addresses",
            "10.20.30.0/24",
            "10.20.30.51 10.9.9.9 2001:db8::1",
            "10.20.30.51 2001:db8::1",
        ),
        ("no multicast, nothing unspecified", "", "0.0.0.0 224.0.0.1 ff02::1 10.0.0.1", "10.0.0.1"),
    ] {
        assert_eq!(addresses(list, interfaces, false), wanted, "{name}");
    }
}

/// A list of ranges that has no loopback address asks for none (I4).
#[test]
fn test_contains_ipv4_loopback() {
    for (name, list, wanted) in [
        ("empty", "", true),
        ("all zeros ipv4", "224.0.0.0/24,192.168.0.0/16,fd00:1:d::/64,0.0.0.0/0", true),
        ("all zeros ipv4 and invalid cidr", "192.168.0.0/16,0.0.0.0/0", true),
        ("all zeros ipv6", "224.0.0.0/24,192.168.0.0/16,fd00:1:d::/64,::/0", false),
        ("ipv4 loopback", "224.0.0.0/24,192.168.0.0/16,fd00:1:d::/64,127.0.0.0/8", true),
        ("ipv4 loopback smaller range", "224.0.0.0/24,192.168.0.0/16,127.0.0.0/28", true),
        ("ipv4 loopback within larger range", "224.0.0.0/24,192.168.0.0/16,64.0.0.0/2", true),
        ("non loop loopback", "128.0.2.0/28,224.0.0.0/24,192.168.0.0/16", false),
        ("primary", "primary", true),
    ] {
        let found = addresses(list, "", true);
        assert_eq!(found.split(' ').any(|ip| ip == "127.0.0.1"), wanted, "{name}: {found}");
    }
    assert_eq!(addresses("", "", true), "127.0.0.1 ::1");
}

/// TestNewNodeManager, as far as it tells which address is the primary one; fail-open it is not.
#[test]
fn primary() {
    let own = |addresses: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: new-node}}, \
             status: {{addresses: [{addresses}]}}}}"
        )
    };
    for (status, wanted) in [
        ("", ""),
        ("{type: Hostname, address: test-node}", ""),
        (
            "{type: InternalIP, address: 192.168.1.2}, {type: InternalIP, address: 192.168.0.2}",
            "192.168.1.2",
        ),
        (
            "{type: ExternalIP, address: 192.168.1.2}, {type: InternalIP, address: 192.168.0.2}",
            "192.168.0.2",
        ),
        ("{type: ExternalIP, address: 192.168.1.2}", "192.168.1.2"),
        (
            "{type: InternalIP, address: '2001:db8::1'}, {type: InternalIP, address: 192.168.0.2}",
            "192.168.0.2 2001:db8::1",
        ),
        ("{type: InternalIP, address: nonsense}", ""),
        ("{type: InternalIP, address: 192.168.000.002}", "192.168.0.2"),
    ] {
        let settings = Settings {
            node_name: "new-node".into(),
            nodeport_addresses: NodePortAddresses::Primary,
            ..Settings::default()
        };
        let mut lab = Lab::with("", settings);
        lab.apply("node.yaml", &own(status));
        let all: Vec<_> =
            lab.cluster.nodes().nodeport_addresses().keys().map(ToString::to_string).collect();
        assert_eq!(all.join(" "), wanted, "{status}");
        // TestNodeManagerOnNodeDelete, and a Node that is not filled in yet.
        for gone in [String::new(), own("")] {
            lab.apply("node.yaml", &gone);
            let kept: Vec<_> =
                lab.cluster.nodes().nodeport_addresses().keys().map(ToString::to_string).collect();
            assert_eq!(kept, all, "{gone}");
        }
    }
}

/// NewServiceHealthServer: the wildcard, if the list has all of a family; else what it names, loopback
/// addresses too. An address of all links is none that anybody could listen on.
#[test]
fn health_check_addresses() {
    let interfaces = "10.20.30.51 100.200.201.1 127.0.0.1 2001:db8::1 fd00::1 ::1 fe80::1 fe80::2";
    for (list, wanted) in [
        ("", "0.0.0.0 ::"),
        ("0.0.0.0/0,::/0", "0.0.0.0 ::"),
        ("10.20.30.0/24,0.0.0.0/0", "0.0.0.0 ::"),
        ("::/0", "0.0.0.0 ::"),
        ("10.20.30.0/24", "10.20.30.51 ::"),
        ("2001:db8::/64", "0.0.0.0 2001:db8::1"),
        ("10.20.30.0/24,127.0.0.0/8,fd00::/8,fe80::/10", "10.20.30.51 127.0.0.1 fd00::1"),
        ("192.0.2.0/24,fe80::/10", ""),
        ("128.0.0.0/1,8000::/1", "fd00::1"),
        ("primary", "100.200.201.1"),
    ] {
        let settings = Settings {
            node_name: "a".into(),
            nodeport_addresses: list.parse().unwrap(),
            ..Settings::default()
        };
        let mut cluster = Cluster::new(settings);
        let local = interfaces.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        cluster.apply(Change::LocalAddresses(local));
        // The second one is on no interface, and the Node lacks a family.
        let addresses = ["100.200.201.1", "198.51.100.1"].map(|ip| ip.parse().unwrap()).to_vec();
        cluster.apply(Change::Node("a".into(), Some(Node { addresses, ..Node::default() })));
        let all: Vec<_> =
            cluster.nodes().health_addresses().iter().map(ToString::to_string).collect();
        assert_eq!(all.join(" "), wanted, "{list}");
    }
}

#[test]
fn an_address_that_is_ours_too_is_ours() {
    let lab = Lab::new(&(node("other", "192.168.0.11") + &node("twin", "192.168.1.2")));
    let all = lab.cluster.nodes().nodeport_addresses();
    let of = |ip: &str| all.get(&ip.parse().unwrap()).copied();
    assert_eq!(of("192.168.0.11"), Some(NodeAddr::Other));
    assert_eq!(of("192.168.1.2"), Some(NodeAddr::Own));
    assert_eq!(of("192.168.0.2"), Some(NodeAddr::Own));
    assert_eq!(of("127.0.0.1"), None);
}
