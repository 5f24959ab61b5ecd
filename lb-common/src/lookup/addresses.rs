//! What an address means, whatever the port.

use super::{Caller, Flow, ReadMaps};
use crate::abi::{self, Addr, Address, Peer, ServiceKey};

/// Whether the maps may say anything of what is at an address: if not, it is asked no further. Most
/// connections of a node go to an address that is nobody's.
#[inline(always)]
pub(super) fn may_be_known(maps: &impl ReadMaps, addr: Addr) -> bool {
    let is_loopback = addr.is_v4() && addr.is_loopback();
    maps.may_know(&addr) || (is_loopback && maps.may_know(&abi::LOOPBACK_NET))
}

/// Whether what is sent to the flow's peer is not simply sent there: it is forwarded, or refused.
#[inline(always)]
pub fn is_known(maps: &impl ReadMaps, caller: &impl Caller, flow: &Flow) -> bool {
    if !may_be_known(maps, flow.peer.addr) {
        return false;
    }
    let mut key = ServiceKey::new(flow.peer, flow.protocol);
    maps.service(&key).is_some()
        || !matches!(by_address(maps, caller, flow, &mut key), Meaning::Nothing)
}

/// What an address means that is no frontend by itself.
pub(super) enum Meaning {
    Nothing,
    /// A cluster IP, which lacks the port.
    ClusterIp,
    /// One at which everything is refused.
    Reserved,
    /// What is now in the key: a NodePort.
    Key,
}

/// Replaces the key by the one that its address means. A function of its own in the programs:
/// their stack has 512 bytes.
#[inline(never)]
pub(super) fn by_address(
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
    key: &mut ServiceKey,
) -> Meaning {
    let addr = flow.peer.addr;
    let address = match maps.address(&addr) {
        None if addr.is_v4() && addr.is_loopback() => {
            let net = maps.address(&abi::LOOPBACK_NET);
            net.filter(|net| net.flags & Address::OWN_NODE != 0)
        }
        address => address,
    };
    let Some(address) = address else { return Meaning::Nothing };
    if address.netns != 0 && address.netns != caller.netns() {
        return Meaning::Nothing;
    }
    if address.flags & Address::OWN_NODE != 0 {
        *key = key.scoped(addr.unspecified(), abi::SCOPE_OWN_NODE);
        if maps.service(key).is_some() {
            return Meaning::Key;
        }
    }
    if address.flags & Address::OTHER_NODE != 0 {
        *key = key.scoped(addr, abi::SCOPE_NODE);
        if maps.service(key).is_some() {
            return Meaning::Key;
        }
        *key = key.scoped(addr.unspecified(), abi::SCOPE_OTHER_NODES);
        if maps.service(key).is_some() {
            return Meaning::Key;
        }
    }
    if address.flags & Address::RESERVED != 0 {
        Meaning::Reserved
    } else if address.flags & Address::CLUSTER_IP != 0 {
        Meaning::ClusterIp
    } else {
        Meaning::Nothing
    }
}

