//! From which address a socket of a network namespace connects that is bound to none: for
//! `loadBalancerSourceRanges`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    Addr,
    abi::{ClientKey, SourceAddress},
};

use super::routes::LocalAddress;

/// Most load balancers of which one namespace may say something of their own. Beyond, what holds for
/// most of them holds; that is what the socket comes from then.
const SINGLE: usize = 1024;

/// What is asked of each network namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientsQuestion {
    /// The addresses of load balancers with source ranges.
    pub to: BTreeSet<IpAddr>,
    /// The Node's own addresses: they are preferred in the machine's namespace where routing has no
    /// preference.
    pub node: [Option<IpAddr>; 2],
}

/// What the map says of the namespace `netns`, whose addresses these are. `route` says what routing
/// chooses there. A family without an address is left out: of its sockets nothing is known.
///
/// Nobody is asked where there is one address: whatever routing does, it can choose no other.
pub(super) fn home(
    netns: u64,
    is_own: bool,
    addresses: &[LocalAddress],
    question: &ClientsQuestion,
    mut route: impl FnMut(IpAddr) -> Option<IpAddr>,
) -> BTreeMap<ClientKey, SourceAddress> {
    let mut home = BTreeMap::new();
    for ipv4 in [true, false] {
        let of_family = |ip: &IpAddr| ip.is_ipv4() == ipv4;
        let all = global(addresses, ipv4);
        let Some(first) = all.first() else { continue };
        let preferred = question.node.iter().flatten().find(|ip| is_own && all.contains(ip));
        let otherwise = *preferred.unwrap_or(first);
        // Nobody in the machine's namespace has to be kept from choosing another address: whoever
        // could is root.
        let sure = if is_own || all.len() == 1 { SourceAddress::SURE } else { 0 };
        let mut answers = BTreeMap::new();
        if all.len() > 1 {
            for to in question.to.iter().copied().filter(of_family) {
                answers.insert(to, route(to).filter(of_family).unwrap_or(otherwise));
            }
        }
        let most = most(answers.values()).unwrap_or(otherwise);
        let general = ClientKey::general(netns, most.into());
        let mut others = 0;
        for (to, from) in answers.into_iter().filter(|(_, from)| *from != most).take(SINGLE) {
            home.insert(general.towards(to.into()), SourceAddress::new(from.into(), sure));
            others = SourceAddress::OTHERS;
        }
        home.insert(general, SourceAddress::new(Addr::from(most), sure | others));
    }
    home
}

/// The one that is there most often; of several the first.
fn most<'a>(all: impl Iterator<Item = &'a IpAddr>) -> Option<IpAddr> {
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for ip in all {
        *counts.entry(*ip).or_default() += 1;
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(ip, _)| ip)
}

/// Each global address of the family once, those of the loopback interface last.
fn global(addresses: &[LocalAddress], ipv4: bool) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for loopback in [false, true] {
        for (_, ip) in addresses.iter().filter(|(on, ip)| *on == loopback && is_global(*ip)) {
            if ip.is_ipv4() == ipv4 && !all.contains(ip) {
                all.push(*ip);
            }
        }
    }
    all
}

