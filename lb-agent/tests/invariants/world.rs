//! The cluster, and the agent that serves it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    model::{
        Change, Conditions, Endpoint, ObjectRef, PortRef, Protocol, Service, ServicePort, Settings,
        Slice, SlicePort, Trigger,
    },
    pipeline::{NodeConfig, Pipeline, SyncReport},
    plan::PlanError,
    policy::{self, PerFamily},
    socket_engine::SyncError,
    store::Snapshot,
};

use super::{
    history::{Step, Tweak, ip, node_port},
    truth::{Edit, HERE, Set, Sets, Truth, wanted},
    watched::Watched,
};

/// The cluster, and the agent that serves it.
pub(super) struct World {
    pub(super) truth: Truth,
    /// What the agent was told of it.
    pub(super) told: Truth,
    pub(super) pipeline: Pipeline<Watched>,
    /// Whether the maps have room for everything.
    pub(super) roomy: bool,
}

/// An agent on the node [`HERE`].
pub(super) fn pipeline(store: Watched, snapshot: &Snapshot) -> Pipeline<Watched> {
    let settings = Settings { node_name: HERE.into(), ..Settings::default() };
    Pipeline::with_config(NodeConfig { settings, ..NodeConfig::default() }, store, snapshot)
}

impl World {
    pub(super) fn new(max_services: u32, max_backends: u32, roomy: bool) -> Self {
        let store = Watched::new(max_services, max_backends);
        let snapshot = store.memory.snapshot();
        let pipeline = pipeline(store, &snapshot);
        let (truth, told) = (Truth::default(), Truth::default());
        let mut world = Self { truth, told, pipeline, roomy };
        world.list(None, true);
        world
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Edit(edit) => self.edit(edit),
            Step::Missed(edit) => self.truth.edit(&edit),
            Step::Tweak(which, tweak) => self.tweak(which, tweak),
            Step::ListServices => self.list_services(),
            Step::ListSlices => self.list_slices(),
            Step::ListNodes => self.list_nodes(),
            Step::Sync { faults, grace_fails } => drop(self.sync(faults, grace_fails)),
            Step::Reclaim { fails } => {
                self.pipeline.store_mut().grace_fails = fails;
                assert_eq!(self.pipeline.reclaim().is_err(), fails);
                assert!(fails || self.pipeline.retired() == 0);
            }
            Step::Restart(early, order) => self.restart(early, order),
            Step::MadeAnew(order) => self.make_anew(order),
        }
    }

    pub(super) fn edit(&mut self, edit: Edit) {
        self.told.edit(&edit);
        self.told.remember();
        self.truth.edit(&edit);
        self.pipeline.change(edit.into());
    }

    /// Changes one of the Services, or one of the slices.
    fn tweak(&mut self, which: usize, tweak: Tweak) {
        fn nth<T: Clone>(all: &BTreeMap<ObjectRef, T>, n: usize) -> Option<(ObjectRef, T)> {
            let at = n.checked_rem(all.len())?;
            all.iter().nth(at).map(|(name, value)| (name.clone(), value.clone()))
        }
        let (service, slice) = (nth(&self.told.services, which), nth(&self.told.slices, which));
        if let Some((name, mut service)) = service {
            match &tweak {
                Tweak::Age(created) => service.created = *created,
                Tweak::Swap(other) => {
                    let (other, mut heir) = nth(&self.told.services, *other).unwrap();
                    std::mem::swap(&mut heir.cluster_ips, &mut service.cluster_ips);
                    if other != name {
                        self.edit(Edit::Service(other, Some(heir)));
                    }
                }
                Tweak::PortName(to) => service.ports.iter_mut().for_each(|p| p.name = (*to).into()),
                // One port only: no frontend is twice in a Service.
                Tweak::PortNumber(to) => {
                    service.ports.truncate(1);
                    service.ports.iter_mut().for_each(|port| port.number = *to);
                }
                Tweak::PortProtocol(to) => {
                    service.ports.truncate(1);
                    service.ports.iter_mut().for_each(|port| port.protocol = *to);
                }
                Tweak::NoPort => drop(service.ports.pop()),
                Tweak::Local(internal, external) => {
                    (service.internal_local, service.external_local) = (*internal, *external);
                }
                Tweak::Affinity(to) => service.affinity = *to,
                Tweak::Sources(to) => service.source_ranges.clone_from(to),
                // See `history::fit`.
                Tweak::NodePorts(to) if *name.name != *"kubernetes" => {
                    for port in &mut service.ports {
                        port.node_port = to.then(|| node_port(port.number));
                    }
                }
                _ => {}
            }
            self.edit(Edit::Service(name, Some(service)));
        }
        if let Some((mut name, mut slice)) = slice {
            match tweak {
                Tweak::Endpoint(endpoint) => slice.endpoints.push(endpoint),
                Tweak::NoEndpoint => drop(slice.endpoints.pop()),
                Tweak::Conditions(to) => {
                    slice.endpoints.first_mut().into_iter().for_each(|e| e.conditions = to);
                }
                Tweak::TargetPort(to) => {
                    slice.ports.first_mut().into_iter().for_each(|port| port.number = to);
                }
                Tweak::Owner(to) => {
                    // A slice lies beside its Service.
                    name.namespace = to.namespace.clone();
                    slice.service = to;
                }
                _ => {}
            }
            self.edit(Edit::Slice(name, Some(slice)));
        }
    }

    fn list_services(&mut self) {
        self.told.services.clone_from(&self.truth.services);
        self.pipeline.change(Change::ListedServices(self.truth.services.clone()));
    }

    fn list_slices(&mut self) {
        self.told.slices.clone_from(&self.truth.slices);
        self.pipeline.change(Change::ListedSlices(self.truth.slices.clone()));
    }

    fn list_nodes(&mut self) {
        self.told.nodes.clone_from(&self.truth.nodes);
        self.told.remember();
        self.pipeline.change(Change::ListedNodes(self.truth.nodes.clone()));
    }

    /// Both lists, one after the other; nothing may happen in between.
    fn list(&mut self, early: Option<Edit>, order: bool) {
        self.pipeline.store_mut().open = false;
        self.list_nodes();
        self.pipeline.sync();
        if let Some(edit) = early {
            self.edit(edit);
            self.pipeline.sync();
        }
        if order {
            self.list_services();
        } else {
            self.list_slices();
        }
        assert!(!self.pipeline.is_dirty());
        self.pipeline.sync();
        assert!(!self.pipeline.is_synced());
        if order {
            self.list_slices();
        } else {
            self.list_services();
        }
        assert!(self.pipeline.is_dirty());
        self.pipeline.store_mut().open = true;
    }

    /// The agent dies, and another one goes on from the maps.
    pub(super) fn restart(&mut self, early: Option<Edit>, order: bool) {
        let store = self.pipeline.store();
        let settled = store.sets() == wanted(&self.truth, &store.sets())
            && store.addresses == self.truth.addresses(&store.services)
            && early.is_none();
        let names = store.names.clone();
        let snapshot = store.memory.snapshot();
        self.pipeline = pipeline(store.clone(), &snapshot);
        self.told.forget();
        self.list(early, order);
        let used: BTreeSet<u32> = snapshot.services.values().map(|service| service.id).collect();
        if settled && names.keys().all(|id| used.contains(id)) {
            let report = self.sync(0, true);
            assert_eq!(
                (report.sockets.ops, &self.pipeline.store().names),
                (0, &names),
                "after a restart"
            );
        }
    }

    /// The maps are thrown away, and another agent makes new ones.
    fn make_anew(&mut self, order: bool) {
        let store = self.pipeline.store().made_anew();
        let snapshot = store.memory.snapshot();
        self.pipeline = pipeline(store, &snapshot);
        self.told.forget();
        self.list(None, order);
    }

    /// A sync, and all that must be true after it.
    pub(super) fn sync(&mut self, faults: u64, grace_fails: bool) -> SyncReport {
        let store = self.pipeline.store_mut();
        store.old = store.sets();
        store.new = wanted(&self.told, &store.old);
        store.told.clone_from(&self.told);
        (store.faults, store.grace_fails) = (faults, grace_fails);
        let report = self.pipeline.sync();
        let store = self.pipeline.store_mut();
        (store.faults, store.grace_fails) = (0, false);

        let store = self.pipeline.store();
        let sets = store.sets();
        let failed = |port: &PortRef| report.sockets.failed.contains_key(&port.service);
        for (key, set) in &store.new {
            assert!(sets.get(key) == Some(set) || failed(&set.port), "{key:?}: no {set:?}");
        }
        for (key, set) in &sets {
            assert!(store.new.contains_key(key) || failed(&set.port), "{key:?}: left of {set:?}");
        }
        let used: BTreeSet<u32> = store.services.values().map(|service| service.id).collect();
        for (id, range) in &store.source_ranges {
            let asks = |(key, set): (_, &Set)| {
                store.services.get(key).is_some_and(|service| service.id == *id)
                    && set.source_ranges.contains(range)
            };
            // Or somebody else is to have an entry of it, and failed.
            let promised = store.services.iter().any(|(key, service)| {
                let port = store.names.get(id);
                service.id == *id && store.new.get(key).map(|set| &set.port) != port
            });
            let failed = promised || store.names.get(id).is_some_and(failed);
            assert!(failed || store.new.iter().any(asks), "{range} is left of id {id}");
        }
        if report.sockets.addresses.is_none() {
            assert_eq!(store.addresses, self.told.addresses(&store.services), "addresses");
        }
        for (id, port) in &store.names {
            assert!(used.contains(id) || failed(port), "id {id} is left of {port}");
        }
        if self.roomy && faults == 0 && !grace_fails {
            assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
            assert!(report.sockets.addresses.is_none());
        }
        if faults == 0 && !grace_fails {
            self.check_room(&report);
        }
        for (name, lost) in &report.lost {
            let lost = lost.iter().map(|lost| (lost.frontend, lost.owner.clone())).collect();
            assert_eq!(self.told.lost(name), lost, "what {name} lost");
        }
        self.check_mirror();
        self.check_sums();

        let fine = report.sockets.failed.is_empty() && report.sockets.addresses.is_none();
        assert_eq!(self.pipeline.is_dirty(), !fine, "what failed is retried");
        if fine {
            assert_eq!(self.pipeline.sync().sockets.ops, 0, "nothing to do");
        }
        report
    }

    /// What did not fit does not fit: nowhere between the sets that are there.
    fn check_room(&self, report: &SyncReport) {
        let store = self.pipeline.store();
        let blocks: BTreeMap<u32, u32> =
            store.services.values().map(|service| (service.block, service.records())).collect();
        let (mut widest, mut end) = (0, 0);
        for (block, len) in blocks {
            widest = widest.max(block - end);
            end = block + len;
        }
        widest = widest.max(self.pipeline.mirror().blocks().capacity() - end);
        for (name, error) in &report.sockets.failed {
            let SyncError::Plan(PlanError::BackendsFull { needed, .. }) = error else { continue };
            let room = usize::try_from(widest).unwrap();
            assert!(*needed > room, "{name} failed, with room for {room} records: {error}");
        }
    }

    /// The agent's view of the maps, and of the room in them.
    fn check_mirror(&self) {
        let (store, mirror) = (self.pipeline.store(), self.pipeline.mirror());
        let Snapshot { services, names, source_ranges, addresses, .. } = store.memory.snapshot();
        assert_eq!((&services, &names), (&store.services, &store.names));
        assert_eq!((&source_ranges, &addresses), (&store.source_ranges, &store.addresses));
        assert_eq!(mirror.addresses(), &addresses);
        let of = |id: u32| mirror.source_ranges_of(id).map(move |range| (id, range));
        assert!(
            names.keys().copied().flat_map(of).eq(source_ranges.iter().copied()),
            "{source_ranges:?}"
        );
        assert!(mirror.services().eq(&services));
        for (id, port) in &names {
            assert_eq!((mirror.name(*id), mirror.id(port)), (Some(port), Some(*id)));
        }
        let blocks: BTreeMap<u32, u32> =
            services.values().map(|service| (service.block, service.records())).collect();
        assert_eq!(mirror.blocks().used(), blocks.values().sum::<u32>(), "a block is leaked");
    }

    /// What is counted where something changes is what there is.
    fn check_sums(&self) {
        let (cluster, mirror) = (self.pipeline.cluster(), self.pipeline.mirror());
        let mut sum = [0; 4];
        for name in cluster.service_names() {
            let PerFamily { ipv4, ipv6 } = policy::serve(cluster, name).no_local;
            let parts = [ipv4.internal, ipv4.external, ipv6.internal, ipv6.external];
            sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
        let PerFamily { ipv4, ipv6 } = self.pipeline.no_local();
        assert_eq!([ipv4.internal, ipv4.external, ipv6.internal, ipv6.external], sum);
        let timeout = |(port, id): (&PortRef, u32)| {
            let seconds = cluster.service(&port.service)?.affinity?.get();
            Some((id, Duration::from_secs(seconds.into())))
        };
        let timeouts: HashMap<_, _> = mirror.ids().filter_map(timeout).collect();
        assert_eq!(self.pipeline.affinity_timeouts(), timeouts);
    }

    /// Failures are over; then there is room; then all is gone.
    pub(super) fn finish(mut self) {
        self.settle();
        self.truth = small();
        self.settle();
        let store = self.pipeline.store();
        assert_eq!(store.sets(), wanted(&self.truth, &Sets::new()), "with room");

        self.truth = Truth::default();
        self.settle();
        self.pipeline.reclaim().unwrap();
        let blocks = self.pipeline.mirror().blocks();
        assert_eq!((blocks.used(), blocks.find(blocks.capacity())), (0, Some(0)), "leaked");
        let store = self.pipeline.store();
        assert!(store.names.is_empty() && store.source_ranges.is_empty(), "leaked");
        // This node's own stay.
        assert_eq!(store.addresses, self.told.addresses(&store.services), "leaked");
        assert_eq!(self.pipeline.mirror().unused_ids().next(), Some(0), "leaked");
    }

    fn settle(&mut self) {
        self.list_services();
        self.list_slices();
        self.list_nodes();
        for _ in 0..4 {
            if self.sync(0, false).sockets.failed.is_empty() {
                break;
            }
        }
    }
}

/// What fits into the smallest maps, even before what was there is gone: nobody else's frontend.
pub(super) fn small() -> Truth {
    let name = ObjectRef::new("default", "c");
    let port: Arc<str> = "http".into();
    let (protocol, ready) =
        (Protocol::Tcp, Conditions { ready: true, serving: true, terminating: false });
    let service = Service {
        created: 1,
        cluster_ips: vec![ip("10.96.0.9")],
        ports: vec![ServicePort::new(port.clone(), protocol, 80)],
        ..Service::default()
    };
    let slice = Slice {
        service: name.clone(),
        ports: vec![SlicePort { name: port, protocol, number: 8080 }],
        endpoints: vec![Endpoint::new(ip("10.1.0.9"), ready)],
        trigger: Trigger::default(),
    };
    Truth {
        services: [(name.clone(), service)].into(),
        slices: [(ObjectRef::new("default", "z"), slice)].into(),
        ..Truth::default()
    }
}
