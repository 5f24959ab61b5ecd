//! Which flows of UDP are over that connection tracking remembers (L2).

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    engine::EngineReport,
    model::{Frontend, Protocol, Scope},
};

/// Frontends of UDP, and the endpoints to which flows from there may go on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServedFlows {
    serving: BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    node_ports: BTreeSet<SocketAddr>,
}

impl ServedFlows {
    /// Those of a report, which it keeps no longer.
    pub fn of(report: &mut EngineReport) -> Self {
        Self {
            serving: mem::take(&mut report.flows),
            node_ports: mem::take(&mut report.node_ports),
        }
    }

    /// Takes in what was said later.
    pub fn update(&mut self, later: Self) {
        self.serving.extend(later.serving);
        self.node_ports.extend(later.node_ports);
    }

    /// Forgets the frontends where nobody serves: what is left are no more than there are Services.
    pub fn keep_served(&mut self) {
        self.serving.retain(|_, serving| !serving.is_empty());
        let ports: BTreeSet<_> = self.serving.keys().map(|of| of.addr.port()).collect();
        self.node_ports.retain(|at| ports.contains(&at.port()));
    }

    /// Whether there are no frontends.
    pub fn is_empty(&self) -> bool {
        self.serving.is_empty()
    }

    /// Whether a flow that began with a datagram `to` an address is over, if answers come `from` there.
    /// What no frontend is, is nobody's.
    pub fn is_over(&self, to: SocketAddr, from: SocketAddr) -> bool {
        let frontend = Frontend::new(to, Protocol::Udp);
        let node_port = || {
            let any: IpAddr = match to.ip() {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let addr = SocketAddr::new(any, to.port());
            let frontend = Frontend { addr, scope: Scope::OwnNode, ..frontend };
            self.node_ports.contains(&to).then(|| self.serving.get(&frontend)).flatten()
        };
        let serving = self.serving.get(&frontend).or_else(node_port);
        serving.is_some_and(|serving| !serving.contains(&from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flows(of: &[(Frontend, &[&str])], node_ports: &[&str]) -> ServedFlows {
        let all = |all: &[&str]| all.iter().map(|text| at(text)).collect();
        let mut report = EngineReport {
            flows: of.iter().map(|(frontend, serving)| (*frontend, all(serving))).collect(),
            node_ports: all(node_ports),
            ..EngineReport::default()
        };
        ServedFlows::of(&mut report)
    }

    fn vip() -> Frontend {
        Frontend::new(at("192.0.2.1:53"), Protocol::Udp)
    }

    fn node_port() -> Frontend {
        Frontend { scope: Scope::OwnNode, ..Frontend::new(at("[::]:30053"), Protocol::Udp) }
    }

    #[test]
    fn who_serves_keeps_its_flows_and_what_is_not_ours_stays() {
        let flows = flows(
            &[(vip(), &["10.0.0.1:53"]), (node_port(), &["[fd00::1]:53"])],
            &["[fd01::1]:30053"],
        );
        for (to, from, is_over) in [
            ("192.0.2.1:53", "10.0.0.1:53", false),
            ("192.0.2.1:53", "10.0.0.2:53", true),
            // Another port of the endpoint.
            ("192.0.2.1:53", "10.0.0.1:54", true),
            // It began before there were rules, and leads nowhere.
            ("192.0.2.1:53", "192.0.2.1:53", true),
            ("192.0.2.1:54", "10.0.0.2:53", false),
            ("192.0.2.2:53", "10.0.0.2:53", false),
            ("[fd01::1]:30053", "[fd00::1]:53", false),
            ("[fd01::1]:30053", "[fd00::2]:53", true),
            // The same number on another machine, beyond this node.
            ("[fd09::9]:30053", "[fd09::9]:30053", false),
            ("[fd01::1]:30054", "[fd00::2]:53", false),
        ] {
            assert_eq!(flows.is_over(at(to), at(from)), is_over, "{to} {from}");
        }
    }

    #[test]
    fn where_nobody_serves_may_be_forgotten() {
        let serving = &["10.0.0.1:53"][..];
        let mut all = flows(&[(vip(), serving), (node_port(), &[])], &["[fd01::1]:30053"]);
        all.keep_served();
        assert_eq!(all, flows(&[(vip(), serving)], &[]));
    }

    #[test]
    fn what_was_said_later_counts() {
        let mut all = flows(&[(vip(), &["10.0.0.1:53"]), (node_port(), &[])], &["[fd01::1]:30053"]);
        all.update(flows(&[(vip(), &["10.0.0.2:53"])], &[]));
        assert!(all.is_over(at("192.0.2.1:53"), at("10.0.0.1:53")));
        assert!(!all.is_over(at("192.0.2.1:53"), at("10.0.0.2:53")));
        assert!(all.is_over(at("[fd01::1]:30053"), at("[fd00::2]:53")), "nobody serves there");
    }
}
