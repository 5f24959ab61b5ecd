//! The engine of one family: what is wanted → edits → a [`Table`], port by port of Services, in bounded
//! transactions.
//!
//! A port is never split: each transaction leaves every one as it was or as it is to be. What fails stays
//! wanted and is tried again; what worked stays.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use lb_common::abi::Peer;

use super::{
    element::{Edit, Element, Group, Table, TableError},
    mirror::TableMirror,
    numbers::PortNumbers,
    plan::{WantedPort, packet_frontends, plan, release_frontend, release_group},
    timeouts::Timeouts,
};
use crate::{
    claims::Claims,
    engine::{Engine, EngineReport, Wanted},
    model::{Frontend, NodeAddr, ObjectRef, PortRef, Protocol, Scope},
    policy::{OutsidePort, Served, TrafficPolicy},
};

/// What the engine of a family is called.
pub const fn engine_name(ipv4: bool) -> &'static str {
    if ipv4 { "packets of IPv4" } else { "packets of IPv6" }
}

/// Beyond so many edits another transaction begins: the kernel holds its lock for the length of one.
const EDITS: usize = 4096;

/// After so many jobs that were refused one by one, nothing more is tried: each refusal costs the
/// kernel a grace period.
const REFUSED: usize = 64;

/// The mirror of the table, and the table.
#[derive(Debug)]
pub struct PacketEngine<T> {
    table: T,
    mirror: TableMirror,
    /// What was wanted last.
    shares: BTreeMap<ObjectRef, Share>,
    /// What is wanted and not written yet, or again.
    pending: BTreeMap<ObjectRef, Arc<Served>>,
    /// Frontends that nobody wants any more.
    released: BTreeSet<Frontend>,
    /// Groups that no port has any more.
    abandoned: BTreeSet<Group>,
    numbers: PortNumbers,
    /// How many Services want the element.
    shared: HashMap<Shared, usize>,
    /// What to look at of `shared`.
    changed: BTreeSet<Shared>,
    timeouts: Timeouts,
    /// Whether what belongs to no connection may pass: connection tracking is liberal.
    is_liberal: bool,
    /// Who makes it so, if it is to be.
    make_liberal: Option<fn() -> bool>,
    /// Where node ports are served.
    nodes: BTreeSet<IpAddr>,
    /// The frontends of UDP in the table, and the endpoints that serve there, as was said last.
    serving: BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    lacks_all: bool,
    /// Whether the table was told that all is written, see [`Table::settle`].
    is_settled: bool,
    /// Why the table could not be read last: until it is, nothing is written.
    unread: Option<String>,
}

/// What a Service has of the table.
#[derive(Debug, Default)]
struct Share {
    ports: Box<[PortRef]>,
    frontends: Box<[Frontend]>,
    shared: Box<[Shared]>,
    /// Of session affinity.
    timeouts: Box<[NonZeroU32]>,
}

/// An element that several Services may want.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Shared {
    /// The address of an endpoint that may be on this node.
    Hairpin(IpAddr),
    /// An endpoint of TCP. There are very many.
    Server(Peer),
}

impl Shared {
    fn is_in(&self, mirror: &TableMirror) -> bool {
        match self {
            Self::Hairpin(ip) => mirror.hairpins().contains(ip),
            Self::Server(peer) => mirror.is_server(*peer),
        }
    }
}

impl From<Shared> for Element {
    fn from(shared: Shared) -> Self {
        match shared {
            Shared::Hairpin(ip) => Self::Hairpin(ip),
            Shared::Server(peer) => Self::Server(peer.into()),
        }
    }
}

impl Share {
    fn of(served: &Served, ipv4: bool, is_liberal: bool) -> Self {
        let (mut ports, mut frontends) = (Vec::new(), Vec::new());
        let (mut shared, mut timeouts) = (BTreeSet::new(), BTreeSet::new());
        for port in packet_ports(served, ipv4) {
            ports.push(port.port.clone());
            frontends.extend(packet_frontends(port).map(|of| of.frontend));
            timeouts.extend(port.affinity);
            shared.extend(port.here.iter().map(|addr| Shared::Hairpin(addr.ip())));
            if port.port.protocol == Protocol::Tcp && !is_liberal {
                let all = [&port.cluster, &port.local, &port.others].into_iter().flatten();
                shared.extend(all.map(|addr| Shared::Server((*addr).into())));
            }
        }
        Self {
            ports: ports.into(),
            frontends: frontends.into(),
            shared: shared.into_iter().collect(),
            timeouts: timeouts.into_iter().collect(),
        }
    }
}

