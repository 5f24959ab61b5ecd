//! When something happened that made a slice change: where the time to its effect here begins.

use std::{collections::BTreeMap, time::SystemTime};

use super::ObjectRef;

/// What the author of a slice says about its last change. It says when, not what: two slices are
/// equal whatever their triggers are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trigger {
    /// When the pod or the Service changed, if that is known.
    pub at: Option<SystemTime>,
    /// The family of the slice.
    pub ipv6: bool,
}

impl PartialEq for Trigger {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Trigger {}

/// The triggers of the changes that nobody has asked for yet, by Service.
#[derive(Debug)]
pub(super) struct Triggers {
    /// What happened before says nothing about us.
    started: SystemTime,
    pending: BTreeMap<ObjectRef, Vec<Trigger>>,
}

impl Default for Triggers {
    fn default() -> Self {
        Self::after(SystemTime::UNIX_EPOCH)
    }
}

impl Triggers {
    /// Those that happen after a time.
    pub(super) const fn after(started: SystemTime) -> Self {
        Self { started, pending: BTreeMap::new() }
    }

    /// A slice has changed.
    pub(super) fn changed(&mut self, service: &ObjectRef, trigger: Trigger) {
        if trigger.at.is_some_and(|at| at > self.started) {
            self.pending.entry(service.clone()).or_default().push(trigger);
        }
    }

    /// A slice went. What it said was about an earlier change; as in kube-proxy, so is what its
    /// neighbours said.
    pub(super) fn gone(&mut self, service: &ObjectRef, ipv6: bool) {
        if let Some(triggers) = self.pending.get_mut(service) {
            triggers.retain(|trigger| trigger.ipv6 != ipv6);
            if triggers.is_empty() {
                self.pending.remove(service);
            }
        }
    }

    /// Those since the last time.
    pub(super) fn take(&mut self) -> Vec<Trigger> {
        std::mem::take(&mut self.pending).into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn times(triggers: Vec<Trigger>) -> Vec<(SystemTime, bool)> {
        triggers.into_iter().filter_map(|trigger| Some((trigger.at?, trigger.ipv6))).collect()
    }

    #[test]
    fn what_happened_before_the_start_does_not_count() {
        let mut triggers = Triggers::after(SystemTime::UNIX_EPOCH + 1000 * SECOND);
        let web = ObjectRef::new("default", "web");
        let (before, after) = (triggers.started - SECOND, triggers.started + SECOND);
        for at in [None, Some(before), Some(triggers.started), Some(after), Some(after)] {
            triggers.changed(&web, Trigger { at, ipv6: false });
        }
        assert_eq!(times(triggers.take()), [(after, false), (after, false)]);
        assert_eq!(times(triggers.take()), []);
    }

    #[test]
    fn a_slice_that_goes_takes_the_triggers_of_its_family_along() {
        let mut triggers = Triggers::default();
        let (web, dns) = (ObjectRef::new("a", "web"), ObjectRef::new("a", "dns"));
        let at = triggers.started + SECOND;
        for (service, ipv6) in [(&web, false), (&web, true), (&dns, false)] {
            triggers.changed(service, Trigger { at: Some(at), ipv6 });
        }
        triggers.gone(&web, false);
        triggers.gone(&dns, true);
        assert_eq!(times(triggers.take()), [(at, false), (at, true)]);
    }
}
