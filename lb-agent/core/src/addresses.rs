//! What addresses stand for, whatever the port: cluster IPs, whose other ports are refused, and nodes,
//! on which NodePorts are served.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::abi::{Addr, Address};

use crate::{
    model::ObjectRef,
    op::{AddressUse, Op},
};

/// Who needs which address. The maps follow, address by address.
#[derive(Debug, Default)]
pub struct AddressPlan {
    /// The Services with this cluster IP, for files may give it to several; and whether all ports of
    /// each are in the maps.
    services: HashMap<Addr, Vec<(ObjectRef, bool)>>,
    /// The cluster IPs of each, and the same.
    of: HashMap<ObjectRef, (Vec<Addr>, bool)>,
    /// Where NodePorts are served.
    nodes: BTreeMap<Addr, AddressUse>,
    /// All of this machine's, also those without NodePorts.
    own: BTreeSet<Addr>,
    /// Addresses at which everything is refused, whatever the cluster says.
    reserved: BTreeSet<Addr>,
    /// Addresses to look at.
    changed: BTreeSet<Addr>,
}

impl AddressPlan {
    /// What the maps have of an agent before us is to be looked at.
    pub fn found(&mut self, addresses: impl IntoIterator<Item = Addr>) {
        self.changed.extend(addresses);
    }

    /// All of them are to be looked at: what the maps have, and what is wanted.
    pub fn found_anew(&mut self, addresses: impl IntoIterator<Item = Addr>) {
        self.changed.extend(addresses);
        self.changed.extend(self.services.keys().chain(self.nodes.keys()).copied());
        self.changed.extend(&self.reserved);
    }

    /// Addresses at which everything is to be refused, for as long as the agent runs.
    pub fn reserve(&mut self, addresses: Vec<IpAddr>) {
        self.reserved.extend(addresses.into_iter().map(Addr::from));
        self.changed.extend(&self.reserved);
    }

    /// Whether the maps, which say `there`, refuse everything at the reserved addresses.
    pub fn refuse_reserved(&self, there: &BTreeMap<Addr, AddressUse>) -> bool {
        let is_refused = |known: &AddressUse| known.flags & Address::RESERVED != 0;
        self.reserved.iter().all(|addr| there.get(addr).is_some_and(is_refused))
    }

    /// The cluster IPs of a Service, and whether the maps have `all` of its ports there: one that did
    /// not fit is not to be refused.
    pub fn set_cluster_ips(&mut self, service: &ObjectRef, ips: &[IpAddr], all: bool) {
        let wanted = (ips.iter().copied().map(Addr::from).collect::<Vec<_>>(), all);
        let before = self.of.remove(service).unwrap_or_default();
        if before != wanted {
            for addr in &before.0 {
                if let Some(services) = self.services.get_mut(addr) {
                    services.retain(|(other, _)| other != service);
                    if services.is_empty() {
                        self.services.remove(addr);
                    }
                }
            }
            for addr in &wanted.0 {
                let services = self.services.entry(*addr).or_default();
                // Nearly every address has one Service for ever.
                services.reserve_exact(1);
                services.push((service.clone(), all));
            }
            self.changed.extend(before.0.into_iter().chain(wanted.0.iter().copied()));
        }
        if !wanted.0.is_empty() {
            self.of.insert(service.clone(), wanted);
        }
    }

    /// All addresses at which NodePorts are served, with what each stands for; and all of this
    /// machine's.
    pub fn set_nodes(&mut self, nodes: BTreeMap<Addr, AddressUse>, own: BTreeSet<Addr>) {
        let differs = |addr: &&Addr| self.nodes.get(addr) != nodes.get(addr);
        let all = self.nodes.keys().chain(nodes.keys()).filter(differs);
        self.changed.extend(all.chain(self.own.symmetric_difference(&own)).copied());
        self.nodes = nodes;
        self.own = own;
    }

