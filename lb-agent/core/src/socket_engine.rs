//! The engine for the sockets of this node: plan → store, mirrored in [`MapMirror`].
//!
//! What fails stays wanted and is tried again; what worked stays.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use lb_common::abi::{self, Addr, Address, LOOPBACK_NET, ServiceKey};

use crate::{
    addresses::AddressPlan,
    backend_ids::BackendIds,
    claims::Claims,
    engine::{Engine, NodeAddresses, Wanted},
    map_mirror::MapMirror,
    model::{Frontend, NodeAddr, ObjectRef, Protocol},
    op::{AddressUse, Op},
    plan::{PlanError, endings, plan, present, remains, room},
    policy::{BackendSet, Served},
    store::{Snapshot, Store, StoreError},
};

/// Why a Service is not in the maps as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// It does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The maps did not take an op.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of the writes to one map.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Writes {
    /// How many the kernel took.
    pub taken: usize,
    /// What it said when it took one not, last. That the map is full is not meant.
    pub refused: Option<String>,
}

/// What the engine is called.
pub const SOCKETS: &str = "sockets";

/// What a sync did.
#[derive(Debug, Default)]
pub struct SocketReport {
    /// The Services whose entries were looked at.
    pub looked_at: BTreeSet<ObjectRef>,
    /// Ops carried out.
    pub ops: usize,
    /// What became of them, by the map.
    pub writes: BTreeMap<&'static str, Writes>,
    /// Services that failed; they are tried again with the next sync.
    pub failed: BTreeMap<ObjectRef, SyncError>,
    /// The protocols of the frontends that changed.
    pub protocols: BTreeSet<Protocol>,
    /// Whether there is a frontend of TCP that was not there before.
    pub appeared: bool,
    /// Why what addresses stand for is not in the maps as it should be.
    pub addresses: Option<StoreError>,
    /// Damaged entries that could not be removed, and why; they are tried again with the next sync.
    pub unrepaired: Vec<(Op, StoreError)>,
}

/// What this engine is told of the node.
#[derive(Clone, Debug, Default)]
pub struct SocketSettings {
    /// What happens at a port that a cluster IP lacks.
    pub unknown_ports: UnknownPorts,
    /// The cookie of the host's network namespace, where loopback addresses are the node's; 0: not
    /// known, then NodePorts are not served there.
    pub host_netns: u64,
    /// Addresses at which everything is refused: those that the canary asks for, if one does.
    pub reserved: Vec<IpAddr>,
}

/// What happens at a port that a cluster IP lacks (E12).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UnknownPorts {
    /// ECONNREFUSED at once.
    #[default]
    Refuse,
    /// The packets leave as they are, perhaps to somebody who knows the port.
    Pass,
}

impl UnknownPorts {
    /// As flags call them.
    pub const NAMES: [&str; 2] = ["refuse", "pass"];
}

impl FromStr for UnknownPorts {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "refuse" => Ok(Self::Refuse),
            "pass" => Ok(Self::Pass),
            _ => Err(format!("{name}: neither {}", Self::NAMES.join(" nor "))),
        }
    }
}

/// The mirror of the maps, and the maps.
#[derive(Debug)]
pub struct SocketEngine<S> {
    mirror: MapMirror,
    store: S,
    /// What is wanted and not written yet, or again.
    pending: BTreeMap<ObjectRef, Arc<Served>>,
    /// What [`MapMirror::adopt`] could make no sense of.
    repairs: Vec<Op>,
    addresses: AddressPlan,
    unknown_ports: UnknownPorts,
    host_netns: u64,
    lacks_all: bool,
}

impl<S: Store> SocketEngine<S> {
    /// An engine that goes on from what the maps say.
    pub fn new(choices: SocketSettings, store: S, snapshot: &Snapshot) -> Self {
        let SocketSettings { unknown_ports, host_netns, reserved } = choices;
        let (mirror, repairs) = MapMirror::adopt(snapshot, &BackendIds::default());
        let mut addresses = AddressPlan::default();
        addresses.found(mirror.addresses().keys().copied());
        addresses.reserve(reserved);
        Self {
            mirror,
            store,
            pending: BTreeMap::new(),
            repairs,
            addresses,
            unknown_ports,
            host_netns,
            lacks_all: true,
        }
    }

