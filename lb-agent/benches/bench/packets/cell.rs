//! All that is measured of one proxy with one number of Services.

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    api::{ApiServer, render},
    changes::{Changes, Taken, all_answer},
    client::{PATIENCE, Seen, ask, bulk, latency, rate},
    group::Group,
    network::Network,
    objects::{self, Edition, endpoint, load_balancer, node_port, node_ports},
    pods::Pods,
    proxy::{Name, Proxy, Site, Syncs},
    stop,
};
use crate::{cluster::Shape, lab::Lab, samples::Samples};

/// How many Services are asked whether they are served: the last, and others all over the cluster.
const ASKED: u32 = 100;
/// How many are asked besides, when all are.
const CHECKED: u32 = 1_000;
/// Connections whose latency is measured.
const CONNECTIONS: u32 = 2_000;
/// How long connections are opened, and how long one is written to.
const TIME: Duration = Duration::from_secs(3);
/// How often one is.
const REPEAT: usize = 5;
/// Changes of each kind at most.
const CHANGES: u32 = 200;
/// How long a proxy has to come to rest.
const REST: Duration = Duration::from_secs(3);
/// Until it asks for objects.
const STARTS: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Cell {
    /// In seconds; none: it took longer than the limit, and nothing else was measured.
    pub(super) first: Option<First>,
    pub(super) changes: Vec<Taken>,
    /// A sync after a change, by the proxy's own account: the mean, in ms.
    pub(super) own: Option<f64>,
    pub(super) traffic: Option<Traffic>,
    pub(super) memory: Option<Memory>,
}

/// The first sync, in s.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct First {
    /// From the first object told to all Services answering.
    pub(super) whole: f64,
    /// From the last object told.
    pub(super) after: f64,
    /// By the proxy's own account.
    pub(super) own: f64,
}

/// Connections from outside; latencies in µs.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Traffic {
    pub(super) straight: Samples,
    pub(super) balanced: Samples,
    pub(super) node_ports: Samples,
    /// Connections in a second.
    pub(super) straight_rate: f64,
    pub(super) balanced_rate: f64,
    /// In Gbit/s.
    pub(super) straight_bulk: Samples,
    pub(super) again_bulk: Samples,
    pub(super) balanced_bulk: Samples,
}

/// In MB of 10^6 bytes.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Memory {
    pub(super) resident: f64,
    /// After the changes.
    pub(super) changed: f64,
    /// The most there was of its process, and of all it started, with what the kernel has for them.
    pub(super) peak: f64,
    pub(super) peak_of_all: f64,
    /// The kernel's, for all of it.
    pub(super) kernel: f64,
    /// The kernel's, for the rules alone.
    pub(super) rules: f64,
}

/// Of all cells.
pub(super) struct Settings<'a> {
    /// The directory of kube-proxy.
    pub(super) kubernetes: &'a Path,
    /// How long changes are made; the last of them may take longer.
    pub(super) time_for_changes: Duration,
}

/// Of all cells of a size.
pub(super) struct Objects {
    shape: Shape,
    services: Vec<Arc<str>>,
    slices: Vec<Arc<str>>,
}

impl Objects {
    pub(super) fn new(services: u32) -> Result<Self> {
        let shape = objects::shape(services);
        let text = |value| Arc::from(render(value, 1));
        let service = |i| Ok(text(objects::service(shape, i, &[])?));
        let slice = |i| Ok(text(objects::slice(shape, i, Edition::Plain)?));
        Ok(Self {
            shape,
            services: (0..services).map(service).collect::<Result<_>>()?,
            slices: (0..services).map(slice).collect::<Result<_>>()?,
        })
    }

    /// So many of the Services, all over the cluster; the last is one of them.
    fn some(&self, most: u32) -> impl Iterator<Item = u32> + use<> {
        let services = self.shape.services;
        let step = (services / most.min(services)).max(1);
        (0..services).rev().step_by(step as usize)
    }
}

/// What socklb has to be told of so many Services.
pub(super) const fn flags(services: u32) -> &'static [&'static str] {
    if services > 20_000 { &["--max-services", "131072", "--max-backends", "1048576"] } else { &[] }
}

impl Cell {
    /// Measures it in a network of its own.
    pub(super) fn measure(
        lab: &Lab,
        name: Name,
        objects: &Objects,
        settings: &Settings<'_>,
    ) -> Result<Self> {
        let services = objects.shape.services;
        let place = format!("{name:?}-{services}");
        let (dir, bpffs) = (lab.dir().join(&place), lab.bpffs(&place)?);
        fs::create_dir(&dir)?;
        let cgroup = lab.cgroup(&place)?;
        let network = Network::new()?;
        let _pods = [Pods::start(&network.pods)?, Pods::start(&network.marked)?];
        let group = Group::new()?;
        let (told, slices) = (objects.services.clone(), objects.slices.clone());
        let api = network.node.within(|| ApiServer::start(told, slices, &objects::node()))?;
        let site = Site {
            node: &network.node,
            group: &group,
            dir: &dir,
            api: api.address()?,
            kubernetes: settings.kubernetes,
            cgroup: &cgroup,
            bpffs: &bpffs,
        };
        let mut proxy = Proxy::start(name, &site, flags(services))?;
        let time = settings.time_for_changes;
        let stage = Stage { objects, network: &network, api: &api, time };
        let measured = stage.measure(name, &mut proxy, &group);
        let mut cell =
            measured.with_context(|| format!("{} said:\n{}", name.title(), proxy.last_words()))?;
        drop((proxy, api));
        group.empty()?;
        // Without its pins, programs and maps go as well; what remains of the kernel's are the rules.
        fs::remove_dir_all(&bpffs)?;
        sleep(REST);
        if let Some(memory) = &mut cell.memory {
            memory.rules = group.kernel()?;
        }
        fs::remove_dir_all(&dir)?;
        Ok(cell)
    }
}

