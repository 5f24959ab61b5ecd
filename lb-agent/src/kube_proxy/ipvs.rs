//! What the mode `ipvs` leaves: virtual servers, a device with their addresses, and sets of addresses.

use std::{collections::BTreeSet, net::IpAddr};

/// The device that has the addresses of all Services.
pub(super) const DEVICE: &str = "kube-ipvs0";

/// The sets of IPv4 addresses and ports.
const SETS: [&str; 17] = [
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
];
/// The longest name a set can have.
const LONGEST: usize = 31;

/// Those of kube-proxy, of the names that `ipset list -n` prints.
pub(super) fn sets(names: &str) -> Vec<&str> {
    names.lines().filter(|name| SETS.iter().any(|set| is_set(name, set))).collect()
}

/// A set for IPv6 has a name of its own, perhaps cut off.
fn is_set(name: &str, set: &str) -> bool {
    let v6 = set.replacen("KUBE-", "KUBE-6-", 1);
    name == set || v6.get(..LONGEST).unwrap_or(&v6) == name
}

/// The node ports, by protocol, in what `ipset save` prints.
pub(super) fn node_ports(saved: &str) -> BTreeSet<(&'static str, u16)> {
    let entry = |line: &str| {
        let mut words = line.strip_prefix("add ")?.split_ascii_whitespace();
        let (name, entry) = (words.next()?, words.next()?);
        let (protocol, port) = match entry.rsplit_once(':') {
            // 192.0.2.1,sctp:30080
            Some((_, port)) => ("sctp", port),
            None if is_set(name, "KUBE-NODE-PORT-TCP") => ("tcp", entry),
            None if is_set(name, "KUBE-NODE-PORT-UDP") => ("udp", entry),
            None => return None,
        };
        let is_ours = protocol != "sctp" || is_set(name, "KUBE-NODE-PORT-SCTP-HASH");
        is_ours.then_some((protocol, port.parse().ok()?))
    };
    saved.lines().filter_map(entry).collect()
}

/// Of the virtual servers that `ipvsadm --save -n` prints, the arguments that name those of
/// kube-proxy: at an address of its device, or at a node port of one of this machine's addresses.
pub(super) fn virtual_servers<'a>(
    saved: &'a str,
    of_device: &BTreeSet<IpAddr>,
    of_machine: &BTreeSet<IpAddr>,
    node_ports: &BTreeSet<(&'static str, u16)>,
) -> Vec<[&'a str; 2]> {
    let server = |line: &'a str| {
        let mut words = line.strip_prefix("-A ")?.split_ascii_whitespace();
        let (kind, server) = (words.next()?, words.next()?);
        let protocol = match kind {
            "-t" => "tcp",
            "-u" => "udp",
            "--sctp-service" => "sctp",
            // By a mark of the firewall: not one of kube-proxy's.
            _ => return None,
        };
        let (addr, port) = server.rsplit_once(':')?;
        let addr: IpAddr = addr.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        let is_node_port =
            of_machine.contains(&addr) && node_ports.contains(&(protocol, port.parse().ok()?));
        (of_device.contains(&addr) || is_node_port).then_some([kind, server])
    };
    saved.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    #[test]
    fn sets_of_both_families_and_of_nobody_else() {
        let names = "KUBE-CLUSTER-IP\nKUBE-6-CLUSTER-IP\nKUBE-CLUSTER-IPS\nmine\ncali40s:x\n\
            KUBE-6-LOAD-BALANCER-SOURCE-CID\nKUBE-6-LOAD-BALANCER-SOURCE-CIDR\nKUBE-DNS\n";
        let wanted = ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID"];
        assert_eq!(sets(names), wanted);
        assert_eq!(sets(""), [""; 0]);
        assert_eq!(sets(&SETS.join("\n")).len(), SETS.len());
    }

    #[test]
    fn node_ports_are_those_of_their_sets() {
        let saved = "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535\n\
            add KUBE-NODE-PORT-TCP 30080\n\
            create KUBE-NODE-PORT-LOCAL-TCP bitmap:port range 0-65535\n\
            add KUBE-NODE-PORT-LOCAL-TCP 30081\n\
            add KUBE-6-NODE-PORT-UDP 30053\n\
            add KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30090\n\
            add KUBE-CLUSTER-IP 10.96.0.1,tcp:443\n\
            add mine 30099\n";
        let wanted = [("sctp", 30090), ("tcp", 30080), ("udp", 30053)];
        assert_eq!(node_ports(saved), BTreeSet::from(wanted));
    }

    #[test]
    fn virtual_servers_of_others_stay() {
        let saved = "-A -t 10.96.0.1:443 -s rr\n\
            -a -t 10.96.0.1:443 -r 192.0.2.7:6443 -m -w 1\n\
            -A -t 192.0.2.1:30080 -s rr\n\
            -A -t 192.0.2.1:30081 -s rr -p 10800\n\
            -A -u 192.0.2.1:30080 -s rr\n\
            -A -t 203.0.113.9:30080 -s wlc\n\
            -A -u [fd00::a]:53 -s rr\n\
            -A --sctp-service 10.96.0.1:9 -s rr\n\
            -A -f 1 -s rr\n";
        let found = virtual_servers(
            saved,
            &addresses(&["10.96.0.1", "fd00::a"]),
            &addresses(&["127.0.0.1", "192.0.2.1"]),
            &[("tcp", 30080)].into(),
        );
        let wanted = [
            ["-t", "10.96.0.1:443"],
            ["-t", "192.0.2.1:30080"],
            ["-u", "[fd00::a]:53"],
            ["--sctp-service", "10.96.0.1:9"],
        ];
        assert_eq!(found, wanted);
    }
}
