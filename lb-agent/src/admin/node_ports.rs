//! A server on each Service's `healthCheckNodePort` (kube-proxy K1 to K4): how many endpoints the
//! Service has on this node, for load balancers that send connections only to nodes that have some.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use hyper::{
    StatusCode,
    header::{CONNECTION, HeaderName, HeaderValue},
};
use lb_core::{model::ObjectRef, policy::HealthCheck};
use tokio::{net::TcpListener, runtime::Handle};

use super::{
    SharedHealth,
    http::{self, Handler, Limits, Response},
};

/// Most connections at a time on one port.
const LIMITS: Limits = Limits::new(32);

/// A port that could not be opened. It is tried again at the next sync.
#[derive(Debug)]
pub struct ListenFailure {
    /// Whose port.
    pub service: ObjectRef,
    /// Where.
    pub addr: SocketAddr,
    /// Why not.
    pub error: io::Error,
}

/// The servers.
#[derive(Debug)]
pub struct NodePorts {
    runtime: Handle,
    health: SharedHealth,
    wanted: BTreeMap<ObjectRef, HealthCheck>,
    /// Where they listen: `0.0.0.0` and `::`, or some of this node's addresses.
    addresses: BTreeSet<IpAddr>,
    open: BTreeMap<ObjectRef, BTreeMap<IpAddr, CheckServer>>,
    /// The Services of which a port could not be opened.
    failing: BTreeSet<ObjectRef>,
}

#[derive(Debug)]
struct CheckServer {
    port: u16,
    /// Of the server's family; none: closed, and only a request in flight may still ask.
    endpoints: Arc<Mutex<Option<usize>>>,
    listener: Arc<TcpListener>,
}

impl NodePorts {
    /// No server yet. They will run on `runtime`, best that of [`super::server::Servers`].
    pub fn new(runtime: Handle, health: SharedHealth) -> Self {
        Self {
            runtime,
            health,
            wanted: BTreeMap::new(),
            addresses: BTreeSet::new(),
            open: BTreeMap::new(),
            failing: BTreeSet::new(),
        }
    }

    /// Whether there are servers, and no address to open them on.
    pub fn is_deaf(&self) -> bool {
        !self.wanted.is_empty() && self.addresses.is_empty()
    }

    /// Opens, closes and updates servers, after the maps were written (K4): those of the Services that
    /// changed, and those that could not be opened before. `addresses`: where they listen, if that is
    /// different. Returns all that could not be opened.
    pub fn sync(
        &mut self,
        changed: BTreeMap<ObjectRef, Option<HealthCheck>>,
        addresses: Option<BTreeSet<IpAddr>>,
    ) -> Vec<ListenFailure> {
        let mut due = std::mem::take(&mut self.failing);
        for (service, check) in changed {
            match check {
                Some(check) => self.wanted.insert(service.clone(), check),
                None => self.wanted.remove(&service),
            };
            due.insert(service);
        }
        if let Some(addresses) = addresses.filter(|addresses| *addresses != self.addresses) {
            self.addresses = addresses;
            due.extend(self.wanted.keys().cloned());
        }
        // Those that go first: a port may have a new owner.
        for service in &due {
            self.close(service);
        }
        let mut failures = Vec::new();
        for service in due {
            failures.extend(self.open_all(&service));
        }
        self.failing = failures.iter().map(|failure| failure.service.clone()).collect();
        failures
    }

    /// Closes what a Service is not to have any more.
    fn close(&mut self, service: &ObjectRef) {
        let Some(servers) = self.open.get_mut(service) else { return };
        let check = self.wanted.get(service);
        servers.retain(|ip, server| {
            let is_wanted = |check: &HealthCheck| {
                check.port == server.port && check.local.get(ip.is_ipv4()).is_some()
            };
            self.addresses.contains(ip) && check.is_some_and(is_wanted)
        });
        if servers.is_empty() {
            self.open.remove(service);
        }
    }

    /// Opens and updates what a Service is to have.
    fn open_all(&mut self, service: &ObjectRef) -> Vec<ListenFailure> {
        let mut failures = Vec::new();
        let Some(check) = self.wanted.get(service).copied() else { return failures };
        for &ip in &self.addresses {
            let Some(endpoints) = *check.local.get(ip.is_ipv4()) else { continue };
            if let Some(server) = self.open.get(service).and_then(|servers| servers.get(&ip)) {
                server.set(Some(endpoints));
                continue;
            }
            let addr = SocketAddr::new(ip, check.port);
            match self.open(service, addr, endpoints) {
                Ok(server) => {
                    self.open.entry(service.clone()).or_default().insert(ip, server);
                }
                Err(error) => {
                    failures.push(ListenFailure { service: service.clone(), addr, error });
                }
            }
        }
        failures
    }

    fn open(
        &self,
        service: &ObjectRef,
        addr: SocketAddr,
        endpoints: usize,
    ) -> io::Result<CheckServer> {
        let _context = self.runtime.enter();
        let listener = Arc::new(TcpListener::from_std(http::listen(addr)?)?);
        let endpoints = Arc::new(Mutex::new(Some(endpoints)));
        let answer = answer(service.clone(), Arc::clone(&endpoints), self.health.clone());
        self.runtime.spawn(http::serve(Arc::clone(&listener), LIMITS, answer));
        tracing::debug!(%service, %addr, "health check server");
        Ok(CheckServer { port: addr.port(), endpoints, listener })
    }
}

impl CheckServer {
    fn set(&self, endpoints: Option<usize>) {
        *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }
}

impl Drop for CheckServer {
    fn drop(&mut self) {
        self.set(None);
        // At once, whatever the other thread does: the port may be wanted again. The task ends, and
        // with it the connections.
        http::shut(&self.listener);
    }
}

fn answer(
    service: ObjectRef,
    endpoints: Arc<Mutex<Option<usize>>>,
    health: SharedHealth,
) -> Handler {
    Arc::new(move |_| {
        let endpoints = *endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let healthy = health.lock().is_serving(Instant::now());
        let mut response = say(&service, endpoints.unwrap_or(0), healthy);
        if endpoints.is_none() {
            // kube-proxy says 200 here, without a body (kubernetes/kubernetes#141272).
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    })
}

/// The answer, byte for byte kube-proxy's (K2, K3).
fn say(service: &ObjectRef, endpoints: usize, healthy: bool) -> Response {
    let ok = healthy && endpoints > 0;
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ObjectRef { namespace, name } = service;
    // The names of objects need no escapes.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let mut response = http::response(status, "application/json", body);
    response.headers_mut().insert(
        HeaderName::from_static("x-load-balancing-endpoint-weight"),
        HeaderValue::from(endpoints),
    );
    response
}

#[cfg(test)]
mod tests;
