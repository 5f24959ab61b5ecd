//! Addresses, and who has them. One that is free again is given last.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    super::network::balanced,
    service::{Name, Service},
};

/// The last byte of an address: from 1 to this.
const MOST: u8 = 250;

#[derive(Default)]
pub(super) struct Pool {
    given: BTreeMap<Name, Vec<IpAddr>>,
    /// The last byte of the address that was given last.
    last: u8,
}

impl Pool {
    /// Gives each Service that is to have addresses one of each of its families, and takes back all
    /// others. A Service keeps what it has, or what its status says, of an earlier load balancer.
    pub(super) fn give(&mut self, services: &BTreeMap<Name, Service>) {
        let wanted: Vec<_> = services.iter().filter(|(_, service)| service.is_wanted).collect();
        self.given.retain(|name, _| services.get(name).is_some_and(|service| service.is_wanted));
        for (name, service) in &wanted {
            if !self.given.contains_key(*name) {
                let told = service.told.iter().copied();
                let told = told.filter(|address| is_ours(*address) && !self.is_given(*address));
                let told = told.collect();
                self.given.insert((*name).clone(), told);
            }
        }
        for (name, service) in wanted {
            let has = self.given.remove(name).unwrap_or_default();
            let taken: BTreeSet<_> = self.given.values().flatten().chain(&has).copied().collect();
            let mut addresses = Vec::new();
            for v6 in &service.families {
                let kept = has.iter().copied().find(|address| address.is_ipv6() == *v6);
                addresses.extend(kept.or_else(|| self.next(*v6, &taken)));
            }
            self.given.insert(name.clone(), addresses);
        }
    }

    pub(super) fn of(&self, name: &Name) -> Vec<IpAddr> {
        self.given.get(name).cloned().unwrap_or_default()
    }

    fn is_given(&self, address: IpAddr) -> bool {
        self.given.values().flatten().any(|given| *given == address)
    }

    fn next(&mut self, v6: bool, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let numbers =
            (0..MOST).map(|step| (u16::from(self.last) + u16::from(step)) % u16::from(MOST));
        let mut numbers = numbers.filter_map(|number| u8::try_from(number + 1).ok());
        let number = numbers.find(|number| !taken.contains(&balanced(*number, v6)))?;
        self.last = number;
        Some(balanced(number, v6))
    }
}

fn is_ours(address: IpAddr) -> bool {
    (1..=MOST).any(|number| address == balanced(number, address.is_ipv6()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn services(all: &[(&str, Value)]) -> BTreeMap<Name, Service> {
        let object = |(name, more): &(&str, Value)| {
            let mut object = json!({
                "metadata": { "namespace": "a", "name": name, "resourceVersion": "1" },
                "spec": { "type": "LoadBalancer", "ipFamilies": ["IPv4"] },
            });
            for (key, value) in more.as_object().unwrap() {
                object[key] = value.clone();
            }
            Service::of(&object).unwrap()
        };
        all.iter().map(object).collect()
    }

    fn of(pool: &Pool, name: &str) -> Vec<String> {
        let name = Name { namespace: "a".to_owned(), name: name.to_owned() };
        pool.of(&name).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_is_kept_and_a_free_one_is_given_last() {
        let mut pool = Pool::default();
        pool.give(&services(&[("a", json!({})), ("b", json!({}))]));
        assert_eq!(
            (of(&pool, "a"), of(&pool, "b")),
            (vec!["172.29.0.1".into()], vec!["172.29.0.2".into()])
        );
        pool.give(&services(&[("b", json!({}))]));
        pool.give(&services(&[("b", json!({})), ("c", json!({}))]));
        assert_eq!(
            (of(&pool, "b"), of(&pool, "c")),
            (vec!["172.29.0.2".into()], vec!["172.29.0.3".into()])
        );
        pool.last = MOST;
        pool.give(&services(&[("b", json!({})), ("c", json!({})), ("d", json!({}))]));
        assert_eq!(of(&pool, "d"), ["172.29.0.1"]);
        assert!(of(&pool, "a").is_empty());
    }

    #[test]
    fn each_family_has_one_in_the_order_of_the_service() {
        let mut pool = Pool::default();
        let families = |families: Value| {
            services(&[(
                "a",
                json!({ "spec": { "type": "LoadBalancer", "ipFamilies": families } }),
            )])
        };
        pool.give(&families(json!(["IPv6", "IPv4"])));
        assert_eq!(of(&pool, "a"), ["fd00:29::1", "172.29.0.2"]);
        pool.give(&families(json!(["IPv4"])));
        assert_eq!(of(&pool, "a"), ["172.29.0.2"]);
    }

    #[test]
    fn what_an_earlier_one_gave_stays_given() {
        let told =
            |ip: &str| json!({ "status": { "loadBalancer": { "ingress": [{ "ip": ip }] } } });
        let mut pool = Pool::default();
        pool.give(&services(&[
            ("a", json!({})),
            ("b", told("172.29.0.1")),
            ("c", told("203.0.113.1")),
        ]));
        assert_eq!(of(&pool, "b"), ["172.29.0.1"]);
        assert_eq!(of(&pool, "a"), ["172.29.0.2"]);
        assert_eq!(of(&pool, "c"), ["172.29.0.3"]);
    }
}
