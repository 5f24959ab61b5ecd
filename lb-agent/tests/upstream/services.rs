//! servicechangetracker_test.go and util/utils_test.go: which Services there are, and where.

use lb_core::model::{Change, ObjectRef, Service};

use super::lab::{Lab, service};

/// The port, where it can be dialled and who may; in the family asked for.
fn facts(lab: &Lab, name: &str, ipv4: bool) -> Vec<String> {
    let served = lab.served(name);
    let check = served.health_check.map_or(String::new(), |check| format!(" check={}", check.port));
    let line = |set: &lb_core::policy::BackendSet| {
        let frontends = set.frontends.iter().filter(|f| f.addr.is_ipv4() == ipv4);
        let frontends: Vec<_> = frontends.map(ToString::to_string).collect();
        if frontends.is_empty() {
            return None;
        }
        let ranges: Vec<_> = set.source_ranges.iter().map(ToString::to_string).collect();
        let from =
            if ranges.is_empty() { String::new() } else { format!(" from {}", ranges.join(",")) };
        Some(format!("{}: {}{from}{check}", set.port.port, frontends.join(" ")))
    };
    served.local.iter().filter_map(line).collect()
}

const PORTS: &str = "ports: [{name: testPort, port: 12345}]";

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn test_service_to_service_map() {
    let lb = |rest: &str| {
        format!(
            "type: LoadBalancer, clusterIP: 172.16.55.11, loadBalancerIP: 5.6.7.8, {rest} \
             ports: [{{name: port3, port: 8675, protocol: UDP, nodePort: 30061}}, \
             {{name: port4, port: 8676, protocol: UDP, nodePort: 30062}}]"
        )
    };
    let with_vip = [
        "port3: own-node-ipv4:30061/udp other-nodes-ipv4:30061/udp 10.1.2.4:8675/udp 172.16.55.11:8675/udp",
        "port4: own-node-ipv4:30062/udp other-nodes-ipv4:30062/udp 10.1.2.4:8676/udp 172.16.55.11:8676/udp",
    ];
    let without_vip = [
        "port3: own-node-ipv4:30061/udp other-nodes-ipv4:30061/udp 172.16.55.11:8675/udp",
        "port4: own-node-ipv4:30062/udp other-nodes-ipv4:30062/udp 172.16.55.11:8676/udp",
    ];
    let checked = with_vip.map(|line| format!("{line} check=345"));
    let checked = [&*checked[0], &checked[1]];
    let v4 = "clusterIP: 10.0.0.1,";
    let v6 = "clusterIP: '2001:db8:85a3:0:0:8a2e:370:7334',";
    let (ip4, ip6) = ("8.8.8.8", "'2001:db8:85a3:0:0:8a2e:370:7335'");
    let vips = format!("{{ip: {ip4}}}, {{ip: {ip6}}}");
    let (range4, range6) = ("0.0.0.0/1", "'2001:db8::/32'");
    // Also an external address and a load balancer's at once: its ranges count for it.
    let all4 = ["testPort: 10.0.0.1:12345/tcp", "testPort: 8.8.8.8:12345/tcp from 0.0.0.0/1"];
    let all6 = [
        "testPort: [2001:db8:85a3::8a2e:370:7334]:12345/tcp",
        // This node's own address is in the range (G3).
        "testPort: [2001:db8:85a3::8a2e:370:7335]:12345/tcp \
         from 2001:db8::/32",
    ];
    let with = |ip: &str, external: &str, ranges: &str| {
        format!("{ip} externalIPs: [{external}], loadBalancerSourceRanges: [{ranges}], {PORTS}")
    };
    let both = (format!("{ip4}, {ip6}"), format!("{range4}, {range6}"));
    let udp = "ports: [{name: rpc, port: 1234, protocol: UDP}]";
    let two =
        "ports: [{name: p1, port: 1234, protocol: UDP}, {name: p2, port: 1235, protocol: UDP}]";
    let (vip, plain) = ("{ip: 10.1.2.4}", "");
    let cases: Vec<(&str, String, &str, bool, &[&str])> = vec![
        ("headless service", format!("clusterIP: None, {udp}"), plain, true, &[]),
        (
            "headless sctp service",
            "clusterIP: None, ports: [{name: sip, port: 7777, protocol: SCTP}]".to_owned(),
            plain,
            true,
            &[],
        ),
        ("headless service without port", "clusterIP: None".to_owned(), plain, true, &[]),
        (
            "cluster ip service",
            format!("type: ClusterIP, clusterIP: 172.16.55.4, {two}"),
            plain,
            true,
            &["p1: 172.16.55.4:1234/udp", "p2: 172.16.55.4:1235/udp"],
        ),
        (
            "nodeport service",
            "type: NodePort, clusterIP: 172.16.55.10, ports: [{name: port1, port: \
          345, protocol: UDP, nodePort: 678}, {name: port2, port: 344, nodePort: 677}]"
                .to_owned(),
            plain,
            true,
            &[
                "port1: own-node-ipv4:678/udp other-nodes-ipv4:678/udp 172.16.55.10:345/udp",
                "port2: own-node-ipv4:677/tcp other-nodes-ipv4:677/tcp 172.16.55.10:344/tcp",
            ],
        ),
        ("load balancer service", lb(""), vip, true, &with_vip),
        (
            "load balancer service ipMode VIP",
            lb(""),
            "{ip: 10.1.2.4, ipMode: VIP}",
            true,
            &with_vip,
        ),
        (
            "load balancer service ipMode Proxy",
            lb(""),
            "{ip: 10.1.2.4, ipMode: Proxy}",
            true,
            &without_vip,
        ),
        (
            "load balancer service with only local traffic policy",
            lb("externalTrafficPolicy: Local, healthCheckNodePort: 345,"),
            vip,
            true,
            &checked,
        ),
        (
            "external name service",
            format!(
                "type: ExternalName, clusterIP: 172.16.55.4, externalName: foo2.bar.com, {udp}"
            ),
            plain,
            true,
            &[],
        ),
        (
            "service with ipv6 clusterIP under ipv4 mode, service should be filtered",
            format!("{v6} {PORTS}"),
            &vips,
            true,
            &[],
        ),
        (
            "service with ipv4 clusterIP under ipv6 mode, service should be filtered",
            format!("{v4} {PORTS}"),
            &vips,
            false,
            &[],
        ),
        (
            "service with ipv4 configurations under ipv4 mode",
            with(v4, ip4, range4),
            &vips,
            true,
            &all4,
        ),
        (
            "service with ipv6 configurations under ipv6 mode",
            with(v6, ip6, range6),
            &vips,
            false,
            &all6,
        ),
        (
            "service with both ipv4 and ipv6 configurations under ipv4 mode, ipv6 fields should be \
          filtered",
            with(v4, &both.0, &both.1),
            &vips,
            true,
            &all4,
        ),
        (
            "service with both ipv4 and ipv6 configurations under ipv6 mode, ipv4 fields should be \
          filtered",
            with(v6, &both.0, &both.1),
            &vips,
            false,
            &all6,
        ),
        (
            "service with extra space in LoadBalancerSourceRanges",
            format!("{v4} loadBalancerSourceRanges: [' 10.1.2.0/28'], {PORTS}"),
            "{ip: 8.8.8.8}",
            true,
            &["testPort: 10.0.0.1:12345/tcp", "testPort: 8.8.8.8:12345/tcp from 10.1.2.0/28"],
        ),
    ];
    for (name, spec, ingress, ipv4, wanted) in cases {
        let lab = Lab::new(&service("ns/svc", &spec, ingress));
        assert_eq!(facts(&lab, "ns/svc", ipv4), wanted, "{name}");
    }
    assert!(facts(&Lab::new(""), "ns/svc", true).is_empty(), "nothing");
}

