//! One decider and its engines: changes in, written maps out. Nothing is written before all lists are
//! whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use crate::{
    claims::Lost,
    decider::{Decider, Decision},
    engine::{Engine, EngineReport},
    map_mirror::MapMirror,
    model::{Change, Cluster, ObjectRef, Settings, Trigger},
    policy::{HealthCheck, NoLocal, PerFamily, UnmatchedPorts},
    socket_engine::{SocketEngine, SocketReport, SocketSettings},
    store::{Snapshot, Store, StoreError},
};

/// What a sync did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Services decided about.
    pub looked_at: BTreeSet<ObjectRef>,
    /// Frontends that went to another Service, by the Service that did not get them.
    pub lost: BTreeMap<ObjectRef, Vec<Lost>>,
    /// Ports of slices that no port of their Service matches.
    pub unmatched: BTreeMap<ObjectRef, UnmatchedPorts>,
    /// What made the slices change that were taken in since the last sync.
    pub triggers: Vec<Trigger>,
    /// The health check node ports that are to say something else than before; none: nothing.
    pub health_checks: BTreeMap<ObjectRef, Option<HealthCheck>>,
    /// Where they listen, if that is different.
    pub health_addresses: Option<BTreeSet<IpAddr>>,
    /// What became of it in the maps.
    pub sockets: SocketReport,
    /// What became of it in the other engines, by their names.
    pub others: BTreeMap<&'static str, EngineReport>,
}

/// An engine beside the one for sockets.
pub type OtherEngine = Box<dyn Engine<Report = EngineReport>>;

/// How a node looks at the cluster.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// What it is, and what it serves.
    pub settings: Settings,
    /// For its sockets.
    pub sockets: SocketSettings,
}

/// The decider, and the engines that carry out what it decides.
pub struct Pipeline<S> {
    decider: Decider,
    sockets: SocketEngine<S>,
    others: Vec<OtherEngine>,
}

impl<S: Store> Pipeline<S> {
    /// A pipeline that goes on from what the maps say, of a node without a name.
    pub fn new(store: S, snapshot: &Snapshot) -> Self {
        Self::with_config(NodeConfig::default(), store, snapshot)
    }

    /// A pipeline that goes on from what the maps say.
    pub fn with_config(config: NodeConfig, store: S, snapshot: &Snapshot) -> Self {
        Self {
            decider: Decider::new(config.settings),
            sockets: SocketEngine::new(config.sockets, store, snapshot),
            others: Vec::new(),
        }
    }

    /// One more engine. It is told all that is wanted with the next sync.
    pub fn add(&mut self, engine: OtherEngine) {
        self.others.push(engine);
    }

    /// Takes a change in; [`Pipeline::sync`] acts on it.
    pub fn change(&mut self, change: Change) {
        self.decider.change(change);
    }

    /// Goes on without Nodes, which nobody lets us see.
    pub fn go_on_without_nodes(&mut self) {
        self.decider.go_on_without_nodes();
    }

    /// Whether a sync would do something.
    pub fn is_dirty(&self) -> bool {
        self.decider.is_complete()
            && (self.decider.is_dirty()
                || self.sockets.is_dirty()
                || self.others.iter().any(|engine| engine.is_dirty()))
    }

    /// Makes every engine serve what is known of the Services that changed. Does nothing before all
    /// lists are whole.
    pub fn sync(&mut self) -> SyncReport {
        self.sync_with(&mut |_| {})
    }

    /// [`Pipeline::sync`], showing each op before it is carried out.
    pub fn sync_with(&mut self, show: &mut dyn FnMut(&dyn Display)) -> SyncReport {
        if !self.decider.is_complete() {
            return SyncReport::default();
        }
        let lacks_all =
            self.sockets.lacks_all() || self.others.iter().any(|engine| engine.lacks_all());
        let Decision { wanted, lost, unmatched, triggers, health_checks, health_addresses } =
            self.decider.decide();
        let whole = lacks_all.then(|| self.decider.whole(&wanted));
        // Who has all of it is told what changed, also while another engine begins anew.
        let wanted_by = |lacks_all| whole.as_ref().filter(|_| lacks_all).unwrap_or(&wanted);
        self.sockets.want(wanted_by(self.sockets.lacks_all()));
        for engine in &mut self.others {
            engine.want(wanted_by(engine.lacks_all()));
        }
        let looked_at = wanted.services.into_keys().collect();
        let claims = self.decider.claims();
        let sockets = self.sockets.sync(claims, show);
        let others = &mut self.others.iter_mut();
        let others = others.map(|engine| (engine.name(), engine.sync(claims, show))).collect();
        SyncReport {
            looked_at,
            lost,
            unmatched,
            triggers,
            health_checks,
            health_addresses,
            sockets,
            others,
        }
    }

    /// Has the engine for sockets go on from what the maps really say, whatever was believed of them: the
    /// next sync looks at everything (M6).
    pub fn adopt(&mut self) -> Result<(), String> {
        self.sockets.adopt()
    }