/// The ports of a family that packets find at some frontend.
fn packet_ports(served: &Served, ipv4: bool) -> impl Iterator<Item = &OutsidePort> {
    let all = served.outside.iter().filter(move |port| port.ipv4 == ipv4);
    all.filter(|port| packet_frontends(port).next().is_some())
}

/// What came of a part of a sync.
#[derive(Default)]
struct Written {
    ops: usize,
    failed: BTreeMap<ObjectRef, TableError>,
    beside: Vec<TableError>,
    /// How many jobs were refused, each in a transaction of its own.
    refused: usize,
    /// Why nothing more was tried.
    unusable: Option<TableError>,
}

/// What is to be written together.
struct Job<'a> {
    /// The Service that wants it; none: nobody wants it any more.
    owner: Option<&'a ObjectRef>,
    what: What<'a>,
}

enum What<'a> {
    Port(WantedPort<'a>),
    Frontend(Frontend),
    Group(Group),
}

impl Job<'_> {
    fn plan(&self, mirror: &TableMirror) -> Vec<Edit> {
        match &self.what {
            What::Port(wanted) => plan(mirror, wanted),
            What::Frontend(frontend) => release_frontend(mirror, *frontend),
            What::Group(group) => release_group(mirror, *group),
        }
    }
}

impl<T: Table> PacketEngine<T> {
    /// The engine of a family, which has not looked at the table yet: [`Engine::adopt`] does.
    pub fn new(table: T, ipv4: bool) -> Self {
        Self {
            table,
            mirror: TableMirror::default(),
            shares: BTreeMap::new(),
            pending: BTreeMap::new(),
            released: BTreeSet::new(),
            abandoned: BTreeSet::new(),
            numbers: PortNumbers::new(ipv4),
            shared: HashMap::new(),
            is_liberal: false,
            make_liberal: None,
            changed: BTreeSet::new(),
            timeouts: Timeouts::default(),
            nodes: BTreeSet::new(),
            serving: BTreeMap::new(),
            lacks_all: true,
            is_settled: false,
            unread: Some("it was not read yet".to_owned()),
        }
    }

    /// The same beside a connection tracking that is to be liberal: it takes what is out of a
    /// connection's window for a part of the connection, so nothing is to be dropped. `make` has it be
    /// so, or returns false; it is called whenever the table was read, which loads connection tracking.
    #[must_use]
    pub fn liberal(self, make: fn() -> bool) -> Self {
        Self { make_liberal: Some(make), ..self }
    }

    /// Whether its family is IPv4.
    const fn ipv4(&self) -> bool {
        self.numbers.ipv4()
    }

    /// The mirror of the table.
    pub const fn mirror(&self) -> &TableMirror {
        &self.mirror
    }

    /// The table.
    pub const fn table(&self) -> &T {
        &self.table
    }

    /// The table, to be tampered with.
    pub const fn table_mut(&mut self) -> &mut T {
        &mut self.table
    }

