use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_core::policy::PerFamily;

use super::*;
use crate::admin::{
    Family, Health, Moment,
    server::Servers,
    tests::{ask, connect, free_port, get, nowhere},
};

struct Bench {
    ports: NodePorts,
    health: SharedHealth,
    addresses: BTreeSet<IpAddr>,
    told: BTreeMap<ObjectRef, HealthCheck>,
    _servers: Servers,
}

impl Bench {
    fn new(addresses: &[IpAddr]) -> Self {
        let mut health = Health::new(Duration::from_secs(60), vec![Family::V4]);
        health.updated(Family::V4, Moment::now());
        let health = SharedHealth::new(health);
        let servers = nowhere();
        Self {
            ports: NodePorts::new(servers.runtime().clone(), health.clone()),
            health,
            addresses: addresses.iter().copied().collect(),
            told: BTreeMap::new(),
            _servers: servers,
        }
    }

    /// Each a Service of the namespace `ns`, its port, and its endpoints in each family.
    fn sync(&mut self, wanted: &[(&str, u16, usize, usize)]) -> Vec<ListenFailure> {
        let wanted: BTreeMap<_, _> = wanted
            .iter()
            .map(|&(name, port, local_endpoints_v4, local_endpoints_v6)| {
                let local =
                    PerFamily { ipv4: Some(local_endpoints_v4), ipv6: Some(local_endpoints_v6) };
                let check = HealthCheck { port, local };
                (ObjectRef::new("ns", name), check)
            })
            .collect();
        let all = self.told.keys().chain(wanted.keys());
        let changed = all
            .filter(|service| self.told.get(*service) != wanted.get(*service))
            .map(|service| (service.clone(), wanted.get(service).copied()))
            .collect();
        self.told = wanted;
        self.ports.sync(changed, Some(self.addresses.clone()))
    }

    /// Upstream's tHandler: the whole answer.
    fn expect(&self, addr: SocketAddr, name: &str, endpoints: usize) {
        let healthy = self.health.lock().is_serving(Instant::now());
        let status = if healthy && endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
        let body = format!(
            r#"{{
	"service": {{
		"namespace": "ns",
		"name": "{name}"
	}},
	"localEndpoints": {endpoints},
	"serviceProxyHealthy": {healthy}
}}"#
        );
        let headers = vec![
            "Connection: close".to_owned(),
            format!("Content-Length: {}", body.len()),
            "Content-Type: application/json".to_owned(),
            "X-Content-Type-Options: nosniff".to_owned(),
            format!("X-Load-Balancing-Endpoint-Weight: {endpoints}"),
        ];
        assert_eq!(get(addr, "/healthz"), (format!("HTTP/1.1 {status}"), headers, body));
    }
}

fn refused(addr: SocketAddr) {
    assert_eq!(ask(addr, "").unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{addr}");
}

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// K1 to K4: TestServer. Upstream gives Services and endpoints one after the other, here they come
/// together.
#[test]
fn test_server() {
    let mut bench = Bench::new(&[LOCALHOST]);
    let ports: Vec<_> = std::iter::repeat_with(free_port).take(5).collect();
    let number = |i: usize| ports[i].port();
    assert!(bench.sync(&[]).is_empty() && bench.ports.open.is_empty());

    for endpoints in [0, 18, 0, 11, 0, 18] {
        assert!(bench.sync(&[("b", number(0), endpoints, 7)]).is_empty());
        assert_eq!(bench.ports.open.len(), 1);
        bench.expect(ports[0], "b", endpoints);
    }
    bench.sync(&[]);
    refused(ports[0]);

    let three = |a, b, c| [("b", number(0), a, 0), ("d", number(1), b, 0), ("f", number(2), c, 0)];
    bench.sync(&three(0, 0, 0));
    for (addr, name) in ports.iter().zip(["b", "d", "f"]) {
        bench.expect(*addr, name, 0);
    }
    bench.sync(&three(9, 3, 7));
    for (addr, (name, endpoints)) in ports.iter().zip([("b", 9), ("d", 3), ("f", 7)]) {
        bench.expect(*addr, name, endpoints);
    }

    // One goes, one stays, one moves, one comes.
    bench.sync(&[("d", number(1), 3, 0), ("f", number(3), 7, 0), ("h", number(4), 6, 0)]);
    refused(ports[0]);
    refused(ports[2]);
    bench.expect(ports[1], "d", 3);
    bench.expect(ports[3], "f", 7);
    bench.expect(ports[4], "h", 6);
    bench.sync(&[("d", number(1), 0, 0), ("f", number(3), 7, 0), ("h", number(4), 6, 0)]);
    bench.expect(ports[1], "d", 0);

    // For a while the proxy is not healthy.
    for check in [Err(String::new()), Ok(())] {
        bench.health.lock().set_datapath(check, Moment::now());
        bench.expect(ports[1], "d", 0);
        bench.expect(ports[3], "f", 7);
        bench.expect(ports[4], "h", 6);
    }
}

/// K1: TestServerWithSelectiveListeningAddress.
#[test]
fn test_server_with_selective_listening_address() {
    let [a, b, other] = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]].map(IpAddr::from);
    let mut bench = Bench::new(&[a, b]);
    let port = free_port().port();
    assert!(bench.sync(&[("b", port, 18, 0)]).is_empty());
    bench.expect((a, port).into(), "b", 18);
    bench.expect((b, port).into(), "b", 18);
    refused((other, port).into());
    // An address that goes takes its server with it.
    bench.addresses.remove(&a);
    bench.sync(&[("b", port, 18, 0)]);
    refused((a, port).into());
    bench.expect((b, port).into(), "b", 18);
}

