//! The parts together, and a client for the tests of the servers.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{self as unix, UnixListener},
    },
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lb_core::policy::PerFamily;

use super::*;
use crate::admin::server::BindAddress;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A port that is free at all addresses now, that no client gets as its own, and no other test.
pub(in crate::admin) fn free_port() -> SocketAddr {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    for _ in 0..20_000 {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        // Below the ephemeral ports; tests of another process begin elsewhere.
        let port = 11_000 + (std::process::id().wrapping_mul(61).wrapping_add(tried)) % 20_000;
        let port = u16::try_from(port).unwrap();
        // Who has the name has the port, until its process ends.
        let name =
            unix::SocketAddr::from_abstract_name(format!("socklb-test-port-{port}")).unwrap();
        let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        let is_taken = |ip: &IpAddr| {
            let bound = TcpListener::bind((*ip, port));
            bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        if !any.iter().any(is_taken) {
            std::mem::forget(claim);
            return (Ipv4Addr::LOCALHOST, port).into();
        }
    }
    panic!("of the TCP ports 11000 to 30999 none is free")
}

pub(in crate::admin) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The answer to a request, as it is on the wire.
pub(in crate::admin) fn ask(addr: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The answer to a GET: the status line, its headers without `date`, sorted, and the body.
pub(in crate::admin) fn get(addr: SocketAddr, path: &str) -> (String, Vec<String>, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    parts(&ask(addr, &request).unwrap())
}

pub(in crate::admin) fn parts(answer: &str) -> (String, Vec<String>, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n").map(str::to_owned);
    let status = lines.next().unwrap();
    let mut headers: Vec<_> = lines.filter(|line| !line.starts_with("Date: ")).collect();
    headers.sort_unstable();
    (status, headers, body.to_owned())
}

/// The thread without a server.
pub(in crate::admin) fn nowhere() -> Servers {
    let none = BindAddress(None);
    let settings = ServerSettings { health: none, metrics: none, bind_hard_fail: true };
    let health = SharedHealth::new(Health::new(health::TIMEOUT, Vec::new()));
    Servers::start(&settings, &health, &Arc::new(Metrics::new().unwrap())).unwrap()
}

fn admin(health: SocketAddr, metrics: SocketAddr) -> Admin {
    let settings = ServerSettings {
        health: BindAddress(Some(health)),
        metrics: BindAddress(Some(metrics)),
        bind_hard_fail: true,
    };
    Admin::start(&settings, &[Family::V4, Family::V6], Events::none()).unwrap()
}

/// A day in the life, seen from outside.
#[test]
fn from_the_loop_to_the_wire() {
    let (health, metrics) = (free_port(), free_port());
    let mut admin = admin(health, metrics);
    let status = |path| get(health, path).0;
    assert_eq!(status("/healthz"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(status("/readyz"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(status("/livez"), "HTTP/1.1 200 OK");

    admin.queued();
    admin.synced(SyncKind::Full, Duration::from_millis(3), SyncOutcome::Complete);
    assert_eq!(status("/readyz"), "HTTP/1.1 200 OK");
    admin.set_node_eligible(true);
    assert_eq!(status("/healthz"), "HTTP/1.1 200 OK");
    admin.datapath_checked(Err("broken".to_owned()));
    assert_eq!(status("/healthz"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(get(health, "/readyz").2, "broken\n");
    assert_eq!(status("/livez"), "HTTP/1.1 200 OK");
    let node_port = free_port();
    let check =
        HealthCheck { port: node_port.port(), local: PerFamily { ipv4: Some(1), ipv6: None } };
    let wanted = BTreeMap::from([(ObjectRef::new("a", "b"), Some(check))]);
    admin.serve_health_checks(wanted, Some([node_port.ip()].into()));
    assert!(get(node_port, "/").2.contains("\"serviceProxyHealthy\": false"));
    admin.datapath_checked(Ok(()));
    assert!(get(node_port, "/").2.contains("\"serviceProxyHealthy\": true"));

    admin.synced(SyncKind::Partial, Duration::from_millis(1), SyncOutcome::Partial);
    let text = get(metrics, "/metrics").2;
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 2",
        "kubeproxy_proxy_livez_total{code=\"200\"} 2",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "socklb_sync_failures_total 1",
        "socklb_datapath_healthy 1",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }

    drop(admin);
    for addr in [health, metrics, node_port] {
        assert_eq!(ask(addr, "").unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{addr}");
    }
}

/// K4: a port that is taken is told once, and again when the reason is another.
#[test]
fn a_taken_node_port_is_told_once() {
    let mut admin = admin(free_port(), free_port());
    let addr = free_port();
    let taken = TcpListener::bind(addr).unwrap();
    let check =
        HealthCheck { port: addr.port(), local: PerFamily { ipv4: Some(1), ipv6: Some(1) } };
    let service = ObjectRef::new("a", "b");
    let wanted = BTreeMap::from([(service.clone(), Some(check))]);
    admin.serve_health_checks(wanted, Some([addr.ip()].into()));
    let text = &admin.failing[&(service, addr.port())];
    assert_eq!(*text, format!("listen tcp {addr}: Address already in use (os error 98)"));
    drop(taken);
    admin.serve_health_checks(BTreeMap::new(), None);
    assert!(admin.failing.is_empty());
    assert_eq!(get(addr, "/").0, "HTTP/1.1 200 OK");
}