    /// Counts what Services share, for one more or less.
    fn count(&mut self, share: &Share, more: bool) {
        for shared in &share.shared {
            let count = self.shared.entry(*shared).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.shared.remove(shared);
            }
            self.changed.insert(*shared);
        }
        for timeout in &share.timeouts {
            self.timeouts.count(*timeout, more);
        }
    }

    /// Carries jobs out, several in a transaction. If that fails, each has one of its own, so that only
    /// what is wrong fails.
    fn write<'a>(
        &mut self,
        jobs: impl Iterator<Item = Job<'a>>,
        done: &mut Written,
        show: &mut dyn FnMut(&dyn Display),
    ) {
        let (mut batch, mut edits) = (Vec::new(), Vec::new());
        for job in jobs {
            let mut planned = job.plan(&self.mirror);
            if planned.is_empty() {
                continue;
            }
            if edits.len() + planned.len() > EDITS {
                self.write_batch(&mut batch, &mut edits, done, show);
            }
            batch.push(job);
            edits.append(&mut planned);
        }
        self.write_batch(&mut batch, &mut edits, done, show);
    }

    fn write_batch(
        &mut self,
        batch: &mut Vec<Job<'_>>,
        edits: &mut Vec<Edit>,
        done: &mut Written,
        show: &mut dyn FnMut(&dyn Display),
    ) {
        let (batch, edits) = (std::mem::take(batch), std::mem::take(edits));
        match self.transact(&edits, done, show) {
            Ok(()) => {}
            Err(TableError::Refused(_)) if batch.len() > 1 => {
                for job in batch {
                    let edits = job.plan(&self.mirror);
                    if let Err(error) = self.transact(&edits, done, show) {
                        done.refuse(&error);
                        done.fail(job.owner, error);
                    }
                }
            }
            Err(error) => {
                for job in &batch {
                    done.fail(job.owner, error.clone());
                }
            }
        }
    }

    fn transact(
        &mut self,
        edits: &[Edit],
        done: &mut Written,
        show: &mut dyn FnMut(&dyn Display),
    ) -> Result<(), TableError> {
        if let Some(error) = &done.unusable {
            return Err(error.clone());
        }
        if edits.is_empty() {
            return Ok(());
        }
        for edit in edits {
            show(edit);
        }
        let written = self.table.write(edits);
        match &written {
            Ok(()) => {
                for edit in edits {
                    self.mirror.apply(edit);
                }
                done.ops += edits.len();
            }
            Err(TableError::Refused(_)) => {}
            Err(error @ TableError::Unusable(_)) => done.unusable = Some(error.clone()),
        }
        written
    }

    /// Removes the groups that no port has any more, and to which no frontend leads, but for those that
    /// were `tried` before. Adds those.
    fn release_groups(
        &mut self,
        tried: &mut BTreeSet<Group>,
        done: &mut Written,
        show: &mut dyn FnMut(&dyn Display),
    ) {
        let mirror = &self.mirror;
        let free = self.abandoned.iter().filter(|of| !mirror.is_led_to(**of));
        let free: Vec<_> = free.copied().filter(|of| tried.insert(*of)).collect();
        let job = |of: &Group| Job { owner: None, what: What::Group(*of) };
        self.write(free.iter().map(job), done, show);
        let mirror = &self.mirror;
        self.abandoned.retain(|of| mirror.is_led_to(*of) || !release_group(mirror, *of).is_empty());
    }

    /// Writes the addresses that are to be there (`more`), or are to be there no more.
    fn write_addresses(
        &mut self,
        more: bool,
        done: &mut Written,
        show: &mut dyn FnMut(&dyn Display),
    ) {
        for edits in self.addresses(more).chunks(EDITS) {
            if let Err(error) = self.transact(edits, done, show) {
                done.fail(None, error);
            }
        }
    }

    /// Leaves of the frontends that were looked at those that are new, went, or have other endpoints that
    /// serve. Adds the node ports if one of the node's addresses has just `come`: what began there before
    /// is no flow of theirs.
    fn leave_news(
        &mut self,
        come: &BTreeSet<IpAddr>,
        flows: &mut BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    ) {
        flows.retain(|frontend, serving| {
            let before = if self.mirror.group(*frontend, TrafficPolicy::Cluster).is_some() {
                self.serving.insert(*frontend, serving.clone())
            } else {
                self.serving.remove(frontend);
                None
            };
            before.as_ref() != Some(serving)
        });
        if come.iter().any(|ip| self.mirror.nodes().contains(ip)) {
            let node_ports = self.serving.iter().filter(|(of, _)| of.scope == Scope::OwnNode);
            for (frontend, serving) in node_ports {
                flows.entry(*frontend).or_insert_with(|| serving.clone());
            }
        }
    }

    /// Where the node ports among these frontends are: an address with a frontend of its own at that
    /// port leads to that one.
    fn at_nodes<'a>(&self, frontends: impl Iterator<Item = &'a Frontend>) -> BTreeSet<SocketAddr> {
        let node_ports = frontends.filter(|frontend| frontend.scope == Scope::OwnNode);
        let at = |frontend: &Frontend| {
            let Frontend { addr, protocol, .. } = *frontend;
            let own = self.nodes.iter().filter(move |ip| ip.is_ipv4() == addr.is_ipv4());
            let all = own.map(move |ip| Frontend::new((*ip, addr.port()).into(), protocol));
            all.filter(|at| self.mirror.group(*at, TrafficPolicy::Cluster).is_none())
        };
        node_ports.flat_map(at).map(|frontend| frontend.addr).collect()
    }

    /// The edits of addresses that are to be there, or are to be there no more.
    fn addresses(&self, more: bool) -> Vec<Edit> {
        let wanted = |shared: &&Shared| self.shared.contains_key(shared) == more;
        let is_there = |shared: &&Shared| shared.is_in(&self.mirror) == more;
        let shared = self.changed.iter().filter(wanted).filter(|shared| !is_there(shared));
        let there = self.mirror.nodes();
        let (a, b) = if more { (&self.nodes, there) } else { (there, &self.nodes) };
        let nodes = a.difference(b).copied().map(Element::Node);
        let edit = if more { Edit::Add } else { Edit::Delete };
        shared.copied().map(Element::from).chain(nodes).map(edit).collect()
    }
}