    /// Whether the maps refuse everything at [`SocketSettings::reserved`], by what is known of them.
    pub fn refuses_reserved(&self) -> bool {
        self.addresses.refuse_reserved(self.mirror.addresses())
    }

    fn write(&mut self, claims: &Claims, show: &mut dyn FnMut(&Op)) -> SocketReport {
        let mut report = SocketReport::default();
        let mut wanted = std::mem::take(&mut self.pending);
        report.looked_at = wanted.keys().cloned().collect();
        loop {
            let ops = report.ops;
            let waiting = self.write_services(&wanted, claims, &mut report, show);
            // What others gave up may have made room; what was promised may have been taken.
            let is_over = |name: &ObjectRef, error: Option<&SyncError>| match error {
                Some(error) => !matches!(error, SyncError::Plan(_)),
                None => !waiting.contains(name),
            };
            for (name, served) in std::mem::take(&mut wanted) {
                let error = report.failed.get(&name);
                if !is_over(&name, error) {
                    wanted.insert(name, served);
                } else if error.is_some() {
                    self.pending.insert(name, served);
                }
            }
            if report.ops == ops {
                break;
            }
        }
        self.pending.append(&mut wanted);
        self.write_addresses(&mut report, show);
        self.repair(&mut report, show);
        report
    }

    /// Writes what is wanted; returns the Services that have entries promised to others.
    fn write_services(
        &mut self,
        wanted: &BTreeMap<ObjectRef, Arc<Served>>,
        claims: &Claims,
        report: &mut SocketReport,
        show: &mut dyn FnMut(&Op),
    ) -> BTreeSet<ObjectRef> {
        let mut waiting = BTreeSet::new();
        for (name, served) in wanted {
            let promised = self.promised(name, claims);
            match self.write_one(name, &served.local, &promised, report, show) {
                Ok(()) => {
                    report.failed.remove(name);
                }
                Err(error) => {
                    report.failed.insert(name.clone(), error);
                }
            }
            // Also if it failed: what stands there from before may be all of it.
            let all = served
                .local
                .iter()
                .flat_map(|set| &set.frontends)
                .all(|frontend| self.mirror.service(&frontend.into()).is_some());
            let refuse = self.unknown_ports == UnknownPorts::Refuse;
            let ips = if refuse { &served.cluster_ips[..] } else { &[] };
            self.addresses.set_cluster_ips(name, ips, all);
            if !promised.is_empty() {
                waiting.insert(name.clone());
            }
        }
        waiting
    }

    /// The entries of a Service that another one is to have. They stay until that one replaces them:
    /// a frontend that changes hands never vanishes, even if its new owner does not fit.
    fn promised(&self, name: &ObjectRef, claims: &Claims) -> BTreeSet<ServiceKey> {
        let keys = self.mirror.ids_of(name).flat_map(|id| self.mirror.keys_of(id));
        let owner = |key| claims.owner(&Frontend::from_key(key)?);
        keys.filter(|key| owner(key).is_some_and(|owner| owner != name)).copied().collect()
    }

