//! What has to be done now and then, and must not keep the loop waiting: stale sockets are ended, the
//! addresses of network namespaces are found, old bonds of session affinity are forgotten.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path, time::Duration};

use lb_common::abi::{self, Addr, Counter};
use tokio::sync::mpsc;

use super::{task::Task, truth::InForce};
use crate::{
    admin::{Admin, Family},
    maps::{Bonds, Counters, Pinned},
    model::Cluster,
    pins::Pins,
    pipeline::{Pipeline, Report},
    sockets::{self, Found, Kind, News, Reason, Sweeper},
};

/// How often bonds that are over are looked for.
const BONDS: Duration = Duration::from_secs(60);
/// How often the network namespaces are looked through while there are source ranges, although nobody
/// unknown has connected: a pod may have got another address.
const CLIENTS: Duration = Duration::from_secs(15);

pub(super) struct Upkeep {
    kinds: Vec<Kind>,
    sweeper: Option<(Sweeper, mpsc::Receiver<News>)>,
    /// Whether sockets may have dialled past the programs, and nobody has looked since.
    were_away: bool,
    clients: Task<io::Result<sockets::Clients>>,
    unknown_clients: u64,
    knows_clients: bool,
    /// The Node's own addresses, as they were known last.
    own: [Option<Addr>; 2],
    bonds: Task<()>,
}

impl Upkeep {
    pub(super) fn new(kinds: Vec<Kind>) -> Self {
        let (clients, bonds) = (Task::new(), Task::new());
        Self {
            kinds,
            sweeper: None,
            were_away: true,
            clients,
            unknown_clients: 0,
            knows_clients: false,
            own: [None; 2],
            bonds,
        }
    }

    /// The programs are at work.
    pub(super) fn attached(&mut self, pins: &Pins, cgroup: &Path) {
        let started =
            sockets::open(pins).and_then(|maps| Ok(Sweeper::start(maps, cgroup, &self.kinds)?));
        self.were_away = true;
        match started {
            Ok(started) => self.sweeper = Some(started),
            Err(error) => {
                tracing::warn!("connected sockets stay with backends that are gone: {error:#}");
            }
        }
    }

    /// The programs may not have been at work for a while.
    pub(super) const fn were_away(&mut self) {
        self.were_away = true;
    }

    /// The maps were written.
    pub(super) fn synced(&mut self, pipeline: &Pipeline<Pinned>, report: &Report) {
        let Some((sweeper, _)) = &self.sweeper else { return };
        if !pipeline.is_synced() {
            return;
        }
        let were_away = std::mem::take(&mut self.were_away);
        let flows = |kind: &Kind| report.protocols.contains(&kind.protocol());
        if were_away || self.kinds.iter().filter(|kind| **kind != Kind::Dialling).any(flows) {
            sweeper.look();
        }
        if were_away || report.appeared {
            sweeper.look_for_dialling();
        }
    }

    /// Begins what is due.
    pub(super) fn tick(&mut self, pins: &Pins, pipeline: &mut Pipeline<Pinned>, admin: &Admin) {
        let Ok(Some(maps)) = pins.maps() else { return };
        if let Ok(counters) = Counters::open(&maps) {
            for counter in Counter::ALL {
                if let Ok(count) = counters.get(counter) {
                    admin.metrics().datapath_events(counter, count);
                }
            }
            let unknown = counters.get(Counter::UnknownClient).unwrap_or_default();
            let is_new = std::mem::replace(&mut self.unknown_clients, unknown) != unknown;
            // Before the lists are complete, what an agent before us knew is worth more.
            let is_asked = pipeline.is_synced() && pipeline.cluster().has_source_ranges();
            let moved = primaries(pipeline.cluster(), self.own) != self.own;
            if is_asked && (is_new || moved || self.clients.is_due(CLIENTS)) {
                self.clients.begin(sockets::clients);
            }
        }
        if pipeline.is_synced() && self.bonds.is_due(BONDS) {
            let timeouts = pipeline.affinity_timeouts();
            let pins = pins.clone();
            self.bonds.begin(move || {
                // The path is theirs.
                let _pins = pins;
                let swept = Bonds::open(&maps).map_err(anyhow::Error::from);
                match swept.and_then(|mut bonds| Ok(bonds.sweep(&timeouts)?)) {
                    Ok((0, _)) => {}
                    Ok((before, left)) => tracing::debug!(before, left, "session affinity"),
                    Err(error) => tracing::warn!("cannot forget old session affinity: {error:#}"),
                }
            });
        }
    }