#[test]
fn test_should_skip_service() {
    for (case, spec, skipped) in [
        ("Cluster IP is None", "clusterIP: None", true),
        ("Cluster IP is empty", "clusterIP: ''", true),
        ("ExternalName type service", "clusterIP: 1.2.3.4, type: ExternalName", true),
        ("ClusterIP type service with ClusterIP set", "clusterIP: 1.2.3.4, type: ClusterIP", false),
        ("NodePort type service with ClusterIP set", "clusterIP: 1.2.3.4, type: NodePort", false),
        (
            "LoadBalancer type service with ClusterIP set",
            "clusterIP: 1.2.3.4, type: LoadBalancer",
            false,
        ),
    ] {
        let lab = Lab::new(&service("foo/bar", spec, ""));
        assert_eq!(lab.cluster.service(&ObjectRef::new("foo", "bar")).is_none(), skipped, "{case}");
    }
}

/// A8 in all directions: TestServiceMapUpdateHeadless, TestUpdateServiceTypeExternalName,
/// TestBuildServiceMapServiceUpdate.
#[test]
fn a_service_changes_its_type() {
    let ports = "ports: [{name: p1, port: 1234, protocol: UDP, nodePort: 4321}, \
                 {name: p2, port: 1235, nodePort: 5321}]";
    let cluster_ip = service("ns1/svc1", &format!("clusterIP: 172.16.55.4, {ports}"), "");
    let spec = format!(
        "type: LoadBalancer, clusterIP: 172.16.55.4, {ports}, externalTrafficPolicy: Local, \
         healthCheckNodePort: 345"
    );
    let balancer = service("ns1/svc1", &spec, "{ip: 10.1.2.3}");
    let external = service(
        "ns1/svc1",
        &format!("type: ExternalName, clusterIP: 172.16.55.4, externalName: foo2.bar.com, {ports}"),
        "",
    );
    let headless = service("ns1/svc1", &format!("clusterIP: None, {ports}"), "");
    let mut lab = Lab::new("");
    let mut step = |yaml: &str| {
        let touched = lab.apply("objects.yaml", yaml).len();
        let served = lab.served("ns1/svc1");
        (touched, served.local.len(), served.health_check.map(|check| check.port))
    };
    assert_eq!(step(&headless), (0, 0, None), "headless services are ignored");
    assert_eq!(step(&external), (0, 0, None), "so are external names");
    assert_eq!(step(&cluster_ip), (1, 2, None));
    assert_eq!(step(&balancer), (1, 2, Some(345)), "change service to load-balancer");
    assert_eq!(step(&balancer), (0, 2, Some(345)), "no change");
    assert_eq!(step(&cluster_ip), (1, 2, None), "and back to ClusterIP");
    assert_eq!(step(&external), (1, 0, None));
    assert_eq!(step(&cluster_ip), (1, 2, None));
    assert_eq!(step(&headless), (1, 0, None));
}