    /// Writes what is wanted of one Service, set by set. What does not fit stays as it was, and the
    /// rest goes on: a set without room for its records, and frontends without room for their entries.
    fn write_one(
        &mut self,
        name: &ObjectRef,
        sets: &[BackendSet],
        promised: &BTreeSet<ServiceKey>,
        report: &mut SocketReport,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), SyncError> {
        let mut lack = room(&self.mirror, sets).err();
        if lack.is_some() {
            // What the Service gives up is in its own way.
            self.execute(&endings(&self.mirror, name, sets, promised), report, show)?;
            lack = room(&self.mirror, sets).err();
        }
        let mut unwritten = BTreeSet::new();
        let mut failed = None;
        for set in sets {
            let mut set = Cow::Borrowed(set);
            if lack.is_some() {
                let present = present(&self.mirror, &set).collect();
                set.to_mut().frontends = present;
            }
            if set.frontends.is_empty() {
                continue;
            }
            let mut planned = plan(&self.mirror, &self.store, &set);
            if let Err(PlanError::BackendsFull { needed, .. }) = planned {
                self.execute(&endings(&self.mirror, name, sets, promised), report, show)?;
                if self.mirror.blocks().would_fit(needed) {
                    // The room is there, only not yet safe to use.
                    self.reclaim()?;
                }
                planned = plan(&self.mirror, &self.store, &set);
            }
            match planned {
                Ok(ops) => self.execute(&ops, report, show)?,
                Err(error) => {
                    failed.get_or_insert(error);
                    unwritten.insert(set.port.clone());
                }
            }
        }
        self.execute(&endings(&self.mirror, name, sets, promised), report, show)?;
        let remains = remains(&self.mirror, &self.store, name, sets, &unwritten, promised);
        self.execute(&remains, report, show)?;
        lack.or(failed).map_or(Ok(()), |error| Err(error.into()))
    }

    fn execute(
        &mut self,
        ops: &[Op],
        report: &mut SocketReport,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), StoreError> {
        let mut result = Ok(());
        let mut waited = false;
        for op in ops {
            // A program under way may have read the set before, which still asks for the range.
            if !waited && self.narrows(op) {
                result = self.store.grace_period();
                if result.is_err() {
                    break;
                }
                waited = true;
            }
            show(op);
            report.protocols.extend(match op {
                Op::PutService { key, .. } | Op::DeleteService { key } => {
                    Protocol::from_number(key.protocol)
                }
                _ => None,
            });
            let given = match op {
                Op::WriteBlock { records, .. } => records.first(),
                _ => None,
            };
            let reserved = given.map_or(Ok(()), |record| self.store.reserve(record.generation));
            result = reserved.and_then(|()| self.store.apply(op));
            match &result {
                Ok(()) => {
                    let beside = match op {
                        Op::WriteBlock { .. } => Some(abi::GENERATIONS),
                        Op::PutService { .. } | Op::DeleteService { .. } => Some(abi::FILTER),
                        _ => None,
                    };
                    for map in op.map().into_iter().chain(beside) {
                        report.writes.entry(map).or_default().taken += 1;
                    }
                }
                Err(StoreError::Kernel { map, error, .. }) => {
                    report.writes.entry(map).or_default().refused = Some(error.clone());
                    break;
                }
                Err(_) => break,
            }
            report.appeared |= self.appears(op);
            self.mirror.apply(op);
            report.ops += 1;
        }
        for op in ops {
            if let Op::WriteBlock { block, .. } = op {
                self.mirror.discard(*block);
            }
        }
        result
    }

    /// Whether the op takes a range of clients from a service port that is still served.
    fn narrows(&self, op: &Op) -> bool {
        matches!(op, Op::DeleteSourceRange { id, .. } if self.mirror.keys_of(*id).next().is_some())
    }

    /// Whether the op makes an address a frontend of TCP that was none.
    fn appears(&self, op: &Op) -> bool {
        match op {
            Op::PutService { key, .. } => {
                key.protocol == abi::TCP && self.mirror.service(key).is_none()
            }
            // Its node ports.
            Op::PutAddress { known, .. } => {
                known.flags & (Address::OWN_NODE | Address::OTHER_NODE) != 0
            }
            _ => false,
        }
    }

    /// Says what addresses stand for, after their ports are there.
    fn write_addresses(&mut self, report: &mut SocketReport, show: &mut dyn FnMut(&Op)) {
        let ops = self.addresses.plan(self.mirror.addresses());
        match self.execute(&ops, report, show) {
            Ok(()) => self.addresses.done(),
            Err(error) => report.addresses = Some(error),
        }
    }

