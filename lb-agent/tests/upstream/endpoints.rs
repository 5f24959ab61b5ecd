//! endpointslicecache_test.go and endpointschangetracker_test.go: which endpoints a port has.

use lb_core::{
    model::{ObjectRef, PortRef, Protocol},
    policy,
};

use super::lab::{Lab, service, slice};

/// `port-0=80 10.0.1.1:80 ...`, local ones marked with `*`, what serves no more with `!`, and what
/// only drains with `~`.
fn endpoints(lab: &Lab, name: &str, ports: &[(&str, Protocol)]) -> Vec<String> {
    let (namespace, service) = name.split_once('/').unwrap();
    let service = ObjectRef::new(namespace, service);
    let line = |(port, protocol): &(&str, Protocol)| {
        let of = PortRef { service: service.clone(), port: (*port).into(), protocol: *protocol };
        let mut found = Vec::new();
        for slice in lab.cluster.slices(&service) {
            for p in slice.ports.iter().filter(|p| *p.name == **port && p.protocol == *protocol) {
                for e in &slice.endpoints {
                    found.push(std::net::SocketAddr::new(e.addr, p.number));
                }
            }
        }
        found.sort();
        found.dedup();
        let mark = |addr: &std::net::SocketAddr| {
            assert!(policy::knows(&lab.cluster, &of, *addr));
            if policy::serves(&lab.cluster, &of, *addr) { "" } else { "!" }
        };
        let all: Vec<_> = found.iter().map(|addr| format!("{addr}{}", mark(addr))).collect();
        format!("{port}: {}", all.join(" "))
    };
    ports.iter().map(line).collect()
}

fn backends(lab: &Lab, name: &str) -> Vec<String> {
    let sets = lab.served(name).local;
    let line = |set: &policy::BackendSet| {
        let all: Vec<_> = set.backends.iter().map(ToString::to_string).collect();
        format!("{}: {}", set.port.port, all.join(" "))
    };
    sets.iter().map(line).collect()
}

/// Endpoints `10.0.offset.1` to `count`, each `unready`th unready, each `terminating`th terminating.
fn generated(
    name: &str,
    (number, offset, count): (usize, usize, usize),
    (unready, terminating): (usize, usize),
    hosts: &[&str],
    ports: &str,
) -> String {
    let endpoint = |i: usize| {
        let host = hosts.get(i.checked_rem(hosts.len()).unwrap_or(0)).unwrap_or(&"''");
        let state = match (i.is_multiple_of(unready), i.is_multiple_of(terminating)) {
            (false, false) => "",
            (true, false) => "unready",
            (false, true) => "draining",
            (true, true) => "dead",
        };
        format!("10.0.{offset}.{i} {host} {state}")
    };
    let endpoints: Vec<_> = (1..=count).map(endpoint).collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    slice(name, number, ports, &endpoints)
}

/// A Service with the ports that the tables use.
fn web(name: &str, policy: &str) -> String {
    service(
        name,
        &format!(
            "clusterIP: 10.96.0.1, internalTrafficPolicy: {policy}, \
             ports: [{{name: port-0, port: 80}}, {{name: port-1, port: 443}}]"
        ),
        "",
    )
}

const NEVER: (usize, usize) = (999, 999);

fn range(offset: usize, numbers: impl IntoIterator<Item = usize>, port: u16) -> String {
    let all: Vec<_> = numbers.into_iter().map(|i| format!("10.0.{offset}.{i}:{port}")).collect();
    all.join(" ")
}

/// The slices, and the endpoints of the two ports with the policies Cluster and Local.
type Union<'a> = (&'a str, Vec<String>, [String; 2], [String; 2]);