    /// Has another engine do the same, by its name. On error it is to try again, later.
    pub fn adopt_other(&mut self, name: &str) -> Result<(), String> {
        let mut engines = self.others.iter_mut();
        engines.find(|engine| engine.name() == name).map_or(Ok(()), |engine| engine.adopt())
    }

    /// Whether a sync would write to the maps.
    pub fn writes_maps(&self) -> bool {
        self.decider.is_complete() && (self.decider.is_dirty() || self.sockets.is_dirty())
    }

    /// Whether all that all lists said has reached the maps once, or what fails is known.
    pub fn is_synced(&self) -> bool {
        !self.sockets.lacks_all()
    }

    /// Whether the maps refuse everything at [`SocketSettings::reserved`], by what is known of them.
    pub fn refuses_reserved(&self) -> bool {
        self.sockets.refuses_reserved()
    }

    /// Whether all is known but the Nodes.
    pub fn lacks_only_nodes(&self) -> bool {
        self.cluster().lacks_only_nodes()
    }

    /// Number of records that [`Pipeline::reclaim`] would set free.
    pub fn retired(&self) -> u32 {
        self.sockets.retired()
    }

    /// Makes retired blocks usable again. Waits for a grace period.
    pub fn reclaim(&mut self) -> Result<(), StoreError> {
        self.sockets.reclaim()
    }

    /// What is known of the cluster.
    pub const fn cluster(&self) -> &Cluster {
        self.decider.cluster()
    }

    /// How long a client of each service port with session affinity stays with its backend.
    pub fn affinity_timeouts(&self) -> HashMap<u32, Duration> {
        let of = |(name, seconds): (&ObjectRef, NonZeroU32)| {
            let timeout = Duration::from_secs(u64::from(seconds.get()));
            self.mirror().ids_of(name).map(move |id| (id, timeout)).collect::<Vec<_>>()
        };
        self.cluster().with_affinity().flat_map(of).collect()
    }

    /// What the health check node ports are to say.
    pub const fn health_checks(&self) -> &BTreeMap<ObjectRef, HealthCheck> {
        self.decider.health_checks()
    }

    /// How many ports have endpoints, but by a Local policy none here.
    pub const fn no_local(&self) -> PerFamily<NoLocal> {
        self.decider.no_local()
    }

    /// The mirror of the maps.
    pub const fn mirror(&self) -> &MapMirror {
        self.sockets.mirror()
    }

    /// The maps.
    pub const fn store(&self) -> &S {
        self.sockets.store()
    }

    /// The maps, to be tampered with.
    pub const fn store_mut(&mut self) -> &mut S {
        self.sockets.store_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, sync::Arc};

    use super::*;
    use crate::{
        claims::Claims,
        engine::Wanted,
        memory::Memory,
        model::{Conditions, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort, Trigger},
        policy::Served,
    };

    /// What an engine was told, and what of it stands.
    #[derive(Default)]
    struct Told {
        wanted: BTreeMap<ObjectRef, Arc<Served>>,
        written: BTreeMap<ObjectRef, Arc<Served>>,
        lacks_all: bool,
        /// Whether nothing works.
        broken: bool,
        syncs: usize,
    }

    #[derive(Clone, Default)]
    struct Second(Rc<RefCell<Told>>);

    impl Engine for Second {
        type Report = EngineReport;

        fn name(&self) -> &'static str {
            "second"
        }

        fn adopt(&mut self) -> Result<(), String> {
            let mut told = self.0.borrow_mut();
            if told.broken {
                return Err("cannot be read".to_owned());
            }
            told.lacks_all = true;
            Ok(())
        }

        fn lacks_all(&self) -> bool {
            self.0.borrow().lacks_all
        }

        fn want(&mut self, wanted: &Wanted) {
            let mut told = self.0.borrow_mut();
            if wanted.is_whole {
                told.wanted.clear();
                told.lacks_all = false;
            }
            for (name, served) in &wanted.services {
                if **served == Served::default() {
                    told.wanted.remove(name);
                } else {
                    told.wanted.insert(name.clone(), served.clone());
                }
            }
        }

        fn is_dirty(&self) -> bool {
            let told = self.0.borrow();
            told.lacks_all || told.wanted != told.written
        }