#[test]
fn test_build_service_map_add_remove() {
    let udp = |name: &str, port: u16, node: u16| {
        format!("{{name: {name}, port: {port}, protocol: UDP, nodePort: {node}}}")
    };
    let of = |kind: &str, ip: &str, a: String, b: String| {
        format!("type: {kind}, clusterIP: {ip}, ports: [{a}, {b}]")
    };
    let all = [
        service(
            "ns2/cluster-ip",
            &of("ClusterIP", "172.16.55.4", udp("port1", 1234, 0), udp("port2", 1235, 0)),
            "",
        ),
        service(
            "ns2/node-port",
            &of(
                "NodePort",
                "172.16.55.10",
                udp("port1", 345, 678),
                udp("port2", 344, 677).replace("UDP", "TCP"),
            ),
            "",
        ),
        service(
            "ns1/load-balancer",
            &of(
                "LoadBalancer",
                "172.16.55.11",
                udp("foobar", 8675, 30061),
                udp("baz", 8676, 30062),
            ),
            "{ip: 10.1.2.4}",
        ),
        service(
            "ns1/only-local-load-balancer",
            &of(
                "LoadBalancer",
                "172.16.55.12",
                udp("foobar2", 8677, 30063),
                udp("baz", 8678, 30064),
            )
            .replace("type:", "externalTrafficPolicy: Local, healthCheckNodePort: 345, type:"),
            "{ip: 10.1.2.3}",
        ),
    ];
    let mut lab = Lab::new("");
    assert_eq!(lab.apply("objects.yaml", &all.concat()).len(), 4);
    let names: Vec<_> = lab.cluster.service_names().map(ToString::to_string).collect();
    assert_eq!(names.iter().map(|name| lab.served(name).local.len()).sum::<usize>(), 8);
    let checks: Vec<_> = names
        .iter()
        .filter_map(|name| Some((&**name, lab.served(name).health_check?.port)))
        .collect();
    assert_eq!(checks, [("ns1/only-local-load-balancer", 345)]);

    let one = service(
        "ns2/cluster-ip",
        &format!("clusterIP: 172.16.55.4, ports: [{}]", udp("p2", 1235, 0)),
        "",
    );
    assert_eq!(lab.apply("objects.yaml", &one).len(), 4);
    assert_eq!(facts(&lab, "ns2/cluster-ip", true), ["p2: 172.16.55.4:1235/udp"]);
    assert_eq!(lab.cluster.service_names().count(), 1);
}

