//! Who the clients of source ranges are: followed while there are any, and put into the maps.

use std::{collections::BTreeMap, future::pending};

use lb_common::abi::{ClientKey, SourceAddress};
use lb_core::{model::Cluster, pipeline::Pipeline};
use tokio::sync::watch;

use crate::{
    maps::Pinned,
    sockets::{self, ClientsQuestion, Followed},
};

/// Nobody is followed before a Service asks, nor after the last one has asked.
#[derive(Debug, Default)]
pub(super) struct Clients {
    followed: Option<(Followed, watch::Receiver<sockets::SourceAddresses>)>,
    /// What they are asked for, as it was told last: see [`revision`].
    asked: Option<[u64; 2]>,
    /// How often nobody knew a client.
    unknown: u64,
    /// What has been said.
    cannot_follow: bool,
    is_full: bool,
}

impl Clients {
    /// Finds out who they are, if a Service asks for the first time.
    pub(super) fn before_sync(&mut self, pipeline: &mut Pipeline<Pinned>) {
        if self.followed.is_some() || !pipeline.cluster().has_source_ranges() {
            return;
        }
        match Followed::start(question(pipeline.cluster())) {
            Ok(followed) => {
                self.followed = Some(followed);
                self.asked = None;
                self.cannot_follow = false;
                self.know(pipeline);
            }
            Err(error) => {
                if !self.cannot_follow {
                    tracing::warn!(%error, "cannot tell which clients are in loadBalancerSourceRanges");
                }
                self.cannot_follow = true;
            }
        }
    }

    /// Once a second: `unknown` says how often nobody knew a client.
    pub(super) fn tick(&mut self, pipeline: &mut Pipeline<Pinned>, unknown: u64) {
        let is_new = std::mem::replace(&mut self.unknown, unknown) != unknown;
        // Before the lists are complete, what an agent before us knew is worth more.
        if !pipeline.is_synced() {
            return;
        }
        if !pipeline.cluster().has_source_ranges() {
            self.followed = None;
            return;
        }
        self.before_sync(pipeline);
        if let Some((followed, _)) = &self.followed {
            let revision = revision(pipeline.cluster());
            if self.asked.replace(revision) != Some(revision) {
                followed.ask(question(pipeline.cluster()));
            }
            if is_new {
                followed.look();
            }
        }
    }

    /// When there is something new to [`Clients::know`]. To be dropped and called again at will.
    pub(super) async fn heard(&mut self) {
        let Some((_, heard)) = &mut self.followed else { return pending().await };
        if heard.changed().await.is_err() {
            // The thread has died, which it has said; another one is begun with the next tick.
            self.followed = None;
        }
    }

    /// Puts into the maps what is known.
    pub(super) fn know(&mut self, pipeline: &mut Pipeline<Pinned>) {
        let Some((_, heard)) = &mut self.followed else { return };
        let found = heard.borrow_and_update().clone();
        let known = || {
            let before = pipeline.store().clients().map_err(anyhow::Error::from)?;
            Ok::<_, anyhow::Error>(merged(found, before))
        };
        let set = known().and_then(|clients| Ok(pipeline.store_mut().set_clients(&clients)?));
        match set {
            Ok(all_fit) => {
                if !all_fit && !self.is_full {
                    tracing::warn!(
                        "the clients map is full: new clients of Services with \
                         loadBalancerSourceRanges get EACCES, until network namespaces have ended"
                    );
                }
                self.is_full = !all_fit;
            }
            Err(error) => {
                tracing::warn!(
                    "cannot tell which clients are in loadBalancerSourceRanges: {error:#}"
                );
            }
        }
    }
}

/// Other numbers whenever [`question`] may be another.
const fn revision(cluster: &Cluster) -> [u64; 2] {
    [cluster.guarded_revision(), cluster.nodes().revision()]
}

fn question(cluster: &Cluster) -> ClientsQuestion {
    ClientsQuestion {
        to: cluster.guarded(),
        node: [cluster.nodes().own_primary(true), cluster.nodes().own_primary(false)],
    }
}

/// What the maps are to say after what was `found`. Of namespaces that could not be asked they say what
/// they said `before`.
fn merged(
    found: sockets::SourceAddresses,
    before: BTreeMap<ClientKey, SourceAddress>,
) -> BTreeMap<ClientKey, SourceAddress> {
    let mut clients = if found.complete { BTreeMap::new() } else { before };
    clients.retain(|key, _| !found.namespaces.contains(&key.netns));
    clients.extend(found.known);
    clients
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::Addr;

    use super::*;

    fn clients(all: &[(u64, &str)]) -> BTreeMap<ClientKey, SourceAddress> {
        let client = |(netns, ip): &(u64, &str)| {
            let addr = Addr::from(ip.parse::<IpAddr>().unwrap());
            (ClientKey::general(*netns, addr), SourceAddress::new(addr, 0))
        };
        all.iter().map(client).collect()
    }

    #[test]
    fn whoever_could_not_be_asked_is_where_he_was() {
        let before = clients(&[(2, "10.0.0.2"), (2, "fd00::2"), (3, "10.0.0.3")]);
        let known = clients(&[(1, "10.0.0.1"), (2, "10.0.0.9")]);
        let found = |complete| sockets::SourceAddresses {
            known: known.clone(),
            namespaces: [1, 2].into(),
            complete,
        };
        assert_eq!(merged(found(true), before.clone()), known);
        let all = clients(&[(1, "10.0.0.1"), (2, "10.0.0.9"), (3, "10.0.0.3")]);
        assert_eq!(merged(found(false), before), all);
    }
}