impl Written {
    /// Counts a transaction that was refused alone. After too many, it is not the edits that are wrong.
    fn refuse(&mut self, error: &TableError) {
        self.refused += 1;
        if self.refused >= REFUSED {
            self.unusable.get_or_insert_with(|| error.clone());
        }
    }

    fn fail(&mut self, of: Option<&ObjectRef>, error: TableError) {
        match of {
            Some(name) => {
                self.failed.entry(name.clone()).or_insert(error);
            }
            None if !self.beside.contains(&error) => self.beside.push(error),
            None => {}
        }
    }
}

impl<T: Table> Engine for PacketEngine<T> {
    type Report = EngineReport;

    fn name(&self) -> &'static str {
        engine_name(self.ipv4())
    }

    fn adopt(&mut self) -> Result<(), String> {
        let mut mirror = TableMirror::default();
        let ipv4 = self.ipv4();
        let read = self.table.read(&mut |element| {
            if element.is_ipv4() == ipv4 {
                mirror.apply(&Edit::Add(element));
            }
        });
        self.unread = read.err().map(|error| error.to_string());
        if let Some(error) = &self.unread {
            return Err(error.clone());
        }
        self.mirror = mirror;
        self.lacks_all = true;
        self.is_settled = false;
        self.is_liberal = self.make_liberal.is_some_and(|make| make());
        Ok(())
    }

    fn lacks_all(&self) -> bool {
        self.lacks_all && self.unread.is_none()
    }

    fn want(&mut self, wanted: &Wanted) {
        if wanted.is_whole {
            self.pending.clear();
            self.serving.clear();
            self.shares.clear();
            self.shared.clear();
            self.timeouts = Timeouts::default();
            // Also what the table has and nobody asks for any more.
            self.released = self.mirror.frontends();
            self.abandoned = self.mirror.groups().collect();
            let (ports, ipv4) = (wanted.services.values(), self.ipv4());
            let ports = ports.flat_map(|served| packet_ports(served, ipv4));
            self.numbers.adopt(&self.mirror, ports);
            let hairpins = self.mirror.hairpins().iter().copied().map(Shared::Hairpin);
            let servers = self.mirror.servers().map(|addr| Shared::Server(addr.into()));
            self.changed = hairpins.chain(servers).collect();
            self.lacks_all = false;
        }
        let mut gone = BTreeSet::new();
        for name in wanted.services.keys() {
            if let Some(share) = self.shares.remove(name) {
                self.count(&share, false);
                self.released.extend(share.frontends);
                gone.extend(share.ports);
            }
        }
        for (name, served) in &wanted.services {
            let share = Share::of(served, self.ipv4(), self.is_liberal);
            self.count(&share, true);
            for port in &share.ports {
                gone.remove(port);
                for group in self.numbers.take(port, &self.mirror) {
                    self.abandoned.remove(&group);
                }
            }
            // Whoever had it before: a frontend that changes hands is written once.
            for frontend in &share.frontends {
                self.released.remove(frontend);
            }
            if !share.frontends.is_empty() {
                self.shares.insert(name.clone(), share);
            }
            self.pending.insert(name.clone(), Arc::clone(served));
        }
        self.abandoned.extend(gone.iter().flat_map(|port| self.numbers.give_back(port)));
        let first = if wanted.is_whole { self.mirror.timeouts() } else { BTreeSet::new() };
        self.timeouts.grant(first);
        if let Some(addresses) = &wanted.addresses {
            let own = addresses.of.iter().filter(|(_, node)| **node == NodeAddr::Own);
            self.nodes = own.map(|(ip, _)| *ip).filter(|ip| ip.is_ipv4() == self.ipv4()).collect();
        }
    }

    fn is_dirty(&self) -> bool {
        self.unread.is_none()
            && (self.lacks_all
                || !self.is_settled
                || !self.pending.is_empty()
                || !self.released.is_empty()
                || !self.abandoned.is_empty()
                || !self.changed.is_empty()
                || self.nodes != *self.mirror.nodes())
    }

    fn sync(&mut self, _: &Claims, show: &mut dyn FnMut(&dyn Display)) -> EngineReport {
        if let Some(error) = &self.unread {
            let (entries, beside) = (self.mirror.len(), vec![error.clone()]);
            return EngineReport { entries, beside, ..EngineReport::default() };
        }
        let mut done = Written::default();
        let come: BTreeSet<IpAddr> = self.nodes.difference(self.mirror.nodes()).copied().collect();
        self.write_addresses(true, &mut done, show);

        // First what gives room.
        let released = std::mem::take(&mut self.released);
        let job = |of: &Frontend| Job { owner: None, what: What::Frontend(*of) };
        self.write(released.iter().map(job), &mut done, show);
        let is_there = |of: &&Frontend| !release_frontend(&self.mirror, **of).is_empty();
        self.released = released.iter().filter(is_there).copied().collect();
        let mut tried = BTreeSet::new();
        self.release_groups(&mut tried, &mut done, show);
        // Flows are told of, and only UDP has any that outlive their endpoint.
        let gone = released.into_iter().filter(|frontend| {
            frontend.protocol == Protocol::Udp && !self.released.contains(frontend)
        });
        let gone = gone.map(|frontend| (frontend, BTreeSet::new()));
        let mut flows: BTreeMap<_, BTreeSet<_>> = gone.collect();

        let mut pending = std::mem::take(&mut self.pending);
        let jobs = pending.iter().flat_map(|(name, served)| {
            let (timeouts, numbers) = (&self.timeouts, &self.numbers);
            packet_ports(served, self.ipv4()).filter_map(move |port| {
                let number = numbers.get(&port.port)?;
                let affinity = port.affinity.map(|timeout| timeouts.in_force(timeout));
                let what = What::Port(WantedPort { port, number, affinity });
                Some(Job { owner: Some(name), what })
            })
        });
        let jobs: Vec<_> = jobs.collect();
        self.write(jobs.into_iter(), &mut done, show);
        self.release_groups(&mut tried, &mut done, show);
        let lasts_longer = |timeout: &NonZeroU32| self.timeouts.in_force(*timeout) != *timeout;
        let longer = pending.keys().filter(|name| {
            self.shares.get(*name).is_some_and(|of| of.timeouts.iter().any(lasts_longer))
        });
        let longer = longer.cloned().collect();
        for (_, served) in pending.iter().filter(|(name, _)| !done.failed.contains_key(*name)) {
            for port in packet_ports(served, self.ipv4()) {
                let serving = || [&port.cluster, &port.local, &port.kept].into_iter().flatten();
                let serving = || serving().copied().collect();
                let udp = packet_frontends(port).map(|of| of.frontend);
                let udp = udp.filter(|frontend| frontend.protocol == Protocol::Udp);
                flows.extend(udp.map(|frontend| (frontend, serving())));
            }
        }
        self.leave_news(&come, &mut flows);
        pending.retain(|name, _| done.failed.contains_key(name));
        self.pending = pending;

        self.write_addresses(false, &mut done, show);
        if !self.is_settled && !self.lacks_all && done.unusable.is_none() {
            match self.table.settle() {
                Ok(()) => self.is_settled = true,
                Err(error) => done.fail(None, error),
            }
        }
        let (mirror, shared) = (&self.mirror, &self.shared);
        self.changed.retain(|of| of.is_in(mirror) != shared.contains_key(of));

        let failed = done.failed.into_iter().map(|(name, error)| (name, error.to_string()));
        let unusable = done.unusable.filter(|error| !done.beside.contains(error));
        let beside = unusable.into_iter().chain(done.beside).map(|error| error.to_string());
        EngineReport {
            ops: done.ops,
            entries: self.mirror.len(),
            failed: failed.collect(),
            beside: beside.collect(),
            node_ports: self.at_nodes(flows.keys()),
            flows,
            longer,
        }
    }
}