    /// Removes what [`MapMirror::adopt`] could make no sense of, unless a Service has claimed it since.
    fn repair(&mut self, report: &mut SocketReport, show: &mut dyn FnMut(&Op)) {
        for op in std::mem::take(&mut self.repairs) {
            let id = match &op {
                Op::DeleteService { key } => self.mirror.service(key).map(|service| service.id),
                Op::DeleteName { id } => Some(*id),
                _ => None,
            };
            if id.is_some_and(|id| self.mirror.name(id).is_some()) {
                continue;
            }
            if let Err(error) = self.execute(std::slice::from_ref(&op), report, show) {
                report.unrepaired.push((op.clone(), error));
                self.repairs.push(op);
            }
        }
    }

    /// Number of records that [`SocketEngine::reclaim`] would set free.
    pub fn retired(&self) -> u32 {
        self.mirror.blocks().retired()
    }

    /// Makes retired blocks usable again. Waits for a grace period.
    pub fn reclaim(&mut self) -> Result<(), StoreError> {
        self.store.grace_period()?;
        self.mirror.reclaim();
        Ok(())
    }

    /// The mirror of the maps.
    pub const fn mirror(&self) -> &MapMirror {
        &self.mirror
    }

    /// The maps.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The maps, to be tampered with.
    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }
}

impl<S: Store> Engine for SocketEngine<S> {
    type Report = SocketReport;

    fn name(&self) -> &'static str {
        SOCKETS
    }

    fn adopt(&mut self) -> Result<(), String> {
        let snapshot = self.store.read().map_err(|error| error.to_string())?;
        (self.mirror, self.repairs) = MapMirror::adopt(&snapshot, self.mirror.backends());
        self.addresses.found_anew(self.mirror.addresses().keys().copied());
        self.lacks_all = true;
        Ok(())
    }

    fn lacks_all(&self) -> bool {
        self.lacks_all
    }

    fn want(&mut self, wanted: &Wanted) {
        if wanted.is_whole {
            self.pending.clear();
            // Also what the maps have and nobody asks for any more.
            let theirs = self.mirror.service_names().into_iter();
            self.pending.extend(theirs.map(|name| (name, Arc::default())));
            self.lacks_all = false;
        }
        let services = wanted.services.iter();
        self.pending.extend(services.map(|(name, served)| (name.clone(), for_sockets(served))));
        if let Some(NodeAddresses { of, own, loopback_net }) = &wanted.addresses {
            let net = loopback_net.then_some((LOOPBACK_NET, NodeAddr::OwnLoopback));
            let all = of.iter().map(|(ip, node)| (Addr::from(*ip), *node)).chain(net);
            let known = |(addr, node)| Some((addr, known(node, self.host_netns)?));
            let own = own.iter().copied().map(Addr::from);
            self.addresses.set_nodes(all.filter_map(known).collect(), own.collect());
        }
    }

    fn is_dirty(&self) -> bool {
        self.lacks_all
            || !self.pending.is_empty()
            || !self.repairs.is_empty()
            || self.addresses.is_dirty()
    }

    fn sync(&mut self, claims: &Claims, show: &mut dyn FnMut(&dyn Display)) -> SocketReport {
        self.write(claims, &mut |op: &Op| show(op))
    }
}

/// Without the ports whose sockets nobody sees.
fn for_sockets(served: &Arc<Served>) -> Arc<Served> {
    let can = |set: &BackendSet| set.port.protocol.has_sockets();
    if served.local.iter().all(can) {
        return Arc::clone(served);
    }
    let mut served = Served::clone(served);
    served.local.retain(can);
    Arc::new(served)
}

/// What the maps say of a node's address.
const fn known(node: NodeAddr, host_netns: u64) -> Option<AddressUse> {
    match node {
        NodeAddr::Own => Some(AddressUse { flags: Address::OWN_NODE, netns: 0 }),
        NodeAddr::Other => Some(AddressUse { flags: Address::OTHER_NODE, netns: 0 }),
        NodeAddr::OwnLoopback if host_netns == 0 => None,
        NodeAddr::OwnLoopback => Some(AddressUse { flags: Address::OWN_NODE, netns: host_netns }),
    }
}
