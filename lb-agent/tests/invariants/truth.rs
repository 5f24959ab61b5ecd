//! What is wanted: a second opinion, whole and not incremental.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lb_agent::model::{Change, Conditions, Frontend, ObjectRef, PortRef, Service, Slice};
use lb_common::abi::ServiceKey;

/// Where a frontend leads: whose it is, and to which addresses; none: it refuses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Set {
    pub(super) port: PortRef,
    pub(super) backends: Vec<SocketAddr>,
}

pub(super) type Sets = BTreeMap<ServiceKey, Set>;

/// Services and EndpointSlices.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    pub(super) services: BTreeMap<ObjectRef, Service>,
    pub(super) slices: BTreeMap<ObjectRef, Slice>,
}

/// Something appeared, changed or (`None`) went.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Service(ObjectRef, Option<Service>),
    Slice(ObjectRef, Option<Slice>),
}

impl From<Edit> for Change {
    fn from(edit: Edit) -> Self {
        match edit {
            Edit::Service(name, service) => Self::Service(name, service),
            Edit::Slice(name, slice) => Self::Slice(name, slice),
        }
    }
}

impl Truth {
    pub(super) fn edit(&mut self, edit: &Edit) {
        fn put<T: Clone>(all: &mut BTreeMap<ObjectRef, T>, name: &ObjectRef, value: Option<&T>) {
            match value {
                Some(value) => all.insert(name.clone(), value.clone()),
                None => all.remove(name),
            };
        }
        match edit {
            Edit::Service(name, service) => put(&mut self.services, name, service.as_ref()),
            Edit::Slice(name, slice) => put(&mut self.slices, name, slice.as_ref()),
        }
    }

    /// Each frontend with all who ask for it, the one who is to have it first.
    fn claimants(&self) -> BTreeMap<Frontend, Vec<(i64, PortRef)>> {
        let mut claimants: BTreeMap<Frontend, Vec<_>> = BTreeMap::new();
        for (name, service) in &self.services {
            for ip in &service.cluster_ips {
                for port in &service.ports {
                    let addr = SocketAddr::new(*ip, port.number);
                    let of = PortRef {
                        service: name.clone(),
                        port: port.name.clone(),
                        protocol: port.protocol,
                    };
                    claimants
                        .entry(Frontend::new(addr, port.protocol))
                        .or_default()
                        .push((service.created, of));
                }
            }
        }
        for queue in claimants.values_mut() {
            queue.sort();
        }
        claimants
    }

    fn backends(&self, port: &PortRef, ipv4: bool) -> Vec<SocketAddr> {
        let mut reports: BTreeMap<SocketAddr, Vec<Conditions>> = BTreeMap::new();
        for slice in self.slices.values().filter(|slice| slice.service == port.service) {
            for p in &slice.ports {
                for endpoint in &slice.endpoints {
                    if p.name == port.port
                        && p.protocol == port.protocol
                        && endpoint.addr.is_ipv4() == ipv4
                    {
                        let addr = SocketAddr::new(endpoint.addr, p.number);
                        reports.entry(addr).or_default().push(endpoint.conditions);
                    }
                }
            }
        }
        let state = |reports: &Vec<Conditions>| {
            *reports.iter().rfind(|c| !c.terminating).unwrap_or(&reports[0])
        };
        let those = |wanted: fn(Conditions) -> bool| -> Vec<SocketAddr> {
            reports.iter().filter(|(_, r)| wanted(state(r))).map(|(addr, _)| *addr).collect()
        };
        let ready = those(|c| c.ready);
        if ready.is_empty() { those(|c| c.serving && c.terminating) } else { ready }
    }

    /// The frontends that a Service asks for and another one has.
    pub(super) fn lost(&self, name: &ObjectRef) -> BTreeSet<(Frontend, ObjectRef)> {
        self.claimants()
            .into_iter()
            .filter(|(_, queue)| queue.iter().any(|(_, port)| port.service == *name))
            .map(|(frontend, mut queue)| (frontend, queue.swap_remove(0).1.service))
            .filter(|(_, owner)| owner != name)
            .collect()
    }
}

/// What the maps should say, given what they say: the API server's last endpoints stay.
pub(super) fn wanted(truth: &Truth, now: &Sets) -> Sets {
    let mut sets = Sets::new();
    for (frontend, mut queue) in truth.claimants() {
        let (_, port) = queue.swap_remove(0);
        let key = ServiceKey::from(&frontend);
        let mut backends = truth.backends(&port, frontend.addr.is_ipv4());
        if backends.is_empty()
            && port.service == ObjectRef::new("default", "kubernetes")
            && let Some(known) = now.get(&key).filter(|set| set.port == port)
        {
            backends.clone_from(&known.backends);
        }
        sets.insert(key, Set { port, backends });
    }
    sets
}