/// K1, K3: a listener and a number for each family.
#[test]
fn each_family_has_its_own_number() {
    let mut bench = Bench::new(&[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
    let port = free_port().port();
    assert!(bench.sync(&[("b", port, 1, 2)]).is_empty());
    bench.expect((Ipv4Addr::LOCALHOST, port).into(), "b", 1);
    bench.expect((Ipv6Addr::LOCALHOST, port).into(), "b", 2);
}

/// K1: as real kube-proxy answers them.
#[test]
fn any_path_and_method() {
    let mut bench = Bench::new(&[LOCALHOST]);
    let addr = free_port();
    bench.sync(&[("b", addr.port(), 2, 0)]);
    for request in [
        "GET /anything?x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        "DELETE * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let answer = ask(addr, request).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{request}{answer}");
    }
    for (request, body) in [("HEAD", false), ("GET", true)] {
        let answer = ask(addr, &format!("{request} / HTTP/1.0\r\n\r\n")).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nContent-Length: 107\r\n"), "{answer}");
        assert_eq!(answer.ends_with('}'), body, "{answer}");
    }
}

/// K4: a port that is taken is told each time, and opened when it is free.
#[test]
fn a_taken_port_is_tried_again() {
    let mut bench = Bench::new(&[LOCALHOST]);
    let (addr, other) = (free_port(), free_port());
    let taken = std::net::TcpListener::bind(addr).unwrap();
    for _ in 0..2 {
        let failures = bench.sync(&[("a", addr.port(), 1, 0), ("b", other.port(), 1, 0)]);
        let [failure] = &failures[..] else { panic!("{failures:?}") };
        assert_eq!((&*failure.service.name, failure.addr), ("a", addr));
        assert_eq!(failure.error.kind(), io::ErrorKind::AddrInUse);
        bench.expect(other, "b", 1);
    }
    drop(taken);
    assert!(bench.sync(&[("a", addr.port(), 1, 0), ("b", other.port(), 1, 0)]).is_empty());
    bench.expect(addr, "a", 1);
}

/// A port passes from one Service to another in one sync, also while it is being asked, and two
/// Services can swap theirs.
#[test]
fn a_port_changes_hands() {
    let mut bench = Bench::new(&[LOCALHOST]);
    let (one, two) = (free_port(), free_port());
    let mut connections = Vec::new();
    for round in 0..20 {
        let (a, b) = if round % 2 == 0 { (one, two) } else { (two, one) };
        let failures = bench.sync(&[("a", a.port(), 1, 0), ("b", b.port(), 2, 0)]);
        assert!(failures.is_empty(), "{failures:?}");
        bench.expect(a, "a", 1);
        bench.expect(b, "b", 2);
        // Connections that stay open.
        connections.push(connect(a));
    }
}

/// kubernetes/kubernetes#141272: a request in flight for a Service that went is never a 200.
#[test]
fn a_request_in_flight_for_a_deleted_service() {
    let mut bench = Bench::new(&[LOCALHOST]);
    let addr = free_port();
    bench.sync(&[("b", addr.port(), 1, 0)]);
    let mut stream = connect(addr);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    bench.expect(addr, "b", 1);
    bench.sync(&[]);
    // The connection may be gone before the request is whole.
    let _ = stream.write_all(b"\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    refused(addr);
}

/// The same, when the connection was not dropped in time.
#[test]
fn what_a_closed_server_answers() {
    let health = Bench::new(&[]).health;
    let answer = answer(ObjectRef::new("a", "b"), Arc::new(Mutex::new(None)), health);
    let response = answer("/");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "0");
}