/// Where a proxy is at work.
struct Stage<'a> {
    objects: &'a Objects,
    network: &'a Network,
    api: &'a ApiServer,
    /// For changes.
    time: Duration,
}

impl Stage<'_> {
    fn measure(&self, name: Name, proxy: &mut Proxy, group: &Group) -> Result<Cell> {
        let Some(first) = self.first(proxy)? else {
            return Ok(Cell {
                first: None,
                changes: Vec::new(),
                own: None,
                traffic: None,
                memory: None,
            });
        };
        eprintln!("  first sync {:.3} s", first.whole);
        sleep(REST);
        let resident = proxy.status("VmRSS")?;
        self.check()?;
        let traffic = self.network.client.within(|| self.traffic())?;
        eprintln!("  {:.0} connections in a second", traffic.balanced_rate);
        let before = Syncs::of(&self.network.node)?;
        let changes = Changes { api: self.api, shape: self.objects.shape, pause: name.pause() };
        let changes = self.network.client.within(|| changes.run(CHANGES, self.time))?;
        let syncs = Syncs::of(&self.network.node)?.since(before);
        sleep(REST);
        proxy.check()?;
        let memory = Memory {
            resident,
            changed: proxy.status("VmRSS")?,
            peak: proxy.status("VmHWM")?,
            peak_of_all: group.peak()?,
            kernel: group.kernel()?,
            rules: 0.0,
        };
        Ok(Cell {
            first: Some(first),
            changes,
            own: (syncs.count > 0.0).then(|| syncs.seconds / syncs.count * 1e3),
            traffic: Some(traffic),
            memory: Some(memory),
        })
    }

    /// From the objects told to Services that answer.
    fn first(&self, proxy: &mut Proxy) -> Result<Option<First>> {
        let start = Instant::now();
        while !self.api.is_asked() {
            stop::check()?;
            proxy.check()?;
            ensure!(start.elapsed() < STARTS, "it asks for no objects");
            sleep(Duration::from_millis(10));
        }
        // What else it does when it starts is done.
        sleep(REST);
        let (start, some) = (self.api.open(), self.objects.some(ASKED));
        let took = self.network.client.within(|| all_answer(some, start, || proxy.check()))?;
        let Some(took) = took else { return Ok(None) };
        let told = self.api.told().context("it serves what it was not told")?;
        // It counts when it has done all that belongs to a sync.
        let mut own = Syncs { count: 0.0, seconds: 0.0 };
        while own.count == 0.0 && start.elapsed() < took + PATIENCE {
            sleep(Duration::from_millis(10));
            own = Syncs::of(&self.network.node)?;
        }
        Ok(Some(First {
            whole: took.as_secs_f64(),
            after: (start + took).saturating_duration_since(told).as_secs_f64(),
            own: own.seconds,
        }))
    }

    /// Whether Services are served that nobody has waited for.
    fn check(&self) -> Result<()> {
        let ports = (0..node_ports(self.objects.shape.services)).step_by(10).filter_map(node_port);
        let all: Vec<_> = self.objects.some(CHECKED).map(load_balancer).chain(ports).collect();
        self.network.client.within(|| {
            for to in all {
                ensure!(ask(to, PATIENCE)? == Seen::Plain, "nobody serves {to}");
            }
            Ok(())
        })
    }

    fn traffic(&self) -> Result<Traffic> {
        let services = self.objects.shape.services;
        // Neighbours are asked one long after the other.
        let far = move |n: u32| n.wrapping_mul(7_919) % services;
        let to = |address: fn(u32) -> std::net::SocketAddr| {
            (0..CONNECTIONS).map(move |n| address(far(n)))
        };
        let ports = node_ports(services);
        let at_ports = (0..CONNECTIONS).filter_map(|n| node_port(n.wrapping_mul(7_919) % ports));
        let [mut straight_bulk, mut again_bulk, mut balanced_bulk] =
            [(); 3].map(|()| Samples::default());
        for n in 0..REPEAT {
            let i = far(u32::try_from(n)?);
            straight_bulk.push(bulk(endpoint(i), TIME)?);
            balanced_bulk.push(bulk(load_balancer(i), TIME)?);
            again_bulk.push(bulk(endpoint(i), TIME)?);
        }
        Ok(Traffic {
            straight: latency(to(endpoint))?,
            balanced: latency(to(load_balancer))?,
            node_ports: latency(at_ports)?,
            straight_rate: rate(&|n| endpoint(far(n)), TIME)?,
            balanced_rate: rate(&|n| load_balancer(far(n)), TIME)?,
            straight_bulk,
            again_bulk,
            balanced_bulk,
        })
    }
}