/// A5.
#[test]
fn test_get_cluster_ip_by_family() {
    let (v4, v6) = ("10.0.0.10", "2000::1");
    for (name, spec, ip4, ip6) in [
        ("old style service ipv4", "clusterIP: 10.0.0.10", v4, ""),
        ("old style service ipv6", "clusterIP: '2000::1'", "", v6),
        (
            "service single stack ipv4",
            "clusterIP: 10.0.0.10, clusterIPs: [10.0.0.10], ipFamilies: [IPv4]",
            v4,
            "",
        ),
        (
            "service single stack ipv6",
            "clusterIP: '2000::1', clusterIPs: ['2000::1'], ipFamilies: [IPv6]",
            "",
            v6,
        ),
        (
            "service dual stack ipv4,6",
            "clusterIP: 10.0.0.10, clusterIPs: [10.0.0.10, '2000::1'], ipFamilies: [IPv4, IPv6]",
            v4,
            v6,
        ),
        (
            "service dual stack ipv6,4",
            "clusterIP: '2000::1', clusterIPs: ['2000::1', 10.0.0.10], ipFamilies: [IPv6, IPv4]",
            v4,
            v6,
        ),
        (
            "more addresses than families",
            "clusterIP: 10.0.0.10, clusterIPs: [10.0.0.10, '2000::1'], ipFamilies: [IPv4]",
            v4,
            "",
        ),
    ] {
        let lab = Lab::new(&service("ns/svc", spec, ""));
        let found = &lab.cluster.service(&ObjectRef::new("ns", "svc")).unwrap().cluster_ips;
        let of = |ipv4: bool| {
            found
                .iter()
                .find(|ip| ip.is_ipv4() == ipv4)
                .map(ToString::to_string)
                .unwrap_or_default()
        };
        assert_eq!((&*of(true), &*of(false)), (ip4, ip6), "{name}");
    }
}