const fn is_global(ip: IpAddr) -> bool {
    !match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIPS: [&str; 3] = ["203.0.113.5", "203.0.113.6", "203.0.113.7"];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// As "(where to) from": each entry, with `!` behind a sure one.
    fn said(
        is_own: bool,
        addresses: &[(bool, &str)],
        routes: &[(&str, &str)],
        node: &str,
    ) -> Vec<String> {
        let addresses: Vec<LocalAddress> =
            addresses.iter().map(|(lo, text)| (*lo, ip(text))).collect();
        let question = ClientsQuestion {
            to: VIPS.iter().chain(&["2001:db8:5::5"]).map(|to| ip(to)).collect(),
            node: [Some(ip(node)), None],
        };
        let route =
            |to: IpAddr| routes.iter().find(|(of, _)| ip(of) == to).map(|(_, from)| ip(from));
        let home = home(7, is_own, &addresses, &question, route);
        let text = |(key, client): (ClientKey, SourceAddress)| {
            assert_eq!(key.netns, 7);
            let general = ClientKey::general(7, client.addr) == key;
            let others = client.flags & SourceAddress::OTHERS != 0;
            let to = match (general, others) {
                (true, true) => "most ".into(),
                (true, false) => String::new(),
                (false, _) => format!("{} ", key.to),
            };
            let sure = if client.flags & SourceAddress::SURE != 0 { "!" } else { "" };
            format!("{to}{}{sure}", client.addr)
        };
        home.into_iter().map(text).collect()
    }

    #[test]
    fn one_address_needs_no_question() {
        let pod = [
            (true, "127.0.0.1"),
            (false, "169.254.1.1"),
            (false, "10.244.1.7"),
            (true, "::1"),
            (false, "fe80::1"),
            (false, "fd00:244::7"),
        ];
        let routes = [(VIPS[0], "10.9.9.9")];
        assert_eq!(said(false, &pod, &routes, "192.0.2.1"), ["fd00:244::7!", "10.244.1.7!"]);
        assert_eq!(said(false, &pod[..2], &[], "192.0.2.1"), [""; 0], "nothing is known of it");
        assert_eq!(said(false, &pod[..3], &[], "192.0.2.1"), ["10.244.1.7!"], "nor of a family");
    }

    #[test]
    fn of_several_addresses_routing_chooses() {
        let pod = [(false, "10.244.1.7"), (false, "192.168.0.1"), (true, "10.0.0.1")];
        let all = VIPS.map(|to| (to, "192.168.0.1"));
        assert_eq!(said(false, &pod, &all, "10.0.0.1"), ["192.168.0.1"]);
        // A load balancer with a route of its own, and one without any.
        let mut routes = all;
        routes[1].1 = "10.0.0.1";
        let one = ["most 192.168.0.1", "203.0.113.6 10.0.0.1"];
        assert_eq!(said(false, &pod, &routes, "10.0.0.1"), one);
        let none = ["most 192.168.0.1", "203.0.113.7 10.244.1.7"];
        assert_eq!(said(false, &pod, &all[..2], "10.0.0.1"), none);
        // Without any route at all the first one, of the loopback interface only if no other is there.
        assert_eq!(said(false, &pod, &[], "10.0.0.1"), ["10.244.1.7"]);
        let lo = [(true, "10.0.0.1"), (true, "10.0.0.2")];
        assert_eq!(said(false, &lo, &[], "10.0.0.2"), ["10.0.0.1"]);
    }

    #[test]
    fn an_allowed_address_in_the_first_place_changes_nothing() {
        let pod = [(false, "10.2.0.1"), (false, "10.244.1.7")];
        assert_eq!(
            said(false, &pod, &VIPS.map(|to| (to, "10.244.1.7")), "1.1.1.1"),
            ["10.244.1.7"]
        );
    }

    #[test]
    fn the_machine_is_where_the_node_is_unless_routing_says_otherwise() {
        let host = [(false, "10.0.0.1"), (false, "192.0.2.1"), (false, VIPS[2])];
        assert_eq!(said(true, &host, &[], "192.0.2.1"), ["192.0.2.1!"]);
        assert_eq!(said(true, &host, &[], "192.0.2.9"), ["10.0.0.1!"], "it does not have that one");
        let routes = [(VIPS[0], "10.0.0.1"), (VIPS[1], "10.0.0.1"), (VIPS[2], VIPS[2])];
        let its_own = ["most 10.0.0.1!", "203.0.113.7 203.0.113.7!"];
        assert_eq!(said(true, &host, &routes, "192.0.2.1"), its_own);
    }

    #[test]
    fn what_one_namespace_may_say_is_bounded() {
        let to = (0..16u8).flat_map(|high| (0..250u8).map(move |low| [203, 0, high, low].into()));
        let question = ClientsQuestion { to: to.collect(), node: [None; 2] };
        let addresses = [(false, ip("10.0.0.1")), (false, ip("10.0.0.2"))];
        let home = home(7, false, &addresses, &question, |to| {
            let IpAddr::V4(v4) = to else { return None };
            Some(addresses[usize::from(v4.octets()[3] % 2)].1)
        });
        assert_eq!(home.len(), SINGLE + 1);
    }
}
