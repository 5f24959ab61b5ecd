//! What an API server says to those who list and watch Services, EndpointSlices and Nodes, of objects in
//! memory: as JSON, in pages or as the beginning of a watch, as each of the proxies asks. So all of them
//! are told the same in the same way, nothing else takes the machine's time, and it is known when what
//! was said.
//!
//! Services and slices are withheld until [`ApiServer::open`].

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::{Value, json};

/// How often a watch is told that it works.
const BOOKMARK: Duration = Duration::from_secs(50);
/// Objects in one piece of the beginning of a watch.
const PIECE: usize = 500;

/// What there are objects of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Services,
    Slices,
    Nodes,
    /// There are none.
    Ranges,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Services, Self::Slices, Self::Nodes, Self::Ranges];
    /// What is withheld.
    const HELD: [Self; 2] = [Self::Services, Self::Slices];

    /// Its path, the version of its group, and what one object is.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Services => ["/api/v1/services", "v1", "Service"],
            Self::Slices => {
                ["/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"]
            }
            Self::Nodes => ["/api/v1/nodes", "v1", "Node"],
            Self::Ranges => {
                ["/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"]
            }
        }
    }

    fn bookmark(self, version: u64, ends_the_beginning: bool) -> String {
        let [_, api, kind] = self.names();
        let annotations = if ends_the_beginning {
            json!({ "k8s.io/initial-events-end": "true" })
        } else {
            json!({})
        };
        let metadata =
            json!({ "resourceVersion": version.to_string(), "annotations": annotations });
        let object = json!({ "apiVersion": api, "kind": kind, "metadata": metadata });
        json!({ "type": "BOOKMARK", "object": object }).to_string() + "\n"
    }
}

/// The objects of a kind, and who follows them.
#[derive(Default)]
struct Told {
    objects: Vec<Arc<str>>,
    /// With its version: what has changed since the beginning.
    events: Vec<(u64, String)>,
    watches: Vec<TcpStream>,
    asked: bool,
    /// When somebody had been told all objects for the first time.
    complete: Option<Instant>,
}

#[derive(Default)]
struct State {
    version: u64,
    is_open: bool,
    kinds: [Told; Kind::ALL.len()],
}

impl State {
    fn of(&mut self, kind: Kind) -> &mut Told {
        &mut self.kinds[kind as usize]
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    opened: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It, until it is dropped.
pub(super) struct ApiServer {
    shared: Arc<Shared>,
    listener: TcpListener,
}

impl ApiServer {
    /// In the network namespace of this thread.
    pub(super) fn start(
        services: Vec<Arc<str>>,
        slices: Vec<Arc<str>>,
        node: &Value,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut state = shared.lock();
        state.version = 1;
        state.of(Kind::Services).objects = services;
        state.of(Kind::Slices).objects = slices;
        state.of(Kind::Nodes).objects = vec![render(node.clone(), 1).into()];
        drop(state);
        let listener = TcpListener::bind("127.0.0.1:0").context("the API server")?;
        let (accepting, weak) = (listener.try_clone()?, Arc::downgrade(&shared));
        thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                let Some(shared) = weak.upgrade() else { return };
                // Whoever hangs up has what he wanted.
                thread::spawn(move || drop(serve(&shared, &stream)));
            }
        });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                thread::sleep(Duration::from_secs(1));
                let Some(shared) = weak.upgrade() else { return };
                if last.elapsed() > BOOKMARK {
                    last = Instant::now();
                    bookmarks(&shared);
                }
            }
        });
        Ok(Self { shared, listener })
    }

    pub(super) fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Whether somebody waits for both Services and slices.
    pub(super) fn is_asked(&self) -> bool {
        let mut state = self.shared.lock();
        Kind::HELD.into_iter().all(|kind| state.of(kind).asked)
    }

    /// Tells them from now on.
    pub(super) fn open(&self) -> Instant {
        let mut state = self.shared.lock();
        state.is_open = true;
        self.shared.opened.notify_all();
        Instant::now()
    }

    /// When the last of them was told.
    pub(super) fn told(&self) -> Option<Instant> {
        let mut state = self.shared.lock();
        let [services, slices] = Kind::HELD.map(|kind| state.of(kind).complete);
        Some(services?.max(slices?))
    }

    /// Has `object` take the place of the object of this number, and tells all who watch. Returns the
    /// time before the first was told.
    pub(super) fn change(&self, kind: Kind, index: u32, object: Value) -> Result<Instant> {
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        let object: Arc<str> = render(object, version).into();
        let event = format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n");
        let piece = chunk(&event);
        let told = state.of(kind);
        *told.objects.get_mut(index as usize).context("no such object")? = object;
        told.events.push((version, event));
        let start = Instant::now();
        told.watches.retain_mut(|stream| stream.write_all(piece.as_bytes()).is_ok());
        Ok(start)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Whoever accepts is woken.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// The object as text, with its version in it.
pub(super) fn render(mut object: Value, version: u64) -> String {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    object.to_string()
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn bookmarks(shared: &Shared) {
    let mut state = shared.lock();
    let version = state.version;
    for kind in Kind::ALL {
        let piece = chunk(&kind.bookmark(version, false));
        state.of(kind).watches.retain_mut(|stream| stream.write_all(piece.as_bytes()).is_ok());
    }
}

/// A request.
struct Request {
    is_get: bool,
    path: String,
    query: String,
    body: String,
}

impl Request {
    /// None: there is no other.
    fn read(from: &mut BufReader<&TcpStream>) -> Result<Option<Self>> {
        let mut first = String::new();
        if from.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut words = first.split(' ');
        let is_get = words.next() == Some("GET");
        let target = words.next().context("a request without a path")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        let mut length = 0;
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Some(Self { is_get, path, query, body }))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let of = |pair: &'_ str| pair.split_once('=').is_some_and(|(key, _)| key == name);
        let pair = self.query.split('&').find(|pair| of(pair))?;
        Some(&pair[name.len() + 1..])
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.parameter(name)?.parse().ok()
    }

    fn says(&self, name: &str) -> bool {
        matches!(self.parameter(name), Some("true" | "1"))
    }
}

/// Answers until the other side hangs up, or a watch begins.
fn serve(shared: &Shared, stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream);
    while let Some(request) = Request::read(&mut requests)? {
        let kind = Kind::ALL.into_iter().find(|kind| kind.names()[0] == request.path);
        match kind.filter(|_| request.is_get) {
            Some(kind) if request.says("watch") => return watch(shared, kind, &request, stream),
            Some(kind) => list(shared, kind, &request, stream)?,
            None if request.is_get
                && request.path == format!("/api/v1/nodes/{}", super::NODE_NAME) =>
            {
                let node = shared.lock().of(Kind::Nodes).objects.first().cloned();
                answer(stream, "200 OK", &node.context("there is a node")?)?;
            }
            // Events are taken, and forgotten.
            None if !request.is_get => answer(stream, "201 Created", &request.body)?,
            None => {
                let status = json!({
                    "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound",
                    "code": 404, "message": "there is nothing of the kind",
                });
                answer(stream, "404 Not Found", &status.to_string())?;
            }
        }
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, status: &str, body: &str) -> Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(body.as_bytes())?)
}

