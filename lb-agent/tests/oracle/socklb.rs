//! Our side: objects, as the sources translate them, through the whole control plane into maps in
//! memory, and packets that ask these maps as the programs do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use lb_agent::{
    agent::InForce,
    sockets::{Found, judge},
    sources::translate,
};
use lb_common::{
    Prior, ReadMaps, Refusal, Selection, Verdict,
    abi::{
        self, Addr, Address, AffinityKey, Backend, Bond, ClientKey, PortOptions, Service,
        ServiceKey, SourceAddress, SourceRangeKey, Translation,
    },
    choose, select,
};
use lb_core::{
    engine::Engine as _,
    memory::Memory,
    model::{Change, Families, NodePortAddresses, Protocol, Settings},
    packets::{PacketEngine, ServedFlows, engine_name},
    pipeline::{NodeConfig, Pipeline},
    policy::{HealthCheck, NoLocal, PerFamily},
    socket_engine::{SocketSettings, UnknownPorts},
    store::Snapshot,
};

use super::{
    case::{Config, Kind, Object, Op},
    client::{Client, HOST, flow},
    flows::Carried,
    outcome::{Fate, Outcome, Packet, Stated},
    outside::{Handled, Outside},
    packets::ip,
    table::Shared,
};

const SERVICES: u32 = 1024;
const BACKENDS: u32 = 8192;

/// An agent on the node of the case.
pub(crate) struct Socklb {
    config: Config,
    pipeline: Pipeline<Memory>,
    /// What its engines for packets are told.
    outside: Outside,
    /// What those of both families have written.
    table: Shared,
    /// What it said last of flows.
    flows: ServedFlows,
    /// The map of bonds, which the agent does not write.
    bonds: Bonds,
}

type Bonds = HashMap<AffinityKey, Bond>;

/// The maps with their bonds.
struct Remembering<'a> {
    maps: &'a Memory,
    bonds: &'a Bonds,
}

impl ReadMaps for Remembering<'_> {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.maps.service(key)
    }

    fn port(&self, id: u32) -> Option<PortOptions> {
        self.maps.port(id)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.maps.backend(index)
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        self.maps.address(addr)
    }

    fn client(&self, key: &ClientKey) -> Option<SourceAddress> {
        self.maps.client(key)
    }

    fn allows(&self, client: &SourceRangeKey) -> bool {
        self.maps.allows(client)
    }

    fn bond(&self, key: &AffinityKey) -> Bond {
        self.bonds.get(key).copied().unwrap_or(Bond::NONE)
    }
}

impl Socklb {
    pub(crate) fn new(config: &Config) -> Self {
        let maps = Memory::new(SERVICES, BACKENDS);
        let snapshot = maps.snapshot();
        let (outside, table) = (Outside::default(), Shared::default());
        let pipeline = pipeline(config, maps, &snapshot, (&outside, &table));
        Self {
            config: config.clone(),
            pipeline,
            outside,
            table,
            flows: ServedFlows::default(),
            bonds: Bonds::new(),
        }
    }

