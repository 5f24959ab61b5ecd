//! The troubles told so far: each is logged when it appears and when it is over, not at each retry.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_core::{engine::EngineReport, model::ObjectRef, pipeline::SyncReport, policy};

/// How many Services are named one by one when many have the same trouble.
const NAMED: usize = 5;
/// How long the ports of a Service and of its slices may differ before that is a trouble: when a port
/// gets another name, the one object follows the other.
const FOLLOWS: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Troubles {
    failed: BTreeMap<ObjectRef, String>,
    lost: BTreeMap<ObjectRef, String>,
    addresses: Option<String>,
    /// The first trouble of each other engine.
    others: BTreeMap<&'static str, String>,
    unmatched: BTreeMap<ObjectRef, Unmatched>,
    /// Those of `unmatched` that were not told.
    untold: BTreeSet<ObjectRef>,
}

/// Ports of slices that do not match those of the Service.
struct Unmatched {
    of: policy::UnmatchedPorts,
    since: Instant,
}

impl Troubles {
    /// What else than the maps of the programs was not written, engine by engine.
    pub(super) fn tell_others(&mut self, others: &BTreeMap<&'static str, EngineReport>) {
        for (engine, outcome) in others {
            if let Some(first) = outcome.longer.first() {
                let services = outcome.longer.len();
                let remedy = "let Services have the same timeoutSeconds";
                tracing::warn!(
                    engine,
                    services,
                    remedy,
                    "too many different timeouts of session affinity, clients stay for longer: {first}"
                );
            }
            let failed =
                outcome.failed.iter().map(|(service, error)| format!("{service}: {error}"));
            let first = failed.chain(outcome.beside.iter().cloned()).next();
            if self.others.get(engine) == first.as_ref() {
                continue;
            }
            if let Some(error) = first {
                let services = outcome.failed.len();
                tracing::error!(engine, services, "not written, what was there stays: {error}");
                self.others.insert(engine, error);
            } else {
                tracing::info!(engine, "written after all");
                self.others.remove(engine);
            }
        }
    }

    /// An engine that could not read what is there, and writes nothing.
    pub(super) fn tell_unread(&mut self, engine: &'static str, error: &str) {
        if self.others.get(engine).map(String::as_str) != Some(error) {
            tracing::error!(engine, "not served, what was there stays: {error}");
            self.others.insert(engine, error.to_owned());
        }
    }

    pub(super) fn tell(&mut self, report: &SyncReport, now: Instant) {
        let failed: BTreeMap<_, _> = report
            .sockets
            .failed
            .iter()
            .map(|(name, error)| (name.clone(), error.to_string()))
            .collect();
        let new: Vec<_> =
            failed.iter().filter(|(name, _)| !self.failed.contains_key(name)).collect();
        for (service, error) in new.iter().take(NAMED) {
            tracing::error!(%service, "not written, what was there stays: {error}");
        }
        if let Some(more) = new.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::error!("{more} more Services not written; {} in all", failed.len());
        }
        let over = self.failed.keys().filter(|name| !failed.contains_key(name)).count();
        if over > 0 {
            tracing::info!(services = over, remaining = failed.len(), "written after all");
        }
        self.failed = failed;

        let addresses = report.sockets.addresses.as_ref().map(ToString::to_string);
        if addresses != self.addresses {
            if let Some(error) = &addresses {
                tracing::error!("not all addresses are known to the programs: {error}");
            } else {
                tracing::info!("all addresses are known to the programs");
            }
            self.addresses = addresses;
        }

        self.take_unmatched(report, now);

        for (op, error) in &report.sockets.unrepaired {
            tracing::warn!(%op, %error, "cannot remove a damaged entry; trying again");
        }

