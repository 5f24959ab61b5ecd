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
    /// What each Service claims, sorted, and since when it exists.
    claimed: HashMap<ObjectRef, (i64, Box<[Frontend]>)>,
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
    /// Replaces a Service's claims by the frontends of `sets`. Returns the other Services that won
    /// or lost something by it.
    pub fn stake(
        &mut self,
        name: &ObjectRef,
        created: i64,
        sets: &[BackendSet],
    ) -> BTreeSet<ObjectRef> {
        let wanted = sets.iter().flat_map(|set| set.frontends.iter().copied()).collect();
        self.replace(name, created, &wanted)
    }

    /// Takes the frontends out of `sets` that belong to another Service, and returns them. Says the
    /// truth once all have staked their claims.
    pub fn award(&self, name: &ObjectRef, sets: &mut [BackendSet]) -> Vec<Lost> {
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
        lost
    }

    fn replace(
        &mut self,
        name: &ObjectRef,
        created: i64,
        wanted: &BTreeSet<Frontend>,
    ) -> BTreeSet<ObjectRef> {
        let before = self.claimed.remove(name);
        if let Some((since, claimed)) = &before
            && *since == created
            && claimed.iter().eq(wanted)
        {
            self.claimed.extend(before.map(|claim| (name.clone(), claim)));
            return BTreeSet::new();
        }
        let (since, claimed) = before.unwrap_or_default();
        let claimed: BTreeSet<Frontend> = claimed.into_iter().collect();
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
                // Nearly every queue has one place for ever.
                queue.reserve_exact(1);
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
            self.claimed.insert(name.clone(), (created, wanted.iter().copied().collect()));
        }
        affected.remove(name);
        affected
    }

    /// The Service that is to have a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&ObjectRef> {
        self.queues.get(frontend)?.first().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*, sample::subsequence};

    use super::*;
    use crate::model::{PortRef, Protocol};

    fn frontend(addr: &str) -> Frontend {
        Frontend::new(addr.parse().unwrap(), Protocol::Tcp)
    }

    fn sets(name: &ObjectRef, addrs: &[&str]) -> Vec<BackendSet> {
        let frontends = addrs.iter().copied().map(frontend).collect();
        let port = PortRef { service: name.clone(), port: "".into(), protocol: Protocol::Tcp };
        vec![BackendSet::new(port, frontends, vec![])]
    }

    #[test]
    fn the_oldest_has_it_and_the_next_inherits() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let mut claims = Claims::default();

        let mut of_b = sets(&b, &["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(claims.stake(&b, 20, &of_b), [].into());
        assert_eq!(claims.award(&b, &mut of_b), []);

        // An older Service takes the first frontend.
        assert_eq!(claims.stake(&a, 10, &sets(&a, &["10.0.0.1:80"])), [b.clone()].into());
        let lost = claims.award(&b, &mut of_b);
        assert_eq!((lost[0].owner.clone(), lost.len()), (a.clone(), 1));
        assert_eq!(of_b, sets(&b, &["10.0.0.2:80"]));

        // The owner goes: b inherits.
        assert_eq!(claims.stake(&a, 0, &[]), [b.clone()].into());
        let mut of_b = sets(&b, &["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(claims.award(&b, &mut of_b), []);
        assert_eq!(of_b[0].frontends.len(), 2);

        claims.stake(&b, 20, &[]);
        assert!(claims.queues.is_empty() && claims.claimed.is_empty(), "nothing is kept");
    }

    #[test]
    fn of_two_equally_old_the_first_by_name_has_it() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        for order in [[&a, &b], [&b, &a]] {
            let mut claims = Claims::default();
            for name in order {
                claims.stake(name, 5, &sets(name, &["10.0.0.1:80"]));
            }
            assert_eq!(claims.owner(&frontend("10.0.0.1:80")), Some(&a));
        }
    }

    proptest! {
        /// Against a plain list of who asks for what.
        #[test]
        fn owners_are_the_oldest_of_all_that_ask(
            stakes in vec((0..4usize, 0..3i64, subsequence(vec!["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], 0..=3)), 1..40),
        ) {
            let names = ["a", "b", "c", "d"].map(|name| ObjectRef::new("default", name));
            let mut claims = Claims::default();
            let mut asked: BTreeMap<&ObjectRef, (i64, BTreeSet<Frontend>)> = BTreeMap::new();
            let owners = |asked: &BTreeMap<&ObjectRef, (i64, BTreeSet<Frontend>)>| {
                let of = |frontend: Frontend| {
                    let claims = asked.iter().filter(|(_, (_, wanted))| wanted.contains(&frontend));
                    claims.map(|(name, (created, _))| (*created, (*name).clone())).min().map(|c| c.1)
                };
                ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"].map(frontend).map(|f| (f, of(f)))
            };
            for (who, created, addrs) in stakes {
                let (name, before) = (&names[who], owners(&asked));
                asked.insert(name, (created, addrs.iter().copied().map(frontend).collect()));
                let after = owners(&asked);
                let changed = before.iter().zip(&after).filter(|(before, after)| before != after);
                let mut affected: BTreeSet<ObjectRef> =
                    changed.flat_map(|((_, a), (_, b))| a.iter().chain(b)).cloned().collect();
                affected.remove(name);
                prop_assert_eq!(claims.stake(name, created, &sets(name, &addrs)), affected);
                for (frontend, owner) in &after {
                    prop_assert_eq!(claims.owner(frontend), owner.as_ref());
                }
                let mut awarded = sets(name, &addrs);
                let lost = claims.award(name, &mut awarded);
                prop_assert!(lost.iter().all(|lost| after.contains(&(lost.frontend, Some(lost.owner.clone())))));
                prop_assert_eq!(awarded[0].frontends.len() + lost.len(), addrs.len());
            }
            for name in &names {
                claims.stake(name, 0, &[]);
            }
            prop_assert!(claims.queues.is_empty() && claims.claimed.is_empty());
        }
    }
}
