//! Backends that say who they are, and clients that ask them. All sockets belong to this process and
//! to the network namespace of the thread that makes them; threads started by it inherit that.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{self, Shutdown};

use super::eventually;

/// No answer takes longer on loopback, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(20);

/// So many connections say something.
const SOME: usize = 20;

/// Servers that answer each connection with the address they listen on, and close it.
pub(crate) struct Backends(Vec<(TcpListener, JoinHandle<()>)>);

impl Backends {
    pub(crate) fn listen<'a>(addresses: impl IntoIterator<Item = &'a String>) -> Self {
        let listen = |address: &String| {
            let listener = TcpListener::bind(address)
                .unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
            let accepting = listener.try_clone().expect("a second handle");
            let address = address.clone();
            (listener, thread::spawn(move || serve(&accepting, &address)))
        };
        Self(addresses.into_iter().map(listen).collect())
    }
}

fn serve(listener: &TcpListener, address: &str) {
    // Ends when the listener is shut down.
    while let Ok((mut stream, _)) = listener.accept() {
        // A client that has gone away is its own concern.
        drop(stream.write_all(address.as_bytes()));
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        for (listener, thread) in self.0.drain(..) {
            socket::shutdown(listener.as_raw_fd(), Shutdown::Both)
                .expect("a listener to shut down");
            thread.join().expect("a server that does not panic");
        }
    }
}

pub(super) fn ask(address: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().expect("an address and a port");
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

/// See [`Node::flow`](super::node::Node::flow).
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: JoinHandle<Record>,
}

/// What a client saw.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// How often each backend answered.
    pub(crate) answers: BTreeMap<String, usize>,
    /// How often each error happened.
    pub(crate) errors: BTreeMap<String, usize>,
}

impl Flow {
    pub(super) fn start(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicUsize::new(0));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&made));
        let address = address.to_owned();
        // It stops by itself if nobody stops it.
        let deadline = Instant::now() + Duration::from_secs(120);
        let thread = thread::spawn(move || {
            let mut record = Record::default();
            while !stopped.load(Ordering::Relaxed) && Instant::now() < deadline {
                let count = match ask(&address) {
                    Ok(name) => record.answers.entry(name).or_default(),
                    Err(error) => record.errors.entry(error.to_string()).or_default(),
                };
                *count += 1;
                counter.fetch_add(1, Ordering::Relaxed);
                // A machine's ephemeral ports are few, and each is taken for a minute.
                thread::sleep(Duration::from_millis(1));
            }
            record
        });
        Self { stop, made, thread }
    }

    /// Waits until it has made some more connections.
    pub(crate) fn await_more(&self) {
        self.await_made(self.made.load(Ordering::Relaxed) + SOME);
    }

    fn await_made(&self, enough: usize) {
        eventually(6 * LIMIT, || {
            let made = self.made.load(Ordering::Relaxed);
            if made >= enough { Ok(()) } else { Err(format!("{made} connections of {enough}")) }
        });
    }

    pub(crate) fn stop(self) -> Record {
        self.await_made(SOME);
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client that does not panic")
    }
}

impl Record {
    /// All connections were answered, and by nobody else than `backends`.
    pub(crate) fn assert_unbroken<'a>(&self, backends: impl IntoIterator<Item = &'a String>) {
        let known: BTreeSet<_> = backends.into_iter().collect();
        let strangers: Vec<_> = self.answers.keys().filter(|name| !known.contains(name)).collect();
        assert!(self.errors.is_empty(), "connections failed: {self:?}");
        assert!(strangers.is_empty(), "{strangers:?} answered: {self:?}");
        assert!(self.answers.values().sum::<usize>() >= SOME, "hardly a connection: {self:?}");
    }
}
