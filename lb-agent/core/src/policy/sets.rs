//! The backend sets of a port, as sockets of this node are to find them. What means the same is one
//! set.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    BackendSet, Empty,
    endpoints::by_node,
    port_view::{FrontendKind, PortView},
};
use crate::model::{Cidr, Frontend, Scope};

/// Adds the sets of a port to those of other ports.
pub(super) fn add_sets(view: &PortView<'_>, sets: &mut Vec<BackendSet>) {
    let mut sets = Sets { view, first: sets.len(), all: sets };
    let cluster = view.cluster_endpoints();
    for (frontend, kind) in view.frontends() {
        let (backends, source_ranges) = match kind {
            FrontendKind::ClusterIp if view.service.internal_local => {
                (view.local_endpoints(), Vec::new())
            }
            // To a socket of this node, `externalTrafficPolicy: Local` means Cluster (E3, E4).
            FrontendKind::LoadBalancer => (cluster, view.source_ranges()),
            FrontendKind::ClusterIp | FrontendKind::ExternalIp | FrontendKind::NodePort => {
                (cluster, Vec::new())
            }
        };
        sets.add(frontend, backends, source_ranges);
    }
    if let Some(frontend) = view.node_port(view.unspecified(), Scope::OtherNodes) {
        if view.service.external_local {
            sets.add_nodes(frontend);
        } else {
            sets.add(frontend, cluster, Vec::new());
        }
    }
}

/// The sets of one port among those of others.
struct Sets<'a> {
    view: &'a PortView<'a>,
    all: &'a mut Vec<BackendSet>,
    /// Where the port's own begin.
    first: usize,
}

impl Sets<'_> {
    fn add(&mut self, frontend: Frontend, backends: &[SocketAddr], source_ranges: Vec<Cidr>) {
        let mut mine = self.all[self.first..].iter_mut();
        match mine.find(|set| set.backends == backends && set.source_ranges == source_ranges) {
            Some(set) => {
                let place = set.frontends.partition_point(|other| *other < frontend);
                set.frontends.insert(place, frontend);
            }
            None => self.push(vec![frontend], backends.to_vec(), source_ranges),
        }
    }

    fn push(
        &mut self,
        frontends: Vec<Frontend>,
        backends: Vec<SocketAddr>,
        source_ranges: Vec<Cidr>,
    ) {
        let view = self.view;
        self.all.push(BackendSet {
            kept: view.kept(|addr| backends.binary_search(addr).is_ok()),
            empty: if backends.is_empty() { view.empty() } else { Empty::default() },
            affinity: view.service.affinity,
            source_ranges,
            ..BackendSet::new(view.port_ref(), frontends, backends)
        });
    }

    /// The node port at other nodes with `externalTrafficPolicy: Local`. Another node would serve us
    /// as one that comes from outside: by its own endpoints (E5).
    fn add_nodes(&mut self, at_others: Frontend) {
        self.add(at_others, &[], Vec::new());
        let view = self.view;
        let common = self.all.len();
        let mut taken = BTreeSet::new();
        for (node, backends) in by_node(&view.endpoints) {
            if view.cluster.nodes().is_own(node) {
                continue;
            }
            let addresses = view.cluster.nodes().nodeport_addresses_of(node);
            // Two nodes with one address: it is the first one's.
            let mut frontends: Vec<Frontend> = addresses
                .filter(|ip| ip.is_ipv4() == view.is_ipv4() && taken.insert(*ip))
                .filter_map(|ip| view.node_port(ip, Scope::Node))
                .collect();
            if frontends.is_empty() {
                continue;
            }
            frontends.sort_unstable();
            let mut mine = self.all[self.first..common].iter_mut();
            match mine.find(|set| set.backends == backends && set.source_ranges.is_empty()) {
                Some(set) => {
                    set.frontends.append(&mut frontends);
                    set.frontends.sort_unstable();
                }
                None => self.push(frontends, backends, Vec::new()),
            }
        }
    }
}