        for service in &report.looked_at {
            let Some(lost) = report.lost.get(service) else {
                // It has what it asks for.
                self.lost.remove(service);
                continue;
            };
            let owners: Vec<_> =
                lost.iter().map(|lost| format!("{} ({})", lost.frontend, lost.owner)).collect();
            let text = owners.join(", ");
            if self.lost.get(service) != Some(&text) {
                let remedy = "give one of them another address or port";
                tracing::warn!(%service, remedy, "belongs to another Service: {text}");
                self.lost.insert(service.clone(), text);
            }
        }
    }

    fn take_unmatched(&mut self, report: &SyncReport, now: Instant) {
        for service in &report.looked_at {
            let Some(of) = report.unmatched.get(service) else {
                if self.unmatched.remove(service).is_some() && !self.untold.remove(service) {
                    tracing::info!(%service, "no EndpointSlice has ports any more that the Service does not have");
                }
                continue;
            };
            let known = self.unmatched.get_mut(service);
            // In other slices, perhaps.
            if !known.as_ref().is_some_and(|known| known.of.is_as(of)) {
                self.untold.insert(service.clone());
            }
            if let Some(known) = known {
                // It has lasted, whatever it looks like now.
                known.of = of.clone();
            } else {
                let known = Unmatched { of: of.clone(), since: now };
                self.unmatched.insert(service.clone(), known);
            }
        }
    }

    /// Tells what has lasted by now.
    pub(super) fn tell_lasting(&mut self, now: Instant) {
        let mut count = 0;
        self.untold.retain(|service| {
            let Some(Unmatched { of, since }) = self.unmatched.get(service) else { return false };
            if now.saturating_duration_since(*since) < FOLLOWS {
                return true;
            }
            count += 1;
            if count <= NAMED {
                let remedy = "nobody reaches endpoints at these ports: give each port the same name \
                              and protocol in the Service and in its slices";
                tracing::warn!(%service, remedy, "{of}");
            }
            false
        });
        if let Some(more) = count.checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::warn!(
                "{more} more Services have ports that their EndpointSlices do not match"
            );
        }
    }

    /// Tells all that was taken in, whether it lasts or not.
    pub(super) fn tell_all(&mut self, now: Instant) {
        self.tell_lasting(now + FOLLOWS);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn web() -> ObjectRef {
        ObjectRef::new("default", "web")
    }

    fn report(port: Option<&str>) -> SyncReport {
        let set = |text: &str| BTreeSet::from([text.to_owned()]);
        let unmatched = port.map(|port| {
            let (slices, ports) = (set("web-1"), set(port));
            (web(), policy::UnmatchedPorts { slices, ports, service: set("http (TCP)") })
        });
        SyncReport {
            looked_at: [web()].into(),
            unmatched: unmatched.into_iter().collect(),
            ..SyncReport::default()
        }
    }

    /// What is logged meanwhile: levels and messages.
    fn logged(work: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let told = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        tracing::subscriber::with_default(told.without_time().with_target(false).finish(), work);
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn ports_that_do_not_match_are_told_when_that_lasts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut troubles = Troubles::default();
        let said = logged(|| {
            troubles.tell(&report(Some("web (TCP)")), start);
            troubles.tell_lasting(at(9));
            troubles.tell(&report(None), at(9));
            troubles.tell_lasting(at(60));
        });
        assert_eq!(said, "", "a port got another name");

        let said = logged(|| {
            troubles.tell(&report(Some("web (TCP)")), at(60));
            // Endpoints come and go, other Services are looked at.
            troubles.tell(&report(Some("web (TCP)")), at(65));
            troubles.tell(&SyncReport::default(), at(66));
            troubles.tell_lasting(at(70));
            troubles.tell_lasting(at(80));
            troubles.tell(&report(Some("web (TCP)")), at(81));
            troubles.tell_lasting(at(100));
        });
        assert_eq!(said.lines().count(), 1, "{said}");
        let text = " WARN EndpointSlices have ports that the Service does not have: web (TCP) (in web-1); the \
                    Service has http (TCP) service=default/web remedy=";
        assert!(said.starts_with(text), "{said}");

        let said = logged(|| {
            troubles.tell(&report(Some("other (TCP)")), at(101));
            troubles.tell_lasting(at(101));
            troubles.tell(&report(None), at(102));
        });
        let levels: Vec<_> = said.lines().map(|line| line.split_whitespace().next()).collect();
        assert_eq!(levels, [Some("WARN"), Some("INFO")], "{said}");
    }
}
