//! The two HTTP servers: health for load balancers and the kubelet, metrics for Prometheus
//! (kube-proxy K6 to K8).
//!
//! They run on a thread of their own. A port that is taken is tried again for ever.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    runtime::{self, Handle},
    sync::oneshot,
    time::sleep,
};

use super::{
    Metrics, Moment, SharedHealth,
    health::ProbeAnswer,
    http::{self, Handler, Limits, Response},
    metrics::Probe,
};

/// The port of `/healthz`, `/readyz` and `/livez`.
pub const HEALTH_PORT: u16 = 10256;
/// The port of `/metrics` and `/proxyMode`.
pub const METRICS_PORT: u16 = 10249;
/// The answer of `/proxyMode`.
pub const MODE: &str = "socklb";
/// The pause after a port was taken: kube-proxy's.
const RETRY: Duration = Duration::from_secs(5);
/// Most connections at a time of one server.
const LIMITS: Limits = Limits::new(128);
const TEXT: &str = "text/plain; charset=utf-8";

/// Where a server listens; nowhere, if the text was empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BindAddress(pub Option<SocketAddr>);

impl BindAddress {
    /// Reads `IP:PORT`, or an IP alone, which gets the default port. Empty: no server.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let ip = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, default_port));
        match text.parse().or_else(|_| ip()) {
            Ok(addr) => Ok(Self(Some(addr))),
            Err(_) => Err("use IP:PORT, or nothing for no server".to_owned()),
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |addr| addr.fmt(f))
    }
}

/// What the flags say about the servers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServerSettings {
    /// Of `/healthz`, `/readyz` and `/livez`.
    pub health: BindAddress,
    /// Of `/metrics` and `/proxyMode`.
    pub metrics: BindAddress,
    /// A port that is taken is an error, rather than tried again.
    pub bind_hard_fail: bool,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// `/healthz`, `/readyz` and `/livez`.
    Health,
    /// `/metrics` and `/proxyMode`.
    Metrics,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Health => "health",
            Self::Metrics => "metrics",
        })
    }
}

/// Why the servers did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// With [`ServerSettings::bind_hard_fail`] only.
    #[error("the {which} server cannot listen on {addr}: {error}")]
    Bind {
        /// Which server.
        which: Which,
        /// Where.
        addr: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// No thread, or no event loop.
    #[error("cannot start the thread of the admin servers: {0}")]
    Thread(#[from] io::Error),
}

/// The thread with the servers. They end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Servers {
    /// Starts them.
    pub fn start(
        settings: &ServerSettings,
        health: &SharedHealth,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let health = health_answer(health.clone(), Arc::clone(metrics));
        let wanted = [
            (Which::Health, settings.health, health),
            (Which::Metrics, settings.metrics, metrics_answer(Arc::clone(metrics))),
        ];
        let mut servers = Vec::new();
        for (which, addr, answer) in wanted {
            let Some(addr) = addr.0 else { continue };
            match http::listen_dual(addr) {
                Err(error) if settings.bind_hard_fail => {
                    return Err(StartError::Bind { which, addr, error });
                }
                first => servers.push(run(which, addr, first, answer)),
            }
        }

        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        // The runtime begins and ends there: inside the agent's own one it could do neither.
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            match runtime::Builder::new_current_thread().enable_all().build() {
                Err(error) => drop(tell.send(Err(error))),
                Ok(runtime) => {
                    drop(tell.send(Ok(runtime.handle().clone())));
                    // Until the sender is gone.
                    drop(runtime.block_on(stopped));
                }
            }
        })?;
        let runtime = told.recv().map_err(io::Error::other)??;
        for server in servers {
            runtime.spawn(server);
        }
        Ok(Self { runtime, stop: Some(stop), thread: Some(thread) })
    }

    /// Where more servers may run.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been told already.
            let _ = thread.join();
        }
    }
}

/// One server, for ever.
async fn run(
    which: Which,
    addr: SocketAddr,
    first: io::Result<std::net::TcpListener>,
    answer: Handler,
) {
    let mut listener = first.and_then(TcpListener::from_std);
    let mut told = false;
    loop {
        match listener {
            Ok(listener) => {
                tracing::info!(%addr, "{which} server");
                return http::serve(Arc::new(listener), LIMITS, answer).await;
            }
            Err(error) if !told => {
                tracing::error!(%addr, "the {which} server cannot listen, trying again: {error}");
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
        listener = http::listen_dual(addr).and_then(TcpListener::from_std);
    }
}

fn health_answer(health: SharedHealth, metrics: Arc<Metrics>) -> Handler {
    let status = |verdict: &ProbeAnswer| {
        if verdict.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    };
    let say = move |probe: Probe, verdict: ProbeAnswer| {
        let status = status(&verdict);
        metrics.probe_answered(probe, status.as_u16());
        http::response(status, "application/json", verdict.body)
    };
    Arc::new(move |path| match path {
        "/healthz" => {
            let verdict = health.lock().healthz(Moment::now());
            say(Probe::Healthz, verdict)
        }
        "/readyz" => {
            let verdict = health.lock().readyz(Instant::now());
            http::response(status(&verdict), TEXT, verdict.body)
        }
        "/livez" => {
            let verdict = health.lock().livez(Moment::now());
            say(Probe::Livez, verdict)
        }
        _ => http::not_found(),
    })
}

fn metrics_answer(metrics: Arc<Metrics>) -> Handler {
    Arc::new(move |path| match path {
        "/metrics" => exposition(&metrics),
        "/healthz" | "/healthz/ping" => http::response(StatusCode::OK, TEXT, "ok"),
        "/proxyMode" => http::response(StatusCode::OK, TEXT, MODE),
        _ => http::not_found(),
    })
}

fn exposition(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => {
            http::response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        Err(error) => http::response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests;
