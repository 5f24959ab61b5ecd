//! What both sides are reduced to, and where they differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use super::{
    deviations::{self, Applied},
    program::{Frontend, Health, Kind, NoLocal, View},
};

/// A Service's port and an address that is dialled: `default/a:http 10.96.0.1:80/tcp`,
/// `default/a node4:30080/udp`, `default/a 10.0.0.2:30080/udp (node)`.
///
/// Two Services may claim one frontend, and the older one gets it; that is decided after what is
/// compared here, so every Service is compared as if it were alone.
pub(crate) type FrontendText = String;

/// All that is compared after a step.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) frontends: BTreeMap<FrontendText, Outcome>,
    /// What health check node ports say (K1, K3): `default/a:32000 (IPv4)`.
    pub(crate) health: BTreeMap<String, usize>,
    /// How many ports of a Service a Local policy leaves without endpoints (F2):
    /// `default/a internal (IPv4)`.
    pub(crate) no_local: BTreeMap<String, usize>,
}

/// Where a frontend leads.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) backends: BTreeSet<SocketAddr>,
    /// What a connection gets if there are none: `refuse`, `unreachable`.
    pub(crate) empty: &'static str,
    /// In seconds; 0 without.
    pub(crate) affinity: u32,
    /// `address/bits`, with the other bits of the address zero.
    pub(crate) sources: BTreeSet<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.empty {
            "" => write!(f, "{:?}", self.backends)?,
            empty => write!(f, "{empty}")?,
        }
        if self.affinity > 0 {
            write!(f, ", affinity {} s", self.affinity)?;
        }
        if !self.sources.is_empty() {
            write!(f, ", from {:?}", self.sources)?;
        }
        Ok(())
    }
}

pub(crate) fn text(port: &str, kind: Kind, addr: SocketAddr, protocol: &str) -> FrontendText {
    let protocol = protocol.to_ascii_lowercase();
    match kind {
        Kind::Address => format!("{port} {addr}/{protocol}"),
        Kind::OwnNode => {
            let family = if addr.is_ipv4() { "4" } else { "6" };
            format!("{port} node{family}:{}/{protocol}", addr.port())
        }
        Kind::OtherNode => format!("{port} {addr}/{protocol} (node)"),
    }
}

/// What kube-proxy does, and socklb is to do.
pub(crate) fn wanted(view: &View, applied: &mut Applied) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for frontend in &view.frontends {
        if !deviations::is_served(&frontend.protocol, applied) {
            continue;
        }
        let outcome = Outcome {
            backends: frontend.endpoints.iter().map(|text| text.parse().expect(text)).collect(),
            empty: deviations::empty(frontend.empty, applied),
            affinity: frontend.affinity,
            sources: frontend.sources.iter().cloned().collect(),
        };
        outcomes.frontends.insert(key(frontend), outcome);
    }
    for Health { service, family, port, local } in &view.health {
        outcomes.health.insert(format!("{service}:{port} ({family})"), *local);
    }
    for NoLocal { service, family, internal, external } in &view.no_local {
        outcomes.count_no_local(service, family, (*internal, *external));
    }
    outcomes
}

fn key(frontend: &Frontend) -> FrontendText {
    let separator = if frontend.port.is_empty() { "" } else { ":" };
    let port = format!("{}{separator}{}", frontend.service, frontend.port);
    let ip = match (frontend.kind, frontend.family.as_str()) {
        (Kind::OwnNode, "IPv4") => "0.0.0.0",
        (Kind::OwnNode, _) => "::",
        (Kind::Address | Kind::OtherNode, _) => &frontend.address,
    };
    let addr = SocketAddr::new(ip.parse().expect(ip), frontend.number);
    text(&port, frontend.kind, addr, &frontend.protocol)
}

impl Outcomes {
    pub(crate) fn count_no_local(
        &mut self,
        service: &str,
        family: &str,
        (internal, external): (usize, usize),
    ) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            if count > 0 {
                *self.no_local.entry(format!("{service} {policy} ({family})")).or_default() +=
                    count;
            }
        }
    }
}

/// The differences, three lines each.
pub(crate) fn differences(wanted: &Outcomes, found: &Outcomes) -> String {
    let mut lines = Vec::new();
    compare("", &wanted.frontends, &found.frontends, &mut lines);
    compare("health check ", &wanted.health, &found.health, &mut lines);
    compare("ports without local endpoints: ", &wanted.no_local, &found.no_local, &mut lines);
    lines.join("\n")
}

fn compare<T: fmt::Display + PartialEq>(
    what: &str,
    wanted: &BTreeMap<String, T>,
    found: &BTreeMap<String, T>,
    lines: &mut Vec<String>,
) {
    let say = |it: Option<&T>| it.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    for key in wanted.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let (wanted, found) = (wanted.get(key), found.get(key));
        if wanted != found {
            let (wanted, found) = (say(wanted), say(found));
            lines.push(format!("{what}{key}\n  kube-proxy: {wanted}\n  socklb:     {found}"));
        }
    }
}
