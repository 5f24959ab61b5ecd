//! Sockets that were ended because they had dialled before their Service: not again at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_common::abi::Peer;

use super::Found;

/// An application that dials again, and finds itself past the programs again, must not be made to do
/// so for ever: for this long it is left alone.
const PATIENCE: Duration = Duration::from_secs(60);

/// By what the application would repeat: the socket's cookie, and the peer.
#[derive(Debug, Default)]
pub(super) struct Healed(BTreeMap<(u64, Peer), Instant>);

impl Healed {
    /// These were ended now.
    pub(super) fn note(&mut self, sockets: &[Found], now: Instant) {
        self.0.extend(sockets.iter().map(|found| ((found.cookie, found.peer), now)));
    }

    /// Whether it is worth judging. Sockets that were translated always are; and that the application
    /// gets past the programs again is then not to be expected.
    pub(super) fn is_fresh(&mut self, found: &Found) -> bool {
        if found.translated().is_some() {
            self.0.retain(|(cookie, _), _| *cookie != found.cookie);
            return true;
        }
        !self.0.contains_key(&(found.cookie, found.peer))
    }

    /// Forgets what was long ago.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, at| now.duration_since(*at) < PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytemuck::Zeroable as _;
    use lb_common::abi::Translation;

    use super::*;
    use lb_core::model::Protocol;

    #[test]
    fn the_same_socket_with_the_same_peer_waits() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let found = Found::sample(Protocol::Udp, addr("10.96.0.10:53"));
        let start = Instant::now();
        let mut healed = Healed::default();
        assert!(healed.is_fresh(&found));
        healed.note(std::slice::from_ref(&found), start);
        assert!(!healed.is_fresh(&found));
        let elsewhere = Found { peer: addr("10.96.0.11:53").into(), ..found.clone() };
        assert!(healed.is_fresh(&elsewhere));
        let another = Found { cookie: 2, ..found.clone() };
        assert!(healed.is_fresh(&another));
        let translation = Translation { backend: found.peer, ..Translation::zeroed() };
        let translated = Found { translation: Some(translation), ..found.clone() };
        assert!(healed.is_fresh(&translated));
        // It went through its Service since, and then found that without endpoints.
        assert!(healed.is_fresh(&found));
        healed.note(std::slice::from_ref(&found), start);

        healed.expire(start + PATIENCE / 2);
        assert!(!healed.is_fresh(&found));
        healed.expire(start + PATIENCE);
        assert!(healed.is_fresh(&found));
    }
}