/// TestMapIPsByIPFamily, TestMapCIDRsByIPFamily: each family gets its own, in whatever mixture.
#[test]
fn families_are_told_apart() {
    let all4 = ["192.168.200.2", "192.1.34.23"];
    let all6 = ["fd00:20::1", "2001:db9::3"];
    let take = |n: usize, of: [&'static str; 2]| of[..n].to_vec();
    for (n4, n6) in [(0, 0), (0, 1), (1, 0), (2, 2), (2, 0), (0, 2)] {
        let ips: Vec<_> = take(n4, all4).into_iter().chain(take(n6, all6)).collect();
        let quoted: Vec<_> = ips.iter().map(|ip| format!("'{ip}'")).collect();
        let ranges: Vec<_> = ips
            .iter()
            .map(|ip| format!("'{ip}/{}'", if ip.contains(':') { 64 } else { 24 }))
            .collect();
        let spec = format!(
            "clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ports: [{{port: 80}}], \
             externalIPs: [{}], loadBalancerSourceRanges: [{}]",
            quoted.join(", "),
            ranges.join(", ")
        );
        let lab = Lab::new(&service("ns/svc", &spec, "{ip: 9.9.9.9}, {ip: 'fd00:9::9'}"));
        for (ipv4, n) in [(true, n4), (false, n6)] {
            let sets = lab.served("ns/svc").local;
            let of = sets.iter().filter(|set| set.frontends[0].addr.is_ipv4() == ipv4);
            let of: Vec<_> = of.collect();
            let open: usize = of
                .iter()
                .filter(|set| set.source_ranges.is_empty())
                .map(|set| set.frontends.len())
                .sum();
            let ranges = of.iter().map(|set| set.source_ranges.len()).max();
            let balancer = usize::from(n == 0);
            assert_eq!((open, ranges), (1 + n + balancer, Some(n)), "{ips:?}");
        }
    }
}

/// A range that admits everybody is none (G4).
#[test]
fn test_is_zero_cidr() {
    for (name, range, vip, open) in [
        ("ipv4 cidr", "172.10.0.0/16", "9.9.9.9", false),
        ("ipv4 zero cidr", "0.0.0.0/0", "9.9.9.9", true),
        ("ipv6 cidr", "::/128", "fd00:9::9", false),
        ("ipv6 zero cidr", "::/0", "fd00:9::9", true),
    ] {
        let spec = format!(
            "clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ports: [{{port: 80}}], \
             loadBalancerSourceRanges: ['{range}']"
        );
        let lab = Lab::new(&service("ns/svc", &spec, &format!("{{ip: '{vip}'}}")));
        let sets = lab.served("ns/svc").local;
        assert_eq!(sets.iter().all(|set| set.source_ranges.is_empty()), open, "{name}");
    }
}

/// J3.
#[test]
fn a_family_that_is_disabled_is_left_out() {
    use lb_core::model::{Families, Settings};

    let spec = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001, \
                clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], \
                ports: [{port: 80, nodePort: 30000}]";
    let yaml = service("ns/svc", spec, "{ip: 9.9.9.9}, {ip: 'fd00:9::9'}");
    let families = Families { ipv4: true, ipv6: false };
    let lab = Lab::with(&yaml, Settings { families, ..Settings::default() });
    let served = lab.served("ns/svc");
    assert!(served.local.iter().flat_map(|s| &s.frontends).all(|f| f.addr.is_ipv4()));
    assert_eq!(served.local[0].frontends.len(), 4);
    let local = served.health_check.unwrap().local;
    assert_eq!((local.ipv4, local.ipv6), (Some(0), None));
    assert!(lab.cluster.nodes().nodeport_addresses().keys().all(std::net::IpAddr::is_ipv4));
    let ips = served.cluster_ips;
    assert_eq!(ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

/// CVE-2020-8554, and the switch for it.
#[test]
fn external_ips_can_be_switched_off() {
    use lb_core::model::{Cluster, Settings};

    let mut cluster = Cluster::new(Settings { external_ips: false, ..Settings::default() });
    let name = ObjectRef::new("ns", "svc");
    let service = Service {
        cluster_ips: vec!["10.0.0.1".parse().unwrap()],
        external_ips: vec!["192.0.2.1".parse().unwrap()],
        ports: vec![lb_core::model::ServicePort::new("", lb_core::model::Protocol::Tcp, 80)],
        ..Service::default()
    };
    cluster.apply(Change::Service(name.clone(), Some(service)));
    let sets = lb_core::policy::serve(&cluster, &name).local;
    let frontends: Vec<_> =
        sets.iter().flat_map(|s| &s.frontends).map(ToString::to_string).collect();
    assert_eq!(frontends, ["10.0.0.1:80/tcp"]);
}
