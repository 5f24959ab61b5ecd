//! Who may use a service port that has source ranges.

use super::{Caller, Flow, Origin, ReadMaps};
use crate::{
    abi::{ClientKey, SourceAddress, SourceRangeKey},
    verdict::Refusal,
};

/// Whether the service port is for the client. Judged by the address that the socket has, or else by
/// the one that routing in its network namespace gives it, which it then has (`goes`): what the
/// packets carry is what was judged, as where the packets themselves are (kube-proxy G6).
///
/// A function of its own in the programs: their stack has 512 bytes.
#[inline(never)]
pub(super) fn admits(
    maps: &impl ReadMaps,
    caller: &impl Caller,
    flow: &Flow,
    service: u32,
    goes: bool,
) -> Result<(), Refusal> {
    let own = caller.source();
    if !own.is_unspecified() {
        let granted = maps.allows(&SourceRangeKey::new(service, own));
        return if granted { Ok(()) } else { Err(Refusal::Denied) };
    }
    let to = flow.peer.addr;
    let mut key = ClientKey::general(caller.netns(), to);
    let Some(mut client) = maps.client(&key) else { return Err(Refusal::UnknownClient) };
    if client.flags & SourceAddress::OTHERS != 0 {
        key.to = to;
        client = maps.client(&key).unwrap_or(client);
    }
    if !maps.allows(&SourceRangeKey::new(service, client.addr)) {
        return Err(Refusal::Denied);
    }
    if !goes {
        return Ok(());
    }
    match caller.come_from(client.addr) {
        Origin::Settled => Ok(()),
        Origin::Open if client.flags & SourceAddress::SURE != 0 => Ok(()),
        Origin::Open | Origin::Elsewhere => Err(Refusal::UnknownClient),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{
        super::fake::{Fake, NETNS, NOWHERE, fake, flow, gets, peer, record, select},
        *,
    };
    use crate::{
        Prior, Verdict,
        abi::{Action, Backend, ServiceKey},
    };

    #[test]
    fn source_ranges_hold_before_anything_else() {
        let mut fake = fake();
        let to = flow("10.96.0.10:80", 6);
        fake.records[2].flags = Backend::SOURCE_RANGES;
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient));
        // What is known of the other family says nothing.
        fake.knows("[::]:0", "[fd00::9]:0", 0);
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient));
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied));
        fake.admits_only("[fd00::9]:0");
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied));
        fake.admits_only("10.0.0.9:0");
        assert_eq!(select(&fake, &to, 0), gets(2, 7));
        fake.records[2].action = Action::Unreachable.code();
        assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Unreachable));
    }

    impl Fake {
        fn knows(&mut self, to: &str, addr: &str, flags: u32) {
            let key = ClientKey { netns: NETNS, to: peer(to).addr };
            self.clients.push((key, SourceAddress::new(peer(addr).addr, flags)));
        }

        fn admits_only(&mut self, addr: &str) {
            self.allowed = Some(SourceRangeKey::new(9, peer(addr).addr));
        }
    }

    /// The fake service behind source ranges, of which 10.0.0.9 is in one.
    fn guarded() -> Fake {
        let mut fake = fake();
        for record in &mut fake.records {
            record.flags = Backend::SOURCE_RANGES;
        }
        fake.admits_only("10.0.0.9:0");
        fake
    }

    #[test]
    fn a_client_is_judged_by_the_address_that_its_packets_carry() {
        let to = flow("10.96.0.10:80", 6);
        let mut fake = guarded();
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        assert_eq!(fake.source.get(), peer("10.0.0.9:0").addr, "it has it from now on");
        fake.source.set(peer("10.0.0.8:0").addr);
        assert!(
            matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied)),
            "it is bound elsewhere"
        );
        fake.source.set(NOWHERE.unspecified());
        fake.origin = Origin::Elsewhere;
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)));
        // It has a port already: only where all come from one address.
        fake.origin = Origin::Open;
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)));
        fake.clients[0].1.flags = SourceAddress::SURE;
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.origin = Origin::Elsewhere;
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)));
        // Bound inside, and nobody knows of it.
        let fake = guarded();
        fake.source.set(peer("10.0.0.9:0").addr);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.source.set(peer("0.0.0.0:0").addr);
        assert!(
            matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::UnknownClient)),
            "bound to nothing"
        );
    }

    #[test]
    fn who_is_refused_is_not_bound() {
        let mut fake = guarded();
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        fake.records[2].action = Action::Refuse.code();
        assert!(matches!(
            select(&fake, &flow("10.96.0.10:80", 6), 0),
            Verdict::Fail(Refusal::NoEndpoints)
        ));
        assert!(fake.source.get().is_unspecified());
    }

    #[test]
    fn what_routing_says_of_one_address_goes_before_what_it_says_of_all() {
        let to = flow("10.96.0.10:80", 6);
        let mut fake = guarded();
        fake.knows("10.96.0.10:0", "10.0.0.9:0", 0);
        fake.knows("0.0.0.0:0", "10.0.0.8:0", 0);
        assert!(
            matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied)),
            "there is no other one"
        );
        fake.clients.pop();
        fake.knows("0.0.0.0:0", "10.0.0.8:0", SourceAddress::OTHERS);
        assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
        fake.clients[0].0.to = peer("10.96.0.11:0").addr;
        fake.source.set(NOWHERE);
        assert!(matches!(select(&fake, &to, 0), Verdict::Fail(Refusal::Denied)));
    }

    #[test]
    fn ranges_hold_for_flows_that_are_there() {
        let to = flow("10.96.0.10:80", 17);
        let mut fake = guarded();
        fake.key = ServiceKey::new(to.peer, to.protocol);
        fake.knows("0.0.0.0:0", "10.0.0.9:0", 0);
        for generation in [6, 7] {
            let prior = Prior { backend: record(3, 7).peer, generation };
            let goes = |verdict| matches!(verdict, Verdict::Stay | Verdict::Forward(_));
            fake.admits_only("10.0.0.9:0");
            fake.source.set(NOWHERE);
            assert!(goes(crate::select(&fake, &fake, &to, &prior)), "{generation}");
            assert_eq!(fake.source.get(), peer("10.0.0.9:0").addr, "each datagram");
            fake.admits_only("10.0.0.8:0");
            fake.source.set(NOWHERE);
            let verdict = crate::select(&fake, &fake, &to, &prior);
            assert!(matches!(verdict, Verdict::Fail(Refusal::Denied)), "{generation}");
        }
    }
}
