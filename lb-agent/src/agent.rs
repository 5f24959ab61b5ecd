//! The agent's life: take over what is there, follow the source, write the maps, leave them working.

mod clients;
mod counting;
mod dry_run;
mod follow;
mod guard;
mod pace;
mod packets_duty;
mod refusals;
mod source;
mod stale_flows;
mod stop;
mod takeover;
mod task;
mod troubles;
mod truth;
mod upkeep;

use std::{
    io::Write as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_core::{
    model::Families,
    pipeline::{NodeConfig, Pipeline},
    printable::Output,
    socket_engine::SocketSettings,
};
use tokio::{task::JoinError, time::timeout};

pub use self::{follow::Agent, truth::InForce};
use self::{source::Feed, stop::Stop};
use crate::{
    admin::{Admin, Events, Family, Moment, server},
    canary,
    config::{Config, Packets, Source},
    datapath::{self, Datapath, Sizes},
    host, kube_proxy, packets,
    pins::{Pins, shown},
    sockets,
    sources::local,
    sysctls,
};

/// So long a search for kube-proxy takes without a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does what the flags say.
pub async fn run(config: &Config) -> Result<()> {
    if config.cleanup {
        cleanup(config)?;
        if config.stay {
            Stop::listen()?.asked().await;
        }
        Ok(())
    } else if config.cleanup_kube_proxy {
        kube_proxy::cleanup(&mut Output::text(std::io::stdout().lock()))
    } else if config.dry_run {
        dry_run::run(config).await
    } else {
        serve(config).await
    }
}

fn cleanup(config: &Config) -> Result<()> {
    host::check_capabilities()?;
    let removed = datapath::cleanup(&host::bpffs(config)?)?;
    let tables = packets::cleanup()?;
    let mut out = Output::text(std::io::stdout().lock());
    for path in &removed {
        writeln!(out, "removed {}", path.display())?;
    }
    for table in &tables {
        writeln!(out, "removed {table}")?;
    }
    if removed.is_empty() && tables.is_empty() {
        writeln!(out, "nothing to remove")?;
    }
    Ok(())
}

/// The source only ends when it cannot go on.
fn ended(end: Result<Result<()>, JoinError>) -> Result<()> {
    end.context("the source failed")??;
    bail!("the source ended")
}

/// How this node looks at the cluster. `outside`: packets from outside are served.
fn view(config: &Config, node: &str, families: Families, outside: bool) -> NodeConfig {
    let host_netns = sockets::own_netns().unwrap_or_else(|error| {
        if config.localhost_nodeports {
            tracing::warn!(%error, "no NodePorts at loopback addresses: this namespace has no cookie");
        }
        0
    });
    let settings = config.settings(node, families, outside);
    let reserved = canary::SENTINELS.to_vec();
    NodeConfig {
        settings,
        sockets: SocketSettings { unknown_ports: config.unknown_port, host_netns, reserved },
    }
}

/// The families that the kernel has. What is missing is said once (J3).
fn families() -> Families {
    let families = local::families();
    for (has, family) in [(families.ipv4, "IPv4"), (families.ipv6, "IPv6")] {
        if !has {
            tracing::warn!("{family} is disabled on this machine: its addresses are not served");
        }
    }
    families
}

/// Whether packets from outside are served: where they may be kube-proxy's, only if somebody says so.
async fn serves_packets(config: &Config) -> Result<bool> {
    let is_ours = match (config.packets, &config.service_proxy_name) {
        // There is another proxy, which has all other Services.
        (packets, Some(_)) => return Ok(packets == Packets::External),
        (Packets::Auto, None) => None,
        (packets, None) => Some(packets == Packets::External),
    };
    // It may run tools that wait for locks.
    let mut look = tokio::task::spawn_blocking(move || {
        let active = kube_proxy::active();
        if let Some(active) = &active {
            warn_of_kube_proxy(active, is_ours);
        }
        active.is_none()
    });
    if let Some(is_ours) = is_ours {
        return Ok(is_ours);
    }
    let found = if let Ok(found) = timeout(PATIENCE, &mut look).await {
        found
    } else {
        tracing::info!("waiting for the tools that say whether there are rules of a kube-proxy");
        look.await
    };
    found.context("the search for kube-proxy failed")
}

/// Two proxies on one node do not hurt each other, but only one of them does anything. `is_ours`: whether
/// packets from outside are ours; none: they are not because of it.
fn warn_of_kube_proxy(active: &kube_proxy::Active, is_ours: Option<bool>) {
    let again = if is_ours.is_none() { ", then start this agent again" } else { "" };
    let remedy = format!(
        "stop it on this node, then run `lb-agent --cleanup-kube-proxy` once{again}; or try single Services \
         beside it with --service-proxy-name"
    );
    let all_else = match is_ours {
        Some(true) => "and packets from outside by who sees them first",
        Some(false) => "all else by its rules",
        None => "all else by its rules, packets from outside too",
    };
    tracing::warn!(remedy, "{active}: sockets are served by socklb, {all_else}");
}

/// The settings that a node loses with kube-proxy (L5).
fn conntrack() {
    let (changes, error) = sysctls::apply(Path::new("/proc"), Path::new("/sys"));
    changes.iter().for_each(tell_sysctl);
    if let Some(error) = error {
        tracing::warn!("{error}");
    }
}

fn tell_sysctl(change: &sysctls::SysctlChange) {
    let sysctls::SysctlChange { path, before, after } = change;
    tracing::info!(path = %path.display(), before, after, "connection tracking");
}

/// Whether connection tracking is liberal now. What is wrong is said once.
fn be_liberal() -> bool {
    static TOLD: AtomicBool = AtomicBool::new(false);
    match sysctls::be_liberal(Path::new("/proc")) {
        Ok(change) => {
            change.iter().for_each(tell_sysctl);
            true
        }
        Err(error) => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                tracing::warn!("packets that belong to no connection are dropped: {error}");
            }
            false
        }
    }
}

