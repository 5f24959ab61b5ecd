//! Who may have a frontend that several Services ask for: the oldest, then the first by name.
//!
//! The API server gives a cluster IP to one Service only, but files and external addresses know no
//! such rule. The others are told, and get the frontend when its owner lets go of it.

use std::collections::{BTreeSet, HashMap};

use crate::{
    model::{Frontend, ObjectRef},
    policy::BackendSet,
};

/// A Service's place in the queue for a frontend: creation time, then name.
type Claim = (i64, ObjectRef);

/// All claims.
#[derive(Debug, Default)]
pub struct Claims {
    /// In order; the first one has the frontend.
    queues: HashMap<Frontend, Vec<Claim>>,
    /// What each Service claims, and since when it exists.
    claimed: HashMap<ObjectRef, (i64, BTreeSet<Frontend>)>,
}

/// A frontend that went to another Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lost {
    /// The frontend.
    pub frontend: Frontend,
    /// The Service that has it.
    pub owner: ObjectRef,
}

impl Claims {
    /// Replaces a Service's claims by the frontends of `sets`, and takes those out of `sets` that
    /// belong to another Service. Returns them, and the other Services that won or lost something.
    pub fn settle(
        &mut self,
        name: &ObjectRef,
        created: i64,
        sets: &mut [BackendSet],
    ) -> (Vec<Lost>, BTreeSet<ObjectRef>) {
        let wanted: BTreeSet<Frontend> =
            sets.iter().flat_map(|set| set.frontends.iter().copied()).collect();
        let affected = self.replace(name, created, &wanted);

        let mut lost = Vec::new();
        for set in sets {
            set.frontends.retain(|frontend| match self.owner(frontend) {
                Some(owner) if owner != name => {
                    lost.push(Lost { frontend: *frontend, owner: owner.clone() });
                    false
                }
                _ => true,
            });
        }
        (lost, affected)
    }

    fn replace(
        &mut self,
        name: &ObjectRef,
        created: i64,
        wanted: &BTreeSet<Frontend>,
    ) -> BTreeSet<ObjectRef> {
        let before = self.claimed.remove(name);
        if let Some((since, claimed)) = &before
            && (*since, claimed) == (created, wanted)
        {
            self.claimed.extend(before.map(|claim| (name.clone(), claim)));
            return BTreeSet::new();
        }
        let (since, claimed) = before.unwrap_or((created, BTreeSet::new()));
        let mut affected = BTreeSet::new();
        for frontend in claimed.union(wanted) {
            let queue = self.queues.entry(*frontend).or_default();
            let owner = queue.first().cloned();
            if claimed.contains(frontend) {
                let claim = (since, name.clone());
                queue.retain(|other| *other != claim);
            }
            if wanted.contains(frontend) {
                let claim = (created, name.clone());
                queue.insert(queue.partition_point(|other| *other < claim), claim);
            }
            if queue.first() != owner.as_ref() {
                affected.extend(owner.map(|(_, name)| name));
                affected.extend(queue.first().map(|(_, name)| name.clone()));
            }
            if queue.is_empty() {
                self.queues.remove(frontend);
            }
        }
        if !wanted.is_empty() {
            self.claimed.insert(name.clone(), (created, wanted.clone()));
        }
        affected.remove(name);
        affected
    }

    fn owner(&self, frontend: &Frontend) -> Option<&ObjectRef> {
        self.queues.get(frontend)?.first().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PortRef, Protocol};

    fn sets(name: &ObjectRef, frontends: &[&str]) -> Vec<BackendSet> {
        let frontends = frontends
            .iter()
            .map(|addr| Frontend { addr: addr.parse().unwrap(), protocol: Protocol::Tcp })
            .collect();
        let port = PortRef { service: name.clone(), port: "".into(), protocol: Protocol::Tcp };
        vec![BackendSet { port, frontends, backends: vec![] }]
    }

    #[test]
    fn the_oldest_has_it_and_the_next_inherits() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let mut claims = Claims::default();

        let mut of_b = sets(&b, &["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(claims.settle(&b, 20, &mut of_b), (vec![], [].into()));

        // An older Service takes the first frontend: b is affected, and loses it when asked again.
        let mut of_a = sets(&a, &["10.0.0.1:80"]);
        assert_eq!(claims.settle(&a, 10, &mut of_a), (vec![], [b.clone()].into()));
        let (lost, affected) = claims.settle(&b, 20, &mut of_b);
        assert_eq!((lost[0].owner.clone(), lost.len(), affected), (a.clone(), 1, [].into()));
        assert_eq!(of_b, sets(&b, &["10.0.0.2:80"]));

        // The owner goes: b inherits.
        assert_eq!(claims.settle(&a, 0, &mut []), (vec![], [b.clone()].into()));
        let mut of_b = sets(&b, &["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(claims.settle(&b, 20, &mut of_b).0, vec![]);
        assert_eq!(of_b[0].frontends.len(), 2);

        claims.settle(&b, 20, &mut []);
        assert!(claims.queues.is_empty() && claims.claimed.is_empty(), "nothing is kept");
    }

    #[test]
    fn of_two_equally_old_the_first_by_name_has_it() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        for order in [[&a, &b], [&b, &a]] {
            let mut claims = Claims::default();
            for name in order {
                claims.settle(name, 5, &mut sets(name, &["10.0.0.1:80"]));
            }
            assert_eq!(claims.owner(&sets(&a, &["10.0.0.1:80"])[0].frontends[0]), Some(&a));
        }
    }
}