/// All objects, and their version, once they may be told.
fn objects(shared: &Shared, kind: Kind) -> (u64, Vec<Arc<str>>) {
    let mut state = shared.lock();
    state.of(kind).asked = true;
    while Kind::HELD.contains(&kind) && !state.is_open {
        state = shared.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    (state.version, state.of(kind).objects.clone())
}

fn list(shared: &Shared, kind: Kind, request: &Request, stream: &TcpStream) -> Result<()> {
    let (version, objects) = objects(shared, kind);
    let first = request.number("continue").unwrap_or(0).min(objects.len());
    let limit = request.number("limit").filter(|limit| *limit > 0).unwrap_or(objects.len());
    let last = (first + limit).min(objects.len());
    let next =
        if last < objects.len() { format!(",\"continue\":\"{last}\"") } else { String::new() };
    let [_, api, name] = kind.names();
    let items = objects[first..last].join(",");
    let body = format!(
        "{{\"kind\":\"{name}List\",\"apiVersion\":\"{api}\",\"metadata\":{{\"resourceVersion\":\
         \"{version}\"{next}}},\"items\":[{items}]}}"
    );
    answer(stream, "200 OK", &body)?;
    if last == objects.len() {
        shared.lock().of(kind).complete.get_or_insert_with(Instant::now);
    }
    Ok(())
}

/// The connection is the watch's from now on.
fn watch(shared: &Shared, kind: Kind, request: &Request, mut stream: &TcpStream) -> Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    let mut known = request.number("resourceVersion").map_or(0, |version| version as u64);
    if request.says("sendInitialEvents") {
        let (version, objects) = objects(shared, kind);
        known = version;
        for piece in objects.chunks(PIECE) {
            let event = |object| format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n");
            let events: String = piece.iter().map(event).collect();
            stream.write_all(chunk(&events).as_bytes())?;
        }
        stream.write_all(chunk(&kind.bookmark(version, true)).as_bytes())?;
        shared.lock().of(kind).complete.get_or_insert_with(Instant::now);
    }
    let mut state = shared.lock();
    let told = state.of(kind);
    for (_, event) in told.events.iter().filter(|(version, _)| *version > known) {
        stream.write_all(chunk(event).as_bytes())?;
    }
    told.watches.push(stream.try_clone()?);
    Ok(())
}
