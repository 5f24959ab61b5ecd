//! Whether the kernel still takes what is written to the maps. A Service that does not fit is that
//! Service's trouble; a map that takes nothing is the agent's: what it knows is in force no longer. Pure.

use std::collections::BTreeMap;

use lb_core::socket_engine::Writes;

/// The maps that take nothing, and whether they can be read.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Why, by the map. It stays until the map has taken something.
    maps: BTreeMap<&'static str, String>,
    /// Why what the maps say could not be compared.
    unread: Option<String>,
}

impl Refusals {
    /// After a sync. If it was `complete`, and so all that there is was there already or was written,
    /// nothing is refused any more.
    pub(super) fn wrote(&mut self, writes: &BTreeMap<&'static str, Writes>, complete: bool) {
        if complete {
            self.maps.clear();
        }
        for (map, writes) in writes {
            if writes.taken > 0 {
                self.maps.remove(map);
            } else if let Some(error) = &writes.refused {
                self.maps.insert(map, error.clone());
            }
        }
    }

    /// The maps were read, or why not.
    pub(super) fn read(&mut self, result: Result<(), String>) {
        self.unread = result.err();
    }

    /// What is wrong.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let refused = self
            .maps
            .iter()
            .map(|(map, error)| format!("the kernel takes nothing for the map {map}: {error}"));
        let unread = self.unread.iter().cloned();
        let all: Vec<_> = refused.chain(unread).collect();
        if all.is_empty() { Ok(()) } else { Err(all.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Backend, FILTER, GENERATIONS};

    use super::*;
    use lb_core::{
        memory::Memory,
        model::{
            Change, Conditions, Endpoint, ObjectRef, Protocol, Service, ServicePort, Slice,
            SlicePort, Trigger,
        },
        op::Op,
        pipeline::Pipeline,
        store::{Snapshot, Store, StoreError},
    };

    fn writes(of: &[(&'static str, usize, Option<&str>)]) -> BTreeMap<&'static str, Writes> {
        let writes =
            |taken, refused: Option<&str>| Writes { taken, refused: refused.map(Into::into) };
        of.iter().map(|(map, taken, refused)| (*map, writes(*taken, *refused))).collect()
    }

    #[test]
    fn a_map_that_takes_nothing_is_a_fault_until_it_takes_something() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.verdict(), Ok(()));
        // Some of it was taken.
        refusals.wrote(&writes(&[("services", 1, Some("no memory")), ("names", 3, None)]), false);
        assert_eq!(refusals.verdict(), Ok(()));
        refusals.wrote(&writes(&[("services", 0, Some("no memory")), ("names", 3, None)]), false);
        let text = refusals.verdict().unwrap_err();
        assert_eq!(text, "the kernel takes nothing for the map services: no memory");
        // Nothing was tried, or something else was.
        refusals.wrote(&writes(&[]), false);
        refusals.wrote(&writes(&[("names", 1, None)]), false);
        assert_eq!(refusals.verdict().unwrap_err(), text);
        refusals.wrote(&writes(&[("services", 1, Some("no memory"))]), false);
        assert_eq!(refusals.verdict(), Ok(()));
    }

    /// What could not be written is not wanted any more: the Service is gone, or as it was.
    #[test]
    fn nothing_is_left_to_write() {
        let mut refusals = Refusals::default();
        refusals.wrote(&writes(&[("services", 0, Some("no memory"))]), false);
        refusals.wrote(&writes(&[]), true);
        assert_eq!(refusals.verdict(), Ok(()));
    }

    #[test]
    fn maps_that_cannot_be_read() {
        let mut refusals = Refusals::default();
        refusals.read(Err("the maps cannot be read: no memory".into()));
        refusals.wrote(&writes(&[("names", 0, Some("not permitted"))]), false);
        let text = refusals.verdict().unwrap_err();
        assert_eq!(
            text,
            "the kernel takes nothing for the map names: not permitted; the maps cannot be read: no memory"
        );
        refusals.wrote(&writes(&[("names", 1, None)]), true);
        assert_eq!(refusals.verdict().unwrap_err(), "the maps cannot be read: no memory");
        refusals.read(Ok(()));
        assert_eq!(refusals.verdict(), Ok(()));
    }

    /// Maps, of which one that no op names takes nothing: it is written to before another one is.
    struct Beside {
        maps: Memory,
        refuses: Option<&'static str>,
    }

    impl Beside {
        fn ask(&self, map: &'static str) -> Result<(), StoreError> {
            let error = "no memory".to_owned();
            let refused = StoreError::Kernel { call: "update", map, error };
            if self.refuses == Some(map) { Err(refused) } else { Ok(()) }
        }
    }

    impl Store for Beside {
        fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
            if matches!(op, Op::PutService { .. } | Op::DeleteService { .. }) {
                self.ask(FILTER)?;
            }
            self.maps.apply(op)
        }

        fn reserve(&mut self, generation: u32) -> Result<(), StoreError> {
            self.ask(GENERATIONS)?;
            self.maps.reserve(generation)
        }

        fn read(&mut self) -> Result<Snapshot, StoreError> {
            self.maps.read()
        }

        fn records(&self, block: u32, count: u32) -> Vec<Backend> {
            self.maps.records(block, count)
        }

        fn grace_period(&mut self) -> Result<(), StoreError> {
            self.maps.grace_period()
        }
    }

    /// A Service and its only endpoint.
    fn web(backend: &str) -> [Change; 2] {
        let name = ObjectRef::new("default", "web");
        let ports = vec![ServicePort::new("a", Protocol::Tcp, 80)];
        let cluster_ips = vec!["10.96.0.10".parse().unwrap()];
        let ready = Conditions { ready: true, serving: true, terminating: false };
        let slice = Slice {
            service: name.clone(),
            ports: vec![SlicePort { name: "a".into(), protocol: Protocol::Tcp, number: 8080 }],
            endpoints: vec![Endpoint::new(backend.parse().unwrap(), ready)],
            trigger: Trigger::default(),
        };
        let service = Service { cluster_ips, ports, ..Service::default() };
        [Change::Service(name.clone(), Some(service)), Change::Slice(name, Some(slice))]
    }

    /// What the pipeline counts of a map that is written to beside others is enough to see that it takes
    /// nothing, and that it does again, also while something else does not come to its end.
    #[test]
    fn a_map_that_no_op_names_is_counted_too() {
        for map in [GENERATIONS, FILTER] {
            let maps = Memory::new(64, 64);
            let snapshot = maps.snapshot();
            let mut pipeline = Pipeline::new(Beside { maps, refuses: Some(map) }, &snapshot);
            let lists = [
                Change::ListedNodes([].into()),
                Change::ListedServices([].into()),
                Change::ListedSlices([].into()),
            ];
            lists.into_iter().chain(web("10.1.0.1")).for_each(|change| pipeline.change(change));
            let mut refusals = Refusals::default();
            let text = format!("the kernel takes nothing for the map {map}: no memory");
            for _ in 0..2 {
                refusals.wrote(&pipeline.sync().sockets.writes, false);
                assert_eq!(refusals.verdict().unwrap_err(), text);
            }
            pipeline.store_mut().refuses = None;
            let report = pipeline.sync();
            assert!(report.sockets.failed.is_empty(), "{:?}", report.sockets.failed);
            refusals.wrote(&report.sockets.writes, false);
            assert_eq!(refusals.verdict(), Ok(()), "{map}");

            // Of what is there already, too: a set, a frontend.
            pipeline.store_mut().refuses = Some(map);
            for change in web("10.1.0.2") {
                pipeline.change(change);
            }
            refusals.wrote(&pipeline.sync().sockets.writes, false);
            assert_eq!(refusals.verdict().unwrap_err(), text);
            pipeline.store_mut().refuses = None;
            refusals.wrote(&pipeline.sync().sockets.writes, false);
            assert_eq!(refusals.verdict(), Ok(()), "{map}");

            // A frontend that goes is no set.
            if map == FILTER {
                pipeline.store_mut().refuses = Some(map);
                pipeline.change(Change::Service(ObjectRef::new("default", "web"), None));
                refusals.wrote(&pipeline.sync().sockets.writes, false);
                assert_eq!(refusals.verdict().unwrap_err(), text);
                pipeline.store_mut().refuses = None;
                refusals.wrote(&pipeline.sync().sockets.writes, false);
                assert_eq!(refusals.verdict(), Ok(()));
            }
        }
    }
}
