//! The load balancer of the testbed: what the controller of a cloud and its network do for Services of
//! type LoadBalancer. It runs in the control box, which all packets from outside pass.
//!
//! A Service gets an address of each of its families into its status, and the finalizer by which its
//! address is free again before it is gone. The control box leads packets for the address to the nodes
//! that answer 200 at the health check node port, or, where the Service has none, at that of the proxy;
//! they may reach any of these, connection by connection. With session affinity they reach one of them,
//! as long as it answers: each node knows its own clients only.
//!
//! | file | |
//! |---|---|
//! | `service` | what matters of a Service, and what is to be changed in it |
//! | `pool` | addresses, and who has them |
//! | `watch` | Services, as the API server tells of them |
//! | `probe` | which nodes answer |
//! | `routes` | where packets for an address go |

mod pool;
mod probe;
mod routes;
mod service;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tools::exec::{answer, say};

use self::{
    pool::Pool,
    probe::Health,
    routes::{Routes, nodes_for},
    service::{Edit, Name, Service},
    watch::{News, follow},
};

/// Serve Services of type LoadBalancer, from the control box.
#[derive(clap::Args)]
pub(crate) struct Balance {
    /// How many nodes there are.
    nodes: u8,
    #[command(flatten)]
    kubectl: Kubectl,
}

/// How the API server is spoken to.
#[derive(clap::Args, Clone)]
struct Kubectl {
    #[arg(value_name = "KUBECTL")]
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// Between two looks at the nodes.
const LOOK: Duration = Duration::from_millis(500);
/// Where a proxy says whether its node may get packets for Services.
const PROXY_HEALTH: u16 = 10256;
/// Connections go to nodes by addresses and ports, not by addresses alone.
const HASH_POLICY: [&str; 2] = [
    "/proc/sys/net/ipv4/fib_multipath_hash_policy",
    "/proc/sys/net/ipv6/fib_multipath_hash_policy",
];

/// Returns only with an error.
pub(crate) fn balance(args: &Balance) -> Result<()> {
    for policy in HASH_POLICY {
        fs::write(policy, "1").with_context(|| format!("cannot write {policy}"))?;
    }
    let mut balancer = Balancer {
        kubectl: args.kubectl.clone(),
        services: BTreeMap::new(),
        pool: Pool::default(),
        health: Health::of(args.nodes),
        routes: Routes::begin()?,
    };
    let (tell, news) = mpsc::channel();
    follow(args.kubectl.clone(), tell);
    let mut next = Instant::now();
    loop {
        match news.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(news) => balancer.take(news),
            Err(RecvTimeoutError::Timeout) => {
                balancer.look();
                next = Instant::now() + LOOK;
            }
            Err(RecvTimeoutError::Disconnected) => bail!("nobody tells of Services any more"),
        }
        balancer.turn()?;
    }
}

struct Balancer {
    kubectl: Kubectl,
    services: BTreeMap<Name, Service>,
    pool: Pool,
    health: Health,
    routes: Routes,
}

impl Balancer {
    fn take(&mut self, news: News) {
        match news {
            News::All(all) => self.services = all,
            // What was changed here is known before it is told.
            News::One(name, service) => {
                let known = self.services.get(&name);
                if known.is_none_or(|known| known.version < service.version) {
                    self.services.insert(name, service);
                }
            }
            News::Gone(name) => drop(self.services.remove(&name)),
        }
    }

    /// The answer to what ends a Service has an older version than the change before that.
    fn changed(&mut self, name: Name, mut service: Service) {
        let known = self.services.get(&name).map_or(0, |known| known.version);
        service.version = service.version.max(known);
        self.services.insert(name, service);
    }

    fn look(&mut self) {
        let ports = self.services.values().filter(|service| service.is_wanted);
        let mut ports: BTreeSet<_> = ports.map(Service::health_port).collect();
        ports.insert(PROXY_HEALTH);
        self.health.look(&ports);
    }

    /// Addresses first, then the way to them, then what is said of them.
    fn turn(&mut self) -> Result<()> {
        self.pool.give(&self.services);
        let mut wanted = BTreeMap::new();
        for (name, service) in self.services.iter().filter(|(_, service)| service.is_wanted) {
            for address in self.pool.of(name) {
                let up = self.health.up(service.health_port());
                let nodes = nodes_for(&up, service.is_sticky, self.routes.of(address), address);
                wanted.insert(address, nodes);
            }
        }
        self.routes.become_these(wanted)?;
        let edits: Vec<_> = self
            .services
            .iter()
            .flat_map(|(name, service)| {
                let edits = service.edits(self.pool.of(name));
                edits.into_iter().map(|edit| (name.clone(), edit))
            })
            .collect();
        for (name, edit) in edits {
            // It may be gone, or the API server away: then there is news, or the next turn.
            match self.edit(&name, &edit) {
                Ok(service) => self.changed(name, service),
                Err(error) => say!("{name}: {error:#}"),
            }
        }
        Ok(())
    }

    fn edit(&self, name: &Name, edit: &Edit) -> Result<Service> {
        let mut patch = self.kubectl.command();
        patch.args(["--namespace", &name.namespace, "patch", "service", &name.name]);
        patch.args(["--request-timeout=15s", "--output=json"]);
        patch.args(["--patch", &edit.patch().to_string()]);
        if matches!(edit, Edit::Status(_)) {
            patch.args(["--subresource=status", "--type=merge"]);
        }
        say!("{name}: {edit:?}");
        let object = serde_json::from_str(&answer(&mut patch)?)?;
        Ok(Service::of(&object).context("kubectl answers with no Service")?.1)
    }
}

impl Kubectl {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--cache-dir").arg(&self.cache);
        command
    }
}
