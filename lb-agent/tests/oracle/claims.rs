//! Who has a frontend that several Services want.
//!
//! kube-proxy leaves it open: the order of a Go map decides. So it is asked about the rightful owner
//! alone, by what stands below E14: whose cluster IP it is, else the older, else the first by name; a
//! node port goes to one Service on all nodes. Which frontends there are, kube-proxy's own map of
//! Services says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    case::{Key, Kind, Object},
    program::{Claim, Right},
};

/// Whether the address is foreign, since when there is a Service, its namespace and its name.
type Rank = (bool, i64, String, String);

#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// By address, port, protocol.
    addresses: BTreeMap<(IpAddr, u16, String), BTreeSet<Rank>>,
    /// By family (is it IPv4?), node port and protocol.
    node_ports: BTreeMap<(bool, u16, String), BTreeSet<Rank>>,
}

impl Claims {
    pub(crate) fn new(claims: &[Claim], live: &BTreeMap<Key, Object>) -> Self {
        let mut all = Self::default();
        for claim in claims {
            let (namespace, name) = claim.service.split_once('/').expect("namespace/name");
            let key = (Kind::Service, namespace.to_owned(), name.to_owned());
            let created = match live.get(&key) {
                Some(Object::Service(service)) => service.metadata.creation_timestamp.as_ref(),
                _ => None,
            };
            let since = created.map_or(0, |time| time.0.as_second());
            let rank = |foreign| (foreign, since, namespace.to_owned(), name.to_owned());
            let protocol = claim.protocol.clone();
            if claim.kind == Right::Node {
                let key = (claim.family == "IPv4", claim.number, protocol);
                all.node_ports.entry(key).or_default().insert(rank(false));
            } else {
                let ip = claim.address.parse().expect("an address");
                let claims = all.addresses.entry((ip, claim.number, protocol)).or_default();
                claims.insert(rank(claim.kind != Right::Cluster));
            }
        }
        all
    }

    /// Whether a Service has the address and the port other than as a node port.
    pub(crate) fn is_frontend(&self, addr: SocketAddr) -> bool {
        self.addresses.keys().any(|(ip, port, _)| (*ip, *port) == (addr.ip(), addr.port()))
    }

    /// Whether the address is a cluster IP of another Service than that one.
    pub(crate) fn is_cluster_ip_of_another(&self, ip: IpAddr, service: &str) -> bool {
        self.addresses.iter().filter(|((of, ..), _)| *of == ip).flat_map(|(_, ranks)| ranks).any(
            |(foreign, _, namespace, name)| !foreign && format!("{namespace}/{name}") != service,
        )
    }

    /// Whether it is a cluster IP, with a port that its Service has.
    pub(crate) fn is_cluster_ip(&self, addr: SocketAddr, protocol: &str) -> bool {
        let claims = self.addresses.get(&(addr.ip(), addr.port(), protocol.to_owned()));
        // Others than these are foreign.
        claims.into_iter().flatten().any(|(foreign, ..)| !foreign)
    }

    /// The Service that is to have a contested frontend; empty if only one wants it, or none.
    pub(crate) fn owner(&self, to: SocketAddr, protocol: &str) -> String {
        let protocol = protocol.to_owned();
        let address = self.addresses.get(&(to.ip(), to.port(), protocol.clone()));
        let node_port = || self.node_ports.get(&(to.is_ipv4(), to.port(), protocol));
        let Some(ranks) = address.or_else(node_port) else { return String::new() };
        let names: BTreeSet<_> = ranks.iter().map(|rank| (&rank.2, &rank.3)).collect();
        match ranks.first() {
            Some((_, _, namespace, name)) if names.len() > 1 => format!("{namespace}/{name}"),
            _ => String::new(),
        }
    }
}
