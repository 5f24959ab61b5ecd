//! Which sockets have to go.
//!
//! A pure function of what was found and of what the agent knows. When in doubt a socket lives: the
//! next look will find it again.

use std::net::{IpAddr, SocketAddr};

use bytemuck::Zeroable as _;
use lb_common::abi::{Peer, Translation};
use lb_core::model::Protocol;

use super::Found;

/// What the agent knows: what stands in the maps, not what is still to be written.
pub trait Truth {
    /// Whether the Service that is at [`Translation::frontend`] now would let a flow stay with
    /// [`Translation::backend`]: an endpoint that is ready or still serving, be it terminating
    /// (kube-proxy L2, L4). False for a Service that is gone.
    fn serves(&self, protocol: Protocol, translation: &Translation) -> bool;
    /// Whether there is such an endpoint at all, whatever its conditions.
    fn exists(&self, protocol: Protocol, translation: &Translation) -> bool;
    /// Whether a socket that connects to this address now is translated; of TCP also whether it is told
    /// at once that there is nobody.
    fn is_frontend(&self, found: &Found) -> bool;
    /// Whether it is no machine's address, but a cluster IP: from there, nobody asks.
    fn is_virtual(&self, ip: IpAddr) -> bool;
    /// Whether what a socket sends to its peer answers what came from there.
    fn answers(&self, found: &Found) -> bool;
}

/// Why a socket has to go.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum EndReason {
    /// UDP: its backend does not serve at the Service's address any more, or the Service is gone.
    Stale,
    /// UDP: it was connected to a Service's address before the programs knew the Service, or before that
    /// had endpoints, so what it sends reaches nobody.
    BeforeService,
    /// The same, but a machine may have the address too, and a client there may be its peer. Of these
    /// the sockets of servers are left out, see [`without_servers`](super::without_servers).
    BeforeServiceOnMachine,
    /// TCP: it dialled a Service's address before the programs knew the Service, and waits for an
    /// answer that nobody will give.
    Dialling,
    /// TCP, where it is asked for: its backend is no endpoint any more.
    Deleted,
}

impl EndReason {
    /// As a label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::BeforeService | Self::BeforeServiceOnMachine => "before-service",
            Self::Dialling => "dialling",
            Self::Deleted => "deleted",
        }
    }
}

/// Whether a socket has to go, and why. TCP sockets are judged whenever they were looked for, see
/// [`Sweeper`](super::Sweeper).
pub fn judge(found: &Found, truth: &impl Truth) -> Option<EndReason> {
    let Found { protocol, peer, .. } = *found;
    match (protocol, found.translated()) {
        (Protocol::Udp, Some(translation)) => {
            (!truth.serves(protocol, translation)).then_some(EndReason::Stale)
        }
        (Protocol::Udp, None) => {
            let is_past = found.inside
                && truth.is_frontend(found)
                && !truth.serves(protocol, &untranslated(peer))
                && !truth.answers(found);
            is_past.then(|| {
                if truth.is_virtual(SocketAddr::from(peer).ip()) {
                    EndReason::BeforeService
                } else {
                    EndReason::BeforeServiceOnMachine
                }
            })
        }
        (Protocol::Tcp, Some(translation)) => {
            (!truth.exists(protocol, translation)).then_some(EndReason::Deleted)
        }
        // One that was answered is not ours.
        (Protocol::Tcp, None) => (found.dialling && found.inside && truth.is_frontend(found))
            .then_some(EndReason::Dialling),
        (Protocol::Sctp, _) => None,
    }
}

/// As if a Service's address had been translated to itself: it may be an endpoint's, too, and then who is
/// connected there is where the Service leads.
fn untranslated(peer: Peer) -> Translation {
    Translation { frontend: peer, backend: peer, ..Translation::zeroed() }
}

