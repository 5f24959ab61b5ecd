//! Where packets for an address go, from the control box.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, process::Command};

use anyhow::Result;
use tools::exec::{answer, feed, say};

use super::super::network::{Addresses, BALANCED};

/// What was told to the kernel: the nodes behind each address.
pub(super) struct Routes(BTreeMap<IpAddr, Vec<u8>>);

impl Routes {
    /// Removes what an earlier load balancer has left. Nobody answers for an address that leads nowhere.
    pub(super) fn begin() -> Result<Self> {
        for addresses in BALANCED {
            let family = if addresses.contains(':') { "-6" } else { "-4" };
            let ip = |words: &[&str]| {
                answer(Command::new("ip").args([family, "route"]).args(words).arg(addresses))
            };
            ip(&["flush", "root"])?;
            ip(&["add", "blackhole"])?;
        }
        Ok(Self(BTreeMap::new()))
    }

    /// The nodes that packets for an address reach.
    pub(super) fn of(&self, address: IpAddr) -> &[u8] {
        self.0.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(super) fn become_these(&mut self, wanted: BTreeMap<IpAddr, Vec<u8>>) -> Result<()> {
        let lines = difference(&self.0, &wanted);
        if !lines.is_empty() {
            say!("{}", lines.trim_end());
            feed(Command::new("ip").args(["-batch", "-"]), &lines)?;
        }
        self.0 = wanted;
        Ok(())
    }
}

/// Lines of `ip` that make other routes of these.
fn difference(from: &BTreeMap<IpAddr, Vec<u8>>, to: &BTreeMap<IpAddr, Vec<u8>>) -> String {
    let mut lines = String::new();
    let has = |routes: &BTreeMap<IpAddr, Vec<u8>>, address| {
        routes.get(address).is_some_and(|nodes: &Vec<u8>| !nodes.is_empty())
    };
    for address in from.keys().filter(|address| has(from, *address) && !has(to, *address)) {
        let _ = writeln!(lines, "route delete {address}");
    }
    for (address, nodes) in to.iter().filter(|(address, nodes)| from.get(*address) != Some(*nodes))
    {
        if nodes.is_empty() {
            continue;
        }
        let _ = write!(lines, "route replace {address}");
        for node in nodes {
            let own = Addresses::of(*node);
            let via = if address.is_ipv6() { IpAddr::from(own.v6()) } else { own.v4().into() };
            let _ = write!(lines, " nexthop via {via}");
        }
        lines.push('\n');
    }
    lines
}

/// The nodes that packets for an address are to reach, of those that may get them. A client that is to
/// stay with its endpoint is led to one node, which stays the same as long as it may get them.
pub(super) fn nodes_for(up: &[u8], is_sticky: bool, before: &[u8], address: IpAddr) -> Vec<u8> {
    if !is_sticky || up.is_empty() {
        return up.to_vec();
    }
    let same = before.iter().find(|node| before.len() == 1 && up.contains(node));
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    vec![same.copied().unwrap_or_else(|| up[usize::from(last) % up.len()])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_told() {
        let routes = |routes: &[(&str, &[u8])]| {
            routes
                .iter()
                .map(|(address, nodes)| (address.parse().unwrap(), nodes.to_vec()))
                .collect()
        };
        let from = routes(&[("172.29.0.1", &[1]), ("172.29.0.2", &[1]), ("172.29.0.3", &[2])]);
        let to = routes(&[("172.29.0.1", &[1]), ("172.29.0.3", &[]), ("fd00:29::4", &[1, 2])]);
        assert_eq!(
            difference(&from, &to),
            "route delete 172.29.0.2\nroute delete 172.29.0.3\n\
             route replace fd00:29::4 nexthop via fd00:30::11 nexthop via fd00:30::12\n"
        );
        assert_eq!(difference(&to, &to), "");
        assert_eq!(
            difference(&to, &routes(&[("172.29.0.1", &[2]), ("fd00:29::4", &[1, 2])])),
            "route replace 172.29.0.1 nexthop via 172.30.0.12\n"
        );
    }

    #[test]
    fn who_is_to_stay_is_led_to_one_node_as_long_as_it_answers() {
        let address = "172.29.0.4".parse().unwrap();
        let nodes = |up: &[u8], is_sticky, before: &[u8]| nodes_for(up, is_sticky, before, address);
        assert_eq!(nodes(&[1, 2, 3], false, &[2]), [1, 2, 3]);
        assert_eq!(nodes(&[1, 2, 3], true, &[]), [2]);
        assert_eq!(nodes(&[1, 2, 3], true, &[3]), [3]);
        assert_eq!(nodes(&[1, 2], true, &[3]), [1]);
        assert_eq!(nodes(&[1, 2, 3], true, &[1, 2, 3]), [2]);
        assert!(nodes(&[], true, &[1]).is_empty());
    }
}
