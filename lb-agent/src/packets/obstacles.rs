//! What keeps packets from their endpoints although the tables are as they should be: settings and
//! rules of the node that are not ours to change.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path};

use lb_core::model::Families;

use super::{
    links,
    nft::{Family, NftError},
    obstacle::Obstacle,
    of, read,
};
use crate::netlink::Netlink;

/// `NFPROTO_INET`, as nft calls it: a table of both IP versions.
const INET: (u8, &str) = (1, "inet");

/// Whatever is in the way in this network namespace, of whose settings `proc` tells. What cannot be known
/// is left out.
pub fn obstacles(proc: &Path, families: Families) -> Vec<Obstacle> {
    let mut found: Vec<_> =
        of(families).into_iter().filter_map(|of| forwarding(proc, of)).collect();
    found.extend(full_conntrack(proc));
    match links::obstacles(proc, &of(families)) {
        Ok(all) => found.extend(all),
        Err(error) => tracing::debug!(%error, "cannot look at the interfaces"),
    }
    let dropping = Netlink::netfilter().map_err(NftError::from).and_then(|mut netlink| {
        let families = of(families).into_iter().map(|family| (family.number(), family.name()));
        let all = families.chain([INET]);
        all.map(|(number, name)| Ok((name, read::dropping_forward(&mut netlink, number)?)))
            .collect()
    });
    match dropping {
        Ok(dropping) => {
            let dropping: Vec<(&str, Vec<[String; 2]>)> = dropping;
            for (family, chains) in dropping {
                found.extend(chains.iter().map(|chain| policy(family, chain)));
            }
        }
        Err(error) => tracing::debug!(%error, "cannot look at the chains of others"),
    }
    found
}

/// Of these families those of which the machine has an address to be reached at from elsewhere.
pub fn reachable(families: Families, addresses: &BTreeSet<IpAddr>) -> Families {
    let is_reachable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let has = |ipv4| addresses.iter().any(|ip| ip.is_ipv4() == ipv4 && is_reachable(ip));
    Families { ipv4: families.ipv4 && has(true), ipv6: families.ipv6 && has(false) }
}

/// Whether the kernel forwards packets.
fn forwarding(proc: &Path, family: Family) -> Option<Obstacle> {
    let (name, besides) = match family {
        Family::Ip => ("net.ipv4.ip_forward", ""),
        Family::Ip6 => (
            "net.ipv6.conf.all.forwarding",
            "; where addresses or routes come by router advertisements, before that `sysctl -w \
             net.ipv6.conf.INTERFACE.accept_ra=2`: with 1, who forwards heeds none",
        ),
    };
    let text = fs::read_to_string(proc.join("sys").join(name.replace('.', "/"))).ok()?;
    (text.trim() == "0").then(|| Obstacle {
        what: format!(
            "{name} is 0: packets from elsewhere reach no endpoint but on this node itself"
        ),
        remedy: format!("`sysctl -w {name}=1`, and the same in /etc/sysctl.d{besides}"),
    })
}

/// Whether connection tracking has hardly any room left: what finds none is dropped.
fn full_conntrack(proc: &Path) -> Option<Obstacle> {
    let number = |name: &str| -> Option<u64> {
        let path = proc.join("sys/net/netfilter").join(name);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let (count, max) = (number("nf_conntrack_count")?, number("nf_conntrack_max")?);
    // 0: no limit.
    (max > 0 && count >= max / 10 * 9).then(|| Obstacle {
        what: format!(
            "connection tracking has {count} entries and room for {max}: connections that find no room are \
             dropped, those from elsewhere among them"
        ),
        remedy: format!(
            "`sysctl -w net.netfilter.nf_conntrack_max={}`, and the same in /etc/sysctl.d",
            max.saturating_mul(2)
        ),
    })
}

/// A chain that drops what it does not accept. It has a say whatever ours accept.
fn policy(family: &str, [table, chain]: &[String; 2]) -> Obstacle {
    Obstacle {
        what: format!(
            "the chain `{family} {table} {chain}` drops what no rule of it accepts: packets from elsewhere \
             may not reach their endpoints"
        ),
        remedy: format!(
            "accept there what was translated: `nft add rule {family} {table} {chain} ct status dnat \
             accept`, or by its owner's own means"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_without_an_address_is_nobodys_trouble() {
        let both = Families { ipv4: true, ipv6: true };
        let of = |all: &[&str]| {
            let all = all.iter().map(|ip| ip.parse().unwrap()).collect();
            let Families { ipv4, ipv6 } = reachable(both, &all);
            [ipv4, ipv6]
        };
        assert_eq!(of(&["127.0.0.1", "10.0.0.1", "::1", "fe80::1"]), [true, false]);
        assert_eq!(of(&["127.0.0.1", "2001:db8::1"]), [false, true]);
        let none = Families { ipv4: false, ipv6: false };
        assert_eq!(reachable(none, &["10.0.0.1".parse().unwrap()].into()), none);
    }

    #[test]
    fn connection_tracking_without_room() {
        let proc = tempfile::TempDir::new().unwrap();
        let dir = proc.path().join("sys/net/netfilter");
        assert_eq!(full_conntrack(proc.path()), None, "that cannot be known");
        fs::create_dir_all(&dir).unwrap();
        let found = |count: &str, max: &str| {
            fs::write(dir.join("nf_conntrack_count"), count).unwrap();
            fs::write(dir.join("nf_conntrack_max"), max).unwrap();
            full_conntrack(proc.path()).map(|found| found.remedy)
        };
        assert_eq!(found("899\n", "1000\n"), None);
        assert!(found("900\n", "1000\n").unwrap().contains("nf_conntrack_max=2000"));
        assert_eq!(found("900\n", "0\n"), None, "no limit");
    }

    #[test]
    fn a_kernel_that_does_not_forward() {
        let proc = tempfile::TempDir::new().unwrap();
        let path = proc.path().join("sys/net/ipv6/conf/all/forwarding");
        assert_eq!(forwarding(proc.path(), Family::Ip6), None, "that cannot be known");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "0\n").unwrap();
        let found = forwarding(proc.path(), Family::Ip6).unwrap();
        assert!(found.remedy.contains("sysctl -w net.ipv6.conf.all.forwarding=1"));
        assert!(found.remedy.contains("accept_ra=2"));
        fs::write(&path, "1\n").unwrap();
        assert_eq!(forwarding(proc.path(), Family::Ip6), None);
    }
}