    /// Goes on with what threads have found. To be dropped and called again at will.
    pub(super) async fn work(&mut self, pipeline: &mut Pipeline<Pinned>, admin: &Admin) {
        let news = async {
            match &mut self.sweeper {
                Some((_, news)) => news.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            news = news => match news {
                Some(news) => self.swept(news, pipeline, admin),
                // The thread has died, which it has said.
                None => self.sweeper = None,
            },
            Some(found) = self.clients.result() => self.know(pipeline, found),
            Some(()) = self.bonds.result() => {}
        }
    }

    /// Finds out who the clients are before a Service asks for the first time.
    pub(super) fn before_sync(&mut self, pipeline: &mut Pipeline<Pinned>) {
        if pipeline.cluster().has_source_ranges() && !self.knows_clients {
            self.know(pipeline, sockets::clients());
        }
    }

    fn know(&mut self, pipeline: &mut Pipeline<Pinned>, found: io::Result<sockets::Clients>) {
        self.own = primaries(pipeline.cluster(), self.own);
        match found.and_then(|found| set_clients(pipeline, found, self.own)) {
            Ok(()) => self.knows_clients = true,
            Err(error) => {
                tracing::warn!(%error, "cannot tell which clients are in loadBalancerSourceRanges");
            }
        }
    }

    fn swept(&self, news: News, pipeline: &Pipeline<Pinned>, admin: &Admin) {
        let Some((sweeper, _)) = &self.sweeper else { return };
        match news {
            News::Seen(found, took) => {
                admin.looked_for_stale_flows(took);
                let truth = InForce(pipeline);
                let judged = |found: Found| Some((found.clone(), sockets::judge(&found, &truth)?));
                sweeper.destroy(found.into_iter().filter_map(judged).collect());
            }
            News::Done(outcomes) => {
                for (reason, outcome) in outcomes {
                    let destroyed = outcome.destroyed as u64;
                    admin.metrics().sockets_destroyed(reason, destroyed);
                    let ipv6 = outcome.destroyed_ipv6 as u64;
                    // What kube-proxy counts there are UDP flows.
                    if matches!(reason, Reason::Stale | Reason::BeforeService) {
                        admin.metrics().stale_flows(Family::V6, ipv6);
                        admin.metrics().stale_flows(Family::V4, destroyed - ipv6);
                    }
                    if destroyed > 0 {
                        tracing::info!(
                            sockets = destroyed,
                            reason = reason.name(),
                            "sockets ended"
                        );
                    }
                }
            }
        }
    }
}

/// The first address of each family in the Node's status, or else what they were before.
fn primaries(cluster: &Cluster, before: [Option<Addr>; 2]) -> [Option<Addr>; 2] {
    let node = cluster.own_node();
    let primary = |ipv4| node.and_then(|node| node.primary(ipv4)).map(Addr::from);
    [primary(true).or(before[0]), primary(false).or(before[1])]
}

/// Says from which address each network namespace connects; this one from the Node's.
fn set_clients(
    pipeline: &mut Pipeline<Pinned>,
    found: sockets::Clients,
    node: [Option<Addr>; 2],
) -> io::Result<()> {
    let own = sockets::own_netns()?;
    let before = pipeline.store().clients().map_err(io::Error::other)?;
    let clients = clients(found, before, own, node);
    pipeline.store_mut().set_clients(&clients).map_err(io::Error::other)
}

/// The address of each network namespace, after what was `found`. Whoever could not be asked is where
/// he was `before`; the `own` namespace is where the Node is.
fn clients(
    found: sockets::Clients,
    before: BTreeMap<u64, abi::Client>,
    own: u64,
    [node_v4, node_v6]: [Option<Addr>; 2],
) -> BTreeMap<u64, abi::Client> {
    let nowhere = Addr::from_words([0; 4]);
    let mut clients = if found.complete { BTreeMap::new() } else { before };
    for (netns, client) in found.known {
        let [mut v4, mut v6] =
            [client.v4.map(Addr::from), client.v6.map(|v6| Addr::from(IpAddr::from(v6)))];
        if netns == own {
            (v4, v6) = (node_v4.or(v4), node_v6.or(v6));
        }
        let client = abi::Client { v4: v4.unwrap_or(nowhere), v6: v6.unwrap_or(nowhere) };
        clients.insert(netns, client);
    }
    clients
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Node, Settings};

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn found(known: &[(u64, &str)], complete: bool) -> sockets::Clients {
        let client = |v4: &str| sockets::Client { v4: Some(v4.parse().unwrap()), v6: None };
        let known = known.iter().map(|(netns, v4)| (*netns, client(v4))).collect();
        sockets::Clients { known, complete }
    }