    /// What it was started with, and the addresses of interfaces now.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    /// Takes in what the API server says, and writes what follows from it.
    pub(crate) fn step(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Apply { object } => self.change(object, true),
                Op::Delete { object } => self.change(object, false),
                Op::List { kind, objects } => self.list(*kind, objects),
                Op::Start { objects } => self.start(objects),
                Op::Interfaces { addresses } => {
                    self.config.interfaces.clone_from(addresses);
                    self.pipeline.change(local_addresses(&self.config));
                }
            }
        }
        let mut report = self.pipeline.sync();
        self.flows = ServedFlows::default();
        for ipv4 in [true, false] {
            let report =
                report.others.get_mut(engine_name(ipv4)).expect("an engine of each family");
            self.flows.update(ServedFlows::of(report));
        }
        assert!(
            report.sockets.failed.is_empty() && report.sockets.addresses.is_none(),
            "there is room: {report:?}"
        );
        self.pipeline.reclaim().expect("memory");
    }

    /// Another agent goes on from the maps.
    fn start(&mut self, objects: &[Object]) {
        let maps = self.pipeline.store().clone();
        let snapshot = maps.snapshot();
        self.outside = Outside::default();
        let engines = (&self.outside, &self.table);
        self.pipeline = pipeline(&self.config, maps, &snapshot, engines);
        for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
            let all = objects.iter().filter(|object| object.key().0 == kind);
            self.list(kind, &all.cloned().collect::<Vec<_>>());
        }
    }

    fn list(&mut self, kind: Kind, objects: &[Object]) {
        let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
        let mut nodes = BTreeMap::new();
        for object in objects {
            match self.says(object, true) {
                Change::Service(name, Some(model)) => drop(services.insert(name, model)),
                Change::Slice(name, Some(model)) => drop(slices.insert(name, model)),
                Change::Node(name, Some(model)) => drop(nodes.insert(name, model)),
                _ => {}
            }
        }
        self.pipeline.change(match kind {
            Kind::Service => Change::ListedServices(services),
            Kind::EndpointSlice => Change::ListedSlices(slices),
            Kind::Node => Change::ListedNodes(nodes),
        });
    }

    fn change(&mut self, object: &Object, is_there: bool) {
        let change = self.says(object, is_there);
        self.pipeline.change(change);
    }

    /// An object as the sources say it.
    fn says(&self, object: &Object, is_there: bool) -> Change {
        match object {
            Object::Service(object) => {
                // The sources look at the name (A1).
                let is_ours = translate::proxy_name(object) == self.config.proxy_name.as_deref();
                let model = translate::service(object).0.filter(|_| is_there && is_ours);
                Change::Service(translate::object_ref(&object.metadata), model)
            }
            Object::Slice(object) => {
                let model = translate::slice(object).0;
                Change::Slice(translate::object_ref(&object.metadata), model.filter(|_| is_there))
            }
            Object::Node(object) => {
                let model = translate::node(object).0;
                let name = object.metadata.name.as_deref().unwrap_or_default();
                Change::Node(name.into(), model.filter(|_| is_there))
            }
        }
    }

    /// The frontends that the maps have at addresses that clients dial.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = (SocketAddr, &'static str)> {
        let services = self.pipeline.store().snapshot().services.into_keys();
        services
            .filter(|key| key.scope == abi::SCOPE_ANY)
            .map(|key| (key.peer.into(), if key.protocol == abi::UDP { "UDP" } else { "TCP" }))
    }

    /// Where a packet leads.
    pub(crate) fn ask(&self, packet: &Packet) -> Outcome {
        let maps = self.pipeline.store();
        let (flow, client) = (flow(packet), Client::of(packet));
        let mut choice = Selection::after(Prior::NONE);
        choose(&mut choice, maps, &client, &flow);
        let count = choice.range.count.max(1);
        let mut outcome = Outcome::default();
        let mut fates = Vec::new();
        for i in 0..count {
            client.index.set(i);
            fates.push(match select(maps, &client, &flow, &Prior::NONE) {
                Verdict::Miss => Fate::Untouched,
                Verdict::Forward(to) => {
                    outcome.backends.insert(to.to.backend.into());
                    outcome.affinity = to.affinity;
                    Fate::Forwarded
                }
                Verdict::Fail(Refusal::NoEndpoints | Refusal::Confined) => Fate::Refused,
                Verdict::Fail(Refusal::UnknownPort) => Fate::UnknownPort,
                Verdict::Fail(Refusal::Unreachable) => Fate::Unreachable,
                Verdict::Fail(Refusal::Denied) => Fate::Denied,
                Verdict::Fail(Refusal::Unstable) => Fate::Damaged,
                Verdict::Stay | Verdict::Fail(Refusal::Reserved | Refusal::UnknownClient) => {
                    unreachable!("{packet}: {choice:?}")
                }
            });
        }
        let forwarded = fates.contains(&Fate::Forwarded);
        outcome.fate = if forwarded { Fate::Forwarded } else { fates[0] };
        outcome
    }

    /// What becomes of a packet whose socket no program sees.
    pub(crate) fn handles(&self, packet: &Packet) -> Handled {
        self.outside.handles(packet, self.config.sender(packet))
    }

    /// The same by the elements of the table, which has no cluster IPs.
    pub(crate) fn handles_by_table(&self, packet: &Packet) -> Handled {
        self.table.handles(packet, self.config.sender(packet))
    }

    /// Where a packet leads whose client may have been here before, at a time in seconds. The client
    /// gets the backend that it is to get, which is then remembered.
    pub(crate) fn comes_back(
        &mut self,
        packet: &Packet,
        now: u64,
        gets: Option<SocketAddr>,
    ) -> BTreeSet<SocketAddr> {
        let flow = flow(packet);
        let maps = Remembering { maps: self.pipeline.store(), bonds: &self.bonds };
        let mut choice = Selection::after(Prior::NONE);
        let client = Client::at((now + 1) * 1_000_000_000, packet);
        choose(&mut choice, &maps, &client, &flow);
        let count = choice.range.count.max(1);
        let mut backends = BTreeSet::new();
        let mut bond = None;
        for i in 0..count {
            client.index.set(i);
            if let Verdict::Forward(to) = select(&maps, &client, &flow, &Prior::NONE) {
                backends.insert(to.to.backend.into());
                if gets == Some(to.to.backend.into()) {
                    bond = client.bond.take();
                }
            }
        }
        self.bonds.extend(bond);
        backends
    }

    /// What is stored for the sockets of a flow that went to this backend.
    pub(crate) fn carried(&self, packet: &Packet, backend: SocketAddr) -> Carried {
        let maps = self.pipeline.store();
        let (flow, client) = (flow(packet), Client::of(packet));
        let mut choice = Selection::after(Prior::NONE);
        choose(&mut choice, maps, &client, &flow);
        let of = |i| {
            client.index.set(i);
            match select(maps, &client, &flow, &Prior::NONE) {
                Verdict::Forward(to) if SocketAddr::from(to.to.backend) == backend => Some(to),
                _ => None,
            }
        };
        let to = (0..choice.range.count).find_map(of).expect("both sides have it");
        let backend = Backend::forward(to.to.backend).stamped(to.to.generation, to.service);
        Carried {
            prior: to.to,
            translation: Some(Translation::new(flow.peer, &backend)),
            inside: true,
        }
    }

    /// Whether the agent has connection tracking forget a flow of packets that leads to an address.
    pub(crate) fn is_over(&self, packet: &Packet, end: SocketAddr) -> bool {
        self.flows.is_over(packet.to, end)
    }

    /// Whether the agent lets the connected socket of a flow live.
    pub(crate) fn keeps(&self, packet: &Packet, carried: &Carried) -> bool {
        let Carried { translation, inside, .. } = *carried;
        let peer = translation.map_or(packet.to, |it| it.backend.into());
        let mut found = Found::sample(Protocol::Udp, peer);
        found.netns = Client::of(packet).onlooker.netns;
        found.local = SocketAddr::new(packet.source, 40_000).into();
        found.translation = translation;
        found.inside = inside;
        judge(&found, &InForce(&self.pipeline, None)).is_none()
    }

    /// Whether the unconnected socket of a flow goes on to its backend, and remembers that; none: it had
    /// none.
    pub(crate) fn goes_on(
        &self,
        packet: &Packet,
        carried: &Carried,
        remembered: &mut Prior,
    ) -> Option<bool> {
        let Carried { prior, translation, .. } = carried;
        translation.as_ref()?;
        let (flow, client) = (flow(packet), Client::of(packet));
        let mut stays = true;
        // Whatever it draws.
        for index in [0, u32::MAX] {
            client.index.set(index);
            stays &= match select(self.pipeline.store(), &client, &flow, prior) {
                Verdict::Stay => true,
                Verdict::Forward(to) => {
                    remembered.generation = to.to.generation;
                    to.to.backend == prior.backend
                }
                _ => false,
            };
        }
        Some(stays)
    }

    /// What the agent says of itself.
    pub(crate) fn stated(&self) -> Stated {
        let mut stated = Stated::default();
        for (name, HealthCheck { port, local }) in self.pipeline.health_checks() {
            for (family, local) in families(&self.config, *local) {
                let local = local.map(|local| (format!("{name}:{port} ({family})"), local));
                stated.health.extend(local);
            }
        }
        let no_local = self.pipeline.no_local();
        for (family, NoLocal { internal, external }) in families(&self.config, no_local) {
            stated.count_no_local(family, internal, external);
        }
        stated
    }
}