/// The tables give each endpoint's place and state; here it is what a Cluster and a Local policy make
/// of them. A slice that has the name of an earlier one takes its place.
#[test]
fn test_endpoints_map_from_esc() {
    let hosts = &["test-node", "host2"];
    let name = "ns1/svc1";
    let r = |from: usize, to: usize| range(1, from..=to, 80);
    let unready = range(1, [1, 2, 3, 4, 5, 7, 8, 9, 10], 80);
    let cases: Vec<Union<'_>> = vec![
        (
            "1 slice, 2 hosts, ports 80,443",
            vec![generated(name, (1, 1, 3), NEVER, hosts, "port-0=80 port-1=443")],
            [r(1, 3), range(1, 1..=3, 443)],
            [r(2, 2), range(1, [2], 443)],
        ),
        (
            "2 slices, same port",
            vec![
                generated(name, (1, 1, 3), NEVER, &[], "port-0=80"),
                generated(name, (2, 2, 3), NEVER, &[], "port-0=80"),
            ],
            [format!("{} {}", r(1, 3), range(2, 1..=3, 80)), String::new()],
            Default::default(),
        ),
        (
            "2 overlapping slices, same port",
            vec![
                generated(name, (1, 1, 3), NEVER, &[], "port-0=80"),
                generated(name, (2, 1, 4), NEVER, &[], "port-0=80"),
            ],
            [r(1, 4), String::new()],
            Default::default(),
        ),
        (
            "2 slices, overlapping endpoints, some endpoints unready in 1 or both",
            vec![
                generated(name, (1, 1, 10), (3, 999), &[], "port-0=80"),
                generated(name, (2, 1, 10), (6, 999), &[], "port-0=80"),
            ],
            [unready, String::new()],
            Default::default(),
        ),
        (
            "2 slices, overlapping endpoints, some endpoints unready and some endpoints terminating",
            vec![
                generated(name, (1, 1, 10), (3, 5), &[], "port-0=80"),
                generated(name, (2, 1, 10), (6, 5), &[], "port-0=80"),
            ],
            [range(1, [1, 2, 3, 4, 7, 8, 9], 80), String::new()],
            Default::default(),
        ),
        (
            "2 slices, overlapping endpoints, all unready",
            vec![
                generated(name, (1, 1, 10), (1, 999), &[], "port-0=80"),
                generated(name, (2, 1, 10), (1, 999), &[], "port-0=80"),
            ],
            Default::default(),
            Default::default(),
        ),
        (
            "3 slices with different services and namespaces",
            vec![
                generated(name, (1, 1, 3), NEVER, &[], "port-0=80"),
                generated("ns1/svc2", (2, 2, 3), NEVER, &[], "port-0=80"),
                generated("ns2/svc1", (3, 3, 3), NEVER, &[], "port-0=80"),
            ],
            [r(1, 3), String::new()],
            Default::default(),
        ),
        (
            "Nil port should not break anything",
            vec![generated(name, (1, 1, 3), NEVER, hosts, "port-0=null")],
            Default::default(),
            Default::default(),
        ),
        (
            "Different endpoints with duplicate IPs should not be filtered",
            vec![
                generated(name, (1, 1, 2), NEVER, hosts, "port-0=80"),
                generated(name, (2, 1, 2), NEVER, hosts, "port-0=8080"),
            ],
            ["10.0.1.1:80 10.0.1.1:8080 10.0.1.2:80 10.0.1.2:8080".to_owned(), String::new()],
            ["10.0.1.2:80 10.0.1.2:8080".to_owned(), String::new()],
        ),
    ];
    for (case, slices, cluster, local) in cases {
        for (policy, [port0, port1]) in [("Cluster", cluster), ("Local", local)] {
            let lab = Lab::new(&(web(name, policy) + &slices.concat()));
            let wanted = [format!("port-0: {port0}"), format!("port-1: {port1}")];
            assert_eq!(backends(&lab, name), wanted, "{case}, {policy}");
        }
    }
}

