//! What keeps packets from their endpoints although the tables are as they should be: settings and
//! rules of the node that are not ours to change.

use std::{fs, path::Path};

use lb_core::model::Families;

use super::{
    nft::{Family, NftError},
    of, read,
};
use crate::netlink::Netlink;

/// Something that is in the way, and what helps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Obstacle {
    /// What is wrong.
    pub what: String,
    /// What somebody can do about it.
    pub remedy: String,
}

/// Whatever is in the way in this network namespace, of whose settings `proc` tells. What cannot be known
/// is left out.
pub fn obstacles(proc: &Path, families: Families) -> Vec<Obstacle> {
    let mut found: Vec<_> =
        of(families).into_iter().filter_map(|of| forwarding(proc, of)).collect();
    let dropping = Netlink::netfilter().map_err(NftError::from).and_then(|mut netlink| {
        let families = of(families).into_iter();
        families.map(|family| Ok((family, read::dropping_forward(&mut netlink, family)?))).collect()
    });
    match dropping {
        Ok(dropping) => {
            let dropping: Vec<(Family, Vec<[String; 2]>)> = dropping;
            for (family, chains) in dropping {
                found.extend(chains.iter().map(|chain| policy(family, chain)));
            }
        }
        Err(error) => tracing::debug!(%error, "cannot look at the chains of others"),
    }
    found
}

/// Whether the kernel forwards packets.
fn forwarding(proc: &Path, family: Family) -> Option<Obstacle> {
    let name = match family {
        Family::Ip => "net.ipv4.ip_forward",
        Family::Ip6 => "net.ipv6.conf.all.forwarding",
    };
    let text = fs::read_to_string(proc.join("sys").join(name.replace('.', "/"))).ok()?;
    (text.trim() == "0").then(|| Obstacle {
        what: format!(
            "{name} is 0: packets from elsewhere reach no endpoint but on this node itself"
        ),
        remedy: format!("`sysctl -w {name}=1`, and the same in /etc/sysctl.d"),
    })
}

/// A chain that drops what it does not accept. It has a say whatever ours accept.
fn policy(family: Family, [table, chain]: &[String; 2]) -> Obstacle {
    let name = family.name();
    Obstacle {
        what: format!(
            "the chain `{name} {table} {chain}` drops what no rule of it accepts: packets from elsewhere \
             may not reach their endpoints"
        ),
        remedy: format!(
            "accept there what was translated: `nft add rule {name} {table} {chain} ct status dnat \
             accept`, or by its owner's own means"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_forward() {
        let proc = tempfile::TempDir::new().unwrap();
        let path = proc.path().join("sys/net/ipv6/conf/all/forwarding");
        assert_eq!(forwarding(proc.path(), Family::Ip6), None, "that cannot be known");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "0\n").unwrap();
        let found = forwarding(proc.path(), Family::Ip6).unwrap();
        assert!(found.remedy.contains("sysctl -w net.ipv6.conf.all.forwarding=1"));
        fs::write(&path, "1\n").unwrap();
        assert_eq!(forwarding(proc.path(), Family::Ip6), None);
    }
}
