//! Backends that say who they are and whom they talk to.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::world::PORT;

/// Every read of a client ends after this long. A socket that learns something in this time learns it from
/// a change: unasked, stale sockets are looked for every 30 seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The same of a backend, which may have a client that says nothing, and another one behind him.
const PATIENCE_OF_BACKENDS: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(10);

/// What a backend answers: its own address, and that of its client as it sees it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) backend: SocketAddr,
    pub(crate) client: SocketAddr,
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Self {
        let (backend, client) = text.trim().split_once(' ').unwrap();
        Self { backend: backend.parse().unwrap(), client: client.parse().unwrap() }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.backend, self.client)
    }
}

/// Servers at [`PORT`] of each address, TCP and UDP.
pub(crate) struct Backends {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backends {
    pub(crate) fn start(ips: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut backends = Self { stop: Arc::default(), threads: Vec::new() };
        for ip in ips {
            let tcp = TcpListener::bind((ip, PORT)).unwrap();
            tcp.set_nonblocking(true).unwrap();
            backends.spawn(move || match tcp.accept() {
                Ok((stream, client)) => greet(&stream, client),
                Err(_) => thread::sleep(TICK),
            });
            let udp = UdpSocket::bind((ip, PORT)).unwrap();
            udp.set_read_timeout(Some(TICK)).unwrap();
            let backend = udp.local_addr().unwrap();
            backends.spawn(move || {
                let mut bytes = [0; 64];
                if let Ok((_, client)) = udp.recv_from(&mut bytes) {
                    let answer = Answer { backend, client }.to_string();
                    // The client may be gone.
                    let _ = udp.send_to(answer.as_bytes(), client);
                }
            });
        }
        backends
    }

    fn spawn(&mut self, turn: impl Fn() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                turn();
            }
        }));
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "a backend panicked");
        }
    }
}

/// Answers one line by one line. The client may leave at any point.
fn greet(stream: &TcpStream, client: SocketAddr) {
    let backend = stream.local_addr().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE_OF_BACKENDS)).unwrap();
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_ok_and(|n| n > 0) {
        let mut stream = stream;
        let _ = stream.write_all(Answer { backend, client }.to_string().as_bytes());
    }
}

/// Asks the backend at the other end of a stream.
pub(crate) fn ask(mut stream: &TcpStream) -> Answer {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"who?\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    Answer::parse(&line)
}

/// Asks the backend at the other end of a connected UDP socket.
pub(crate) fn ask_udp(socket: &UdpSocket) -> Answer {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(b"who?").unwrap();
    let mut bytes = [0; 256];
    let n = socket.recv(&mut bytes).unwrap();
    Answer::parse(std::str::from_utf8(&bytes[..n]).unwrap())
}