        fn sync(&mut self, _: &Claims, show: &mut dyn FnMut(&dyn Display)) -> EngineReport {
            let mut told = self.0.borrow_mut();
            told.syncs += 1;
            if told.broken {
                let all = told.wanted.keys();
                let failed = all.map(|name| (name.clone(), "refused".to_owned())).collect();
                return EngineReport { failed, ..EngineReport::default() };
            }
            show(&"all of it");
            told.written = told.wanted.clone();
            EngineReport { ops: 1, ..EngineReport::default() }
        }
    }

    fn name(of: u8) -> ObjectRef {
        ObjectRef::new("default", format!("s{of}"))
    }

    fn service(of: u8) -> Change {
        let service = Service {
            cluster_ips: vec![[10, 96, 0, of].into()],
            ports: vec![ServicePort::new("http", Protocol::Tcp, 80)],
            ..Service::default()
        };
        Change::Service(name(of), Some(service))
    }

    fn pipeline() -> (Pipeline<Memory>, Second) {
        let maps = Memory::new(64, 64);
        let snapshot = maps.snapshot();
        let mut pipeline = Pipeline::new(maps, &snapshot);
        let second = Second::default();
        second.0.borrow_mut().lacks_all = true;
        pipeline.add(Box::new(second.clone()));
        pipeline.change(Change::ListedNodes(BTreeMap::new()));
        pipeline.change(Change::ListedSlices(BTreeMap::new()));
        pipeline.change(Change::ListedServices(BTreeMap::new()));
        (pipeline, second)
    }

    #[test]
    fn an_engine_that_always_fails_keeps_no_other_from_its_work() {
        let (mut pipeline, second) = pipeline();
        second.0.borrow_mut().broken = true;
        for of in 1..=9 {
            pipeline.change(service(of));
            let report = pipeline.sync();
            assert!(report.sockets.failed.is_empty() && report.sockets.ops > 0, "{of}");
            assert_eq!(pipeline.mirror().services().len(), usize::from(of));
            assert_eq!(report.others["second"].failed.len(), usize::from(of));
            // It is tried again, and the other has nothing to do then.
            assert!(pipeline.is_dirty());
            assert_eq!(pipeline.sync().sockets.ops, 0);
        }
        assert_eq!(pipeline.adopt_other("second"), Err("cannot be read".to_owned()));
        assert!(pipeline.sync().sockets.failed.is_empty() && pipeline.is_synced());

        second.0.borrow_mut().broken = false;
        let report = pipeline.sync();
        assert!(report.others["second"].failed.is_empty() && !pipeline.is_dirty());
        assert_eq!(second.0.borrow().written.len(), 9);
    }

    #[test]
    fn an_engine_is_told_what_changed_and_after_adopting_all() {
        let (mut pipeline, second) = pipeline();
        pipeline.change(service(1));
        pipeline.change(service(2));
        pipeline.sync();
        pipeline.change(Change::Service(name(1), None));
        assert_eq!(pipeline.sync().looked_at, [name(1)].into());
        assert_eq!(second.0.borrow().written.keys().collect::<Vec<_>>(), [&name(2)]);

        // Somebody else wrote.
        second.0.borrow_mut().written.clear();
        assert_eq!(pipeline.adopt_other("second"), Ok(()));
        let report = pipeline.sync();
        assert_eq!(second.0.borrow().written.len(), 1);
        assert!(!pipeline.is_dirty());
        let nothing = BTreeSet::new();
        assert_eq!((report.looked_at, report.sockets.looked_at), (nothing.clone(), nothing));

        // Only this engine lacks anything, while there is something new for both.
        *second.0.borrow_mut() = Told { lacks_all: true, ..Told::default() };
        pipeline.change(service(3));
        let report = pipeline.sync();
        assert_eq!(report.sockets.looked_at, [name(3)].into());
        assert_eq!(second.0.borrow().written.keys().collect::<Vec<_>>(), [&name(2), &name(3)]);

        // The one for sockets does.
        pipeline.adopt().unwrap();
        assert_eq!(pipeline.sync().sockets.looked_at, [name(2), name(3)].into());
        assert_eq!(pipeline.sync().sockets.ops, 0);
    }

    #[test]
    fn nobody_is_told_anything_before_all_lists_are_whole() {
        let maps = Memory::new(64, 64);
        let mut pipeline = Pipeline::new(maps.clone(), &maps.snapshot());
        let second = Second::default();
        pipeline.add(Box::new(second.clone()));
        pipeline.change(service(1));
        pipeline.change(Change::ListedNodes(BTreeMap::new()));
        pipeline.change(Change::ListedSlices(BTreeMap::new()));
        assert!(!pipeline.is_dirty());
        pipeline.sync();
        assert_eq!(second.0.borrow().syncs, 0);
    }

    /// Whatever the maps show of those that were given: here nothing at all.
    #[test]
    fn ids_of_backends_go_on_when_the_maps_are_read_anew() {
        let (mut pipeline, _) = pipeline();
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        let slice = Slice {
            service: name(1),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }],
            endpoints: vec![Endpoint::new([10, 0, 0, 1].into(), conditions)],
            trigger: Trigger::default(),
        };
        pipeline.change(service(1));
        pipeline.change(Change::Slice(name(1), Some(slice)));
        pipeline.sync();
        let next = |pipeline: &Pipeline<_>| pipeline.mirror().backends().unused().next();
        assert_eq!(next(&pipeline), Some(2));
        *pipeline.store_mut() = Memory::new(64, 64);
        pipeline.adopt().unwrap();
        assert_eq!(next(&pipeline), Some(2));
    }
}
