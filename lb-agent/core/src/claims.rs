//! Who may have a frontend that several Services ask for: the one whose cluster IP it is, then the
//! oldest, then the first by name.
//!
//! The API server gives a cluster IP or a node port to one Service only, but files know no such rule,
//! and anybody who may create a Service may name any external address. Such a name must not take a
//! cluster IP away, however old it is (CVE-2020-8554). The others are told, and get the frontend when
//! its owner lets go of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    model::{Frontend, ObjectRef, Scope, Service},
    policy::{BackendSet, Served},
};

/// A Service's place in the queue for a frontend.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Claim {
    /// Whether the address is not its cluster IP.
    foreign: bool,
    created: i64,
    name: ObjectRef,
}

/// The frontends that a Service claims, sorted, and whether each is foreign; since when it exists.
type Claimed = (i64, Box<[(Frontend, bool)]>);

/// All claims.
#[derive(Debug, Default)]
pub struct Claims {
    /// In order; the first one has the frontend.
    queues: HashMap<Frontend, Vec<Claim>>,
    /// What each Service claims.
    claimed: HashMap<ObjectRef, Claimed>,
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
        service: Option<&Service>,
        sets: &[BackendSet],
    ) -> BTreeSet<ObjectRef> {
        let (created, ips) = service.map_or((0, &[][..]), |s| (s.created, &s.cluster_ips));
        let foreign = |f: &Frontend| f.scope == Scope::Any && !ips.contains(&f.addr.ip());
        let wanted = sets.iter().flat_map(|set| set.frontends.iter().map(|f| (*f, foreign(f))));
        self.replace(name, created, &wanted.collect())
    }

    /// Takes the frontends out of what is served that belong to another Service, for sockets and for
    /// packets, and returns them. Says the truth once all have staked their claims.
    pub fn award(&self, name: &ObjectRef, served: &mut Served) -> Vec<Lost> {
        let other = |frontend: &Frontend| {
            let owners = [self.owner(frontend), self.owner(&seat(frontend))];
            owners.into_iter().flatten().find(|owner| *owner != name)
        };
        let mut lost = Vec::new();
        for set in &mut served.local {
            set.frontends.retain(|frontend| {
                let other = other(frontend);
                lost.extend(other.map(|owner| Lost { frontend: *frontend, owner: owner.clone() }));
                other.is_none()
            });
        }
        // Each of these is one of the above.
        for port in &mut served.outside {
            port.frontends.retain(|of| other(&of.frontend).is_none());
        }
        served.outside.retain(|port| !port.frontends.is_empty());
        lost
    }

    fn replace(
        &mut self,
        name: &ObjectRef,
        created: i64,
        wanted: &BTreeMap<Frontend, bool>,
    ) -> BTreeSet<ObjectRef> {
        let before = self.claimed.remove(name);
        if let Some((since, claimed)) = &before
            && *since == created
            && claimed.iter().map(|(f, foreign)| (f, foreign)).eq(wanted)
        {
            self.claimed.extend(before.map(|claim| (name.clone(), claim)));
            return BTreeSet::new();
        }
        let (since, claimed) = before.unwrap_or_default();
        let claimed: BTreeMap<Frontend, bool> = claimed.into_iter().collect();
        let mut affected = BTreeSet::new();
        let all: BTreeSet<&Frontend> = claimed.keys().chain(wanted.keys()).collect();
        for frontend in all {
            let queue = self.queues.entry(*frontend).or_default();
            let owner = queue.first().cloned();
            if let Some(foreign) = claimed.get(frontend) {
                let claim = Claim { foreign: *foreign, created: since, name: name.clone() };
                queue.retain(|other| *other != claim);
            }
            if let Some(foreign) = wanted.get(frontend) {
                let claim = Claim { foreign: *foreign, created, name: name.clone() };
                // Nearly every queue has one place for ever.
                queue.reserve_exact(1);
                queue.insert(queue.partition_point(|other| *other < claim), claim);
            }
            if queue.first() != owner.as_ref() {
                affected.extend(owner.map(|claim| claim.name));
                affected.extend(queue.first().map(|claim| claim.name.clone()));
            }
            if queue.is_empty() {
                self.queues.remove(frontend);
            }
        }
        if !wanted.is_empty() {
            let claims = wanted.iter().map(|(frontend, foreign)| (*frontend, *foreign)).collect();
            self.claimed.insert(name.clone(), (created, claims));
        }
        affected.remove(name);
        affected
    }

    /// The Service that is to have a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&ObjectRef> {
        self.queues.get(frontend)?.first().map(|claim| &claim.name)
    }
}

