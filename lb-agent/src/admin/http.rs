//! Listeners and connections, and what one client may cost.
//!
//! The ports may be reached by anybody. A client that is slow or silent is given up, a connection
//! never lives longer than [`LIFE`], a request's head has at most [`MAX_HEADER`] bytes, its body is
//! not read, and when a server has as many connections as it may have, the oldest one goes: a probe
//! gets through however many others just sit there.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::ready,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{sleep, timeout},
};

/// How long a request's head may take, and how long a connection may be idle. A little more than
/// the intervals at which load balancers ask: who asks again on an old connection shall not do so
/// while it is being closed.
const HEADER: Duration = Duration::from_secs(13);
/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(300);
/// Most bytes of a request's head.
const MAX_HEADER: usize = 16 * 1024;
/// How many connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 512;
/// The pause when no file descriptor is left.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// What a server says.
pub(super) type Response = hyper::Response<Full<Bytes>>;
/// From the path of a request to the answer. The method does not matter, as with kube-proxy.
pub(super) type Handler = Arc<dyn Fn(&str) -> Response + Send + Sync>;

/// A response whose content no browser shall guess at.
pub(super) fn response(
    status: StatusCode,
    content: &'static str,
    body: impl Into<Bytes>,
) -> Response {
    let mut response = hyper::Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// What one server may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most connections at a time.
    connections: usize,
    /// See [`HEADER`].
    header: Duration,
}

impl Limits {
    /// With this many connections at a time.
    pub(super) const fn new(connections: usize) -> Self {
        Self { connections, header: HEADER }
    }
}

/// For a path that does not exist, as Go says it.
pub(super) fn not_found() -> Response {
    response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

/// Listens on one address of one family: `::` is not `0.0.0.0`.
pub(super) fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    open(addr, true)
}

/// Listens; on either wildcard in both families, as Go's `net.Listen` does, where the machine has
/// both.
pub(super) fn listen_dual(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let on = |ip: IpAddr| open(SocketAddr::new(ip, addr.port()), false);
    if !addr.ip().is_unspecified() {
        return open(addr, true);
    }
    match on(Ipv6Addr::UNSPECIFIED.into()) {
        // Without IPv6 in the kernel, or with IPv6 disabled.
        Err(error) if no_family(&error) => on(Ipv4Addr::UNSPECIFIED.into()),
        other => other,
    }
}

fn no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(addr: SocketAddr, only_v6: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Connections of a server that is gone do not keep the next one from its port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connections are refused from now on; what accepts them ends.
pub(super) fn shut(listener: &TcpListener) {
    // A listener can be shut down, and if it is none any more there is nothing to do.
    let _ = SockRef::from(listener).shutdown(std::net::Shutdown::Both);
}

/// Answers until the listener is shut. When dropped, every connection is closed.
pub(super) async fn serve(listener: Arc<TcpListener>, limits: Limits, answer: Handler) {
    let mut connections = Connections { open: VecDeque::new(), limits };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(stream, Arc::clone(&answer)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL | libc::EBADF) => return,
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    tracing::debug!("cannot accept: {error}");
                    sleep(EXHAUSTED).await;
                }
                // The client's trouble.
                _ => {}
            },
        }
    }
}

struct Connections {
    /// Oldest first.
    open: VecDeque<AbortHandle>,
    limits: Limits,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, answer: Handler) {
        if self.open.len() >= self.limits.connections {
            self.open.retain(|task| !task.is_finished());
        }
        if self.open.len() >= self.limits.connections
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.abort();
        }
        self.open
            .push_back(tokio::spawn(connection(stream, self.limits.header, answer)).abort_handle());
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        for task in &self.open {
            task.abort();
        }
    }
}

async fn connection(stream: TcpStream, header: Duration, answer: Handler) {
    let service = service_fn(|request: Request<Incoming>| {
        ready(Ok::<_, Infallible>(answer(request.uri().path())))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header)
        .max_buf_size(MAX_HEADER)
        .title_case_headers(true)
        // `printf … | nc` is a client too.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = if let Ok(ended) = timeout(LIFE, connection.as_mut()).await {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        timeout(header, connection).await.unwrap_or(Ok(()))
    };
    if let Err(error) = ended {
        tracing::trace!("a client of the admin servers: {error}");
    }
}

#[cfg(test)]
mod tests;
