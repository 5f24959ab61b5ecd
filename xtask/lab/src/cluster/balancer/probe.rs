//! Which nodes answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use super::super::network::Addresses;

/// Most time for an answer.
const ANSWERS: Duration = Duration::from_secs(1);
/// How often a node that answered 200 may say nothing before it is taken for dead: the machine may
/// be busy.
const SILENT: u32 = 3;

/// What nodes said last.
pub(super) struct Health {
    nodes: u8,
    known: BTreeMap<(u16, u8), Node>,
}

#[derive(Clone, Copy, Default)]
struct Node {
    is_up: bool,
    silent: u32,
}

impl Node {
    fn hear(&mut self, status: Option<u16>) {
        self.silent = if status.is_some() { 0 } else { self.silent + 1 };
        self.is_up = match status {
            Some(status) => status == 200,
            None => self.is_up && self.silent < SILENT,
        };
    }
}

impl Health {
    pub(super) fn of(nodes: u8) -> Self {
        Self { nodes, known: BTreeMap::new() }
    }

    /// Asks all nodes at these ports, at the same time, and forgets all other ports.
    pub(super) fn look(&mut self, ports: &BTreeSet<u16>) {
        let all = || ports.iter().flat_map(|port| (1..=self.nodes).map(|node| (*port, node)));
        let heard: Vec<_> = thread::scope(|scope| {
            let asked: Vec<_> = all()
                .map(|(port, node)| {
                    let address = SocketAddr::from((Addresses::of(node).v4(), port));
                    ((port, node), scope.spawn(move || ask(address)))
                })
                .collect();
            asked.into_iter().map(|(at, asked)| (at, asked.join().ok().flatten())).collect()
        });
        self.known.retain(|(port, _), _| ports.contains(port));
        for (at, status) in heard {
            self.known.entry(at).or_default().hear(status);
        }
    }

    /// The nodes that may get packets, by what they say at this port.
    pub(super) fn up(&self, port: u16) -> Vec<u8> {
        let up = |node: &u8| self.known.get(&(port, *node)).is_some_and(|node| node.is_up);
        (1..=self.nodes).filter(up).collect()
    }
}

/// The status that is answered to a request for /healthz.
fn ask(address: SocketAddr) -> Option<u16> {
    let mut connection = TcpStream::connect_timeout(&address, ANSWERS).ok()?;
    connection.set_read_timeout(Some(ANSWERS)).ok()?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::TcpListener};

    use super::*;

    #[test]
    fn a_word_counts_at_once_and_silence_only_after_a_while() {
        let mut node = Node::default();
        node.hear(None);
        assert!(!node.is_up);
        node.hear(Some(200));
        node.hear(None);
        node.hear(None);
        assert!(node.is_up);
        node.hear(None);
        assert!(!node.is_up);
        node.hear(Some(200));
        node.hear(Some(503));
        assert!(!node.is_up);
    }

    #[test]
    fn the_status_is_read_from_the_answer() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let request = thread::spawn(move || {
            let (mut connection, _) = server.accept().unwrap();
            let mut request = [0; 16];
            connection.read_exact(&mut request).unwrap();
            connection.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap();
            request
        });
        assert_eq!(ask(address), Some(503));
        assert_eq!(&request.join().unwrap(), b"GET /healthz HTT");
        assert_eq!(ask(address), None);
    }
}
