//! Where the demo is: its namespace, and what may differ from cluster to cluster.

use crate::image::pods::AGNHOST;

/// What may differ from place to place.
#[derive(clap::Args)]
pub(crate) struct Choices {
    /// The image of backends and client: agnhost.
    #[arg(long, value_name = "IMAGE", default_value = AGNHOST)]
    pub(super) agnhost: String,
    /// The namespace in which socklb was installed.
    #[arg(long, value_name = "NAME", default_value = AGENTS)]
    pub(super) agents: String,
}

impl Default for Choices {
    fn default() -> Self {
        Self { agnhost: AGNHOST.to_owned(), agents: AGENTS.to_owned() }
    }
}

const AGENTS: &str = "kube-system";
pub(super) const NAMESPACE: &str = "socklb-demo";

/// In the namespace of the demo.
pub(super) fn within<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["-n", NAMESPACE], words].concat()
}