/// The translation, if it is that of the present connection: `connect(AF_UNSPEC)` runs no program,
/// and so leaves it behind.
pub(super) fn valid(translation: Option<&Translation>, peer: Peer) -> Option<&Translation> {
    translation.filter(|translation| translation.backend == peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Default)]
    struct FakeTruth {
        serving: BTreeSet<(u32, SocketAddr)>,
        listed: BTreeSet<(u32, SocketAddr)>,
        frontends: BTreeSet<SocketAddr>,
        nodes: BTreeSet<IpAddr>,
        heard: BTreeSet<SocketAddr>,
    }

    impl Truth for FakeTruth {
        fn serves(&self, _: Protocol, translation: &Translation) -> bool {
            self.serving.contains(&(translation.service, translation.backend.into()))
        }

        fn exists(&self, _: Protocol, translation: &Translation) -> bool {
            self.listed.contains(&(translation.service, translation.backend.into()))
        }

        fn is_frontend(&self, found: &Found) -> bool {
            let peer = SocketAddr::from(found.peer);
            self.frontends.contains(&peer)
        }

        fn is_virtual(&self, ip: IpAddr) -> bool {
            !self.nodes.contains(&ip)
        }

        fn answers(&self, found: &Found) -> bool {
            self.heard.contains(&found.peer.into())
        }
    }

    const BACKEND: &str = "10.1.0.1:53";
    const FRONTEND: &str = "10.96.0.10:53";

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn found(protocol: Protocol, peer: &str, stored: Option<&str>) -> Found {
        let translation = stored.map(|backend| Translation {
            frontend: addr(FRONTEND).into(),
            backend: addr(backend).into(),
            service: 7,
            ..Translation::zeroed()
        });
        Found { translation, ..Found::sample(protocol, addr(peer)) }
    }

    fn known() -> FakeTruth {
        FakeTruth { frontends: [addr(FRONTEND)].into(), ..FakeTruth::default() }
    }

    /// kube-proxy L2 and L4: to a backend that serves, or serves while it terminates, a flow stays.
    #[test]
    fn udp_stays_while_its_backend_serves() {
        let mut truth = known();
        let socket = found(Protocol::Udp, BACKEND, Some(BACKEND));
        assert_eq!(judge(&socket, &truth), Some(EndReason::Stale));
        truth.listed.insert((7, addr(BACKEND)));
        assert_eq!(judge(&socket, &truth), Some(EndReason::Stale), "there, but not serving");
        truth.serving.insert((8, addr(BACKEND)));
        assert_eq!(judge(&socket, &truth), Some(EndReason::Stale), "serves another Service");
        truth.serving.insert((7, addr(BACKEND)));
        assert_eq!(judge(&socket, &truth), None);
    }

    /// The translation is of an earlier connection.
    #[test]
    fn a_socket_that_went_elsewhere_is_left_alone() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let socket = found(protocol, "10.1.0.9:53", Some(BACKEND));
            assert_eq!(judge(&socket, &known()), None);
        }
    }

    #[test]
    fn a_socket_connected_directly_is_left_alone() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            assert_eq!(judge(&found(protocol, BACKEND, None), &known()), None);
            // What the programs leave when they forget.
            let mut socket = found(protocol, BACKEND, None);
            socket.translation = Some(Translation::zeroed());
            assert_eq!(judge(&socket, &known()), None);
        }
    }

    #[test]
    fn udp_connected_before_its_service_is_healed_inside_only() {
        let mut socket = found(Protocol::Udp, FRONTEND, None);
        assert_eq!(judge(&socket, &known()), Some(EndReason::BeforeService));
        assert_eq!(judge(&socket, &FakeTruth::default()), None, "no Service there");
        socket.inside = false;
        assert_eq!(judge(&socket, &known()), None, "another cgroup");
        // It was translated once, and is now connected to a Service's address past the programs.
        let socket = found(Protocol::Udp, FRONTEND, Some(BACKEND));
        assert_eq!(judge(&socket, &known()), Some(EndReason::BeforeService));
    }

    #[test]
    fn tcp_that_dialled_before_its_service_is_healed_inside_only() {
        let mut socket = found(Protocol::Tcp, FRONTEND, None);
        assert_eq!(judge(&socket, &known()), None, "it was answered");
        socket.dialling = true;
        assert_eq!(judge(&socket, &known()), Some(EndReason::Dialling));
        assert_eq!(judge(&socket, &FakeTruth::default()), None, "no Service there");
        socket.inside = false;
        assert_eq!(judge(&socket, &known()), None, "another cgroup");
        // Its backend's address is another Service's.
        let translated = Found { dialling: true, ..found(Protocol::Tcp, FRONTEND, Some(FRONTEND)) };
        let truth = FakeTruth { listed: [(7, addr(FRONTEND))].into(), ..known() };
        assert_eq!(judge(&translated, &truth), None);
        // It dialled again, past the programs.
        let again = Found { dialling: true, ..found(Protocol::Tcp, FRONTEND, Some(BACKEND)) };
        assert_eq!(judge(&again, &known()), Some(EndReason::Dialling));
    }

    #[test]
    fn a_socket_that_answers_lives_and_one_of_a_server_may() {
        let socket = found(Protocol::Udp, FRONTEND, None);
        let heard = FakeTruth { heard: [addr(FRONTEND)].into(), ..known() };
        assert_eq!(judge(&socket, &heard), None);
        let on_node = FakeTruth { nodes: [addr(FRONTEND).ip()].into(), ..known() };
        assert_eq!(judge(&socket, &on_node), Some(EndReason::BeforeServiceOnMachine));
        assert_eq!(EndReason::BeforeServiceOnMachine.name(), EndReason::BeforeService.name());
    }

    /// A Service whose cluster IP and port are also those of a backend.
    #[test]
    fn a_frontend_that_is_a_backend_too() {
        let mut truth = known();
        truth.serving.insert((7, addr(FRONTEND)));
        let socket = found(Protocol::Udp, FRONTEND, Some(FRONTEND));
        assert_eq!(judge(&socket, &truth), None);
        // It was connected there before the Service, which would lead it to the same place.
        truth.serving.insert((0, addr(FRONTEND)));
        assert_eq!(judge(&found(Protocol::Udp, FRONTEND, None), &truth), None);
        truth.serving = [(0, addr(BACKEND))].into();
        let socket = found(Protocol::Udp, FRONTEND, None);
        assert_eq!(judge(&socket, &truth), Some(EndReason::BeforeService));
    }

    #[test]
    fn tcp_goes_only_with_its_endpoint() {
        let mut truth = known();
        let socket = found(Protocol::Tcp, BACKEND, Some(BACKEND));
        assert_eq!(judge(&socket, &truth), Some(EndReason::Deleted));
        truth.listed.insert((7, addr(BACKEND)));
        assert_eq!(judge(&socket, &truth), None, "not even if it does not serve");
    }
}