/// What a frontend goes with: who has a node port on all other nodes has it on each of them, also if
/// he has no frontend of its own for it.
fn seat(frontend: &Frontend) -> Frontend {
    if frontend.scope != Scope::Node {
        return *frontend;
    }
    let any = match frontend.addr.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let addr = SocketAddr::new(any, frontend.addr.port());
    Frontend { addr, scope: Scope::OtherNodes, ..*frontend }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::subsequence};

    use super::*;
    use crate::{
        model::{PortRef, Protocol},
        policy::{FrontendKind, OutsideFrontend, OutsidePort, TrafficPolicy},
    };

    fn frontend(addr: &str) -> Frontend {
        Frontend::new(addr.parse().unwrap(), Protocol::Tcp)
    }

    fn sets(name: &ObjectRef, addrs: &[&str]) -> Vec<BackendSet> {
        let frontends = addrs.iter().copied().map(frontend).collect();
        let port = PortRef { service: name.clone(), port: "".into(), protocol: Protocol::Tcp };
        vec![BackendSet::new(port, frontends, vec![])]
    }

    /// Awards the sets, and ports with the same frontends, which must come to the same.
    fn award(claims: &Claims, name: &ObjectRef, sets: &mut Vec<BackendSet>) -> Vec<Lost> {
        let (kind, policy) = (FrontendKind::ExternalIp, TrafficPolicy::Cluster);
        let port = |set: &BackendSet| OutsidePort {
            port: set.port.clone(),
            ipv4: true,
            frontends: set
                .frontends
                .iter()
                .map(|frontend| OutsideFrontend { frontend: *frontend, kind, policy })
                .collect(),
            cluster: vec![],
            local: vec![],
            here: vec![],
            kept: vec![],
            others: vec![],
            empty: set.empty,
            affinity: None,
            source_ranges: vec![],
        };
        let outside = sets.iter().map(port).collect();
        let mut served = Served { local: std::mem::take(sets), outside, ..Served::default() };
        let lost = claims.award(name, &mut served);
        *sets = served.local;
        let mut left: Vec<_> = sets.iter().map(port).collect();
        left.retain(|port| !port.frontends.is_empty());
        assert_eq!(served.outside, left);
        lost
    }

    fn aged(created: i64) -> Service {
        Service { created, ..Service::default() }
    }

    #[test]
    fn a_cluster_ip_goes_before_all_other_claims() {
        let [thief, owner] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let service = |ips: &[&str]| Service {
            created: if ips.is_empty() { 10 } else { 20 },
            cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Service::default()
        };
        let (young, old) = (service(&["10.0.0.1"]), service(&[]));
        let mut claims = Claims::default();
        claims.stake(&thief, Some(&old), &sets(&thief, &["10.0.0.1:80"]));
        let touched = claims.stake(&owner, Some(&young), &sets(&owner, &["10.0.0.1:80"]));
        assert_eq!(touched, [thief.clone()].into());
        assert_eq!(claims.owner(&frontend("10.0.0.1:80")), Some(&owner));
        // It is created anew, as something else's cluster IP.
        assert_eq!(claims.stake(&owner, None, &[]), [thief.clone()].into());
        assert_eq!(claims.owner(&frontend("10.0.0.1:80")), Some(&thief));
        claims.stake(&owner, Some(&young), &sets(&owner, &["10.0.0.1:80"]));
        assert_eq!(claims.owner(&frontend("10.0.0.1:80")), Some(&owner));
        // The same frontend, but no longer by right of its cluster IP.
        let moved = Service { cluster_ips: vec![], ..young };
        let touched = claims.stake(&owner, Some(&moved), &sets(&owner, &["10.0.0.1:80"]));
        assert_eq!(touched, [thief.clone()].into());
        assert_eq!(claims.owner(&frontend("10.0.0.1:80")), Some(&thief));
    }

    #[test]
    fn a_node_port_goes_to_one_service_on_all_nodes() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let scoped = |addr: &str, scope| Frontend { scope, ..frontend(addr) };
        let others = scoped("0.0.0.0:30080", Scope::OtherNodes);
        let one = scoped("192.0.2.7:30080", Scope::Node);
        let of = |name: &ObjectRef, frontends: &[Frontend]| {
            let port = PortRef { service: name.clone(), port: "".into(), protocol: Protocol::Tcp };
            vec![BackendSet::new(port, frontends.to_vec(), vec![])]
        };
        let mut claims = Claims::default();
        let mut of_b = of(&b, &[others, one]);
        claims.stake(&b, Some(&aged(20)), &of_b);
        assert_eq!(award(&claims, &b, &mut of_b), []);
        // The older one has no endpoints of its own for the one node.
        assert_eq!(claims.stake(&a, Some(&aged(10)), &of(&a, &[others])), [b.clone()].into());
        assert_eq!(award(&claims, &b, &mut of_b).len(), 2);
        assert!(of_b[0].frontends.is_empty());
        assert_eq!(claims.stake(&a, None, &[]), [b.clone()].into());
        let mut of_b = of(&b, &[others, one]);
        assert_eq!(award(&claims, &b, &mut of_b), []);
    }

    #[test]
    fn the_oldest_has_it_and_the_next_inherits() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let mut claims = Claims::default();

        let mut of_b = sets(&b, &["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(claims.stake(&b, Some(&aged(20)), &of_b), [].into());
        assert_eq!(award(&claims, &b, &mut of_b), []);

        // An older Service takes the first frontend.
        assert_eq!(
            claims.stake(&a, Some(&aged(10)), &sets(&a, &["10.0.0.1:80"])),
            [b.clone()].into()
        );
        let lost = award(&claims, &b, &mut of_b);
        assert_eq!((lost[0].owner.clone(), lost.len()), (a.clone(), 1));
        assert_eq!(of_b, sets(&b, &["10.0.0.2:80"]));

        // The owner goes: b inherits.
        assert_eq!(claims.stake(&a, Some(&aged(0)), &[]), [b.clone()].into());
        let mut of_b = sets(&b, &["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(award(&claims, &b, &mut of_b), []);
        assert_eq!(of_b[0].frontends.len(), 2);

        claims.stake(&b, Some(&aged(20)), &[]);
        assert!(claims.queues.is_empty() && claims.claimed.is_empty(), "nothing is kept");
    }

    #[test]
    fn of_two_equally_old_the_first_by_name_has_it() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        for order in [[&a, &b], [&b, &a]] {
            let mut claims = Claims::default();
            for name in order {
                claims.stake(name, Some(&aged(5)), &sets(name, &["10.0.0.1:80"]));
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
                prop_assert_eq!(claims.stake(name, Some(&aged(created)), &sets(name, &addrs)), affected);
                for (frontend, owner) in &after {
                    prop_assert_eq!(claims.owner(frontend), owner.as_ref());
                }
                let mut awarded = sets(name, &addrs);
                let lost = award(&claims, name, &mut awarded);
                prop_assert!(lost.iter().all(|lost| after.contains(&(lost.frontend, Some(lost.owner.clone())))));
                prop_assert_eq!(awarded[0].frontends.len() + lost.len(), addrs.len());
            }
            for name in &names {
                claims.stake(name, None, &[]);
            }
            prop_assert!(claims.queues.is_empty() && claims.claimed.is_empty());
        }
    }
}