    /// By their IPv4 addresses.
    fn merged(
        found: sockets::Clients,
        before: &[(u64, &str)],
        node: Option<&str>,
    ) -> Vec<(u64, Addr)> {
        let nowhere = addr("::");
        let client = |v4: &str| abi::Client { v4: addr(v4), v6: nowhere };
        let before = before.iter().map(|(netns, v4)| (*netns, client(v4))).collect();
        let clients = clients(found, before, 1, [node.map(addr), None]);
        assert!(clients.values().all(|client| client.v6 == nowhere));
        clients.into_iter().map(|(netns, client)| (netns, client.v4)).collect()
    }

    #[test]
    fn whoever_could_not_be_asked_is_where_he_was() {
        let before = [(2, "10.0.0.2"), (3, "10.0.0.3")];
        let now = [(1, "10.0.0.1"), (2, "10.0.0.9")];
        let asked = [(1, addr("10.0.0.1")), (2, addr("10.0.0.9"))];
        assert_eq!(merged(found(&now, true), &before, None), asked);
        let all = [&asked[..], &[(3, addr("10.0.0.3"))]].concat();
        assert_eq!(merged(found(&now, false), &before, None), all);
    }

    #[test]
    fn the_own_namespace_is_where_the_node_is() {
        let now = [(1, "10.0.0.1"), (2, "10.0.0.2")];
        let wanted = [(1, addr("192.0.2.1")), (2, addr("10.0.0.2"))];
        assert_eq!(merged(found(&now, true), &[], Some("192.0.2.1")), wanted);
    }

    /// A Node that is deleted, or loses its addresses for a while, is still where it is.
    #[test]
    fn the_node_s_addresses_outlive_it() {
        let settings = Settings { node_name: "a".into(), ..Settings::default() };
        let mut cluster = Cluster::new(settings);
        assert_eq!(primaries(&cluster, [None; 2]), [None; 2]);
        let node = |ips: &[&str]| {
            let addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            Change::Node("a".into(), Some(Node { addresses, ..Node::default() }))
        };
        cluster.apply(node(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]));
        let both = [addr("192.0.2.1"), addr("2001:db8::1")].map(Some);
        assert_eq!(primaries(&cluster, [None; 2]), both);
        cluster.apply(node(&["192.0.2.3"]));
        let moved = [addr("192.0.2.3"), addr("2001:db8::1")].map(Some);
        assert_eq!(primaries(&cluster, both), moved);
        cluster.apply(Change::Node("a".into(), None));
        assert_eq!(primaries(&cluster, moved), moved);
    }
}