#[test]
fn test_endpoint_info_by_service_port() {
    let name = "ns1/svc1";
    // The third case of the table; the others are above, under other names.
    for order in [["draining", "", "dead"], ["", "draining", "dead"], ["draining", "dead", ""]] {
        let duplicates = order.map(|state| format!("10.0.1.1 test-node {state}"));
        let duplicates: Vec<_> = duplicates.iter().map(String::as_str).collect();
        let lab = Lab::new(&(web(name, "Local") + &slice(name, 1, "port-0=80", &duplicates)));
        let found = backends(&lab, name);
        assert_eq!(
            found[0], "port-0: 10.0.1.1:80",
            "with duplicate Endpoints, prefer non-terminating"
        );
    }
    let lab = Lab::new(
        &(web(name, "Cluster")
            + &generated(name, (1, 1, 3), (2, 3), &["test-node", "host2"], "port-0=80")),
    );
    let found = endpoints(&lab, name, &[("port-0", Protocol::Tcp), ("port-0", Protocol::Udp)]);
    assert_eq!(found, ["port-0: 10.0.1.1:80 10.0.1.2:80! 10.0.1.3:80", "port-0: "]);
}

/// Ports of the Services in the next table: all that any of its slices has.
fn udp(name: &str, ports: &[u16]) -> String {
    let mut text: Vec<_> =
        ports.iter().map(|n| format!("{{name: p{n}, port: {n}, protocol: UDP}}")).collect();
    text.push("{name: p11-2, port: 999, protocol: UDP}".to_owned());
    text.push("{name: '', port: 1000, protocol: UDP}".to_owned());
    service(
        name,
        &format!(
            "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30000, \
             clusterIP: 10.96.0.1, ports: [{}]",
            text.join(", ")
        ),
        "",
    )
}