fn families<T>(config: &Config, both: PerFamily<T>) -> impl Iterator<Item = (&'static str, T)> {
    let PerFamily { ipv4, ipv6 } = both;
    let has = |family: &str| config.families.iter().any(|of| of == family);
    let (v4, v6) = (has("IPv4"), has("IPv6"));
    let all = [("IPv4", ipv4, v4), ("IPv6", ipv6, v6)].into_iter();
    all.filter(|(_, _, has)| *has).map(|(family, value, _)| (family, value))
}

fn pipeline(
    config: &Config,
    maps: Memory,
    snapshot: &Snapshot,
    (outside, table): (&Outside, &Shared),
) -> Pipeline<Memory> {
    let list = config.node_port_addresses.join(",");
    let nodeport_addresses: NodePortAddresses = list.parse().expect("ranges");
    let has = |family: &str| config.families.iter().any(|of| of == family);
    let settings = Settings {
        node_name: config.node.as_str().into(),
        external_ips: config.external_ips,
        nodeport_addresses,
        localhost_nodeports: config.localhost_nodeports,
        families: Families { ipv4: has("IPv4"), ipv6: has("IPv6") },
        ..Settings::default()
    };
    let unknown_ports =
        if config.refuse_unknown_ports { UnknownPorts::Refuse } else { UnknownPorts::Pass };
    let view = NodeConfig {
        settings,
        sockets: SocketSettings { unknown_ports, host_netns: HOST, ..SocketSettings::default() },
    };
    let mut pipeline = Pipeline::with_config(view, maps, snapshot);
    pipeline.add(Box::new(outside.clone()));
    for ipv4 in [true, false] {
        let mut packets = PacketEngine::new(table.family(ipv4), ipv4);
        packets.adopt().expect("it can be read");
        pipeline.add(Box::new(packets));
    }
    pipeline.change(local_addresses(config));
    pipeline
}

/// As `sources::local` says them.
fn local_addresses(config: &Config) -> Change {
    let loopback = ["127.0.0.1", "::1"].map(ip);
    Change::LocalAddresses(config.interfaces.iter().map(|text| ip(text)).chain(loopback).collect())
}