    /// Whether there is anything to look at.
    pub fn is_dirty(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The ops that make the maps, which say `there`, say what is wanted. They are due until
    /// [`AddressPlan::done`].
    pub fn plan(&self, there: &BTreeMap<Addr, AddressUse>) -> Vec<Op> {
        let op = |addr: &Addr| match (self.wanted(addr), there.get(addr)) {
            (Some(known), there) if there != Some(&known) => {
                Some(Op::PutAddress { addr: *addr, known })
            }
            (None, Some(_)) => Some(Op::DeleteAddress { addr: *addr }),
            _ => None,
        };
        self.changed.iter().filter_map(op).collect()
    }

    /// The maps say what was planned.
    pub fn done(&mut self) {
        self.changed.clear();
    }

    fn wanted(&self, addr: &Addr) -> Option<AddressUse> {
        let node = self.nodes.get(addr).copied();
        if node.is_some_and(|known| known.flags & Address::OWN_NODE != 0) {
            return node;
        }
        let services = self.services.get(addr);
        let mut refused = 0;
        // A cluster IP that is this machine's address must not close the machine's own ports. One that
        // is another node's closes that node's, NodePorts among them (E12).
        if services.is_some_and(|services| services.iter().all(|(_, all)| *all))
            && !self.own.contains(addr)
        {
            refused |= Address::CLUSTER_IP;
        }
        if self.reserved.contains(addr) {
            refused |= Address::RESERVED;
        }
        if refused != 0 { Some(AddressUse { flags: refused, netns: 0 }) } else { node }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn own() -> AddressUse {
        AddressUse { flags: Address::OWN_NODE, netns: 0 }
    }

    #[test]
    fn an_address_stays_until_the_last_one_lets_go_of_it() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let ip: IpAddr = "10.96.0.1".parse().unwrap();
        let mut addresses = AddressPlan::default();
        addresses.set_cluster_ips(&a, &[ip], true);
        addresses.set_cluster_ips(&b, &[ip], true);
        let known = AddressUse { flags: Address::CLUSTER_IP, netns: 0 };
        let put = Op::PutAddress { addr: ip.into(), known };
        assert_eq!(addresses.plan(&[].into()), [put]);
        addresses.done();
        let there = [(ip.into(), known)].into();
        addresses.set_cluster_ips(&a, &[], true);
        assert_eq!(addresses.plan(&there), []);
        addresses.set_cluster_ips(&b, &[], true);
        assert_eq!(addresses.plan(&there), [Op::DeleteAddress { addr: ip.into() }]);
        assert!(addresses.services.is_empty() && addresses.of.is_empty(), "nothing is kept");
    }

    #[test]
    fn a_cluster_ip_that_is_a_node_s_closes_no_port_of_this_node() {
        let mut addresses = AddressPlan::default();
        let other = AddressUse { flags: Address::OTHER_NODE, netns: 0 };
        let [of_other, ported, unported] =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let nodes = [(of_other.into(), other), (ported.into(), own())];
        addresses.set_nodes(nodes.into(), [ported.into(), unported.into()].into());
        let ips = [of_other, ported, unported];
        addresses.set_cluster_ips(&ObjectRef::new("default", "a"), &ips, true);
        let refused = AddressUse { flags: Address::CLUSTER_IP, netns: 0 };
        let put = |ip: IpAddr, known| Op::PutAddress { addr: ip.into(), known };
        let there: BTreeMap<Addr, AddressUse> = [(ported.into(), own())].into();
        assert_eq!(addresses.plan(&there), [put(of_other, refused)]);
        addresses.done();
        // The machine gets one address, and gives up another at which there were no NodePorts.
        addresses.set_nodes([].into(), [of_other.into(), ported.into()].into());
        let there = [(of_other.into(), refused), (ported.into(), own())].into();
        let gone = |ip: IpAddr| Op::DeleteAddress { addr: ip.into() };
        let wanted = [gone(of_other), gone(ported), put(unported, refused)];
        assert_eq!(addresses.plan(&there), wanted);
    }

    #[test]
    fn a_port_that_is_not_there_is_nobody_s_to_refuse() {
        let [a, b] = ["a", "b"].map(|name| ObjectRef::new("default", name));
        let ip: IpAddr = "10.96.0.1".parse().unwrap();
        let mut addresses = AddressPlan::default();
        addresses.set_cluster_ips(&a, &[ip], true);
        let there = [(ip.into(), AddressUse { flags: Address::CLUSTER_IP, netns: 0 })].into();
        assert_eq!(addresses.plan(&there), []);
        addresses.set_cluster_ips(&b, &[ip], false);
        assert_eq!(addresses.plan(&there), [Op::DeleteAddress { addr: ip.into() }]);
        addresses.set_cluster_ips(&b, &[ip], true);
        assert_eq!(addresses.plan(&there), []);
    }

    #[test]
    fn a_reserved_address_stays_and_is_one_s_own_no_more() {
        let mut addresses = AddressPlan::default();
        let ip: IpAddr = "127.115.108.98".parse().unwrap();
        addresses.reserve(vec![ip]);
        let known = AddressUse { flags: Address::RESERVED, netns: 0 };
        let put = Op::PutAddress { addr: ip.into(), known };
        assert_eq!(addresses.plan(&[].into()), [put]);
        addresses.done();
        assert!(addresses.refuse_reserved(&[(ip.into(), known)].into()));
        assert!(!addresses.refuse_reserved(&[].into()));
        assert!(!addresses.refuse_reserved(&[(ip.into(), own())].into()));
        let a = ObjectRef::new("default", "a");
        addresses.set_cluster_ips(&a, &[ip], true);
        addresses.set_cluster_ips(&a, &[], true);
        assert_eq!(addresses.plan(&[(ip.into(), known)].into()), []);
    }

    #[test]
    fn what_an_agent_before_us_left_is_removed() {
        let mut addresses = AddressPlan::default();
        addresses.found([addr("10.96.0.9")]);
        let there = [(addr("10.96.0.9"), own())].into();
        assert_eq!(addresses.plan(&there), [Op::DeleteAddress { addr: addr("10.96.0.9") }]);
    }
}
