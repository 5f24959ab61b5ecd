use std::io::{Read as _, Write as _};

use super::*;
use crate::admin::{
    server::Servers,
    tests::{connect, free_port, get, nowhere},
};

/// Where a client is given up soon: long before a test loses its patience.
const SOON: Limits = Limits { connections: 64, header: Duration::from_millis(500) };
/// Where no client is ever given up, as far as a test can see.
const NEVER: Limits = Limits { connections: 64, header: Duration::from_hours(24) };

/// A server, until it is dropped.
fn serve(addr: SocketAddr, limits: Limits) -> Servers {
    let servers = nowhere();
    let listener = listen(addr).unwrap();
    let answer: Handler = Arc::new(|_| response(StatusCode::OK, "text/plain", "ok"));
    servers.runtime().spawn(async move {
        let listener = Arc::new(TcpListener::from_std(listener).unwrap());
        super::serve(listener, limits, answer).await;
    });
    servers
}

/// One that sends nothing, one that sends a byte, and one that stays after its answer.
fn lingering(addr: SocketAddr) -> [std::net::TcpStream; 3] {
    let silent = connect(addr);
    let mut slow = connect(addr);
    slow.write_all(b"G").unwrap();
    let mut idle = connect(addr);
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    [silent, slow, idle]
}

/// Nobody has to wait until a client that says nothing is given up: here, that is never.
#[test]
fn a_client_that_says_nothing_keeps_nobody_waiting() {
    let addr = free_port();
    let _server = serve(addr, NEVER);
    let _lingering = lingering(addr);
    assert_eq!(get(addr, "/").0, "HTTP/1.1 200 OK");
}

/// It is given up, and it is its own silence that does it: with more time, others stay.
#[test]
fn a_client_that_says_nothing_is_given_up() {
    let (patient, addr) = (free_port(), free_port());
    let _servers = (serve(patient, NEVER), serve(addr, SOON));
    let mut before = lingering(patient);
    for mut client in lingering(addr) {
        let mut rest = Vec::new();
        // Closed, and not only out of our patience.
        if let Err(error) = client.read_to_end(&mut rest) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
    }
    let [silent, slow, _] = &mut before;
    for client in [silent, slow] {
        client.set_nonblocking(true).unwrap();
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    }
}

#[test]
fn too_much_of_a_header() {
    let addr = free_port();
    let _server = serve(addr, Limits::new(64));
    let ask = |size: usize| {
        let mut client = connect(addr);
        let head = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ";
        let request = format!("{head}{}\r\n\r\n", "a".repeat(size));
        // The server may hang up in the middle of it.
        let _ = client.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    for size in [2 * MAX_HEADER, 1 << 20] {
        let answer = ask(size);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert!(ask(MAX_HEADER / 2).starts_with("HTTP/1.1 200 OK\r\n"));
}

/// A body is not read, however long.
#[test]
fn a_body_without_end() {
    let addr = free_port();
    let _server = serve(addr, Limits::new(64));
    let mut client = connect(addr);
    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n").unwrap();
    let chunk = vec![b'a'; 65_536];
    let mut sent = 0_usize;
    while client.write_all(&chunk).is_ok() {
        sent += chunk.len();
        assert!(sent < 1 << 28, "it is read");
    }
    assert_eq!(get(addr, "/").0, "HTTP/1.1 200 OK");
}

/// Many that just sit there: the oldest ones go, a probe gets through. Nobody's time is ever over.
#[test]
fn five_hundred_idle_clients() {
    let addr = free_port();
    let _server = serve(addr, NEVER);
    let mut idle: Vec<_> = (0..500).map(|_| connect(addr)).collect();
    assert_eq!(get(addr, "/").0, "HTTP/1.1 200 OK");
    let first = idle[0].read(&mut [0]);
    assert!(
        matches!(&first, Ok(0))
            || first.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset),
        "{first:?}"
    );
    // The youngest may still ask.
    let last = &mut idle[499];
    last.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

/// `printf … | nc`: who has said all still gets the answer.
#[test]
fn a_client_that_shuts_its_side() {
    let addr = free_port();
    let _server = serve(addr, Limits::new(64));
    // Whether the server sees the request first, or the end as well, is chance.
    for _ in 0..200 {
        let mut client = connect(addr);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}
