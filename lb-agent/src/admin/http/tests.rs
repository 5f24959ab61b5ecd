use std::{
    io::{Read as _, Write as _},
    time::Instant,
};

use super::*;
use crate::admin::{
    server::Servers,
    tests::{connect, free_port, get, nowhere},
};

/// Where a client is given up soon.
const SOON: Limits = Limits { connections: 64, header: Duration::from_secs(2) };

/// A server, until it is dropped.
fn serve(addr: SocketAddr, limits: Limits) -> Servers {
    let servers = nowhere();
    let listener = listen(addr).unwrap();
    let answer: Answer = Arc::new(|_| response(StatusCode::OK, "text/plain", "ok"));
    servers.runtime().spawn(async move {
        let listener = Arc::new(TcpListener::from_std(listener).unwrap());
        super::serve(listener, limits, answer).await;
    });
    servers
}

/// A client that sends nothing, or one byte, is given up.
#[test]
fn a_client_that_says_nothing() {
    let addr = free_port();
    let _server = serve(addr, SOON);
    let started = Instant::now();
    let mut silent = connect(addr);
    let mut slow = connect(addr);
    slow.write_all(b"G").unwrap();
    // And one that stays after its answer.
    let mut idle = connect(addr);
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(get(addr, "/").0, "HTTP/1.1 200 OK");
    assert!(started.elapsed() < SOON.header / 2, "they do not keep others waiting");
    for client in [&mut silent, &mut slow, &mut idle] {
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
    }
    assert!(started.elapsed() < SOON.header * 2, "{:?}", started.elapsed());
}

#[test]
fn too_much_of_a_header() {
    let addr = free_port();
    let _server = serve(addr, SOON);
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

/// Many that just sit there: the oldest ones go, a probe gets through at once.
#[test]
fn five_hundred_idle_clients() {
    let addr = free_port();
    let _server = serve(addr, Limits::new(64));
    let mut idle: Vec<_> = (0..500).map(|_| connect(addr)).collect();
    let started = Instant::now();
    assert_eq!(get(addr, "/").0, "HTTP/1.1 200 OK");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // Well before its time is over.
    let first = &mut idle[0];
    assert!(matches!(first.read(&mut [0]), Ok(0) | Err(_)));
    assert!(started.elapsed() < HEADER / 2, "{:?}", started.elapsed());
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
    let _server = serve(addr, SOON);
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