/// A slice's Service, number, ports and endpoints.
type Told<'a> = (&'a str, usize, &'a str, &'a [&'a str]);

fn told(slices: &[Told<'_>]) -> String {
    slices.iter().map(|(name, number, ports, all)| slice(name, *number, ports, all)).collect()
}

const P11: &str = "p11=11/UDP";
const EP1: &str = "ns1/ep1";

/// The slices before and after; what has endpoints then; ready local addresses; what is touched.
type Update<'a> = (&'a str, &'a [Told<'a>], &'a [Told<'a>], &'a str, &'a str, &'a str);

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn test_update_endpoints_map() {
    let unnamed: Told<'_> = (EP1, 1, "=11/UDP", &["1.1.1.1 other"]);
    let unnamed_local: Told<'_> = (EP1, 1, "=11/UDP", &["1.1.1.1 test-node"]);
    let named: Told<'_> = (EP1, 1, P11, &["1.1.1.1 other"]);
    let named_local: Told<'_> = (EP1, 1, P11, &["1.1.1.1 test-node"]);
    let two = "p11=11/UDP p12=12/UDP";
    let two_ports: Told<'_> = (EP1, 1, two, &["1.1.1.1 other", "1.1.1.2 test-node"]);
    let second: Told<'_> = (EP1, 2, "p12=12/UDP", &["1.1.1.2 other"]);
    let second_local: Told<'_> = (EP1, 2, "p12=12/UDP", &["1.1.1.2 test-node"]);
    let multi: [Told<'_>; 3] = [
        two_ports,
        (EP1, 2, "p13=13/UDP p14=14/UDP", &["1.1.1.3 other", "1.1.1.4 test-node"]),
        ("ns2/ep2", 1, "p21=21/UDP p22=22/UDP", &["2.2.2.1 other", "2.2.2.2 test-node"]),
    ];
    let local_ports: [Told<'_>; 2] =
        [(EP1, 1, two, &["1.1.1.1 test-node"]), (EP1, 2, "p13=13/UDP", &["1.1.1.3 other"])];
    let before: [Told<'_>; 5] = [
        named,
        ("ns2/ep2", 1, "p22=22/UDP", &["2.2.2.2 test-node", "2.2.2.22 test-node"]),
        ("ns2/ep2", 2, "p23=23/UDP", &["2.2.2.3 test-node"]),
        ("ns4/ep4", 1, "p44=44/UDP", &["4.4.4.4 test-node", "4.4.4.5 test-node"]),
        ("ns4/ep4", 2, "p45=45/UDP", &["4.4.4.6 test-node"]),
    ];
    let after: [Told<'_>; 4] = [
        (EP1, 1, P11, &["1.1.1.1 other", "1.1.1.11 other"]),
        (EP1, 2, "p12=12/UDP p122=122/UDP", &["1.1.1.2 other"]),
        ("ns3/ep3", 1, "p33=33/UDP", &["3.3.3.3 other"]),
        ("ns4/ep4", 1, "p44=44/UDP", &["4.4.4.4 test-node"]),
    ];
    let empty: Told<'_> = (EP1, 1, "", &[]);
    let terminating: Told<'_> = (EP1, 1, "=11/UDP", &["1.1.1.1 other draining"]);
    let cases: [Update<'_>; 18] = [
        ("empty", &[], &[], "", "", ""),
        ("no change, unnamed port", &[unnamed], &[unnamed], "ep1: 1.1.1.1:11", "", ""),
        (
            "no change, named port, local",
            &[named_local],
            &[named_local],
            "ep1:p11 1.1.1.1:11",
            "ep1=1",
            "",
        ),
        (
            "no change, multiple slices",
            &[named, second],
            &[named, second],
            "ep1:p11 1.1.1.1:11, ep1:p12 1.1.1.2:12",
            "",
            "",
        ),
        (
            "no change, multiple slices, multiple ports, local",
            &local_ports,
            &local_ports,
            "ep1:p11 1.1.1.1:11, ep1:p12 1.1.1.1:12, ep1:p13 1.1.1.3:13",
            "ep1=1",
            "",
        ),
        (
            "no change, multiple services, slices, IPs, and ports",
            &multi,
            &multi,
            "ep1:p11 1.1.1.1:11 1.1.1.2:11, ep1:p12 1.1.1.1:12 1.1.1.2:12, ep1:p13 1.1.1.3:13 \
          1.1.1.4:13, ep1:p14 1.1.1.3:14 1.1.1.4:14, ep2:p21 2.2.2.1:21 2.2.2.2:21, ep2:p22 \
          2.2.2.1:22 2.2.2.2:22",
            "ep1=2 ep2=1",
            "",
        ),
        ("add an EndpointSlice", &[], &[unnamed_local], "ep1: 1.1.1.1:11", "ep1=1", "ns1/ep1"),
        ("remove an EndpointSlice", &[unnamed_local], &[], "", "", "ns1/ep1"),
        (
            "add an IP and port",
            &[named],
            &[two_ports],
            "ep1:p11 1.1.1.1:11 1.1.1.2:11, ep1:p12 1.1.1.1:12 1.1.1.2:12",
            "ep1=1",
            "ns1/ep1",
        ),
        ("remove an IP and port", &[two_ports], &[named], "ep1:p11 1.1.1.1:11", "", "ns1/ep1"),
        (
            "add a slice to an endpoint",
            &[named],
            &[named, second_local],
            "ep1:p11 1.1.1.1:11, ep1:p12 1.1.1.2:12",
            "ep1=1",
            "ns1/ep1",
        ),
        (
            "remove a slice from an endpoint",
            &[named, second_local],
            &[named],
            "ep1:p11 1.1.1.1:11",
            "",
            "ns1/ep1",
        ),
        (
            "rename a port",
            &[named],
            &[(EP1, 1, "p11-2=11/UDP", &["1.1.1.1 other"])],
            "ep1:p11-2 1.1.1.1:11",
            "",
            "ns1/ep1",
        ),
        (
            "renumber a port",
            &[named],
            &[(EP1, 1, "p11=22/UDP", &["1.1.1.1 other"])],
            "ep1:p11 1.1.1.1:22",
            "",
            "ns1/ep1",
        ),
        (
            "complex add and remove",
            &before,
            &after,
            "ep1:p11 1.1.1.1:11 1.1.1.11:11, ep1:p12 1.1.1.2:12, ep1:p122 1.1.1.2:122, ep3:p33 \
          3.3.3.3:33, ep4:p44 4.4.4.4:44",
            "ep4=1",
            "ns1/ep1 ns2/ep2 ns3/ep3 ns4/ep4",
        ),
        (
            "change from 0 endpoint address to 1 unnamed port",
            &[empty],
            &[unnamed],
            "ep1: 1.1.1.1:11",
            "",
            "ns1/ep1",
        ),
        (
            "change from ready to terminating pod",
            &[unnamed],
            &[terminating],
            "ep1: 1.1.1.1:11",
            "",
            "ns1/ep1",
        ),
        ("change from terminating to empty pod", &[terminating], &[empty], "", "", "ns1/ep1"),
    ];
    for (name, before, after, wanted, local, touched) in cases {
        let services = [
            udp("ns1/ep1", &[11, 12, 13, 14, 122]),
            udp("ns2/ep2", &[21, 22, 23]),
            udp("ns3/ep3", &[33]),
            udp("ns4/ep4", &[44, 45]),
        ];
        let mut lab = Lab::new(&services.concat());
        lab.apply("slices.yaml", &told(before));
        let found = lab.apply("slices.yaml", &told(after));
        assert_eq!(found.join(" "), touched, "{name}");
        let (mut sets, mut checks) = (Vec::new(), Vec::new());
        for of in ["ns1/ep1", "ns2/ep2", "ns3/ep3", "ns4/ep4"] {
            let served = lab.served(of);
            let short = &of[4..];
            for set in served.local.iter().filter(|set| !set.backends.is_empty()) {
                let all: Vec<_> = set.backends.iter().map(ToString::to_string).collect();
                sets.push(format!("{short}:{} {}", set.port.port, all.join(" ")));
            }
            match served.health_check.unwrap().local.ipv4 {
                Some(0) => {}
                n => checks.push(format!("{short}={}", n.unwrap())),
            }
        }
        assert_eq!(sets.join(", "), wanted, "{name}");
        assert_eq!(checks.join(" "), local, "{name}");
    }
}

/// L2: what a flow may stay with.
#[test]
fn kept() {
    let spec = "clusterIP: 10.96.0.1, sessionAffinity: ClientIP, internalTrafficPolicy: Local, \
                externalIPs: [192.0.2.1], \
                ports: [{name: u, port: 53, protocol: UDP}, {name: t, port: 53}]";
    let all = [
        "10.0.0.1 test-node",
        "10.0.0.2 other",
        "10.0.0.3 test-node draining",
        "10.0.0.4 other lagging",
        "10.0.0.5 other dead",
        "10.0.0.6 other unready",
    ];
    let lab = Lab::new(&(service("ns/a", spec, "") + &slice("ns/a", 1, "u=53/UDP t=53", &all)));
    let sets = lab.served("ns/a").local;
    let line = |set: &policy::BackendSet| {
        let octets = |all: &[std::net::SocketAddr]| {
            all.iter()
                .map(|a| a.ip().to_string().replace("10.0.0.", ""))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let affinity = set.affinity.unwrap();
        let first = set.frontends[0];
        format!("{first}: {} kept {} for {affinity}", octets(&set.backends), octets(&set.kept))
    };
    assert_eq!(
        sets.iter().map(line).collect::<Vec<_>>(),
        [
            "10.96.0.1:53/udp: 1 kept 2 3 4 for 10800",
            "192.0.2.1:53/udp: 1 2 kept 3 4 for 10800",
            "10.96.0.1:53/tcp: 1 kept  for 10800",
            "192.0.2.1:53/tcp: 1 2 kept  for 10800",
        ]
    );
}
