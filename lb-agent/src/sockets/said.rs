//! What is told of looking for sockets and of ending them: each trouble when it appears.

use super::{Destroyed, EndReason, Found, Sight};

/// What has been said already: each trouble is told when it appears.
#[derive(Debug, Default)]
pub(super) struct Said {
    refused: bool,
    hidden: bool,
    failed: bool,
}

impl Said {
    pub(super) fn sight(&mut self, sight: &Sight) {
        if let Some(error) = &sight.error
            && !self.refused
        {
            tracing::warn!(
                %error,
                "cannot look into {} of {} network namespaces (CAP_SYS_ADMIN is needed to enter \
                 them): connected UDP sockets there stay with backends that are gone",
                sight.refused,
                sight.refused + sight.namespaces,
            );
        }
        self.refused = sight.error.is_some();
        if sight.hidden > 0 && !self.hidden {
            tracing::info!(
                "the network namespaces of {} processes are not shown (CAP_SYS_PTRACE); those that \
                 are mounted below /run/netns are known all the same",
                sight.hidden
            );
        }
        self.hidden |= sight.hidden > 0;
    }

    pub(super) fn outcome(&mut self, reason: EndReason, sockets: &[Found], outcome: &Destroyed) {
        let reason = reason.name();
        for Found { netns, protocol, local, peer, translation, .. } in sockets {
            let frontend = translation.map(|translation| translation.frontend.to_string());
            tracing::debug!(reason, netns, %protocol, %local, %peer, frontend, "to be ended");
        }
        if let Some(error) = &outcome.error
            && !self.failed
        {
            tracing::error!(reason, %error, "cannot end {} connected sockets", outcome.failed);
        }
        self.failed = outcome.error.is_some();
    }
}