/// What is in the way of packets, of the families of which this machine has addresses.
fn warn_of_obstacles(families: Families) {
    let addresses = local::addresses();
    let families = addresses.map_or(families, |all| packets::reachable(families, &all));
    for packets::Obstacle { what, remedy } in packets::obstacles(Path::new("/proc"), families) {
        tracing::warn!(remedy, "{what}");
    }
}

/// What an agent that served packets left: nobody keeps it up to date.
fn remove_tables() {
    match packets::cleanup() {
        Ok(tables) => {
            for table in tables {
                tracing::info!("removed {table}: packets are not served any more");
            }
        }
        // Without rights, or another agent's: nothing of it is ours then.
        Err(error) => tracing::warn!("tables for packets stay as they are: {error}"),
    }
}

async fn serve(config: &Config) -> Result<()> {
    host::check_capabilities()?;
    host::raise_open_files()?;
    let bpffs = host::bpffs(config)?;
    let cgroup = host::cgroup(config)?;
    let node = host::node_name(config)?;
    let pins = Pins::take(&bpffs)?;
    let sizes = Sizes {
        services: config.max_services,
        backends: config.max_backends,
        affinity: config.max_affinity,
    };
    #[cfg_attr(not(feature = "bpf-log"), expect(unused_mut, reason = "only logging changes it"))]
    let (mut datapath, maps) = Datapath::load(&pins, sizes)?;
    #[cfg(feature = "bpf-log")]
    datapath.follow_log().context("cannot follow the log of the programs")?;
    let snapshot = maps.snapshot().context("cannot read the pinned maps")?;
    tracing::info!(
        node,
        pins = %shown(pins.root()).display(),
        frontends = snapshot.services.len(),
        "{}",
        if datapath.is_adopted() { "going on from the pinned maps" } else { "starting with empty maps" }
    );
    cgroup.tell();

    let serves_packets = serves_packets(config).await?;
    if config.conntrack_sysctls && host::is_in_host_network() {
        conntrack();
    }

    let in_force = datapath.others_at_work() || !snapshot.services.is_empty();
    let mut stop = Stop::listen()?;
    let families = families();
    let pipeline =
        Pipeline::with_config(view(config, &node, families, serves_packets), maps, &snapshot);
    let mut agent = Agent::new(config.terminate_tcp, pipeline, (datapath, cgroup));
    if serves_packets {
        let make_liberal = config.conntrack_tcp_be_liberal.then_some(be_liberal as fn() -> bool);
        agent.serve_packets(families, config.max_affinity, make_liberal);
        warn_of_obstacles(families);
    } else {
        remove_tables();
    }
    // What is pinned serves, whether or not the API server answers.
    agent.adopt()?;
    let follow = async {
        let Feed { mut task, changes, mut trouble, mut waits, client } =
            source::follow(config, in_force, false).await?;
        let events = client.map_or_else(Events::none, |client| Events::start(client, &node));
        let settings = server::ServerSettings {
            health: config.healthz_bind_address,
            metrics: config.metrics_bind_address,
            bind_hard_fail: config.bind_address_hard_fail,
        };
        let served = [(Family::V4, families.ipv4), (Family::V6, families.ipv6)];
        let served: Vec<_> = served.into_iter().filter(|(_, has)| *has).map(|(f, _)| f).collect();
        let mut admin = Admin::start(&settings, &served, events)?;
        admin.answer_lbctl(agent.pins().home());
        admin.events().starting();
        let health = admin.health();
        tokio::spawn(async move {
            // Until the source ends.
            while trouble.changed().await.is_ok() {
                health.lock().set_source(trouble.borrow_and_update().clone(), Moment::now());
            }
        });
        let health = admin.health();
        tokio::spawn(async move {
            loop {
                health.lock().set_waits(waits.borrow_and_update().clone());
                if waits.changed().await.is_err() {
                    return;
                }
            }
        });
        if matches!(config.source, Source::Dir(_)) {
            // There is nobody who could say otherwise.
            admin.set_node_eligible(true);
        }
        tokio::select! {
            end = &mut task => ended(end),
            end = agent.follow(changes, admin) => end.and_then(|()| bail!("the source ended")),
        }
    };
    let signal = tokio::select! {
        signal = stop.asked() => signal,
        result = follow => return result,
    };
    tracing::info!(signal, "leaving; Services stay translated, as they are now");
    Ok(())
}
