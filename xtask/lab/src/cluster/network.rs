//! The network: a bridge in the control box, a link from each node to it, and routes between the
//! nodes' pods. Behind the control box, in a network of its own, is the box outside. No route leads
//! out, and no end of any of these links is in the machine's own namespace.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use tools::exec::{feed, say};

use super::machine::quietly;

/// Of the control box, and of the API server.
pub(super) const CONTROL: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
pub(super) const CONTROL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1);
pub(super) const API_PORT: u16 = 6443;
pub(super) const SERVICES: &str = "10.96.0.0/12,fd00:96::/108";
pub(super) const PODS: &str = "10.244.0.0/16,fd00:244::/48";
/// default/kubernetes, and what it would be in IPv6.
pub(super) const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(super) const KUBERNETES_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
pub(super) const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// A digit in each address.
pub(super) const MOST_NODES: u8 = 9;
/// Of the control box, and of the box outside, in the network between them. Kubernetes' tests take an
/// address of the same /16 as a node's for one that the node has put in the place of the client's.
const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
pub(crate) const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 2);
/// What is given to Services of type LoadBalancer.
pub(super) const BALANCED: [&str; 2] = ["172.29.0.0/24", "fd00:29::/112"];

/// What a node has of the network, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses(u8);

impl Addresses {
    pub(super) fn of(node: u8) -> Self {
        Self(node)
    }

    pub(super) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.0)
    }

    pub(super) fn v6(self) -> Ipv6Addr {
        // fd00:30::11 is read like 172.30.0.11.
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 0x10 + u16::from(self.0))
    }

    pub(super) fn pods_v4(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    pub(super) fn pods_v6(self) -> String {
        format!("fd00:244:{}::/64", self.0)
    }
}

/// Lines of `ip` for the control box.
pub(super) fn bridge() -> String {
    format!(
        "link set lo up\nlink add br0 type bridge\naddr add {CONTROL}/16 dev br0\n\
         addr add {CONTROL_V6}/64 dev br0 nodad\nlink set br0 up\n"
    )
}

/// Lines of `ip` for the control box: the link to a node, whose init is this process. The node keeps
/// its link address over a reboot, so that the others need not learn it again.
pub(super) fn link(node: u8, init: u32) -> String {
    format!(
        "link add ve{node} type veth peer name eth0 address 02:ac:1e:00:00:1{node} netns {init}\n\
         link set ve{node} master br0 up\n"
    )
}

/// Lines of `ip` for a node.
pub(super) fn node(number: u8) -> Result<String> {
    let own = Addresses::of(number);
    let mut lines = "link set lo up\n".to_owned();
    writeln!(lines, "addr add {}/16 dev eth0", own.v4())?;
    writeln!(lines, "addr add {}/64 dev eth0 nodad", own.v6())?;
    writeln!(lines, "link set eth0 up")?;
    writeln!(lines, "route add default via {CONTROL}\nroute add default via {CONTROL_V6}")?;
    Ok(lines)
}

/// Lines of `ip` for the control box: the link to the box outside, whose init is this process.
pub(super) fn way_out(init: u32) -> String {
    format!(
        "link add out0 type veth peer name eth0 netns {init}\naddr add {ROUTER}/24 dev out0\n\
         addr add {ROUTER_V6}/64 dev out0 nodad\nlink set out0 up\n"
    )
}

/// Lines of `ip` for the box outside.
pub(super) fn outside() -> String {
    format!(
        "link set lo up\naddr add {OUTSIDE}/24 dev eth0\naddr add {OUTSIDE_V6}/64 dev eth0 nodad\n\
         link set eth0 up\nroute add default via {ROUTER}\nroute add default via {ROUTER_V6}\n"
    )
}

/// An address for a Service of type LoadBalancer.
pub(super) fn balanced(number: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x29, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(172, 29, 0, number).into()
    }
}

/// Lines of `ip` that lead to the pods of other nodes.
pub(super) fn routes(nodes: impl Iterator<Item = u8>) -> Result<String> {
    let mut lines = String::new();
    for addresses in nodes.map(Addresses::of) {
        writeln!(lines, "route replace {} via {}", addresses.pods_v4(), addresses.v4())?;
        writeln!(lines, "route replace {} via {}", addresses.pods_v6(), addresses.v6())?;
    }
    Ok(lines)
}

/// What a kube-proxy needs of the kernel. A pod that is sent to another one on its own node gets the
/// answer over their bridge, past every rule, unless bridges show packets to the packet filter. Docker
/// loads the module, a fresh machine does not have it.
pub(super) fn filter_bridges() -> Result<()> {
    const SWITCHES: &str = "/proc/sys/net/bridge";
    let switches = Path::new(SWITCHES);
    if switches.exists() {
        return Ok(());
    }
    quietly(Command::new("modprobe").arg("br_netfilter")).with_context(|| {
        format!("a kube-proxy needs {SWITCHES}, that is, a kernel with br_netfilter")
    })?;
    // It is on in each new network. The machine's own bridges stay as they were.
    for switch in ["arptables", "iptables", "ip6tables"] {
        let switch = switches.join(format!("bridge-nf-call-{switch}"));
        fs::write(&switch, "0").with_context(|| format!("cannot write {}", switch.display()))?;
    }
    say!(
        "Loaded the kernel module br_netfilter, and switched it off for the machine's own bridges."
    );
    Ok(())
}

/// Runs lines of `ip` in the network of a process.
pub(super) fn ip(init: u32, lines: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args([&format!("--net=/proc/{init}/ns/net"), "ip", "-batch", "-"]);
    feed(&mut command, lines).with_context(|| format!("ip does not do this:\n{lines}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_a_node_have_its_number_in_them() {
        let third = Addresses::of(3);
        assert_eq!(
            (third.v4(), third.v6()),
            ([172, 30, 0, 13].into(), "fd00:30::13".parse().unwrap())
        );
        assert_eq!(third.pods_v4(), "10.244.3.0/24");
        assert_eq!(third.pods_v6(), "fd00:244:3::/64");
        assert_eq!(
            routes([1].into_iter()).unwrap(),
            "route replace 10.244.1.0/24 via 172.30.0.11\n\
             route replace fd00:244:1::/64 via fd00:30::11\n"
        );
    }

    #[test]
    fn no_route_of_a_node_leads_anywhere_but_to_the_bridge() {
        for line in node(1).unwrap().lines().filter(|line| line.starts_with("route")) {
            assert!(
                line.ends_with(" via 172.30.0.1") || line.ends_with(" via fd00:30::1"),
                "{line}"
            );
        }
        assert!(!bridge().contains("route"));
    }

    #[test]
    fn the_box_outside_is_in_no_network_of_a_node() {
        assert_ne!(OUTSIDE.octets()[..2], Addresses::of(1).v4().octets()[..2]);
        assert_ne!(OUTSIDE_V6.segments()[..4], Addresses::of(1).v6().segments()[..4]);
        assert!(!way_out(1).contains("route"));
        for line in outside().lines().filter(|line| line.starts_with("route")) {
            assert!(
                line.ends_with(" via 172.31.0.1") || line.ends_with(" via fd00:31::1"),
                "{line}"
            );
        }
        assert_eq!(balanced(16, false).to_string(), "172.29.0.16");
        assert_eq!(balanced(16, true).to_string(), "fd00:29::10");
    }
}
