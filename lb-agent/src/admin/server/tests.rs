use std::{net::TcpStream, time::Instant};

use super::*;
use crate::admin::{
    Family, Health,
    health::TIMEOUT,
    tests::{ask, free_port, get, parts},
};

fn start(settings: &ServerSettings) -> Result<Servers, StartError> {
    let mut health = Health::new(TIMEOUT, vec![Family::V4]);
    health.updated(Family::V4, Moment::now());
    health.set_node_eligible(true);
    Servers::start(settings, &SharedHealth::new(health), &Arc::new(Metrics::new().unwrap()))
}

fn at(health: Option<SocketAddr>, metrics: Option<SocketAddr>) -> ServerSettings {
    ServerSettings {
        health: BindAddress(health),
        metrics: BindAddress(metrics),
        bind_hard_fail: true,
    }
}

fn text_headers(length: usize) -> Vec<String> {
    vec![
        "Connection: close".to_owned(),
        format!("Content-Length: {length}"),
        "Content-Type: text/plain; charset=utf-8".to_owned(),
        "X-Content-Type-Options: nosniff".to_owned(),
    ]
}

#[test]
fn bind_addresses() {
    for (text, addr) in [
        ("0.0.0.0:10256", "0.0.0.0:10256"),
        ("127.0.0.1", "127.0.0.1:7"),
        ("::", "[::]:7"),
        ("[::1]:8", "[::1]:8"),
        ("", ""),
    ] {
        assert_eq!(BindAddress::parse(text, 7).unwrap().to_string(), addr);
    }
    for text in ["localhost:1", ":1", "1", "1.2.3.4:", "[::1]", "1.2.3.4:70000"] {
        assert!(BindAddress::parse(text, 7).is_err(), "{text}");
    }
}

/// K6, K7: headers and paths, as a real kube-proxy v1.36 answers.
#[test]
fn health_on_the_wire() {
    let addr = free_port();
    let _servers = start(&at(Some(addr), None)).unwrap();
    for path in ["/healthz", "/livez", "/healthz?x=1"] {
        let (status, headers, body) = get(addr, path);
        assert_eq!(status, "HTTP/1.1 200 OK");
        let expected = [
            "Connection: close".to_owned(),
            format!("Content-Length: {}", body.len()),
            "Content-Type: application/json".to_owned(),
            "X-Content-Type-Options: nosniff".to_owned(),
        ];
        assert_eq!(headers, expected);
        assert!(body.starts_with(r#"{"lastUpdated":"2"#), "{body}");
    }
    for path in ["/readyz", "/readyz?verbose"] {
        let expected = ("HTTP/1.1 200 OK".to_owned(), text_headers(2), "ok".to_owned());
        assert_eq!(get(addr, path), expected);
    }
    for path in ["/", "/healthz/", "/readyz/", "/metrics"] {
        let (status, headers, body) = get(addr, path);
        assert_eq!(status, "HTTP/1.1 404 Not Found");
        assert_eq!(headers, text_headers(19));
        assert_eq!(body, "404 page not found\n");
    }
    let post = ask(addr, "POST /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(parts(&post).0, "HTTP/1.1 200 OK");
}

/// K8.
#[test]
fn metrics_on_the_wire() {
    let addr = free_port();
    let _servers = start(&at(None, Some(addr))).unwrap();
    for (path, body) in [("/healthz", "ok"), ("/healthz/ping", "ok"), ("/proxyMode", "socklb")] {
        let expected = ("HTTP/1.1 200 OK".to_owned(), text_headers(body.len()), body.to_owned());
        assert_eq!(get(addr, path), expected);
    }
    for path in ["/livez", "/readyz", "/", "/healthz/nope"] {
        assert_eq!(get(addr, path).0, "HTTP/1.1 404 Not Found");
    }
    let (status, headers, body) = get(addr, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let content = "Content-Type: text/plain; version=0.0.4; charset=utf-8".to_owned();
    assert!(headers.contains(&content), "{headers:?}");
    assert!(body.contains("\nprocess_open_fds "), "{body}");
}

/// As kube-proxy's 0.0.0.0: both families.
#[test]
fn a_wildcard_is_for_both_families() {
    let port = free_port().port();
    for wildcard in ["0.0.0.0", "::"] {
        let addr = BindAddress::parse(wildcard, port).unwrap();
        let _servers = start(&at(addr.0, None)).unwrap();
        for localhost in ["127.0.0.1", "::1"] {
            let ip: IpAddr = localhost.parse().unwrap();
            assert_eq!(get((ip, port).into(), "/livez").0, "HTTP/1.1 200 OK", "{localhost}");
        }
    }
}

#[test]
fn a_taken_port_with_and_without_hard_fail() {
    let addr = free_port();
    let taken = std::net::TcpListener::bind(addr).unwrap();
    let error = start(&at(None, Some(addr))).unwrap_err();
    assert!(matches!(error, StartError::Bind { which: Which::Metrics, .. }), "{error}");

    let health = free_port();
    let settings = ServerSettings { bind_hard_fail: false, ..at(Some(health), Some(addr)) };
    let _servers = start(&settings).unwrap();
    // The other one works.
    assert_eq!(get(health, "/livez").0, "HTTP/1.1 200 OK");
    drop(taken);
    let deadline = Instant::now() + RETRY + Duration::from_secs(10);
    while TcpStream::connect(addr).is_err() {
        assert!(Instant::now() < deadline, "not tried again");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(get(addr, "/proxyMode").2, MODE);
}

/// Started and ended inside a runtime, as the agent does it.
#[tokio::test]
async fn inside_a_runtime() {
    let addr = free_port();
    let servers = start(&at(Some(addr), None)).unwrap();
    start(&at(Some(addr), None)).unwrap_err();
    let status = tokio::task::spawn_blocking(move || get(addr, "/livez").0).await.unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
    drop(servers);
}