/// Whether a backend is out of reach for a socket that is confined to this node:
/// [`Refusal::Confined`](crate::Refusal::Confined).
///
/// A function of its own in the programs, for what is rare.
#[inline(never)]
pub(super) fn is_elsewhere(maps: &impl ReadMaps, backend: &Peer) -> bool {
    let is_own = |address: Address| address.flags & Address::OWN_NODE != 0;
    !backend.addr.is_loopback() && !maps.address(&backend.addr).is_some_and(is_own)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::{
        super::fake::{NETNS, fake, fake_at, flow, gets, peer, record, select},
        *,
    };
    use crate::{Prior, Refusal, Verdict};

    #[test]
    fn a_node_port_is_found_on_the_addresses_of_nodes_only() {
        let node_port =
            |scope, addr: &str| ServiceKey::new(peer(addr), 6).scoped(peer(addr).addr, scope);
        let own = fake_at(
            node_port(abi::SCOPE_OWN_NODE, "0.0.0.0:30080"),
            "192.0.2.1:0",
            Address::OWN_NODE,
            0,
        );
        let forward = gets(2, 7);
        assert_eq!(select(&own, &flow("192.0.2.1:30080", 6), 0), forward);
        assert_eq!(select(&own, &flow("192.0.2.1:30081", 6), 0), Verdict::Miss);
        assert_eq!(select(&own, &flow("192.0.2.1:30080", 17), 0), Verdict::Miss);
        assert_eq!(select(&own, &flow("192.0.2.2:30080", 6), 0), Verdict::Miss);
        assert_eq!(select(&own, &flow("0.0.0.0:30080", 6), 0), Verdict::Miss);

        let v6 = fake_at(
            node_port(abi::SCOPE_OWN_NODE, "[::]:30080"),
            "[fd00::1]:0",
            Address::OWN_NODE,
            0,
        );
        assert_eq!(select(&v6, &flow("[fd00::1]:30080", 6), 0), forward);

        for key in [
            node_port(abi::SCOPE_OTHER_NODES, "0.0.0.0:30080"),
            node_port(abi::SCOPE_NODE, "192.0.2.7:30080"),
        ] {
            let other = fake_at(key, "192.0.2.7:0", Address::OTHER_NODE, 0);
            assert_eq!(select(&other, &flow("192.0.2.7:30080", 6), 0), forward, "{key:?}");
        }
    }

    #[test]
    fn a_loopback_address_is_a_node_s_in_its_own_namespace_only() {
        let key = ServiceKey::new(peer("0.0.0.0:30080"), 6)
            .scoped(peer("0.0.0.0:0").addr, abi::SCOPE_OWN_NODE);
        let to = flow("127.0.0.1:30080", 6);
        let fake = fake_at(key, "127.0.0.1:0", Address::OWN_NODE, NETNS);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        let fake = fake_at(key, "127.0.0.1:0", Address::OWN_NODE, NETNS + 1);
        assert_eq!(select(&fake, &to, 0), Verdict::Miss);
    }

    #[test]
    fn one_entry_speaks_for_all_loopback_addresses_that_have_none() {
        let key = ServiceKey::new(peer("0.0.0.0:30080"), 6)
            .scoped(peer("0.0.0.0:0").addr, abi::SCOPE_OWN_NODE);
        let fake = fake_at(key, "127.0.0.0:0", Address::OWN_NODE, NETNS);
        for to in ["127.0.0.1:30080", "127.1.2.3:30080", "[::ffff:127.255.255.255]:30080"] {
            assert!(matches!(select(&fake, &flow(to, 6), 0), Verdict::Forward(_)), "{to}");
        }
        for to in ["127.0.0.1:30081", "128.0.0.0:30080", "126.0.0.1:30080", "[::1]:30080"] {
            assert_eq!(select(&fake, &flow(to, 6), 0), Verdict::Miss, "{to}");
        }
        let fake = fake_at(key, "127.0.0.0:0", Address::OWN_NODE, NETNS + 1);
        assert_eq!(select(&fake, &flow("127.0.0.2:30080", 6), 0), Verdict::Miss);
        // What it says of others than this node is of itself only.
        let fake = fake_at(key, "127.0.0.0:0", Address::CLUSTER_IP, 0);
        assert_eq!(select(&fake, &flow("127.0.0.2:30080", 6), 0), Verdict::Miss);
    }

    #[test]
    fn from_a_loopback_address_only_this_node_is_reached() {
        let key = ServiceKey::new(peer("10.96.0.10:80"), 6);
        let fake = fake_at(key, "10.0.0.2:0", Address::OWN_NODE, 0);
        let confined = |to: &str, source: &str, backend: &str| {
            let (source, mut flow) = (source.parse::<IpAddr>().unwrap().into(), flow(to, 6));
            fake.source.set(source);
            if flow.peer.addr.is_unspecified() {
                flow.peer.addr = flow.peer.addr.meant(source);
            }
            fake.is_confined(&flow) && is_elsewhere(&fake, &peer(backend))
        };
        for (to, source) in [
            ("127.0.0.1:80", "127.0.0.1"),
            ("127.0.0.9:80", "127.1.1.1"),
            ("[::ffff:127.0.0.9]:80", "::ffff:127.0.0.1"),
            ("[::1]:80", "::1"),
            ("0.0.0.0:80", "127.0.0.1"),
            ("[::]:80", "::1"),
            ("[::]:80", "::ffff:127.0.0.1"),
        ] {
            assert!(confined(to, source, "10.0.0.3:80"), "{to} {source}");
            assert!(!confined(to, source, "10.0.0.2:80"), "{to} {source}: this node's");
            assert!(!confined(to, source, "127.0.0.1:80"), "{to} {source}");
        }
        for (to, source) in
            [("10.96.0.10:80", "127.0.0.1"), ("127.0.0.1:80", "0.0.0.0"), ("[::]:80", "fd00::1")]
        {
            assert!(!confined(to, source, "10.0.0.3:80"), "{to} {source}");
        }
    }

    #[test]
    fn who_is_confined_is_refused_where_the_backend_is_elsewhere() {
        let key = ServiceKey::new(peer("0.0.0.0:30080"), 6)
            .scoped(peer("0.0.0.0:0").addr, abi::SCOPE_OWN_NODE);
        let mut fake = fake_at(key, "127.0.0.0:0", Address::OWN_NODE, NETNS);
        let to = flow("127.0.0.1:30080", 6);
        fake.source.set(peer("127.0.0.1:0").addr);
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Confined));
        // A message may have a source of its own, also in a flow that is there.
        for generation in [6, 7] {
            let prior = Prior { backend: record(3, 7).peer, generation };
            let verdict = crate::select(&fake, &fake, &to, &prior);
            assert_eq!(verdict, Verdict::Fail(Refusal::Confined), "{generation}");
        }
        fake.source.set(peer("192.0.2.1:0").addr);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.source.set(peer("127.0.0.1:0").addr);
        fake.records[2].peer = peer("127.0.0.1:8080");
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
    }

    #[test]
    fn a_port_that_a_cluster_ip_lacks_is_refused() {
        let mut fake = fake();
        let addr = peer("10.96.0.10:0").addr;
        fake.address = Some((addr, Address::new(addr, Address::CLUSTER_IP, 0)));
        assert_eq!(
            select(&fake, &flow("10.96.0.10:81", 6), 0),
            Verdict::Fail(Refusal::UnknownPort)
        );
        assert!(matches!(select(&fake, &flow("10.96.0.10:80", 6), 0), Verdict::Forward(_)));
    }

    #[test]
    fn a_reserved_address_refuses_everything() {
        let mut fake = fake();
        let addr = peer("127.115.108.98:0").addr;
        let flags = Address::RESERVED | Address::CLUSTER_IP;
        fake.address = Some((addr, Address::new(addr, flags, 0)));
        for protocol in [6, 17] {
            let verdict = select(&fake, &flow("127.115.108.98:9", protocol), 0);
            assert_eq!(verdict, Verdict::Fail(Refusal::Reserved));
        }
    }
}
