//! What both sides are reduced to, and where they differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::program::{Place, State};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Packet {
    pub(crate) to: SocketAddr,
    pub(crate) protocol: &'static str,
    pub(crate) place: Place,
    pub(crate) source: IpAddr,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, protocol, place, source } = self;
        let place = match place {
            Place::Pod => "a pod",
            Place::Host => "the node",
            Place::Outside => "elsewhere",
        };
        write!(f, "from {place}, {source}, to {to}/{protocol}")
    }
}

impl Packet {
    /// Whether the programs see the socket that sends it.
    pub(crate) fn is_seen(&self) -> bool {
        self.place != Place::Outside && self.protocol != "SCTP"
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Fate {
    /// It is sent where it was to go.
    #[default]
    Untouched,
    Forwarded,
    /// No endpoints: ECONNREFUSED.
    Refused,
    /// The cluster IP has no such port: ECONNREFUSED.
    UnknownPort,
    /// No endpoints that a policy allows: EHOSTUNREACH.
    Unreachable,
    /// By source ranges: EACCES.
    Denied,
    /// The maps contradict themselves.
    Damaged,
}

/// Where a packet leads.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) fate: Fate,
    pub(crate) backends: BTreeSet<SocketAddr>,
    /// In seconds; 0 without.
    pub(crate) affinity: u32,
}

impl From<Fate> for Outcome {
    fn from(fate: Fate) -> Self {
        Self { fate, ..Self::default() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fate {
            Fate::Forwarded => write!(f, "{:?}", self.backends)?,
            fate => write!(f, "{fate:?}")?,
        }
        if self.affinity > 0 {
            write!(f, ", affinity {} s", self.affinity)?;
        }
        Ok(())
    }
}

/// What a proxy says of itself.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Stated {
    /// What health check node ports say (K1, K3): `default/a:32000 (IPv4)`.
    pub(crate) health: BTreeMap<String, usize>,
    /// How many ports a Local policy leaves without endpoints (F2): `internal (IPv4)`.
    pub(crate) no_local: BTreeMap<String, usize>,
}

impl Stated {
    pub(crate) fn count_no_local(&mut self, family: &str, internal: usize, external: usize) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            if count > 0 {
                *self.no_local.entry(format!("{policy} ({family})")).or_default() += count;
            }
        }
    }
}

impl From<&State> for Stated {
    fn from(state: &State) -> Self {
        let mut stated = Self::default();
        for health in &state.health {
            let key = format!("{}:{} ({})", health.service, health.port, health.family);
            stated.health.insert(key, health.local);
        }
        for count in &state.no_local {
            stated.count_no_local(&count.family, count.internal, count.external);
        }
        stated
    }
}

/// Where kube-proxy wants something else than is found, in three lines; nothing if they are the same.
pub(crate) fn difference<T: fmt::Display + PartialEq>(
    what: &dyn fmt::Display,
    wanted: &T,
    found: &T,
) -> Option<String> {
    (wanted != found).then(|| format!("{what}\n  kube-proxy: {wanted}\n  socklb:     {found}"))
}

pub(crate) fn stated_differences(wanted: &Stated, found: &Stated, lines: &mut Vec<String>) {
    for (what, wanted, found) in [
        ("health check", &wanted.health, &found.health),
        ("ports without local endpoints:", &wanted.no_local, &found.no_local),
    ] {
        let of = |it: &BTreeMap<String, usize>, key: &str| {
            it.get(key).map_or_else(|| "nothing".to_owned(), ToString::to_string)
        };
        for key in wanted.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            let what = format!("{what} {key}");
            lines.extend(difference(&what, &of(wanted, key), &of(found, key)));
        }
    }
}
